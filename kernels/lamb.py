"""LAMB whose trust ratios are those of whole tensors, under plain PyTorch and under every ZeRO stage of DeepSpeed.

LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv:1904.00962) in
the variant that NVIDIA trains BERT with (apex FusedLAMB). For a tensor w with gradient g, at its step t:

    m = beta1 m + (1 - beta1) g                 v = beta2 v + (1 - beta2) g^2
    u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w
    w = w - lr r u,    r = |w| / |u| where the tensor is decayed and both norms are positive, otherwise 1

ZeRO shows an optimizer flat tensors that hold parts of many parameters, cut at any element. One ratio per such tensor
trains something else, silently and differently for every number of ranks. After `bind(engine)` Lamb knows what each
flat tensor holds, takes the squared norms of the pieces and adds them up over the ranks.

NVIDIA's optimizer also clips the gradients to global norm 1 before all this. That needs the gradients of all groups at
once, which an optimizer never sees under ZeRO: set DeepSpeed's `gradient_clipping` to 1.0, and under plain PyTorch call
`torch.nn.utils.clip_grad_norm_` before `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from earlybert.kernels.lamb_step import LambStep, Rates, Stretch, Tensors, lamb_step, to_device
from earlybert.kernels.partition import (
    Partition,
    Piece,
    partition_layout,
    set_step_count,
    start_state,
    step_count,
    zero_moments,
)
from earlybert.kernels.sizes import MOMENTS


@dataclass(eq=False)
class Table:
    """What never changes about the steps on some tensors: U units in them, of P stretches that are here.

    A unit is what has a trust ratio of its own: a parameter, or one of its row blocks. `stretch_U` is the stretch of
    each unit, P for those of which nothing is here, and `unit_P` the unit of each stretch; both are on the tensors'
    device, and None where stretches and units are the same.
    """

    flats: list[Tensor]
    units: list[Piece]
    stretches: list[Stretch]
    stretch_U: Tensor | None
    unit_P: Tensor | None
    process_group: torch.distributed.ProcessGroup | None
    step: LambStep | None = None

    def gradients(self) -> list[Tensor]:
        """Of the tensors; zeros where there is none."""
        return [torch.zeros_like(flat) if flat.grad is None else flat.grad for flat in self.flats]

    @staticmethod
    def of(flats: list[Tensor], partitions: list[Partition]) -> Table:
        """Of tensors and what each of them holds, in row blocks."""
        units = [unit for partition in partitions for unit in partition.pieces]
        positions = [position for position, partition in enumerate(partitions) for _ in partition.pieces]
        owners = [number for number, unit in enumerate(units) if unit.numel]
        stretches = [Stretch(positions[owner], units[owner].flat_start, units[owner].numel) for owner in owners]
        # A group's tensors are either all spread over the same ranks or all whole.
        table = Table(flats, units, stretches, None, None, partitions[0].process_group)
        if len(owners) < len(units):
            unit_P, device = torch.tensor(owners, dtype=torch.int64), flats[0].device
            # A unit has at most one stretch here.
            stretch_U = torch.full((len(units),), len(owners)).index_copy_(0, unit_P, torch.arange(len(owners)))
            table.stretch_U, table.unit_P = to_device(stretch_U, device), to_device(unit_P, device)
        return table


class Lamb(torch.optim.Optimizer):
    """LAMB for plain PyTorch and for DeepSpeed (ZeRO 0 to 3, BF16_Optimizer, FP16_UnfusedOptimizer).

    Args:
        params: `nn.Parameter`s, named ones or groups, as for any torch optimizer; dense gradients.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment, after its bias correction.
        weight_decay: added to the update as `weight_decay * w`, before the trust ratio.
        bias_correction: divide the moments by 1 - beta^step.
        nvlamb: give tensors without decay a trust ratio, too.
        max_trust_ratio: upper limit of the trust ratio; None for none.
        trust_ratio: False makes every ratio 1 and needs no communication: the step is AdamW's.
        row_blocks: how many equal blocks of rows a parameter consists of, each with its own trust ratio, for separate
            weights stored as one tensor (3 for query, key and value); 1 where not named.

    All but `row_blocks` can be set per group. State per tensor: `step` () on the CPU, `exp_avg` and `exp_avg_sq` like
    the tensor. Raises ValueError for numbers out of range and for row blocks that do not divide a parameter's rows;
    `step` raises RuntimeError on sparse gradients, and on DeepSpeed's tensors before `bind`.

    Under DeepSpeed, hand the object to `deepspeed.initialize` with `"zero_allow_untested_optimizer": true`, then call
    `bind(engine)`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        nvlamb: bool = False,
        max_trust_ratio: float | None = None,
        trust_ratio: bool = True,
        row_blocks: Mapping[nn.Parameter, int] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "nvlamb": nvlamb,
            "max_trust_ratio": max_trust_ratio,
            "trust_ratio": trust_ratio,
        }
        self._check_numbers(defaults)  # also where every group has numbers of its own
        super().__init__(params, defaults)
        self._row_blocks = dict(row_blocks or {})
        for parameter, blocks in self._row_blocks.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            if not shape or blocks < 1 or shape[0] % blocks:
                raise ValueError(f"row_blocks: {blocks} equal row blocks do not fit a parameter of {tuple(shape)}.")
        self._bound: dict[Tensor, Partition] = {}
        self._tables: dict[Tensor, Table] = {}
        self._trust_ratios: dict[str, tuple[Tensor, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies, whose tensors are their own: they are not bound."""
        own: dict[str, Any] = {"_bound": {}, "_tables": {}, "_trust_ratios": {}}
        return super().__getstate__() | {"_row_blocks": self._row_blocks} | own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer`'s, whose constructor adds the first ones; raises ValueError."""
        self._check_numbers(self.defaults | param_group)
        super().add_param_group(param_group)

    @staticmethod
    def _check_numbers(numbers: Mapping[str, Any]) -> None:
        """Raises ValueError for one of a group, or of the defaults, that is out of range."""
        for name in ("lr", "eps", "weight_decay"):
            if not numbers[name] >= 0:  # nan is not
                raise ValueError(f"{name} is {numbers[name]}, but must be at least 0.")
        limit, betas = numbers["max_trust_ratio"], numbers["betas"]
        if limit is not None and not limit > 0:
            raise ValueError(f"max_trust_ratio is {limit}, but must be above 0, or None.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas is {betas}, but both must be at least 0 and below 1.")

    def bind(self, engine: Any) -> list[Partition]:
        """Learn from a `deepspeed.DeepSpeedEngine` what the tensors hold that this optimizer now steps on.

        Call it once, directly after `deepspeed.initialize` and before any state is loaded: the optimizer starts at
        step 0. Returns the layout. Raises ValueError when DeepSpeed wraps the optimizer in a class not known here.
        """
        layout = partition_layout(engine)
        self._bound = {partition.flat: partition.in_row_blocks(self._row_blocks) for partition in layout}
        self._tables, self._trust_ratios = {}, {}
        start_state(engine, layout, self._moments_of)
        return layout

    def _moments_of(self, parameter: nn.Parameter) -> Sequence[str]:
        """What state a parameter has beside its step count."""
        return MOMENTS

    @property
    def step_count(self) -> int:
        """Steps taken so far."""
        return step_count(self)

    def set_step(self, step: int) -> None:
        """Pretend that `step` steps have been taken, after moments were loaded; sets the bias correction."""
        set_step_count(self, step)

    def trust_ratios(self) -> dict[str, float]:
        """Trust ratios of the last step by parameter name, the same on every rank; `name[i]` for row block i.

        Tensors that have none (no decay, unless `nvlamb`; `trust_ratio` False) are left out, and one without gradient
        keeps its last. Names are DeepSpeed's after `bind`; before it those of named parameters, or `group.position`.
        The ratios are where they were computed: a GPU is waited for here, and not in `step`.
        """
        found = {ratios_U: ratios_U.tolist() for ratios_U in {ratios_U for ratios_U, _ in self._trust_ratios.values()}}
        return {name: found[ratios_U][unit] for name, (ratios_U, unit) in self._trust_ratios.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the groups as they are now: ZeRO-1 and -2 show one group at a time, ZeRO-3 one sub-group.

        Communicates once per group that has trust ratios and is spread over ranks: two doubles per unit.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group_index, group in enumerate(self.param_groups):
            # Outside DeepSpeed a tensor that had no gradient for a while has taken fewer steps than the others.
            by_count: dict[float, list[Tensor]] = {}
            for flat in self._present(group):
                by_count.setdefault(float(self.state[flat]["step"]), []).append(flat)
            for count, flats in by_count.items():
                for flat in flats:
                    # A new tensor each time: DeepSpeed's universal checkpoints load one object into several states.
                    self.state[flat]["step"] = self.state[flat]["step"] + 1
                self._step_group(group, self._table(group_index, group, flats), count + 1)
        return loss

    def _present(self, group: dict[str, Any]) -> Iterator[Tensor]:
        """The group's tensors that take part in this step."""
        name = type(self).__name__
        for flat in group["params"]:
            if flat in self._bound:
                # Takes part even without a gradient on this rank: the others wait for it in the collective.
                yield flat
            elif not isinstance(flat, nn.Parameter):
                # DeepSpeed's masters before `bind`. FP16_UnfusedOptimizer's constructor steps on them with zero
                # gradients; anything else would train with the wrong ratios.
                if flat.grad is not None and flat.grad.any():
                    raise RuntimeError(f"{name} steps on DeepSpeed's masters: call bind(engine) after initialize.")
            elif flat.grad is not None:
                if flat.grad.is_sparse:
                    raise RuntimeError(f"{name} needs dense gradients: make the embedding with sparse=False.")
                if not self.state[flat]:
                    self.state[flat].update(zero_moments(flat, self._moments_of(flat)))
                yield flat

    def _table(self, group_index: int, group: dict[str, Any], flats: list[Tensor]) -> Table:
        """The table of these tensors of a group, made once."""
        table = self._tables.get(flats[0])
        if table is None or list(map(id, table.flats)) != list(map(id, flats)):
            names = group.get("param_names") or [f"{group_index}.{place}" for place in range(len(group["params"]))]
            whole = {
                parameter: Partition.whole(name, parameter, parameter).in_row_blocks(self._row_blocks)
                for name, parameter in zip(names, group["params"], strict=True)
            }
            partitions = [self._bound[flat] if flat in self._bound else whole[flat] for flat in flats]
            table = self._tables[flats[0]] = Table.of(flats, partitions)
        return table

    def _step_group(self, group: dict[str, Any], table: Table, count: float) -> None:
        """A step on a table's tensors, their number `count`, from 1."""
        device, stretches = table.flats[0].device, len(table.stretches)
        if not stretches:
            squares_2P = torch.zeros(2, 0, dtype=torch.float64, device=device)
        else:
            # Padding belongs to no stretch and is left alone: under ZeRO-3 it may hold anything.
            weights = [flat.detach() for flat in table.flats]
            gradients = table.gradients()
            moments = ([self.state[flat][moment] for flat in table.flats] for moment in MOMENTS)
            tensors = Tensors(weights, gradients, *moments)
            table.step = lamb_step(table.stretches, tensors, before=table.step)
            names = ("betas", "eps", "weight_decay", "bias_correction")
            squares_2P = table.step.advance(tensors, Rates(count, *(group[name] for name in names)))
        if group["trust_ratio"] and (group["weight_decay"] or group["nvlamb"]):
            factors_P = self._ratios(group, table, squares_2P).mul(-group["lr"])
        else:
            factors_P = torch.full((stretches,), -group["lr"], dtype=torch.float64, device=device)
        if table.step:
            table.step.apply(factors_P)

    def _ratios(self, group: dict[str, Any], table: Table, squares_2P: Tensor) -> Tensor:
        """Trust ratio of each of P stretches, from the squared norms of weights and updates of the parts held here."""
        squares_2U = squares_2P
        if table.stretch_U is not None:
            squares_2U = F.pad(squares_2P, (0, 1)).index_select(1, table.stretch_U)
        if table.process_group is not None:
            torch.distributed.all_reduce(squares_2U, group=table.process_group)
        weight_norms_U, update_norms_U = squares_2U.sqrt_()
        usable_U = (weight_norms_U > 0) & (update_norms_U > 0)
        ratios_U = torch.where(usable_U, weight_norms_U / update_norms_U, 1.0)
        if group["max_trust_ratio"] is not None:
            ratios_U.clamp_(max=group["max_trust_ratio"])
        self._trust_ratios.update({unit.name: (ratios_U, number) for number, unit in enumerate(table.units)})
        return ratios_U if table.unit_P is None else ratios_U.index_select(0, table.unit_P)
