"""A plan as text, for TensorBoard, reports and the console."""

from pathlib import Path

from earlybert.core.text import markdown_table
from earlybert.pretrain.network.work import count_parameters
from earlybert.pretrain.plan.plan import Plan
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import predictions

COLUMNS = (
    *("stage", "begins", "steps", "batch", "length", "peak rate", "tokens"),
    *("layers", "heads", "neurons", "parameters", "FLOPs"),
)


def plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The stages, one a row, in these columns."""
    return [
        (
            stage.name,
            stage.begin.word,
            f"{stage.steps:,}" + (f" of {stage.schedule.total:,}" if stage.steps != stage.schedule.total else ""),
            f"{stage.global_batch:,}",
            str(stage.length),
            f"{stage.schedule.peak:g}",
            f"{planned.tokens / 1e6:,.1f} M",
            str(planned.network.num_hidden_layers),
            f"{sum(planned.network.heads):,}",
            f"{sum(planned.network.neurons):,}",
            f"{planned.parameters:,}",
            f"{planned.flops:.3g}",
        )
        for planned in plan.stages
        for stage in [planned.stage]
    ]


def plan_markdown(plan: Plan) -> str:
    """The stages, and how the plan's arithmetic compares with dense training's."""
    notes = "".join(f"\n{note}\n" for note in (compared_with_dense(plan), *notes_on(plan)))
    return f"{markdown_table(COLUMNS, plan_rows(plan))}{notes}"


def notes_on(plan: Plan) -> list[str]:
    """What else to know: the weights that it begins with, where they are not fresh, and of its masks."""
    initial, notes = plan.recipe.initial, mask_notes(plan)
    if initial:
        begun = published_initial(plan.recipe) or f"the folder {Path(initial).name}"
        notes.insert(0, f"It begins with the weights of {begun}.")
    return notes


def published_initial(recipe: Recipe) -> str | None:
    """The model of the hub that it begins with. The path of one on this disk is absolute, and no reader elsewhere's."""
    return None if recipe.initial is None or Path(recipe.initial).is_absolute() else recipe.initial


def mask_notes(plan: Plan) -> list[str]:
    """What to know of shares of masked tokens that change, and of those that `max_predictions` does not let be."""
    notes = []
    first, last = plan.recipe.mask_shares
    if first != last:
        own = plan.recipe.validation.mask_probability
        notes.append(f"Masked tokens: {first:.0%} in the first step, {last:.0%} in the last one; validation {own:.0%}.")
    for name, stage in {planned.stage.phase: planned.stage for planned in plan.stages}.items():
        wanted = predictions(max(first, last), stage.length)
        if stage.max_predictions < wanted:
            notes.append(
                f"{name}.max_predictions is {stage.max_predictions}, so a sequence of {stage.length} tokens has "
                f"at most so many masked ones; mask_probability asks for {wanted}."
            )
    return notes


def compared_with_dense(plan: Plan) -> str:
    """The plan's arithmetic beside that of training the full network for as long; a plan may end with the search."""
    cost = f"This plan takes {plan.flops:.3g} FLOPs"
    if not plan.dense:
        return f"{cost}."
    dense = f"dense training ({count_parameters(plan.full):,} parameters) {plan.dense_flops:.3g}"
    return f"{cost}, {dense}: {plan.flops / plan.dense_flops:.1%} of that."
