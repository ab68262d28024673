"""Whether a recipe's values can work together, said in one sentence where they cannot."""

from itertools import pairwise

from earlybert.core.errors import UserError
from earlybert.data_prep.config import MINIMUM_LENGTH
from earlybert.pretrain.plan.recipe import BORDERS, Recipe
from earlybert.pretrain.plan.stages import build_stages


def check_recipe(recipe: Recipe, world_size: int = 1) -> None:
    """Raises UserError for values that cannot work together."""
    _check_plan(recipe)
    model = recipe.model
    for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size"):
        _require(getattr(model, name) >= 1, f"model.{name}", getattr(model, name), "at least 1")
    if model.hidden_size % model.num_heads:
        raise UserError(f"model.num_heads is {model.num_heads}; it must divide model.hidden_size, {model.hidden_size}")
    for name in ("hidden_dropout", "attention_dropout"):
        _require(0 <= getattr(model, name) < 1, f"model.{name}", getattr(model, name), "at least 0 and below 1")
    _require(model.initializer_range > 0, "model.initializer_range", model.initializer_range, "above 0")
    for name in dict.fromkeys("phase1" if name == "search" else name for name in recipe.plan if name not in BORDERS):
        _check_phase(recipe, name, world_size)
    if {"search", "narrow"} & set(recipe.plan):
        recipe.draw.check(model.intermediate_size)
    factor = recipe.narrow.step_factor
    _require(0 < factor <= 1, "narrow.step_factor", factor, "above 0 and at most 1")
    if "search" in recipe.plan:
        _check_search(recipe)
    if "stack" in recipe.plan:
        _check_stack(recipe)
    _require(0 < recipe.mask_probability < 1, "mask_probability", recipe.mask_probability, "between 0 and 1")
    for name in ("checkpoint_every", "keep_checkpoints", "log_every", "max_skipped_updates"):
        _require(getattr(recipe, name) >= 1, name, getattr(recipe, name), "at least 1")
    for name in ("every", "samples"):
        _require(
            getattr(recipe.validation, name) >= 1, f"validation.{name}", getattr(recipe.validation, name), "at least 1"
        )
    _require(recipe.loader_workers >= 0, "loader_workers", recipe.loader_workers, "at least 0")
    optimizer = recipe.optimizer
    _require(
        len(optimizer.betas) == 2 and all(0 <= beta < 1 for beta in optimizer.betas),
        "optimizer.betas",
        optimizer.betas,
        "two numbers, each at least 0 and below 1",
    )
    _require(optimizer.eps > 0, "optimizer.eps", optimizer.eps, "above 0")
    for name in ("weight_decay", "max_grad_norm"):
        _require(getattr(optimizer, name) >= 0, f"optimizer.{name}", getattr(optimizer, name), "at least 0")


def _check_search(recipe: Recipe) -> None:
    search = recipe.search
    _require(search.steps >= 1, "search.steps", search.steps, "at least 1")
    _require(
        search.steps <= recipe.phase1.steps,
        "search.steps",
        search.steps,
        f"at most phase1.steps, {recipe.phase1.steps}",
    )
    _require(search.snapshot_every >= 1, "search.snapshot_every", search.snapshot_every, "at least 1")
    _require(search.stop_window >= 0, "search.stop_window", search.stop_window, "at least 0")
    _require(0 <= search.stop_threshold <= 1, "search.stop_threshold", search.stop_threshold, "from 0 to 1")
    for name in ("lambda_heads", "lambda_neurons"):
        _require(getattr(search, name) >= 0, f"search.{name}", getattr(search, name), "at least 0")


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}; it must be {expected}")


# After each word of a plan: what may follow it ("" is the end), and why nothing else.
FOLLOWS = {
    "": (("search", "narrow", "phase1", "phase2"), "a plan begins with training"),
    "search": (("narrow", ""), "the search is there to draw a ticket"),
    "narrow": (("phase1", "phase2"), "a narrow network is there to be trained"),
    "stack": (("phase1", "search"), "a deeper network is there to be trained or searched"),
    "phase1": (("stack", "phase2", ""), "phase 1 goes on until the network is stacked"),
    "phase2": (("",), "phase 2 is the last stage"),
}


def _check_plan(recipe: Recipe) -> None:
    plan = list(recipe.plan)
    if not plan:
        raise UserError("plan is []; it must name at least one stage, search, phase1 or phase2")
    if "narrow" in plan and "search" not in plan and not (recipe.ticket and plan[0] == "narrow"):
        raise UserError(
            f"plan is {plan}; narrow needs search before it, or to come first with a ticket file (--ticket)"
        )
    for before, after in pairwise(["", *plan, ""]):
        allowed, reason = FOLLOWS[before]
        if after not in allowed:
            names = " or ".join(name or "nothing" for name in allowed)
            place = f"after {before}" if before else "at its beginning"
            raise UserError(f"plan is {plan}; {reason}, so {place} must come {names}, not {after or 'nothing'}")
    for name in ("search", "narrow"):
        if plan.count(name) > 1:
            raise UserError(f"plan is {plan}; {name} stands there twice, but a run draws one ticket and cuts once")
    if recipe.ticket and "narrow" not in plan:
        raise UserError(f"ticket is {recipe.ticket!r}, but plan is {plan}; a ticket needs narrow in the plan")
    if recipe.ticket and recipe.narrow.rewind == "searched":
        raise UserError('narrow.rewind is "searched", but with a ticket file nothing is searched; it must be "initial"')
    if "stack" in plan and "narrow" in plan[plan.index("stack") :] and recipe.narrow.rewind == "initial":
        raise UserError(
            f'narrow.rewind is "initial", but plan is {plan}; that would throw away what was trained before '
            'the search, so it must be "searched"'
        )


def _check_stack(recipe: Recipe) -> None:
    stack, stacks = recipe.stack, recipe.plan.count("stack")
    for name in ("layers", "until"):
        found = getattr(stack, name)
        _require(len(found) == stacks, f"stack.{name}", found, f"one number for each stack of the plan, {stacks}")
    for before, after in pairwise([*stack.layers, recipe.model.num_layers]):
        if not 1 <= before < after or after % before:
            raise UserError(
                f"stack.layers is {stack.layers}; each must be a proper divisor of the next one, the last of "
                f"model.num_layers, {recipe.model.num_layers}"
            )
    ascending = all(before < after for before, after in pairwise([0.0, *stack.until, 1.0]))
    _require(ascending, "stack.until", stack.until, "ascending, between 0 and 1")
    rates = stack.learning_rates
    if rates:
        _require(len(rates) == stacks + 1, "stack.learning_rates", rates, f"one number a part of phase 1, {stacks + 1}")
        _require(min(rates) >= 0, "stack.learning_rates", rates, "at least 0 each")
    stages = build_stages(recipe)
    for stage in stages:
        if stage.steps < 1:
            raise UserError(
                f"stack.until is {stack.until}, which leaves {stage.name} {stage.steps} of {stage.schedule_steps} "
                "steps; it must leave every part of phase 1 at least one, after the search where it has one"
            )
        if stage.knots and stage.knots[1][0] >= stage.knots[2][0]:
            raise UserError(
                f"phase1.warmup is {recipe.phase1.warmup:g}, {stage.knots[1][0]:g} steps; with stack.learning_rates it "
                f"must end before the first stack, at step {stage.knots[2][0]:g}"
            )
        if stage.searching and stage.begin == "stack" and recipe.search.stop_window:
            raise UserError(
                f"search.stop_window is {recipe.search.stop_window}; it must be 0 after a stack, where the search's "
                "steps are steps of phase 1 and the rest of it begins where they end"
            )
    if "phase2" in recipe.plan and stages[-2].searching:
        raise UserError(f"plan is {recipe.plan}; phase 1 would end half-way, so after narrow must come phase1")


def _check_phase(recipe: Recipe, name: str, world_size: int) -> None:
    phase, table = recipe.phase(name), recipe.model.max_position_embeddings
    _require(
        MINIMUM_LENGTH <= phase.length <= table,
        f"{name}.length",
        phase.length,
        f"at least {MINIMUM_LENGTH} and at most model.max_position_embeddings, {table}",
    )
    for field_name in ("max_predictions", "micro_batch", "steps"):
        _require(getattr(phase, field_name) >= 1, f"{name}.{field_name}", getattr(phase, field_name), "at least 1")
    _require(
        phase.global_batch >= world_size,
        f"{name}.global_batch",
        phase.global_batch,
        f"at least the number of ranks, {world_size}",
    )
    _require(phase.learning_rate > 0, f"{name}.learning_rate", phase.learning_rate, "above 0")
    _require(0 <= phase.warmup < 1, f"{name}.warmup", phase.warmup, "at least 0 and below 1")
