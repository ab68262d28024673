"""How many sequences a rank computes at once where recipe and DeepSpeed file leave that open (`micro_batch: auto`).

It decides about memory and speed alone: losses are sums over the global batch, however that is divided.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from deepspeed.runtime.base_optimizer import ZeROOptimizer

from earlybert.core import distributed, ranks
from earlybert.core.errors import UserError
from earlybert.core.progress import say
from earlybert.pretrain.checkpoint.state import RunState
from earlybert.pretrain.cost.cluster import Shape, even_micro_batch, largest_micro_batch
from earlybert.pretrain.cost.hardware import device_name, free_memory
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import Stage
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import DTYPES, StageEngine, resolve_precision, work_layout
from earlybert.pretrain.train.objective import penalty, step_share

# Enough for matrix products that keep a core busy; more only takes memory, and leaves the cache.
CPU_TOKENS = 4096


def build_engine(
    config: NetworkConfig,
    start: TrainingState,
    stage: Stage,
    recipe: Recipe,
    file: DeepSpeedFile,
    device: torch.device,
    state: RunState,
) -> StageEngine:
    """The stage's engine; all ranks call it. Raises UserError where the memory does not suffice.

    With `micro_batch: auto` it takes as many sequences as the memory model allows, on all ranks the same. A made-up
    micro-batch of the longest sequences then goes forward and backward. Where memory runs out on any rank, the
    micro-batch is halved and the engine built anew. What it came to is noted in `state`, and taken again where the
    stage goes on in the same layout: free memory differs from time to time, and dropout with the micro-batch.
    """
    settled = file.settled_micro_batch(stage.global_batch, stage.micro_batch, ranks.world_size())
    shape = Shape.of(config, stage, muon=file.optimizer == "Muon")
    layout = work_layout(recipe, file, device)
    known = state.auto_micro_batch.get("sequences") if state.auto_micro_batch.get("layout") == layout else None
    # Rank 0's is for all, as another rank may have another device.
    micro_batch = (
        settled
        or distributed.broadcast_object(known)
        or modelled_micro_batch(shape, resolve_precision(recipe, file, device), device)
    )
    while True:
        with out_of_memory_named(stage, micro_batch, device):
            engine = StageEngine(config, start, replace(stage, micro_batch=micro_batch), recipe, file, device)
        state.auto_micro_batch = {} if settled else {"sequences": micro_batch, "layout": layout}
        # ZeRO-2 and -3 communicate inside the passes, where a rank without memory would leave the others waiting.
        if settled is not None or file.zero_stage > 1 or fits(engine, stage, recipe):
            return engine
        engine.destroy()
        if micro_batch == 1:
            raise UserError(
                f"{stage.name}: one sequence of {stage.length} tokens does not fit into the memory of "
                f"{device_name(device)}; use a device with more memory, more ranks, or a smaller network"
            )
        halved = -(-micro_batch // 2)
        say(
            f"{stage.name}: a micro-batch of {micro_batch} does not fit into the memory of every rank; trying {halved}",
            enabled=ranks.rank() == 0,
        )
        micro_batch = halved


def modelled_micro_batch(shape: Shape, precision: str, device: torch.device) -> int:
    """What the memory model says that every rank has memory for, at least 1, in equal parts of its share."""
    on_cpu = device.type == "cpu"
    largest = largest_micro_batch(
        shape,
        free_memory(device),
        ranks.world_size(),
        DTYPES[precision].itemsize,
        keeps_scores=on_cpu,
    )
    if on_cpu:
        largest = min(largest, CPU_TOKENS // shape.length)
    return even_micro_batch(shape.global_batch, ranks.world_size(), max(1, min(distributed.gather_objects(largest))))


def fits(engine: StageEngine, stage: Stage, recipe: Recipe) -> bool:
    """Whether every rank has memory for the passes of a full micro-batch. They leave nothing behind."""
    batch = Batch.full(engine.micro_batch, stage.length, stage.max_predictions, engine.config.vocab_size)
    model, wrapper, search = engine.engine.module.train(), engine.engine.optimizer, recipe.search
    if isinstance(wrapper, ZeROOptimizer):
        wrapper.set_gradient_accumulation_boundary(False)  # where it might begin to communicate
    short = False
    try:
        # The second time there are sums of gradients in memory, too.
        for _ in range(min(2, engine.engine.gradient_accumulation_steps())):
            # Not through DeepSpeed's engine, which would count it as a part of a step.
            output = model(batch.to(engine.device))
            loss = step_share(output, loss_parts(engine.config.losses), Work.of(batch), batch.weight)
            if stage.searching:
                loss = loss + penalty(output, search.lambda_heads, search.lambda_neurons)
            loss.backward()
            if isinstance(wrapper, ZeROOptimizer):
                wrapper.backward_epilogue()
    except torch.OutOfMemoryError:
        short = True
    wrapper.zero_grad()
    (anywhere,) = distributed.on_any_rank(short)
    return not anywhere


@contextlib.contextmanager
def out_of_memory_named(stage: Stage, micro_batch: int, device: torch.device) -> Iterator[None]:
    """Ends a run whose memory does not suffice with one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"{stage.name}: {device_name(device)} ran out of memory with a micro-batch of {micro_batch}; set "
            f"{stage.phase}.micro_batch to a smaller number, then run the same command again to resume"
        ) from None
