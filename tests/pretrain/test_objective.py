"""The L1 term reaches the gradient once per step, whatever the accumulation and the number of ranks."""

import pytest
import torch

from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.packed import PackedPlaces
from earlybert.pretrain.plan.recipe import SearchConfig
from earlybert.pretrain.train.batches import Batch
from tests.pretrain.small_models import gradients_of_step, small_config

SEARCH = SearchConfig(lambda_heads=3e-4, lambda_neurons=1e-4)


def made_up_batch(seed: int, weight: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids, positions = torch.randint(5, 100, (3, 12), generator=generator), torch.tensor([1, 7, 14, 30])
    return Batch(
        input_ids_BS=ids,
        attention_mask_BS=torch.ones_like(ids),
        token_type_ids_BS=torch.zeros_like(ids),
        masked_positions_N=positions,
        masked_labels_N=torch.randint(5, 100, (4,), generator=generator),
        next_sentence_labels_B=torch.tensor([0, 1, 1]),
        weight=weight,
        places=PackedPlaces.of(torch.ones_like(ids), positions),
    )


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
