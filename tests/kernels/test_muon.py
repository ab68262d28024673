"""Muon against a textbook in float64 and against torch's own; test_under_deepspeed.py has it under every ZeRO stage."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from earlybert.kernels import matrix_exchange
from earlybert.kernels.lamb_reference import LambReference
from earlybert.kernels.muon import Muon
from earlybert.kernels.muon_reference import MuonReference, newton_schulz
from earlybert.kernels.newton_schulz import orthogonalized
from earlybert.kernels.ownership import assign_owners, newton_schulz_flops

SHAPES = {"stacked": (12, 8), "wide": (5, 9), "tall": (9, 5), "zero": (4, 6), "unused": (4, 6), "embedding": (7, 3)}
HIDDEN = ("stacked", "wide", "tall", "zero", "unused")


def make_parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    values = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in (SHAPES | {"bias": (9,)}).items()
    }
    return {name: nn.Parameter(value) for name, value in values.items()}


def set_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for name, parameter in parameters.items():
        gradient = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        # "unused" has a gradient in every other step, that of "zero" vanishes.
        parameter.grad = None if name == "unused" and step % 2 else gradient * float(name != "zero")


def groups(parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {
            "params": [(name, parameters[name]) for name in HIDDEN],
            "orthogonalize": True,
            "lr": 0.02,
            "momentum": 0.9,
            "weight_decay": 0.1,
        },
        {"params": [("embedding", parameters["embedding"])], "weight_decay": 0.01},
        {"params": [("bias", parameters["bias"])], "weight_decay": 0.0},
    ]


def make_optimizer(kind: Any, parameters: dict[str, nn.Parameter], **options: Any) -> Any:
    return kind(groups(parameters), lr=0.01, row_blocks={parameters["stacked"]: 3}, **options)


@pytest.mark.parametrize("batch_elements", [1, 1 << 24], ids=["one by one", "together"])
def test_matches_textbook(batch_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_exchange, "BATCH_ELEMENTS", batch_elements)
    parameters, expected = make_parameters(), make_parameters()
    optimizer, textbook = make_optimizer(Muon, parameters), make_optimizer(MuonReference, expected)
    for step in range(15):
        for values, stepped in ((parameters, optimizer), (expected, textbook)):
            set_gradients(values, step)
            stepped.step()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-11, msg=f"{name} after step {step}")
    assert set(optimizer.trust_ratios()) == {"embedding"}
    assert optimizer.step_count == 15


def test_matches_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: it would round its input to bf16."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.double)
    numbers: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    parameters, expected = make_parameters(), make_parameters()
    optimizer = Muon([parameters[name] for name in HIDDEN], orthogonalize=True, **numbers)
    torchs = torch.optim.Muon([expected[name] for name in HIDDEN], adjust_lr_fn="match_rms_adamw", **numbers)
    for step in range(15):
        for values, stepped in ((parameters, optimizer), (expected, torchs)):
            set_gradients(values, step)
            stepped.step()
    for name in HIDDEN:
        torch.testing.assert_close(parameters[name], expected[name], rtol=0, atol=1e-11, msg=name)


def test_other_groups_are_lambs() -> None:
    parameters, expected = make_parameters(), make_parameters()
    optimizer = make_optimizer(Muon, parameters)
    lamb = LambReference(groups(expected)[1:], lr=0.01)
    for step in range(4):
        for values, stepped in ((parameters, optimizer), (expected, lamb)):
            set_gradients(values, step)
            stepped.step()
    for name in ("embedding", "bias"):
        torch.testing.assert_close(parameters[name], expected[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("shape", [(48, 64), (48, 192), (192, 48), (1, 5)], ids=str)
def test_singular_values_end_near_one(shape: tuple[int, int]) -> None:
    """By a singular value decomposition: same singular vectors, all values between 0.6 and 1.3."""
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.mT @ orthogonalized(matrix, torch.float64) @ right.mT
    smallest = (values / values.square().sum(-1, keepdim=True).sqrt()).min()
    near_one = found.diagonal(dim1=-2, dim2=-1)
    assert smallest > 1e-3, "smaller ones have further to go"
    assert near_one.min() > 0.6 and near_one.max() < 1.3
    torch.testing.assert_close(found, near_one.diag_embed(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=str)
def test_precision_of_the_products(dtype: torch.dtype, tolerance: float) -> None:
    """Half precision moves singular values by a few hundredths, less than the steps leave them from 1 anyway."""
    matrix = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    found = orthogonalized(matrix[None], dtype)[0]
    assert found.dtype == dtype
    error = torch.linalg.matrix_norm(found.double() - newton_schulz(matrix.double()), ord=2)
    assert error < tolerance


def test_matrices_of_every_scale() -> None:
    matrix = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    scaled = torch.stack([matrix, 1e-4 * matrix, 1e20 * matrix, 0 * matrix])
    found = orthogonalized(scaled, torch.float32)
    torch.testing.assert_close(found[1:3], found[:1].expand(2, -1, -1), rtol=0, atol=1e-5)
    assert not found[3].any()


def test_transposed_parameter() -> None:
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    parameters = [nn.Parameter(values.t()), nn.Parameter(values.t().contiguous())]
    for parameter in parameters:
        parameter.grad = parameter.detach().sin()
        Muon([parameter], lr=0.1, orthogonalize=True).step()
    torch.testing.assert_close(parameters[0], parameters[1])


def test_state_is_one_momentum() -> None:
    parameters = make_parameters()
    optimizer = make_optimizer(Muon, parameters)
    set_gradients(parameters, 0)
    optimizer.step()
    assert set(optimizer.state[parameters["wide"]]) == {"step", "exp_avg"}
    assert set(optimizer.state[parameters["embedding"]]) == {"step", "exp_avg", "exp_avg_sq"}


def pickled(objects: Any) -> Any:
    return pickle.loads(pickle.dumps(objects))


@pytest.mark.parametrize("copied_by", [copy.deepcopy, pickled])
def test_copy_steps_on_its_own_tensors(copied_by: Callable[[Any], Any]) -> None:
    parameters = make_parameters()
    optimizer = make_optimizer(Muon, parameters)
    set_gradients(parameters, 0)
    optimizer.step()
    copied_parameters, copied = copied_by((parameters, optimizer))
    for step in range(1, 3):
        for owner, stepped in ((parameters, optimizer), (copied_parameters, copied)):
            set_gradients(owner, step)
            stepped.step()
    for name, parameter in parameters.items():
        assert torch.equal(copied_parameters[name], parameter) and copied_parameters[name] is not parameter


def test_groups_that_are_added_later_are_like_the_first() -> None:
    """Also one that does not say whose it is: the constructor did."""
    parameters, expected = make_parameters(), make_parameters()
    optimizer = make_optimizer(Muon, parameters)
    first, *later = groups(expected)
    added = Muon([first], lr=0.01, orthogonalize=True, row_blocks={expected["stacked"]: 3})
    for group in later:
        added.add_param_group(group | {"orthogonalize": False})
    other = [nn.Parameter(torch.ones(2, 3, dtype=torch.float64)) for _ in range(2)]
    added.add_param_group({"params": [("other", other[0])]})
    alone = Muon(other[1:], lr=0.01, orthogonalize=True)
    for step in range(3):
        set_gradients(parameters, step)
        set_gradients(expected, step)
        for parameter in other:
            parameter.grad = torch.full_like(parameter, 1.0 + step)
        for stepped in (optimizer, added, alone):
            stepped.step()
    assert all(torch.equal(expected[name], parameter) for name, parameter in parameters.items())
    assert torch.equal(*other) and set(added.state[other[0]]) == {"step", "exp_avg"}
    with pytest.raises(ValueError, match=r"only matrices can be, but a parameter has the shape \(3,\)"):
        added.add_param_group({"params": [("vector", nn.Parameter(torch.ones(3)))]})


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"only matrices can be, but a parameter has the shape \(9,\)"):
        Muon([nn.Parameter(torch.ones(9))], lr=0.1, orthogonalize=True)
    with pytest.raises(ValueError, match=r"momentum is 1.0, but must be at least 0 and below 1"):
        Muon([nn.Parameter(torch.ones(2, 2))], lr=0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"momentum is 1.0, but must be at least 0 and below 1"):
        Muon([{"params": [nn.Parameter(torch.ones(2, 2))], "momentum": 0.9}], lr=0.1, momentum=1.0)
    for numbers in ({"momentum": 1.0}, {"weight_decay": -0.1}, {"lr": float("nan")}):
        (name,) = numbers
        with pytest.raises(ValueError, match=f"{name} is .*, but must be at least 0"):
            Muon([{"params": [nn.Parameter(torch.ones(2, 2))], "orthogonalize": True, **numbers}], lr=0.1)


def test_refuses_masters_before_bind() -> None:
    optimizer = Muon([nn.Parameter(torch.ones(2, 2))], lr=0.1, orthogonalize=True)
    master = torch.ones(4, requires_grad=True)
    optimizer.param_groups[0]["params"] = [master]
    master.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"Muon steps on DeepSpeed's masters: call bind"):
        optimizer.step()


class TestOwners:
    """Who orthogonalises what."""

    BERT_LARGE = 24 * ([(1024, 1024)] * 4 + [(4096, 1024), (1024, 4096)])

    def held(self, ranks: int) -> list[list[int]]:
        """Matrices end to end, cut into equal parts, as ZeRO-1 does."""
        numels = [rows * columns for rows, columns in self.BERT_LARGE]
        part = -(-sum(numels) // ranks)
        starts = [sum(numels[:matrix]) for matrix in range(len(numels))]
        return [
            [
                max(0, min(start + numel, (rank + 1) * part) - max(start, rank * part))
                for start, numel in zip(starts, numels, strict=True)
            ]
            for rank in range(ranks)
        ]

    @pytest.mark.parametrize("ranks", [1, 2, 3, 8, 32])
    def test_no_rank_has_much_more_than_its_share(self, ranks: int) -> None:
        flops = [newton_schulz_flops(*shape) for shape in self.BERT_LARGE]
        owners = assign_owners(flops, self.held(ranks))
        load = [sum(cost for cost, owner in zip(flops, owners, strict=True) if owner == rank) for rank in range(ranks)]
        assert max(load) <= sum(flops) / ranks + max(flops)
        assert set(owners) == set(range(ranks))

    @pytest.mark.parametrize("ranks", [2, 8])
    def test_most_matrices_stay_where_they_are(self, ranks: int) -> None:
        held = self.held(ranks)
        owners = assign_owners([newton_schulz_flops(*shape) for shape in self.BERT_LARGE], held)
        stays = sum(held[owner][matrix] for matrix, owner in enumerate(owners))
        assert stays > 0.75 * sum(map(sum, held))

    def test_more_ranks_than_matrices(self) -> None:
        owners = assign_owners([5, 5, 9], [[1, 1, 1]] * 7)
        assert len(set(owners)) == 3

    def test_operations_are_those_of_the_products(self) -> None:
        """As PyTorch counts them."""
        from torch.utils.flop_counter import FlopCounterMode

        for shape in ((64, 64), (48, 192), (192, 48)):
            with FlopCounterMode(display=False) as counter:
                orthogonalized(torch.randn(1, *shape), torch.float32)
            assert counter.get_total_flops() == newton_schulz_flops(*shape)
