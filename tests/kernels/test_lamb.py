"""Lamb against textbook LAMB in float64 under plain PyTorch; test_under_deepspeed.py has it under every ZeRO stage."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from earlybert.kernels import extension
from earlybert.kernels.lamb import Lamb
from earlybert.kernels.lamb_reference import LambReference
from tests.kernels import emulated

PARITY = 2e-6
ROW_BLOCKS = 3


def largest_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    return max((actual[name].double() - expected[name].double()).abs().max().item() for name in expected)


def make_parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"stacked": (6, 4), "matrix": (5, 7), "zero": (3, 3), "unused": (4, 2), "bias": (9,)}
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    values["zero"].zero_()
    return {name: nn.Parameter(value) for name, value in values.items()}


def make_optimizer(kind: Any, parameters: dict[str, nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    groups = [
        {"params": [(name, value) for name, value in parameters.items() if name != "bias"], "weight_decay": 0.1},
        {"params": [("bias", parameters["bias"])], "weight_decay": 0.0},
    ]
    return kind(groups, lr=0.01, row_blocks={parameters["stacked"]: ROW_BLOCKS}, **options)


def set_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for name, parameter in parameters.items():
        # "unused" gets no gradient in every other step, and "bias" a zero gradient in the first.
        scale = float(name != "bias" or step > 0)
        gradient = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.grad = None if name == "unused" and step % 2 else gradient


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"betas": (0.8, 0.95), "eps": 1e-3},
        {"bias_correction": False},
        {"nvlamb": True},
        {"max_trust_ratio": 0.7},
        {"nvlamb": True, "max_trust_ratio": 0.7},
    ],
    ids=str,
)
def test_matches_textbook(options: dict[str, Any]) -> None:
    parameters, expected = make_parameters(), make_parameters()
    optimizer = make_optimizer(Lamb, parameters, **options)
    textbook = make_optimizer(LambReference, expected, **options)
    for step in range(6):
        set_gradients(parameters, step)
        set_gradients(expected, step)
        optimizer.step()
        textbook.step()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-12, msg=f"{name} after step {step}")
    assert isinstance(optimizer, Lamb) and isinstance(textbook, LambReference)
    assert_same_ratios(optimizer.trust_ratios(), ratios_by_name(textbook, expected), relative=1e-9)
    assert any(0 < ratio != 1 for ratio in optimizer.trust_ratios().values())


def test_cuda_kernels_match_textbook(operators: torch.library.Library) -> None:
    """Emulated; within what rounding to fp32 leaves of float64."""
    parameters = {name: nn.Parameter(value.detach().float()) for name, value in make_parameters().items()}
    expected = {name: nn.Parameter(value.detach().double()) for name, value in parameters.items()}
    optimizer, textbook = make_optimizer(Lamb, parameters), make_optimizer(LambReference, expected)
    for step in range(6):
        set_gradients(parameters, step)
        for name, parameter in parameters.items():
            expected[name].grad = None if parameter.grad is None else parameter.grad.double()
        with emulated.lamb_kernels():
            optimizer.step()
        textbook.step()
    assert largest_difference(dict(parameters), dict(expected)) < PARITY
    assert isinstance(optimizer, Lamb) and isinstance(textbook, LambReference)
    assert_same_ratios(optimizer.trust_ratios(), ratios_by_name(textbook, expected), relative=PARITY)


@pytest.mark.parametrize("adapted", [[], ["matrix"]], ids=["everywhere", "in one group"])
def test_without_trust_ratio_is_adamw(adapted: list[str]) -> None:
    """torch's own, in float64; groups with trust ratios beside it change nothing."""
    parameters, expected = make_parameters(), make_parameters()

    def groups(values: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": [(name, value)], "weight_decay": 0.0 if name == "bias" else 0.1}
            for name, value in values.items()
        ]

    numbers: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}
    optimizer = Lamb(groups(parameters), trust_ratio=False, **numbers)
    for group in optimizer.param_groups:
        group["trust_ratio"] = group["param_names"][0] in adapted
    adamw = torch.optim.AdamW(groups(expected), **numbers)
    for step in range(6):
        set_gradients(parameters, step)
        set_gradients(expected, step)
        optimizer.step()
        adamw.step()
    for name in parameters:
        difference = (parameters[name] - expected[name]).abs().max()
        assert difference > 1e-3 if name in adapted else difference < 1e-12, name
    assert list(optimizer.trust_ratios()) == adapted


def ratios_by_name(textbook: LambReference, parameters: dict[str, nn.Parameter]) -> dict[str, float]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
    by_name = {}
    for parameter, ratios in textbook.ratios.items():
        for block, ratio in enumerate(ratios):
            by_name[f"{names[parameter]}[{block}]" if len(ratios) > 1 else names[parameter]] = ratio
    return by_name


def assert_same_ratios(actual: dict[str, float], expected: dict[str, float], relative: float) -> None:
    assert actual.keys() == expected.keys()
    assert actual == pytest.approx(expected, rel=relative)


def test_nvlamb_adapts_tensors_without_decay() -> None:
    for nvlamb in (False, True):
        parameters = make_parameters()
        optimizer = make_optimizer(Lamb, parameters, nvlamb=nvlamb)
        set_gradients(parameters, step=2)
        optimizer.step()
        assert isinstance(optimizer, Lamb)
        assert ("bias" in optimizer.trust_ratios()) == nvlamb


def test_ratios_of_fp32_tensors_of_all_sizes() -> None:
    """torch's own fp32 norm is off by 1e-5 and more for as many elements as the largest has on a CPU."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(3,), (1500, 2000), (70, 1000)]]
    expected = [nn.Parameter(parameter.detach().double()) for parameter in parameters]
    for parameter, exact in zip(parameters, expected, strict=True):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        exact.grad = parameter.grad.double()
    optimizer, textbook = Lamb(parameters, lr=0.01), LambReference(expected, lr=0.01)
    optimizer.step()
    textbook.step()
    ratios = {f"0.{place}": textbook.ratios[exact][0] for place, exact in enumerate(expected)}
    assert_same_ratios(optimizer.trust_ratios(), ratios, relative=1e-6)


def test_tensors_that_take_turns() -> None:
    """As heads of several tasks do: as many tensors as before, and the first is the same, but not the second."""
    generator = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64)) for _ in range(3)]
    expected = copy.deepcopy(parameters)
    optimizer, textbook = Lamb(parameters, lr=0.01), LambReference(expected, lr=0.01)
    for turn in ((0, 1, 2), (0, 1), (2,), (0, 2)):
        for place, (parameter, exact) in enumerate(zip(parameters, expected, strict=True)):
            gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64)
            parameter.grad = exact.grad = gradient if place in turn else None
        optimizer.step()
        textbook.step()
    for parameter, exact in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter, exact, rtol=0, atol=1e-12)


def test_a_gradient_that_kernels_cannot_read_is_stepped_on_without_them(operators: torch.library.Library) -> None:
    """Emulated: contiguous, then transposed, then contiguous again."""
    parameter = nn.Parameter(torch.arange(1.0, 7).view(2, 3))
    expected = nn.Parameter(parameter.detach().double())
    optimizer, textbook = Lamb([parameter], lr=0.01), LambReference([expected], lr=0.01)
    with mock.patch.object(extension, "operators_for", lambda tensor: tensor.dtype == torch.float32):
        for step in range(3):
            gradient = parameter.detach().sin() + step
            parameter.grad = gradient.t().contiguous().t() if step == 1 else gradient
            expected.grad = gradient.double()
            optimizer.step()
            textbook.step()
    torch.testing.assert_close(parameter.double(), expected, rtol=0, atol=PARITY)


def test_transposed_parameter() -> None:
    parameters = [nn.Parameter(torch.arange(1.0, 7).view(2, 3).t()), nn.Parameter(torch.arange(1.0, 7).view(2, 3))]
    for parameter in parameters:
        parameter.grad = parameter.detach().sin()
        Lamb([parameter], lr=0.1).step()
    torch.testing.assert_close(parameters[0].t(), parameters[1])


def test_step_count_can_be_set() -> None:
    """Moments and step count are all there is to restore."""
    continued, restored = make_parameters(), make_parameters()
    optimizers = [make_optimizer(Lamb, parameters) for parameters in (continued, restored)]
    for step in range(4):
        for parameters, optimizer in zip((continued, restored), optimizers, strict=True):
            set_gradients(parameters, 2 * step)
            optimizer.step()
    fresh = make_optimizer(Lamb, restored)
    assert isinstance(fresh, Lamb) and fresh.step_count == 0
    fresh.state.update(optimizers[1].state)
    for state in fresh.state.values():
        state["step"] = torch.zeros(())
    fresh.set_step(4)
    assert fresh.step_count == 4
    shared_step = fresh.state[restored["matrix"]]["step"]
    for parameters, optimizer in ((continued, optimizers[0]), (restored, fresh)):
        set_gradients(parameters, 8)
        optimizer.step()
    assert all(torch.equal(continued[name], restored[name]) for name in continued)
    # Universal checkpoints give several states one step tensor.
    assert shared_step == 4 and fresh.step_count == 5


def test_closure() -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert Lamb([weight], lr=0.1).step(closure) == 4.0
    assert (weight < 1).all()


@pytest.mark.parametrize("blocks", [0, 4])
def test_row_blocks_must_divide_the_rows(blocks: int) -> None:
    weight = nn.Parameter(torch.ones(6, 2))
    with pytest.raises(ValueError, match=rf"{blocks} equal row blocks do not fit a parameter of \(6, 2\)"):
        Lamb([weight], lr=0.1, row_blocks={weight: blocks})


def test_copy_steps_on_its_own_tensors() -> None:
    parameters = make_parameters()
    optimizer = make_optimizer(Lamb, parameters)
    set_gradients(parameters, 0)
    optimizer.step()
    copied_parameters, copied = copy.deepcopy((parameters, optimizer))
    for step in range(1, 3):
        for owner, stepped in ((parameters, optimizer), (copied_parameters, copied)):
            set_gradients(owner, step)
            stepped.step()
    for name, parameter in parameters.items():
        assert torch.equal(copied_parameters[name], parameter) and copied_parameters[name] is not parameter
    assert copied.trust_ratios() == optimizer.trust_ratios()  # type: ignore[attr-defined]


NAN = float("nan")


@pytest.mark.parametrize(
    "options",
    [
        *({"lr": -1.0}, {"lr": NAN}, {"eps": -1e-6}, {"weight_decay": -0.1}, {"max_trust_ratio": -1.0}),
        *({"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}),
    ],
)
def test_numbers_out_of_range_are_named(options: dict[str, Any]) -> None:
    """For all parameters, also where each group has its own, for one group of them, and for one that comes later."""
    (name,), weight = options, nn.Parameter(torch.ones(2))
    optimizer = Lamb([nn.Parameter(torch.ones(2))], lr=0.1)
    for build in (
        lambda: Lamb([{"params": [weight], **optimizer.defaults}], **({"lr": 0.1} | options)),
        lambda: Lamb([weight], **({"lr": 0.1} | options)),
        lambda: Lamb([{"params": [weight], **options}], lr=0.1),
        lambda: optimizer.add_param_group({"params": [weight], **options}),
    ):
        with pytest.raises(ValueError, match=f"{name} is .*, but .* (at least|above) 0"):
            build()
    assert len(optimizer.param_groups) == 1


def test_refuses_sparse_gradients() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense"):
        Lamb(embedding.parameters(), lr=0.1).step()


def test_refuses_masters_before_bind() -> None:
    optimizer = Lamb([nn.Parameter(torch.ones(4))], lr=0.1)
    master = torch.ones(4, requires_grad=True)
    optimizer.param_groups[0]["params"] = [master]
    master.grad = torch.zeros(4)
    optimizer.step()
    assert (master == 1).all()
    master.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="bind"):
        optimizer.step()
