"""Whole things on a GPU: the network, an engine's step, runs that are stopped, fp16. `pytest -m gpu`.

The tests are the same on a CPU, where the usual suite has them. One rank, by NCCL on a GPU and by gloo on a CPU.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor

from earlybert.core import devices, distributed
from earlybert.kernels.lamb import Lamb
from earlybert.kernels.lamb_reference import LambReference
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, OptimizerConfig, SearchConfig, load_recipe, recipe_path
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.ticket.ticket import narrow_config
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import StageEngine, build_optimizer
from earlybert.pretrain.train.step import forward_and_backward
from tests.in_process import train_here
from tests.pretrain import patched_run
from tests.pretrain.run_files import losses, metrics
from tests.pretrain.small_models import batch_of, build, gradients_of_step, random_weights, small_config, unequal_ticket
from tests.pretrain.test_packed_model import packed, padded, results
from tests.pretrain.test_sanity import STILL, zero_stage

LENGTHS = (17, 9, 1, 12, 5, 3)
SEARCH = SearchConfig(lambda_heads=3e-4, lambda_neurons=1e-4)


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Of a process group of this process alone."""
    assert devices.device_type() == request.param, "`pytest -m gpu` takes the GPU, other selections the CPU"
    found = distributed.start()
    assert torch.distributed.get_backend() == {"cuda": "nccl", "cpu": "gloo"}[found.type]
    return found


def network(shape: str, dtype: torch.dtype) -> PreTrainingNetwork:
    """With coefficients, or with another width in every layer."""
    full = small_config(searching=shape == "searching")
    weights = random_weights(full)
    if shape == "searching":
        return build(full, weights, dtype)
    ticket = unequal_ticket(full)
    return build(narrow_config(full, ticket), narrow_weights(full, weights, ticket), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ["unequal", "searching"])
def test_packed_is_padded(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    """Losses and gradients, as near to the padded network in fp64 on a CPU as the padded one in the same precision."""
    batch = batch_of(LENGTHS)
    exact = results(padded, network(shape, torch.float64), batch)
    model = network(shape, dtype).to(device)
    found, other = (results(scored, model, batch.to(device)) for scored in (packed, padded))
    for mine, theirs, truth in zip(found, other, exact, strict=True):
        error, usual = (float((tensor.detach().cpu().double() - truth.detach()).norm()) for tensor in (mine, theirs))
        assert error <= 2 * usual + 16 * torch.finfo(dtype).eps * float(truth.detach().norm())


def steps_by_definition(config: NetworkConfig, weights: dict[str, Tensor], steps: list[list[Batch]]) -> list[Tensor]:
    """Weights after steps of clipped gradients and LAMB, in float64 on a CPU, without DeepSpeed."""
    model = build(config, weights, torch.float64)
    optimizer = build_optimizer(model, "Lamb", {}, OptimizerConfig())
    assert isinstance(optimizer, Lamb)
    reference = LambReference(
        [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in optimizer.param_groups],
        lr=1e-2,
        row_blocks=optimizer._row_blocks,
    )
    for batches in steps:
        gradients = gradients_of_step(model, batches, SEARCH)
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name] / (norm + 1e-6).clamp(min=1.0)
        reference.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_engine_steps_as_defined(device: torch.device, tmp_path: Path) -> None:
    """A search in fp32 under ZeRO-1: two steps of two micro-batches of unequal sizes, clipped, with the L1 term."""
    config = small_config(searching=True)
    weights = random_weights(config)
    steps = [[batch_of((17, 9, 13, 10), seed), batch_of((4, 1, 12, 7), seed)] for seed in (0, 1)]
    recipe = dataclasses.replace(load_recipe(recipe_path("quickstart"), []), precision="fp32")
    stage = dataclasses.replace(build_stages(recipe)[0], global_batch=8, micro_batch=4)
    file = DeepSpeedFile.load(DEFAULT_DEEPSPEED)
    assert file.zero_stage == 1
    engine = StageEngine(config, TrainingState(weights), stage, recipe, file, device)
    engine.engine.train()
    engine.set_learning_rate(1e-2)
    for batches in steps:
        work = Work.total(map(Work.of, batches))
        forward_and_backward(engine, batches, work, range(len(batches)), SEARCH)
        assert engine.updated() and engine.gradient_norm() > 1
    found = dict(engine.masters(lambda name: True))
    engine.destroy()
    for (name, before), exact in zip(weights.items(), steps_by_definition(config, weights, steps), strict=True):
        error = (found[name].double() - exact).norm() / (exact - before).norm().clamp(min=1e-12)
        assert error < 1e-3, name


def run_small(workplace: Path, device: torch.device, name: str, *arguments: str) -> Path:
    """The small recipe's run; algorithms are those that give the same bits every time."""
    status, output = train_here(workplace, *at(name, device), "--deterministic", "true", *arguments)
    assert status == 0, output
    return workplace / f"{name}-{device.type}"


def at(name: str, device: torch.device) -> tuple[str, ...]:
    return "--config", "small.yaml", "--run-dir", f"{name}-{device.type}"


def test_the_whole_method_stopped_and_resumed_has_the_same_bits(device: torch.device, workplace: Path) -> None:
    """Dropout is on; asked to stop in the search and in phase 1. The precision is the device's own."""
    undisturbed = run_small(workplace, device, "undisturbed")
    for stage, step in (("search", 9), ("phase1", 11)):
        status, output = train_here(
            workplace,
            *at("stopped", device),
            *("--deterministic", "true"),
            prepare=partial(patched_run.stop_once, stage, step),
        )
        assert status == 0 and f"stopped as asked at step {step} of {stage}" in output, output
    resumed = run_small(workplace, device, "stopped")
    assert losses(resumed) == losses(undisturbed)
    assert (resumed / "ticket.json").read_bytes() == (undisturbed / "ticket.json").read_bytes()
    ends = [Checkpoint(list_checkpoints(run / "checkpoints")[-1]) for run in (resumed, undisturbed)]
    assert all(torch.equal(ends[0].weights[name], ends[1].weights[name]) for name in ends[0].weights)
    validation = json.loads((undisturbed / "report.json").read_text())["validation"]
    assert validation["masked_loss"] < metrics(undisturbed, "validation")[0]["masked_loss"] - 0.1


@pytest.mark.parametrize("attention", ["", "memory_efficient"], ids=["attention of the device", "attention of V100"])
def test_fp16_overflows_and_recovers(
    device: torch.device, attention: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss scales overflow, those updates don't count, then the loss falls."""
    if attention and device.type == "cpu":
        pytest.skip("a CPU has no such kernel")
    monkeypatch.setenv("EARLYBERT_ATTENTION", attention)
    file = zero_stage(workplace, 1, fp16={"initial_scale_power": 24, "hysteresis": 1})
    name = f"half{attention}"
    # A CPU refuses to be told so.
    given, prepare = (("--precision", "fp16"), None) if device.type == "cuda" else ((), patched_run.fp16_on_cpu)
    status, output = train_here(workplace, *at(name, device), "--deepspeed", file, *given, *STILL, prepare=prepare)
    assert status == 0, output
    run = workplace / f"{name}-{device.type}"
    state = Checkpoint(list_checkpoints(run / "checkpoints")[-1]).state
    skipped = state.position // 50 - 20
    assert skipped > 0 and state.step == state.optimizer_step == 20
    assert state.loss_scale["cur_scale"] == 2.0 ** (24 - skipped)
    assert losses(run)[-1][1] < losses(run)[0][1] - 0.1
