"""Whether a recipe's values can work together, said in one sentence where they cannot."""

from itertools import pairwise

from earlybert.core.errors import UserError, require
from earlybert.data_prep.config import MINIMUM_LENGTH
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.plan.borders.border import Border
from earlybert.pretrain.plan.grammar import STAGE_WORDS, check_words
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import build_stages


def check_recipe(recipe: Recipe, world_size: int = 1) -> None:
    """Raises UserError for values that cannot work together."""
    check_words(recipe.plan, recipe.borders)
    _check_ticket(recipe)
    model = recipe.model
    for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size"):
        require(getattr(model, name) >= 1, f"model.{name}", getattr(model, name), "at least 1")
    if model.hidden_size % model.num_heads:
        raise UserError(f"model.num_heads is {model.num_heads}; it must divide model.hidden_size, {model.hidden_size}")
    for name in ("hidden_dropout", "attention_dropout"):
        require(0 <= getattr(model, name) < 1, f"model.{name}", getattr(model, name), "at least 0 and below 1")
    require(model.type_vocab_size >= 2, "model.type_vocab_size", model.type_vocab_size, "at least 2")
    require(model.layer_norm_eps > 0, "model.layer_norm_eps", model.layer_norm_eps, "above 0")
    require(model.initializer_range > 0, "model.initializer_range", model.initializer_range, "above 0")
    _check_masks(recipe)
    for name in dict.fromkeys(STAGE_WORDS[word].phase for word in recipe.plan if word in STAGE_WORDS):
        _check_phase(recipe, name, world_size)
    if "search" in recipe.plan:
        _check_search(recipe)
    elif recipe.draw.ranking != "coefficient" and not recipe.ticket:
        raise UserError(
            f"draw.ranking is {recipe.draw.ranking!r}, but plan is {recipe.plan}; without a search nothing is ranked, "
            "so leave it out"
        )
    if recipe.initial and recipe.new_positions == "repeated":
        raise UserError(
            f'new_positions is "repeated", but initial is {recipe.initial!r}, whose positions are trained; give '
            "--new_positions initial"
        )
    for border in recipe.plan_borders:
        border.check(recipe)
        _check_cuts(recipe, border)
    _check_stages(recipe)
    loss_parts(recipe.losses)  # raises where a name is not known
    for name in ("checkpoint_every", "keep_checkpoints", "log_every", "max_skipped_updates"):
        require(getattr(recipe, name) >= 1, name, getattr(recipe, name), "at least 1")
    for name in ("every", "samples"):
        require(
            getattr(recipe.validation, name) >= 1, f"validation.{name}", getattr(recipe.validation, name), "at least 1"
        )
    require(recipe.seed >= 0, "seed", recipe.seed, "at least 0")
    require(recipe.loader_workers >= 0, "loader_workers", recipe.loader_workers, "at least 0")
    optimizer = recipe.optimizer
    require(
        len(optimizer.betas) == 2 and all(0 <= beta < 1 for beta in optimizer.betas),
        "optimizer.betas",
        optimizer.betas,
        "two numbers, each at least 0 and below 1",
    )
    require(optimizer.eps > 0, "optimizer.eps", optimizer.eps, "above 0")
    require(0 <= optimizer.momentum < 1, "optimizer.momentum", optimizer.momentum, "at least 0 and below 1")
    rate = optimizer.muon_learning_rate
    require(rate > 0, "optimizer.muon_learning_rate", rate, "above 0")
    for name in ("weight_decay", "muon_weight_decay", "max_grad_norm"):
        require(getattr(optimizer, name) >= 0, f"optimizer.{name}", getattr(optimizer, name), "at least 0")


def _check_masks(recipe: Recipe) -> None:
    share = recipe.mask_probability
    if isinstance(share, dict):
        require(share.keys() == {"from", "to"}, "mask_probability", share, "one number, or {from: 0.3, to: 0.15}")
    for name, value in (
        *(("mask_probability", value) for value in recipe.mask_shares),
        ("validation.mask_probability", recipe.validation.mask_probability),
    ):
        require(0 < value < 1, name, value, "between 0 and 1")


def _check_search(recipe: Recipe) -> None:
    search = recipe.search
    recipe.draw.check(recipe.model.intermediate_size)
    require(search.steps >= 1, "search.steps", search.steps, "at least 1")
    most = recipe.phase("phase1").steps
    require(search.steps <= most, "search.steps", search.steps, f"at most phase1.steps, {most}")
    require(search.snapshot_every >= 1, "search.snapshot_every", search.snapshot_every, "at least 1")
    require(search.stop_window >= 0, "search.stop_window", search.stop_window, "at least 0")
    require(0 <= search.stop_threshold <= 1, "search.stop_threshold", search.stop_threshold, "from 0 to 1")
    require(search.stop_nats >= 0, "search.stop_nats", search.stop_nats, "at least 0")
    if search.stop_nats and not search.stop_window:
        raise UserError(
            f"search.stop_nats is {search.stop_nats}, but search.stop_window is 0, so no agreement of masks stops the "
            "search; give it a window, or leave stop_nats out"
        )
    if search.stop_nats and recipe.losses and "masked" not in recipe.losses:
        raise UserError(
            f"search.stop_nats is {search.stop_nats}, but losses is {recipe.losses}; it is about the loss of masked "
            "tokens, so add masked, or leave stop_nats out"
        )
    for name in ("lambda_heads", "lambda_neurons"):
        require(getattr(search, name) >= 0, f"search.{name}", getattr(search, name), "at least 0")


def _check_ticket(recipe: Recipe) -> None:
    if recipe.ticket and not any(border.needs_ticket for border in recipe.plan_borders):
        words = " or ".join(border.word for border in recipe.borders.values() if border.needs_ticket)
        raise UserError(f"ticket is {recipe.ticket!r}, but plan is {recipe.plan}; a ticket needs {words} in the plan")


def _check_cuts(recipe: Recipe, border: Border) -> None:
    """Whether a border that stands inside phase 1 says where, for each time."""
    shares, times = border.cuts_phase1_at, recipe.plan.count(border.word)
    if shares is not None:
        expected = f"one number for each {border.word} of the plan, {times}"
        require(len(shares) == times, f"{border.word}.until", shares, expected)
        ascending = all(before < after for before, after in pairwise([0.0, *shares, 1.0]))
        require(ascending, f"{border.word}.until", shares, "ascending, between 0 and 1")


def _check_stages(recipe: Recipe) -> None:
    """Whether every stage has steps, and phase 1 ends before phase 2 begins."""
    stages = build_stages(recipe)
    cuts = {border.word: border.cuts_phase1_at for border in recipe.plan_borders if border.cuts_phase1_at}
    for number, stage in enumerate(stages):
        if stage.steps < 1:
            until = " and ".join(f"{word}.until is {shares}" for word, shares in cuts.items())
            raise UserError(
                f"{until}, which leaves {stage.name} {stage.steps} of {stage.schedule.total} steps; it must leave "
                "every part of phase 1 at least one, after the search where it has one"
            )
        if stage.searching and number > 0:
            if recipe.search.stop_window:
                raise UserError(
                    f"search.stop_window is {recipe.search.stop_window}; it must be 0 after a {stage.begin.word}, "
                    "where the search's steps are steps of phase 1 and the rest of it begins where they end"
                )
            if number + 1 < len(stages) and stages[number + 1].phase != stage.phase:
                raise UserError(
                    f"plan is {recipe.plan}; phase 1 would end half-way, so after {stages[number + 1].begin.word} "
                    "must come phase1"
                )


def _check_phase(recipe: Recipe, name: str, world_size: int) -> None:
    phase, table = recipe.phase(name), recipe.model.max_position_embeddings
    require(
        MINIMUM_LENGTH <= phase.length <= table,
        f"{name}.length",
        phase.length,
        f"at least {MINIMUM_LENGTH} and at most model.max_position_embeddings, {table}",
    )
    if phase.max_predictions is not None:
        require(phase.max_predictions >= 1, f"{name}.max_predictions", phase.max_predictions, "at least 1")
    require(phase.steps >= 1, f"{name}.steps", phase.steps, "at least 1")
    micro_batch = phase.micro_batch
    require(micro_batch == "auto" or micro_batch >= 1, f"{name}.micro_batch", micro_batch, 'at least 1, or "auto"')
    require(
        phase.global_batch >= world_size,
        f"{name}.global_batch",
        phase.global_batch,
        f"at least the number of ranks, {world_size}",
    )
    require(phase.learning_rate > 0, f"{name}.learning_rate", phase.learning_rate, "above 0")
    require(0 <= phase.warmup < 1, f"{name}.warmup", phase.warmup, "at least 0 and below 1")
