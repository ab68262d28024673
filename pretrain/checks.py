"""Whether a recipe's values can work together, said in one sentence where they cannot."""

from earlybert.data_prep.config import MINIMUM_LENGTH
from earlybert.pretrain.config import Recipe
from earlybert.pretrain.errors import UserError


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
    for name in dict.fromkeys("phase1" if name == "search" else name for name in recipe.plan if name != "narrow"):
        _check_phase(recipe, name, world_size)
    if {"search", "narrow"} & set(recipe.plan):
        recipe.draw.check(model.intermediate_size)
    if "search" in recipe.plan:
        _check_search(recipe)
    factor = recipe.narrow.step_factor
    _require(0 < factor <= 1, "narrow.step_factor", factor, "above 0 and at most 1")
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


def _check_plan(recipe: Recipe) -> None:
    plan = list(recipe.plan)
    order = ["search", "narrow", "phase1", "phase2"]
    if not plan or plan != [name for name in order if name in plan]:
        raise UserError(f"plan is {plan}; it must be some of {order}, each once and in this order")
    if recipe.ticket and "narrow" not in plan:
        raise UserError(f"ticket is {recipe.ticket!r}, but plan is {plan}; a ticket needs narrow in the plan")
    if "narrow" in plan and "search" not in plan and not recipe.ticket:
        raise UserError(f"plan is {plan}; narrow needs search before it or a ticket file (--ticket)")
    if "narrow" in plan and not {"phase1", "phase2"} & set(plan):
        raise UserError(f"plan is {plan}; narrow needs phase1 or phase2 after it")
    if "search" in plan and "narrow" not in plan and len(plan) > 1:
        raise UserError(f"plan is {plan}; after search only narrow can follow")
    if recipe.ticket and recipe.narrow.rewind == "searched":
        raise UserError('narrow.rewind is "searched", but with a ticket file nothing is searched; it must be "initial"')


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
