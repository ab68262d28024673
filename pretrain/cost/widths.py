"""What a layer's feed-forward part costs at a width, and the width multiple that spends a ticket's neurons fastest.

A GPU computes a matrix product in tiles, as many at once as it has multiprocessors, so that time rises in steps: 2,816
and 3,072 neurons can cost the same. `predict` models that; `measure` replaces the model by a stopwatch.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from earlybert.kernels.sizes import STORED_MULTIPLE
from earlybert.pretrain.cost.gpus import CPU, FAMILIES, Processor
from earlybert.pretrain.ticket.drawing import keep_mask, mask_distance
from earlybert.pretrain.ticket.ticket import TicketRule

if TYPE_CHECKING:
    import torch

CANDIDATES = (1, 8, 16, 32, 64, 128, 256, 512)
# A larger multiple moves the ticket further from what the search found: it must gain more than this.
WORTH_MOVING = 0.005
MEASURED_ROUNDS = 5

Seconds = Callable[[int], float]


DEVICES: dict[str, Processor] = {**FAMILIES, "cpu": CPU}


def predict(device: Processor, hidden_size: int, tokens: int) -> Seconds:
    """Modelled seconds of one feed-forward part, forward and backward, against its width."""

    def waves(rows: int, columns: int) -> int:
        tiles = -(-rows // device.tile[0]) * -(-columns // device.tile[1])
        return -(-tiles // device.multiprocessors)

    def product(rows: int, columns: int, inner: int) -> float:
        wave = device.multiprocessors * device.tile[0] * device.tile[1]
        return device.product_seconds(waves(rows, columns) * wave * 2 * inner)

    def seconds(width: int) -> float:
        stored = -(-width // device.stored_multiple) * device.stored_multiple
        # Forward and input gradients: two products each, one of them `stored` wide, the other that deep.
        activations = 2 * (product(tokens, stored, hidden_size) + product(tokens, hidden_size, stored))
        # Libraries cut the long sum over tokens of a weight gradient into pieces that fill all multiprocessors.
        weights = device.product_seconds(2 * 2 * tokens * hidden_size * stored)
        # GELU reads and writes once forward; backward reads twice and writes once.
        elementwise = device.traffic_seconds(5 * tokens * stored * device.element_size)
        return activations + weights + elementwise

    return seconds


def measure(
    widths: Sequence[int], hidden_size: int, tokens: int, device: "torch.device", dtype: "torch.dtype"
) -> Seconds:
    """Measured seconds of one feed-forward part, forward and backward, against its width.

    Times every multiple of 64 around `widths`, interleaved, medians; between them a CPU's time is interpolated and a
    GPU's is that of the next one, as it stores widths rounded up.
    """
    # Only here: the model needs neither.
    import torch
    from rich.progress import track

    from earlybert.core.devices import synchronize
    from earlybert.kernels.gelu import linear, linear_gelu

    low, high = min(widths) // STORED_MULTIPLE, -(-max(widths) // STORED_MULTIPLE)
    grid = [max(1, blocks) * STORED_MULTIPLE for blocks in range(low, high + 1)]
    grid = sorted(set(grid))
    times: dict[int, list[float]] = {width: [] for width in grid}
    generator = torch.Generator().manual_seed(0)

    def once(width: int) -> float:
        shapes = ((tokens, hidden_size), (width, hidden_size), (width,), (hidden_size, width), (hidden_size,))
        tensors = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
        input_TH, in_weight_FH, in_bias_F, out_weight_HF, out_bias_H = tensors
        synchronize(device)
        start = time.perf_counter()
        linear(linear_gelu(input_TH, in_weight_FH, in_bias_F), out_weight_HF, out_bias_H).sum().backward()
        synchronize(device)
        return time.perf_counter() - start

    # The first round warms up.
    rounds = [width for _ in range(MEASURED_ROUNDS + 1) for width in grid]
    for position, width in enumerate(track(rounds, f"timing {len(grid)} widths of {tokens} tokens")):
        elapsed = once(width)
        if position >= len(grid):
            times[width].append(elapsed)
    medians = [statistics.median(times[width]) for width in grid]
    if device.type == "cpu":
        return lambda width: float(np.interp(width, [0, *grid], [0.0, *medians]))
    return lambda width: medians[int(np.searchsorted(grid, width))]


@dataclass(frozen=True)
class Choice:
    """One multiple: the widths that the rule gives with it, seconds of all layers' feed-forward parts, and how far the
    mask is from that of multiple 1."""

    multiple: int
    widths: tuple[int, ...]
    seconds: float
    moved: float

    @property
    def seconds_per_neuron(self) -> float:
        """Rounding moves the budget by up to half a multiple; what counts is the price of a neuron."""
        return self.seconds / sum(self.widths)


def masks_by_multiple(
    coefficients_LU: NDArray[np.float32], rule: TicketRule, multiples: Sequence[int] = CANDIDATES
) -> dict[int, NDArray[np.bool_]]:
    """The mask that the rule draws with each multiple that divides the width and leaves layers a choice."""
    neurons = coefficients_LU.shape[1]
    usable = [multiple for multiple in multiples if neurons % multiple == 0 and multiple <= max(1, neurons // 4)]
    return {multiple: keep_mask(coefficients_LU, rule.neuron_ratio, rule.neuron_scope, multiple) for multiple in usable}


def price(masks: dict[int, NDArray[np.bool_]], seconds: Seconds) -> list[Choice]:
    """What each mask costs; the first one is what the others are said to have moved from."""
    reference_LU = next(iter(masks.values()))
    choices = []
    for multiple, mask_LU in masks.items():
        widths = tuple(int(width) for width in mask_LU.sum(axis=1))
        total = sum(seconds(width) for width in widths)
        choices.append(Choice(multiple, widths, total, mask_distance(mask_LU, reference_LU)))
    return choices


def fastest(choices: Sequence[Choice]) -> Choice:
    """The smallest multiple whose neurons cost at most half a percent more than the cheapest."""
    cheapest = min(choice.seconds_per_neuron for choice in choices)
    return next(choice for choice in choices if choice.seconds_per_neuron <= cheapest * (1 + WORTH_MOVING))
