"""The L1 term reaches the gradient once per step, whatever the accumulation and the number of ranks."""

import pytest
import torch

from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.train.batches import Batch
from earlybert.pretrain.train.objective import penalty, score, step_share
from tests.pretrain.small_models import small_config

LAMBDA_HEADS, LAMBDA_NEURONS = 3e-4, 1e-4


def made_up_batch(seed: int, weight: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (3, 12), generator=generator)
    return Batch(
        input_ids_BS=ids,
        attention_mask_BS=torch.ones_like(ids),
        token_type_ids_BS=torch.zeros_like(ids),
        masked_positions_N=torch.tensor([1, 7, 14, 30]),
        masked_labels_N=torch.randint(5, 100, (4,), generator=generator),
        next_sentence_labels_B=torch.tensor([0, 1, 1]),
        weight=weight,
    )


def gradients(batches: list[Batch], *, with_penalty: bool) -> dict[str, torch.Tensor]:
    """Gradient of one step as the loop forms it: losses times shares, averaged over the shares."""
    config = small_config(searching=True)
    model = PreTrainingNetwork(config)
    weights = initial_weights(config, seed=4)
    for name, tensor in weights.items():
        if name.endswith("coefficients"):
            tensor[::3] *= -1.0
    model.load_state_dict(weights)
    real = [batch for batch in batches if batch.weight]
    predictions, sequences = 4 * len(real), 3 * len(real)
    for batch in batches:
        output = model(**batch.model_inputs())
        loss = step_share(score(output, batch), predictions, sequences) * len(batches)
        if with_penalty:
            loss = loss + penalty(output, LAMBDA_HEADS, LAMBDA_NEURONS)
        (loss / len(batches)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shares", [1, 3, 8])
def test_l1_gradient_is_lambda_times_sign(shares: int) -> None:
    batches = [made_up_batch(seed) for seed in range(shares)]
    plain, penalised = gradients(batches, with_penalty=False), gradients(batches, with_penalty=True)
    for name, gradient in penalised.items():
        difference = gradient - plain[name]
        if not name.endswith("coefficients"):
            assert torch.equal(difference, torch.zeros_like(difference)), name
            continue
        strength = LAMBDA_HEADS if "attention" in name else LAMBDA_NEURONS
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
