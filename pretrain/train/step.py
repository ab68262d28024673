"""One optimizer step over the global batch, and the same without an update: validation."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from earlybert.core import distributed, ranks
from earlybert.core.randomness import derived_seed
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig, dense_config
from earlybert.pretrain.network.depth import at_depth
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.network.model import NetworkOutput
from earlybert.pretrain.network.work import Work, training_flops
from earlybert.pretrain.plan.recipe import Recipe, SearchConfig
from earlybert.pretrain.plan.stages import Stage
from earlybert.pretrain.train.batches import StepBatches
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.feeding import on_device
from earlybert.pretrain.train.objective import mean_scores, penalty, score_sums, step_share


class Trainable(Protocol):
    """What a step needs of an engine."""

    config: NetworkConfig
    device: torch.device

    def forward(self, batch: Batch) -> NetworkOutput: ...

    def backward_and_step(self, loss: Tensor) -> None:
        """Takes the mean gradient over the step's micro-batches on all ranks; the last one updates the weights."""


def forward_and_backward(
    engine: Trainable, batches: Iterable[Batch], work: Work, seeds: Sequence[int], search: SearchConfig | None = None
) -> tuple[Tensor, Tensor]:
    """All micro-batches of one rank's step, and the update. The device is not waited for.

    Args:
        engine: What is trained, in training mode.
        batches: The micro-batches; every rank has as many, one for each seed.
        work: That of the global batch, whose counts divide the losses.
        seeds: Of the dropout of each micro-batch.
        search: Strengths of the L1 term, in a search.

    Returns:
        This rank's sums of the scores (`score_sums`), and the L1 term, which is 0 without a search.
    """
    # The engine averages over micro-batches and ranks, where sums over the global batch are wanted.
    shares = len(seeds) * ranks.world_size()
    parts = loss_parts(engine.config.losses)
    sums = torch.zeros(2 * len(parts), dtype=torch.float64, device=engine.device)
    l1 = torch.zeros((), device=engine.device)
    for batch, seed in zip(on_device(batches, engine.device), seeds, strict=True):
        torch.manual_seed(seed)
        output = engine.forward(batch)
        loss = step_share(output, parts, work, batch.weight) * shares
        if search is not None:
            # Averaged over all shares, so that the whole step adds it exactly once.
            l1_term = penalty(output, search.lambda_heads, search.lambda_neurons)
            loss, l1 = loss + l1_term, l1_term.detach()
        engine.backward_and_step(loss)
        sums += score_sums(output, parts, batch.weight)
    return sums, l1


def global_work(work: Work, device: torch.device) -> Work:
    """The sum of all ranks' work, on every rank; `device` is where they communicate."""
    return Work(*distributed.sum_over_ranks(torch.tensor(list(vars(work).values()), device=device)).tolist())


def compute_step(
    engine: StageEngine, batches: StepBatches, stage: Stage, recipe: Recipe
) -> tuple[Tensor, Tensor, Work]:
    """Forward and backward passes of a stage's step, and the update; all ranks must call it.

    Returns the sums of the scores over all ranks, the L1 term, and the work of the global batch.
    """
    work = global_work(batches.work, engine.device)
    key = recipe.seed, "dropout", stage.name, batches.position, ranks.rank()
    seeds = [derived_seed(*key, turn) for turn in range(batches.micro_batches)]
    engine.engine.train()
    search = recipe.search if stage.searching else None
    sums, l1 = forward_and_backward(engine, engine.times.waiting_for_data(batches.batches), work, seeds, search)
    return distributed.sum_over_ranks(sums), l1, work


def train_step(engine: StageEngine, batches: StepBatches, stage: Stage, recipe: Recipe, step: int) -> dict[str, Any]:
    """Step 0, 1, ... of a stage; returns what is logged of it.

    Utilisation is the share of the ranks' peak that the work on real tokens makes use of; the dense-equivalent one
    counts what the full network would have had to do for the same batch. Like `seconds` and `tokens_per_second` they
    leave out what the step waits for its data, before it and in it.
    """
    data_seconds = engine.times.newly_waited_for_data()
    began = time.perf_counter()
    learning_rate = stage.schedule.learning_rate_at(step)
    engine.set_learning_rate(learning_rate)
    sums, l1, work = compute_step(engine, batches, stage, recipe)
    metrics = mean_scores(sums, loss_parts(engine.config.losses), work)
    waited = engine.times.newly_waited_for_data()
    seconds = time.perf_counter() - began - waited
    peak = engine.peak_flops * ranks.world_size()
    dense = at_depth(dense_config(engine.config), recipe.model.num_layers)
    return {
        "stage": stage.name,
        "step": step + 1,
        "micro_batch": engine.micro_batch,
        **metrics,
        "l1": float(l1),
        "learning_rate": learning_rate,
        "gradient_norm": engine.gradient_norm(),
        "loss_scale": engine.loss_scale(),
        "tokens_per_second": work.tokens / seconds,
        "utilisation": training_flops(engine.config, work) / seconds / peak,
        "dense_equivalent_utilisation": training_flops(dense, work) / seconds / peak,
        "seconds": seconds,
        "data_seconds": data_seconds + waited,
    }


@torch.no_grad()
def validate(engine: StageEngine, batches: StepBatches) -> dict[str, float]:
    """Loss and accuracy on the held-out samples; all ranks must call it."""
    engine.engine.eval()
    parts = loss_parts(engine.config.losses)
    sums = torch.zeros(2 * len(parts), dtype=torch.float64, device=engine.device)
    for batch in on_device(batches.batches, engine.device):
        sums += score_sums(engine.forward(batch), parts, batch.weight)
    return mean_scores(distributed.sum_over_ranks(sums), parts, global_work(batches.work, engine.device))
