"""The L1 term reaches the gradient once per step, whatever the accumulation and the number of ranks."""

import dataclasses

import pytest
import torch

from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.plan.recipe import SearchConfig
from tests.pretrain.small_models import batch_of, gradients_of_step, small_config

SEARCH = SearchConfig(lambda_heads=3e-4, lambda_neurons=1e-4)


def made_up_batch(seed: int, weight: float = 1.0) -> Batch:
    return dataclasses.replace(batch_of((12, 12, 12), seed), weight=weight)


def gradients(batches: list[Batch], *, with_penalty: bool) -> dict[str, torch.Tensor]:
    """Gradient of one step as the loop forms it."""
    config = small_config(searching=True)
    model = PreTrainingNetwork(config)
    weights = initial_weights(config, seed=4)
    for name, tensor in weights.items():
        if name.endswith("coefficients"):
            tensor[::3] *= -1.0
    model.load_state_dict(weights)
    return gradients_of_step(model, batches, SEARCH if with_penalty else None)


@pytest.mark.parametrize("shares", [1, 3, 8])
def test_l1_gradient_is_lambda_times_sign(shares: int) -> None:
    batches = [made_up_batch(seed) for seed in range(shares)]
    plain, penalised = gradients(batches, with_penalty=False), gradients(batches, with_penalty=True)
    for name, gradient in penalised.items():
        difference = gradient - plain[name]
        if not name.endswith("coefficients"):
            assert torch.equal(difference, torch.zeros_like(difference)), name
            continue
        strength = SEARCH.lambda_heads if "attention" in name else SEARCH.lambda_neurons
        sign = torch.ones_like(difference)
        sign[::3] = -1.0
        torch.testing.assert_close(difference, strength * sign, rtol=1e-3, atol=0)


def test_a_stand_in_batch_changes_no_gradient() -> None:
    """A rank without samples takes part with weight 0: the others' mean over one share more is the same sum."""
    batches = [made_up_batch(seed) for seed in range(3)]
    alone = gradients(batches, with_penalty=False)
    accompanied = gradients([*batches, made_up_batch(9, weight=0.0)], with_penalty=False)
    for name, gradient in alone.items():
        torch.testing.assert_close(accompanied[name], gradient, rtol=1e-5, atol=1e-7)
