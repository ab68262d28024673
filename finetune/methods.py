"""What each method trains: which network it starts from, for how long, and how a ticket is searched for.

| method | network | training |
|---|---|---|
| dense | full | `epochs` at `learning_rate` |
| shortened | full | the same for as many updates as `earlybert` costs in arithmetic |
| earlybert | ticket from the search | `ticket_epochs` at `ticket_learning_rate` |
| random | ticket chosen by chance, one for each seed | as earlybert, no search |
| all | ticket that cuts nothing | as earlybert, no search: what the schedule alone does |
| layerdrop | every third layer left out | as dense |
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import DataCollatorForTokenClassification

from earlybert.core.distributed import on_rank_0
from earlybert.finetune.config import Method, TaskSettings
from earlybert.finetune.cost import Cost
from earlybert.finetune.model import MASKED_TOKENS, TaskModel, TrainedForMaskedTokens
from earlybert.finetune.network import TrainedConfig
from earlybert.finetune.pretrained import require_full, starting_weights
from earlybert.finetune.recording import Recorder
from earlybert.finetune.text import Features, Masker, collator, masker
from earlybert.finetune.training import Collate, Diverged, TrainerRun, draw_step, make_trainer, train
from earlybert.pretrain.checkpoint.pretrained import Pretrained
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.depth import at_depth
from earlybert.pretrain.network.parameters import split_name
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.network.work import flops_per_sequence
from earlybert.pretrain.ticket.drawing import NotFinite, all_ticket, random_ticket
from earlybert.pretrain.ticket.rankings import make_ranking
from earlybert.pretrain.ticket.search import DrawConfig, draw_from_snapshot
from earlybert.pretrain.ticket.ticket import Ticket, full_shape, narrow_config

TICKET_METHODS = ("earlybert", "random", "all")


def layers_to_drop(layers: int) -> list[int]:
    """A third of the layers, rounded half up: numbers 0, 3, 6, ... (the "every other" rule of Fan et al. 2020).

    They are left out before training and stay out; LayerDrop's random dropping while training is not part of it.
    """
    return [3 * index for index in range((2 * layers + 3) // 6)]


def drop_layers(
    config: NetworkConfig, weights: Mapping[str, Tensor], dropped: list[int]
) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The network without these layers; the others keep their order."""
    kept = [layer for layer in range(config.num_hidden_layers) if layer not in dropped]
    result = {}
    for name, tensor in weights.items():
        layer, row = split_name(name)
        if layer < 0:
            result[name] = tensor
        elif layer in kept:
            result[f"layers.{kept.index(layer)}.{row}"] = tensor
    return at_depth(config, len(kept)), result


def step_cost(config: NetworkConfig, length: int) -> float:
    """Arithmetic of training on one sequence, without embeddings and task head."""
    return flops_per_sequence(dataclasses.replace(config, losses=()), length, predictions=0)


def cut(
    method: Method, config: NetworkConfig, weights: Mapping[str, Tensor], ticket: Ticket | None
) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The network that the method trains, out of the full one."""
    if ticket:
        return narrow_config(config, ticket), narrow_weights(config, weights, ticket)
    if method == "layerdrop":
        return drop_layers(config, weights, layers_to_drop(config.num_hidden_layers))
    return config, dict(weights)


def size(config: NetworkConfig, full: NetworkConfig, length: int) -> dict[str, Any]:
    """How large a network is, and its arithmetic relative to the full one's."""
    return {
        "layers": config.num_hidden_layers,
        "heads": config.heads,
        "neurons": config.neurons,
        "relative_flops": step_cost(config, length) / step_cost(full, length),
    }


def shortened_epochs(config: NetworkConfig, settings: TaskSettings) -> float:
    """Epochs of dense training that cost as much arithmetic as the search and the narrow network's training.

    The cost depends on how many units are cut, not on which, so any ticket of the rule gives it.
    """
    narrow = narrow_config(config, random_ticket(full_shape(config), settings.draw, seed=0))
    ratio = step_cost(narrow, settings.max_length) / step_cost(config, settings.max_length)
    return settings.search_epochs + settings.ticket_epochs * ratio


def schedule(method: Method, settings: TaskSettings, config: NetworkConfig) -> tuple[float, float]:
    """Epochs and peak learning rate; `config` is the full network's."""
    if method in TICKET_METHODS:
        return settings.ticket_epochs, settings.ticket_learning_rate
    if method == "shortened":
        return shortened_epochs(config, settings), settings.learning_rate
    return settings.epochs, settings.learning_rate


def given_ticket(method: Method, settings: TaskSettings, config: NetworkConfig, seed: int) -> Ticket | None:
    """The ticket of a method that needs no search for it; raises UserError for one of another model."""
    shape = full_shape(config)
    if method == "random":
        return random_ticket(shape, settings.draw, seed)
    if method == "all":
        return all_ticket(shape)
    if method == "earlybert" and settings.ticket:
        ticket = Ticket.load(Path(settings.ticket))
        ticket.require_model(shape, settings.ticket)
        return ticket
    return None


def require_usable(method: Method, settings: TaskSettings, pretrained: Pretrained) -> None:
    """Raises UserError where this network, the rule or the given ticket cannot serve the method."""
    if method == "dense":
        return
    require_full(pretrained, method)
    settings.draw.check(pretrained.config.intermediate_size)
    given_ticket(method, settings, pretrained.config, seed=0)


def search(
    pretrained: Pretrained,
    config: TrainedConfig,
    model_class: TaskModel,
    rows: list[Features],
    settings: TaskSettings,
    folder: Path,
    seed: int,
) -> tuple[Ticket, Cost]:
    """Trains the full network with coefficients up to the draw step and draws (EarlyBERT sections 3.2, 4.2).

    The learning rate follows the curve of the whole dense run. The step is the number of updates made. Raises Diverged
    where units cannot be ranked by what it recorded.
    """
    network = dataclasses.replace(config.network, searching=True)
    searched: TaskModel | type[TrainedForMaskedTokens] = model_class
    collate: Collate = collator(pretrained.tokenizer, rows)
    masking: Masker | None = None
    if settings.search_objective == "mlm":
        searched, network = TrainedForMaskedTokens, dataclasses.replace(network, losses=(MASKED_TOKENS.name,))
        collate = DataCollatorForTokenClassification(pretrained.tokenizer)
        masking = masker(pretrained.tokenizer, seed)

    config = config.with_network(network)
    model = searched(config)
    model.load_state_dict(starting_weights(searched, config, pretrained.weights, seed))
    step = draw_step(len(rows), settings)
    run = TrainerRun("search", folder, settings.epochs, settings.learning_rate, seed, stop_after=step)
    ranking = make_ranking(settings.ranking, settings.lambda_heads, settings.lambda_neurons)
    recorder = Recorder(folder / "search", settings.draw, step, ranking)
    try:
        cost = train(make_trainer(model, rows, collate, settings, run, recorder, masking))
    except NotFinite:
        raise Diverged(run.learning_rate, "what its search ranks units by") from None

    def drawn() -> dict[str, Any]:
        how = DrawConfig(**dataclasses.asdict(settings.draw), ranking=settings.ranking)
        ticket = draw_from_snapshot(folder / "search", step, full_shape(network), how, seed, stage="finetune")
        return ticket.content() | {"sha256": ticket.sha256}

    # Every rank cuts by the same ticket; its hash is verified on the way in.
    return Ticket.from_content(on_rank_0(drawn), "the ticket drawn by rank 0"), cost
