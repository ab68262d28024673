"""What must hold of every step; where it does not, which tensor went wrong first.

That is found by computing the step again with every tensor watched.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from earlybert.core import distributed
from earlybert.core.errors import UserError
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import Stage
from earlybert.pretrain.train.batches import StepLoader
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.step import compute_step

# Times what guessing costs: who is so much worse is confidently wrong about everything.
EXPLODED = 3.0


@dataclass(frozen=True)
class Finding:
    """A tensor that is not finite or, where all are, the largest; its largest magnitude, and in which micro-batch."""

    what: str
    largest: float
    micro_batch: int

    @property
    def finite(self) -> bool:
        # NaN compares false with everything.
        return self.largest < float("inf")

    def __str__(self) -> str:
        return f"the {'largest' if self.finite else 'first non-finite'} tensor is the {self.what} ({self.largest:.3g})"


class TensorWatch:
    """Looks at the outputs of all modules without children and at all gradients of parameters, in order of computation.

    Only those modules: what others return may hold minus infinity on purpose, for the padding of the vocabulary.
    """

    def __init__(self, model: nn.Module) -> None:
        self.finding: Finding | None = None
        self._micro_batch = -1
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> "TensorWatch":
        self._handles.append(self._model.register_forward_pre_hook(self._begin_micro_batch))
        for name, module in self._model.named_modules():
            if not any(module.children()):
                self._handles.append(module.register_forward_hook(self._after_forward(f"output of {name}")))
        for name, parameter in self._model.named_parameters():
            self._handles.append(parameter.register_hook(self._after_backward(f"gradient of {name}")))
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin_micro_batch(self, *_: Any) -> None:
        self._micro_batch += 1

    def _after_forward(self, what: str) -> Callable[..., None]:
        return lambda module, inputs, output: self._look(what, output)

    def _after_backward(self, what: str) -> Callable[[Tensor], None]:
        return lambda gradient: self._look(what, gradient)

    @torch.no_grad()
    def _look(self, what: str, tensor: Tensor) -> None:
        if self.finding is not None and not self.finding.finite:
            return
        # All activations are in memory: a copy of the largest, as of abs(), might not fit beside them.
        largest = float(torch.stack(tensor.aminmax()).abs().max()) if tensor.numel() else 0.0
        seen = Finding(what, largest, self._micro_batch)
        if not seen.finite or self.finding is None or largest > self.finding.largest:
            self.finding = seen


def symptom(metrics: Mapping[str, Any], config: NetworkConfig) -> str | None:
    """What is wrong with a step's loss or gradient norm, if anything: not finite, or exploded."""
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics[name]):
            return f"the {name.replace('_', ' ')} became {metrics[name]}"
    uniform = sum(part.guessing(config) for part in loss_parts(config.losses))
    if metrics["loss"] > EXPLODED * uniform:
        return f"the loss exploded to {metrics['loss']:.1f} (guessing would cost {uniform:.1f})"
    return None


def problem(engine: StageEngine, metrics: Mapping[str, Any], skipped: int, max_skipped: int) -> str | None:
    """Why a step that was logged so must end the run, if it must.

    Under fp16 the loss scale finds its level by overflowing now and then: only `max_skipped` updates in a row are too
    many. `skipped` of them were not finite and so not made, this step's included.
    """
    wrong = symptom(metrics, engine.config)
    if wrong is None or (engine.precision == "fp16" and 0 < skipped < max_skipped):
        return None
    after = f" after {skipped} skipped updates in a row" if engine.precision == "fp16" else ""
    return f"{wrong}{after} at step {metrics['step']}"


def failure(
    wrong: str, engine: StageEngine, loader: StepLoader, position: int, stage: Stage, recipe: Recipe
) -> UserError:
    """What to end a run with whose step at `position` made no update that is any good; all ranks must call it.

    An update that is not finite is never made, so the step can be computed again to find the tensor to blame.
    """
    # A compiled graph calls no hooks.
    with torch.compiler.set_stance("force_eager"), TensorWatch(engine.engine.module) as watch:
        compute_step(engine, loader.load(position), stage, recipe)
    assert watch.finding is not None
    samples = loader.sample_indices(position, watch.finding.micro_batch)
    findings = distributed.gather_objects((watch.finding, samples))
    rank, (finding, samples) = min(enumerate(findings), key=lambda each: (each[1][0].finite, -each[1][0].largest))
    return UserError(
        f"{wrong} of {stage.name}; {finding}, in micro-batch {finding.micro_batch} of rank {rank}, samples "
        f"{', '.join(map(str, samples))}; {stage.phase}.learning_rate {stage.schedule.peak:g} may be too high"
    )
