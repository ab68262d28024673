"""Dropout by 16 random bits an element: rate, mean, gradient, and whose generator it draws from."""

import pytest
import torch

from earlybert.kernels import operators
from earlybert.kernels.dropout import dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.95])
def test_rate_scale_and_gradient(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    kept = dropout(ones, probability)
    (gradient,) = torch.autograd.grad(kept.sum(), ones)
    assert torch.equal(gradient, kept)
    share = float((kept == 0).double().mean())
    assert share == pytest.approx(probability, abs=5 * (probability * (1 - probability) / ones.numel()) ** 0.5)
    survivors = kept[kept != 0]
    assert survivors.unique().numel() == 1
    # The probability is rounded to 16 bits, and the scale goes with it, so that the mean is kept.
    scale = torch.tensor(2**16 / (2**16 - round(probability * 2**16)), dtype=dtype)
    assert torch.equal(survivors[0].detach(), scale)


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5])
def test_what_stays_is_scaled_and_the_mean_is_kept(probability: float) -> None:
    torch.manual_seed(0)
    values = torch.linspace(1, 2, 1_000_000)
    kept = dropout(values, probability)
    survivors = kept != 0
    torch.testing.assert_close(kept[survivors], values[survivors] / (1 - probability), rtol=1e-4, atol=0)
    noise = 5 * (probability / (1 - probability) * float(values.double().square().sum())) ** 0.5
    assert abs(float(kept.double().sum() - values.double().sum())) < noise


def test_neighbours_are_independent() -> None:
    """Four elements share one random number of 64 bits."""
    torch.manual_seed(1)
    dropped = (dropout(torch.ones(400_000), 0.5) == 0).view(-1, 4).double()
    correlation = torch.corrcoef(dropped.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.015


def test_seed_decides() -> None:
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(dropout(torch.ones(100), 0.5))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_half_a_level_is_rounded_up_as_by_the_cuda_kernels() -> None:
    half = 0.5 / 2**16
    assert operators.drops(half) and not operators.drops(0.99 * half)
    kept = dropout(torch.ones(8), half)
    assert float(kept.max()) == pytest.approx(2**16 / (2**16 - 1), rel=1e-7)


def test_nothing_is_dropped_at_zero_and_all_at_one() -> None:
    ones = torch.ones(10)
    assert dropout(ones, 0.0) is ones
    assert not dropout(ones, 1.0).any()
