"""Muon for hidden matrices and LAMB for everything else, under plain PyTorch and under every ZeRO stage of DeepSpeed.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") in the variant of Liu et al. 2025
("Muon is scalable for LLM training", arXiv:2502.16982). For a matrix w [R, C] with gradient g, at each step:

    m = momentum m + (1 - momentum) g            u = momentum m + (1 - momentum) g          (Nesterov)
    w = (1 - lr weight_decay) w - lr 0.2 sqrt(max(R, C)) N(u),    N(u): u with all singular values near 1

N takes whole matrices, which ZeRO cuts anywhere. So each is put together on one rank (the ranks share the matrices out
by what they cost), goes through `newton_schulz.py` there, and its parts go back: two collectives for each group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed
from torch import nn

from earlybert.kernels.lamb import Lamb, Table
from earlybert.kernels.matrix_exchange import MatrixExchange
from earlybert.kernels.newton_schulz import orthogonalized, product_dtype
from earlybert.kernels.partition import Partition
from earlybert.kernels.sizes import MOMENTS

# Of max(rows, columns), so that updates are as large as Adam's usually are (Liu et al. 2025, section 2.2).
UPDATE_SCALE = 0.2


class Muon(Lamb):
    """Muon on the groups that say `"orthogonalize": True`, LAMB on the others; options and use are `Lamb`'s.

    Args:
        params: as `Lamb`'s. Groups of Muon hold hidden matrices only, and read `lr`, `momentum` and `weight_decay`.
        lr: learning rate; Muon's is another than LAMB's, so groups should have their own.
        momentum: decay rate of Muon's momentum.
        orthogonalize: whether a group is Muon's.
        row_blocks: as `Lamb`'s; each block is a matrix of its own.
        options: `Lamb`'s, for its groups; `trust_ratio=False` makes it AdamW.

    State of Muon's tensors: `step` () on the CPU and the momentum, as `exp_avg`. Raises ValueError for numbers out of
    range and for groups of Muon with anything but matrices.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        orthogonalize: bool = False,
        row_blocks: Mapping[nn.Parameter, int] | None = None,
        **options: Any,
    ) -> None:
        self._check_momentum(momentum)
        self._own_defaults = {"momentum": momentum, "orthogonalize": orthogonalize}
        self._orthogonalized: set[nn.Parameter] = set()
        self._exchanges: WeakKeyDictionary[Table, MatrixExchange] = WeakKeyDictionary()
        self._replicas: torch.distributed.ProcessGroup | None = None
        super().__init__(params, lr, row_blocks=row_blocks, **options)

    def __getstate__(self) -> dict[str, Any]:
        own = {"_own_defaults": self._own_defaults, "_orthogonalized": self._orthogonalized, "_replicas": None}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Those of a copy belong to tables that it has yet to make, and the others' cannot be pickled.
        self.__dict__.setdefault("_exchanges", WeakKeyDictionary())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Lamb`'s; raises ValueError for a group of Muon with anything but matrices, too."""
        self.defaults |= self._own_defaults  # here, as Lamb's constructor adds the first groups
        self._check_momentum(param_group.get("momentum", self.defaults["momentum"]))
        super().add_param_group(param_group)
        if not param_group["orthogonalize"]:
            return
        for parameter in param_group["params"]:
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            if len(shape) != 2:
                raise ValueError(f"orthogonalize: only matrices can be, but a parameter has the shape {shape}.")
        self._orthogonalized.update(param_group["params"])

    @staticmethod
    def _check_momentum(momentum: float) -> None:
        """Raises ValueError for a group's, or the default, that is out of range."""
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must be at least 0 and below 1.")

    def bind(self, engine: Any) -> list[Partition]:
        layout = super().bind(engine)
        # Without ZeRO every rank holds everything, and still each matrix is orthogonalised by one of them.
        replicas = engine.seq_data_parallel_group
        self._replicas = replicas if torch.distributed.get_world_size(replicas) > 1 else None
        return layout

    def _moments_of(self, parameter: nn.Parameter) -> Sequence[str]:
        return MOMENTS[:1] if parameter in self._orthogonalized else MOMENTS

    def _step_group(self, group: dict[str, Any], table: Table, count: float) -> None:
        if not group["orthogonalize"]:
            super()._step_group(group, table, count)
            return
        exchange = self._exchange(table)
        momenta = [self.state[flat]["exp_avg"] for flat in table.flats]
        kinds = [flat.detach() for flat in table.flats], table.gradients(), momenta
        weights, gradients, first = ([stretch.of(kind) for stretch in table.stretches] for kind in kinds)
        updates = []
        if table.stretches:
            torch._foreach_lerp_(first, gradients, 1 - group["momentum"])
            updates = list(torch._foreach_lerp(gradients, first, group["momentum"]))
        # Half precision is enough for the products, and so for what travels.
        device, dtype = table.flats[0].device, table.flats[0].dtype
        travels = torch.bfloat16 if device.type == "cuda" else dtype
        change = partial(orthogonalized, dtype=product_dtype(device, dtype))
        updates = exchange.changed(updates, travels, change)
        if table.stretches:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            factors = [UPDATE_SCALE * math.sqrt(max(unit.shape)) for unit in table.units if unit.numel]
            scaled = torch._foreach_mul([update.to(dtype) for update in updates], factors)
            shaped = [update.view(weight.shape) for update, weight in zip(scaled, weights, strict=True)]
            torch._foreach_add_(weights, shaped, alpha=-group["lr"])

    def _exchange(self, table: Table) -> MatrixExchange:
        """How the matrices of a table come together, found out once."""
        if table not in self._exchanges:
            replicated = table.process_group is None
            process_group = self._replicas if replicated else table.process_group
            self._exchanges[table] = MatrixExchange(
                table.units, process_group, replicated=replicated, device=table.flats[0].device
            )
        return self._exchanges[table]
