"""Gradients added up, measured and clipped at once, beside DeepSpeed's own optimizers, one parameter at a time."""

import dataclasses
import gc
from unittest import mock

import pytest
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from earlybert.core import distributed
from earlybert.pretrain.cost.cluster import state_bytes
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, OptimizerConfig, load_recipe, recipe_path
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.train import engine
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.micro_batch import fits
from tests.pretrain import patched_run
from tests.pretrain.small_models import batch_of, random_weights, small_config

LIMIT = 0.1


@pytest.fixture(params=["at once", "one by one"])
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StageEngine:
    return build(at_once=request.param == "at once", monkeypatch=monkeypatch)


def build(*, at_once: bool, monkeypatch: pytest.MonkeyPatch, precision: str = "bf16") -> StageEngine:
    """For steps of two micro-batches."""
    try:
        with monkeypatch.context() as patched:
            if not at_once:
                patched.setattr(engine, "add_up_at_once", lambda wrapper: None)
            if precision == "fp16":
                patched_run.fp16_on_cpu()
            recipe = load_recipe(recipe_path("quickstart"), ["--precision", precision])
            recipe = dataclasses.replace(recipe, optimizer=OptimizerConfig(max_grad_norm=LIMIT))
            stage = dataclasses.replace(build_stages(recipe)[0], global_batch=8, micro_batch=4)
            config = small_config()
            state, file = TrainingState(random_weights(config)), DeepSpeedFile.load(DEFAULT_DEEPSPEED)
            return StageEngine(config, state, stage, recipe, file, distributed.start())
    finally:
        mock.patch.stopall()


def sums(built: StageEngine) -> list[Tensor]:
    """What is added up so far, of the decayed parameters and of the others."""
    wrapper = built.engine.optimizer
    if isinstance(wrapper, BF16_Optimizer):
        return [flat.clone() for flat in wrapper.fp32_groups_gradients_flat]
    assert isinstance(wrapper, DeepSpeedZeroOptimizer)
    return [torch.cat([p.grad_accum.flatten() for p in group]) for group in wrapper.bit16_groups]


def backward(built: StageEngine, seed: int) -> None:
    scores = built.forward(batch_of((17, 9, 13, 10), seed)).scores.values()
    built.backward_and_step(torch.stack([score.loss for score in scores]).sum())


def test_steps_are_those_of_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums bit for bit; norm, what clipping leaves of them and the masters to rounding."""
    pair = [build(at_once=at_once, monkeypatch=monkeypatch) for at_once in (True, False)]
    for step in range(3):
        clipped: list[list[Tensor]] = []
        norms = []
        for built in pair:
            seen: list[Tensor] = []
            hook = built.optimizer.register_step_pre_hook(
                lambda optimizer, *_, seen=seen: seen.extend(
                    flat.grad.clone() for group in optimizer.param_groups for flat in group["params"]
                )
            )
            built.set_learning_rate(1e-3)
            backward(built, 2 * step)
            clipped.append(sums(built))
            backward(built, 2 * step + 1)
            hook.remove()
            norms.append(built.gradient_norm())
            left = torch.stack([gradient.double().norm() for gradient in seen]).norm()
            assert norms[-1] > LIMIT and left == pytest.approx(LIMIT, rel=1e-5)
        if step == 0:
            assert all(map(torch.equal, *clipped))
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    for ours, theirs in zip(*(built.layout for built in pair), strict=True):
        torch.testing.assert_close(ours.flat, theirs.flat, rtol=1e-5, atol=1e-7)


def test_steps_in_fp16_are_those_of_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with a step between that overflows: DeepSpeed's code reduces, measures and clips the same sums."""
    pair = [build(at_once=at_once, monkeypatch=monkeypatch, precision="fp16") for at_once in (True, False)]
    for step in range(4):
        added_up, norms = [], []
        for built in pair:
            built.engine.optimizer.loss_scaler.cur_scale = 2.0 ** (40 if step == 1 else 10)
            built.set_learning_rate(1e-3)
            backward(built, 2 * step)
            added_up.append(sums(built))
            assert all(parameter.grad is None for parameter in built.engine.module.parameters())
            backward(built, 2 * step + 1)
            norms.append(built.gradient_norm())
            assert built.updated() == (step != 1)
        assert all(map(torch.equal, *added_up)) or step == 1
        assert all(flat.dtype == torch.float32 and flat.any() for flat in added_up[0])
        assert norms[0] == norms[1] > LIMIT
    for ours, theirs in zip(*(built.layout for built in pair), strict=True):
        assert torch.equal(ours.flat, theirs.flat)


def tensors() -> list[Tensor]:
    """All that Python knows of; asking the other objects for their class would have some of them warn."""
    return [found for found in gc.get_objects() if issubclass(type(found), Tensor)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_memory_model_counts_what_a_step_holds(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the network and of its optimizer between two micro-batches of a step, every storage once."""
    gc.collect()
    before = tensors()  # kept alive, so that no new tensor has the identity of an old one
    others = set(map(id, before))
    built = build(at_once=True, monkeypatch=monkeypatch, precision=precision)
    backward(built, seed=0)
    found = [tensor for tensor in tensors() if id(tensor) not in others]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    parameters = sum(parameter.numel() for parameter in built.engine.module.parameters())
    assert sum(storages.values()) == pytest.approx(state_bytes(parameters, gpus=1), rel=0.02)


def test_a_parameter_without_gradient_adds_nothing(built: StageEngine) -> None:
    wrapper = built.engine.optimizer
    backward(built, seed=0)
    before, (first, second, *_) = sums(built), wrapper.bf16_groups[0]
    wrapper.clear_lp_grads(set_to_none=True)
    second.grad = torch.ones_like(second)
    wrapper.update_hp_grads()
    place = slice(first.numel(), first.numel() + second.numel())
    before[0][place] += 1
    assert all(map(torch.equal, before, sums(built)))


def test_trying_a_micro_batch_leaves_nothing_in_the_sums(built: StageEngine) -> None:
    recipe = load_recipe(recipe_path("quickstart"), ["--phase1.length=32", "--plan=[phase1]"])
    assert fits(built, build_stages(recipe)[0], recipe)
    assert not any(flat.any() for flat in sums(built))
    assert all(parameter.grad is None for parameter in built.engine.module.parameters())


def test_trying_a_micro_batch_leaves_nothing_in_the_sums_of_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second pass has them in memory, as the second micro-batch of a step has."""
    built = build(at_once=True, monkeypatch=monkeypatch, precision="fp16")
    recipe = load_recipe(recipe_path("quickstart"), ["--phase1.length=32", "--plan=[phase1]"])
    added_up: list[bool] = []
    model = built.engine.module
    model.register_forward_pre_hook(
        lambda module, inputs: added_up.append(all(p.grad_accum is not None for p in module.parameters()))
    )
    assert fits(built, build_stages(recipe)[0], recipe)
    assert added_up == [False, True]
    assert all(p.grad is None and p.grad_accum is None for p in built.engine.module.parameters())


def test_a_gradient_that_is_not_finite_makes_no_update(built: StageEngine) -> None:
    masters = [partition.flat.detach().clone() for partition in built.layout]
    backward(built, seed=0)
    built.engine.optimizer.fp32_groups_gradients_flat[1][3] = float("nan")
    backward(built, seed=1)
    assert not built.updated()
    assert all(torch.equal(before, partition.flat) for before, partition in zip(masters, built.layout, strict=True))
    backward(built, seed=0)
    backward(built, seed=1)
    assert built.updated(), "what was not finite is gone"
