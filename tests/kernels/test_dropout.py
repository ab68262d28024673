"""Dropout by 16 random bits an element: rate, mean, gradient, and whose generator it draws from."""

import pytest
import torch

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
    assert float(survivors[0].detach()) == pytest.approx(
        1 / (1 - probability), rel=1e-2 if dtype != torch.float32 else 1e-3
    )


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


def test_nothing_is_dropped_at_zero_and_all_at_one() -> None:
    ones = torch.ones(10)
    assert dropout(ones, 0.0) is ones
    assert not dropout(ones, 1.0).any()
