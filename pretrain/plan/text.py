"""A plan as text, for TensorBoard, reports and the console."""

from earlybert.core.text import markdown_table
from earlybert.pretrain.network.work import count_parameters
from earlybert.pretrain.plan.plan import Plan


def plan_markdown(plan: Plan) -> str:
    """The stages, one a row, and how the plan's arithmetic compares with dense training's."""
    header = (
        *("stage", "begins", "steps", "batch", "length", "peak learning rate", "tokens"),
        *("layers", "heads", "neurons", "parameters", "FLOPs"),
    )
    rows = [
        (
            stage.name,
            stage.begin.word,
            f"{stage.steps:,}",
            f"{stage.global_batch:,}",
            str(stage.length),
            f"{stage.schedule.peak:g}",
            f"{planned.tokens:,}",
            str(planned.network.num_hidden_layers),
            f"{sum(planned.network.heads):,}",
            f"{sum(planned.network.neurons):,}",
            f"{planned.parameters:,}",
            f"{planned.flops:.3g}",
        )
        for planned in plan.stages
        for stage in [planned.stage]
    ]
    return f"{markdown_table(header, rows)}\n{compared_with_dense(plan)}\n"


def compared_with_dense(plan: Plan) -> str:
    """The plan's arithmetic beside that of training the full network for as long; a plan may end with the search."""
    cost = f"This plan takes {plan.flops:.3g} FLOPs"
    if not plan.dense:
        return f"{cost}."
    dense = f"dense training ({count_parameters(plan.full):,} parameters) {plan.dense_flops:.3g}"
    return f"{cost}, {dense}: {plan.flops / plan.dense_flops:.1%} of that."
