"""Which tensor went wrong first, found by computing a step again with every tensor watched."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


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
    Set `micro_batch` before each forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.finding: Finding | None = None
        self.micro_batch = 0
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> "TensorWatch":
        for name, module in self._model.named_modules():
            if not any(module.children()):
                self._handles.append(module.register_forward_hook(self._after_forward(f"output of {name}")))
        for name, parameter in self._model.named_parameters():
            self._handles.append(parameter.register_hook(self._after_backward(f"gradient of {name}")))
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _after_forward(self, what: str) -> Callable[..., None]:
        return lambda module, inputs, output: self._look(what, output)

    def _after_backward(self, what: str) -> Callable[[Tensor], None]:
        return lambda gradient: self._look(what, gradient)

    @torch.no_grad()
    def _look(self, what: str, tensor: Tensor) -> None:
        if self.finding is not None and not self.finding.finite:
            return
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        seen = Finding(what, largest, self.micro_batch)
        if not seen.finite or self.finding is None or largest > self.finding.largest:
            self.finding = seen
