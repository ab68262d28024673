"""pretrain/run.py with something made to go wrong, or fp16 allowed on a CPU: python patched_run.py PATCH ARGUMENTS."""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

POISONED_POSITION = 4 * 50
"""Where the fifth step of the small recipe begins."""


class Poison:
    """Makes tensors NaN in one micro-batch of the step at POISONED_POSITION, whenever that is computed."""

    def __init__(self, micro_batch: int) -> None:
        from earlybert.pretrain.train import health, step

        self.micro_batch, self.turn, self.active = micro_batch, -1, False
        compute = step.compute_step

        def marked(engine: Any, batches: Any, *arguments: Any) -> Any:
            self.active, self.turn = batches.position == POISONED_POSITION, -1
            return compute(engine, batches, *arguments)

        mock.patch.object(step, "compute_step", marked).start()
        mock.patch.object(health, "compute_step", marked).start()

    def begin_forward(self, *_: Any) -> None:
        self.turn += 1

    def apply(self, tensor: Tensor) -> Tensor:
        return tensor * torch.nan if self.active and self.turn == self.micro_batch else tensor


def on_every_model(prepare: Callable[[nn.Module], object]) -> None:
    """Calls `prepare` with every model that an engine is about to train."""
    from earlybert.pretrain.train import engine

    build = engine.network_with

    def built(*arguments: Any) -> nn.Module:
        model = build(*arguments)
        prepare(model)
        return model

    mock.patch.object(engine, "network_with", built).start()


def poison_activation() -> None:
    poison = Poison(micro_batch=1)

    def prepare(model: nn.Module) -> None:
        model.register_forward_pre_hook(poison.begin_forward)
        module = model.get_submodule("layers.1.feed_forward.intermediate")
        module.register_forward_hook(lambda module, inputs, output: poison.apply(output))

    on_every_model(prepare)


def poison_gradient() -> None:
    poison = Poison(micro_batch=2)

    def prepare(model: nn.Module) -> None:
        model.register_forward_pre_hook(poison.begin_forward)
        model.get_parameter("layers.0.attention.output.weight").register_hook(poison.apply)

    on_every_model(prepare)


def memory_for(sequences: int, rank: int = 0) -> None:
    """As if that rank's device had memory for the forward pass of so many sequences."""
    from earlybert.core import ranks

    def check(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        (batch,) = (*inputs, *named.values())
        if ranks.rank() == rank and len(batch.tokens.lengths) > sequences:
            raise torch.OutOfMemoryError("made up")

    on_every_model(lambda model: model.register_forward_pre_hook(check, with_kwargs=True))


def memory_for_4_on_rank_1() -> None:
    memory_for(4, rank=1)


def flip_a_weight() -> None:
    """On rank 1, after the update that the first checkpoint is of; the next update would gather the right one again."""
    from earlybert.core import ranks
    from earlybert.pretrain.train import loop

    step = loop.train_step

    def flipped(engine: Any, *arguments: Any) -> dict[str, Any]:
        metrics = step(engine, *arguments)
        if metrics["step"] == 7 and ranks.rank() == 1:
            weight = engine.engine.module.get_parameter("layers.1.feed_forward.output.weight")
            weight.data.view(-1)[3] *= 1.0001
        return metrics

    mock.patch.object(loop, "train_step", flipped).start()


def stop_once(stage: str, step: int) -> None:
    """As if a signal came at the border after a step of a stage."""
    from earlybert.pretrain.train import loop

    border = loop.at_step_border

    def stopped(stop: Any, checkpoints: Any) -> bool:
        state = checkpoints.state
        return border(stop, checkpoints) or (state.stage == stage and state.step == step)

    mock.patch.object(loop, "at_step_border", stopped).start()


def checkpoint_after_surgery() -> None:
    """Every stage that begins with surgery first writes a checkpoint to after/STAGE."""
    from earlybert.pretrain import run
    from earlybert.pretrain.checkpoint.writer import CheckpointWriter
    from earlybert.pretrain.ticket.rankings import Ranking
    from earlybert.pretrain.train.saving import StageCheckpoints

    train = run.train_stage

    def checkpointed(engine: Any, state: Any, stage: Any, *arguments: Any, writer: Any, **options: Any) -> None:
        if state.step == 0 and stage.begin.word in ("narrow", "stack", "widen"):
            folder = writer.folder.parent / "after" / stage.name
            StageCheckpoints(CheckpointWriter(folder, 1, newest_step=-1), engine, state, Ranking()).require()
        train(engine, state, stage, *arguments, writer=writer, **options)

    mock.patch.object(run, "train_stage", checkpointed).start()


def fp16_on_cpu() -> None:
    """DeepSpeed and we refuse fp16 on CPUs, where it is slow; its logic is the same."""
    from deepspeed.accelerator import get_accelerator

    from earlybert.pretrain.train import engine

    accelerator = type(get_accelerator())
    dtypes = [torch.float, torch.half, torch.bfloat16]
    mock.patch.object(accelerator, "is_fp16_supported", lambda self: True).start()
    mock.patch.object(accelerator, "supported_dtypes", lambda self: dtypes).start()
    mock.patch.object(engine, "resolve_precision", lambda recipe, file, device: "fp16").start()
    # Measuring it in fp16 takes a CPU a minute.
    mock.patch.object(engine, "peak_flops", lambda device, dtype: 1e9).start()


if __name__ == "__main__":
    patch = globals()[sys.argv.pop(1)]
    from earlybert.pretrain import run

    patch()
    run.main()
