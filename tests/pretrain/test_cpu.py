"""The precisions of a CPU: fp32 through oneDNN has to be true fp32, and bf16 gradients are added up in fp32."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from earlybert.core import devices, distributed
from earlybert.core.devices import LARGEST_FP32_ERROR, matmul_error, set_matmul_precision
from earlybert.pretrain.network.model import NetworkOutput
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, OptimizerConfig, load_recipe, recipe_path
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import StageEngine
from tests.conftest import gradient_of
from tests.pretrain.small_models import batch_of, build, random_weights, small_config

CPU = torch.device("cpu")


def test_error_of_fp32_as_a_run_sets_it() -> None:
    """The three products of a linear layer of BERT-Base, and that the measure itself would notice bf16."""
    set_matmul_precision("auto", CPU)
    assert matmul_error() < LARGEST_FP32_ERROR
    generator = torch.Generator().manual_seed(0)
    results = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        generator.manual_seed(0)
        linear = nn.Linear(768, 3072, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(3072, 768, generator=generator) / 768**0.5)
            linear.bias.copy_(torch.randn(3072, generator=generator))
        input_TH = torch.randn(100, 768, generator=generator).to(dtype).requires_grad_()
        output_TF = linear(input_TH)
        output_TF.backward(torch.randn(output_TF.shape, generator=generator).to(dtype))
        assert input_TH.grad is not None and linear.weight.grad is not None
        results.append((output_TF.detach(), input_TH.grad, linear.weight.grad))
    for ours, exact, half in zip(*results, strict=True):
        assert (ours - exact).abs().max() < LARGEST_FP32_ERROR * exact.abs().max()
        assert (half - exact).abs().max() > 10 * LARGEST_FP32_ERROR * exact.abs().max()


@pytest.mark.parametrize(("error", "expected"), [(4e-7, "medium"), (2e-3, "highest")])
def test_where_the_fast_path_is_not_fp32_it_is_left(
    error: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "matmul_error", lambda: error)
    set_matmul_precision("auto", CPU)
    assert torch.get_float32_matmul_precision() == expected


@pytest.fixture
def one_rank() -> None:
    """A process group of this process alone."""
    distributed.start()


def loss_of(output: NetworkOutput) -> Tensor:
    return torch.stack([score.loss for score in output.scores.values()]).sum()


def test_optimizer_gets_the_fp32_sum_of_bf16_gradients(one_rank: None) -> None:
    """Two micro-batches, whose sum is not rounded on the way to the optimizer."""
    config, micro_batches = small_config(), [batch_of((17, 9, 13, 10), seed) for seed in (0, 1)]
    quickstart = load_recipe(recipe_path("quickstart"), [])
    recipe = dataclasses.replace(quickstart, precision="bf16", optimizer=OptimizerConfig(max_grad_norm=0.0))
    stage = dataclasses.replace(build_stages(recipe)[0], global_batch=8, micro_batch=4)
    weights = random_weights(config)
    file = DeepSpeedFile.load(DEFAULT_DEEPSPEED)
    built = StageEngine(config, TrainingState(weights), stage, recipe, file, CPU)
    seen: list[Tensor] = []
    built.optimizer.register_step_pre_hook(lambda *_: seen.append(gradient_of(built.layout[0].flat).clone()))
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in micro_batches:
        built.backward_and_step(loss_of(built.forward(batch)))
        model = build(config, weights, torch.bfloat16)
        # DeepSpeed averages over the micro-batches.
        (loss_of(model(batch)) / len(micro_batches)).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected[name] += parameter.grad.float()
    for piece in built.layout[0].pieces:
        assert torch.equal(piece.of(seen[0]), expected[piece.name].flatten()), piece.name
    rounded = [(name, grad) for name, grad in expected.items() if not torch.equal(grad, grad.bfloat16().float())]
    assert rounded, "the sums are to need more than bf16"
    built.destroy()
