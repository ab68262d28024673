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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from earlybert.kernels.lamb_step import lamb_step
from earlybert.kernels.partition import (
    Partition,
    Piece,
    partition_layout,
    set_step_count,
    start_state,
    step_count,
    zero_moments,
)


@dataclass(frozen=True)
class _Stretch:
    """Consecutive elements of a flat tensor that belong to one unit (a parameter, or one of its row blocks)."""

    unit: int
    start: int
    numel: int

    def of(self, flat: Tensor) -> Tensor:
        # A whole tensor needs no view of its elements in a row, which not every tensor can give.
        return flat if self.numel == flat.numel() else flat.view(-1)[self.start : self.start + self.numel]


@dataclass(frozen=True, eq=False)
class _Units:
    """What has a trust ratio of its own in one flat tensor: all names, and the stretches that this rank holds."""

    names: list[str]
    stretches: list[_Stretch]
    process_group: torch.distributed.ProcessGroup | None


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
        for name, number in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if number < 0:
                raise ValueError(f"{name} is {number}, but must be at least 0.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas is {betas}, but both must be at least 0 and below 1.")
        super().__init__(params, defaults)
        self._row_blocks = dict(row_blocks or {})
        for parameter, blocks in self._row_blocks.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            if not shape or blocks < 1 or shape[0] % blocks:
                raise ValueError(f"row_blocks: {blocks} equal row blocks do not fit a parameter of {tuple(shape)}.")
        self._bound: dict[Tensor, _Units] = {}
        self._trust_ratios: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies, whose tensors are their own: they are not bound."""
        return super().__getstate__() | {"_row_blocks": self._row_blocks, "_bound": {}, "_trust_ratios": {}}

    def bind(self, engine: Any) -> list[Partition]:
        """Learn from a `deepspeed.DeepSpeedEngine` what the tensors hold that this optimizer now steps on.

        Call it once, directly after `deepspeed.initialize` and before any state is loaded: the optimizer starts at
        step 0. Returns the layout. Raises ValueError when DeepSpeed wraps the optimizer in a class not known here.
        """
        layout = partition_layout(engine)
        self._bound = {partition.flat: self._units(partition) for partition in layout}
        self._trust_ratios = {}
        start_state(engine, layout)
        return layout

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
        """
        return dict(self._trust_ratios)

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
            flats, units = self._present(group_index, group)
            if flats:
                self._step_group(group, flats, units)
        return loss

    def _present(self, group_index: int, group: dict[str, Any]) -> tuple[list[Tensor], list[_Units]]:
        """The group's tensors that take part in this step, and what they hold."""
        flats, units = [], []
        for position, flat in enumerate(group["params"]):
            if flat in self._bound:
                # Takes part even without a gradient on this rank: the others wait for it in the collective.
                flats.append(flat)
                units.append(self._bound[flat])
            elif not isinstance(flat, nn.Parameter):
                # DeepSpeed's masters before `bind`. FP16_UnfusedOptimizer's constructor steps on them with zero
                # gradients; anything else would train with the wrong ratios.
                if flat.grad is not None and flat.grad.any():
                    raise RuntimeError("Lamb steps on DeepSpeed's masters: call bind(engine) after initialize.")
            elif flat.grad is not None:
                if flat.grad.is_sparse:
                    raise RuntimeError("Lamb needs dense gradients: make the embedding with sparse=False.")
                name = group["param_names"][position] if "param_names" in group else f"{group_index}.{position}"
                piece = Piece(name, flat, flat.shape, 0, 0, flat.numel())
                flats.append(flat)
                units.append(self._units(Partition(flat, (piece,), process_group=None)))
                if not self.state[flat]:
                    self.state[flat].update(zero_moments(flat))
        return flats, units

    def _units(self, partition: Partition) -> _Units:
        """Cut the pieces of a partition at the borders of the row blocks."""
        names: list[str] = []
        stretches: list[_Stretch] = []
        for piece in partition.pieces:
            blocks = self._row_blocks.get(piece.parameter, 1)
            block_numel = piece.shape.numel() // blocks
            piece_end = piece.parameter_start + piece.numel
            for block in range(blocks):
                start = max(piece.parameter_start, block * block_numel)
                end = min(piece_end, (block + 1) * block_numel)
                if start < end:
                    flat_start = piece.flat_start + start - piece.parameter_start
                    stretches.append(_Stretch(len(names), flat_start, end - start))
                names.append(f"{piece.name}[{block}]" if blocks > 1 else piece.name)
        return _Units(names, stretches, partition.process_group)

    def _step_group(self, group: dict[str, Any], flats: list[Tensor], units: list[_Units]) -> None:
        states = [self.state[flat] for flat in flats]
        for state in states:
            # A new tensor each time: DeepSpeed's universal checkpoints load one tensor object into several states.
            state["step"] = state["step"] + 1
        weights = [flat.detach() for flat in flats]
        gradients = [torch.zeros_like(flat) if flat.grad is None else flat.grad for flat in flats]
        moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
        steps = [float(state["step"]) for state, unit in zip(states, units, strict=True) for _ in unit.stretches]
        squares_2P = torch.zeros(2, len(steps), dtype=torch.float64, device=flats[0].device)
        if steps:
            # Padding belongs to no stretch and is left alone: under ZeRO-3 it may hold anything.
            step = lamb_step(*(list(_stretches(tensors, units)) for tensors in (weights, gradients, *moments)))
            names = ("betas", "eps", "weight_decay", "bias_correction")
            squares_2P = step.advance(steps, *(group[name] for name in names))
        ratios = [1.0] * len(steps)
        if group["trust_ratio"] and (group["weight_decay"] or group["nvlamb"]):
            ratios = self._ratios(group, squares_2P, units)
        if steps:
            step.apply([-group["lr"] * ratio for ratio in ratios])

    def _ratios(self, group: dict[str, Any], squares_2P: Tensor, units: list[_Units]) -> list[float]:
        """Trust ratio of each of P stretches, from the squared norms of weights and updates of the parts held here."""
        names: list[str] = []
        owners: list[int] = []
        for unit in units:
            owners += [len(names) + stretch.unit for stretch in unit.stretches]
            names += unit.names
        squares_2U = squares_2P.new_zeros(2, len(names))
        squares_2U[:, owners] = squares_2P  # a unit has at most one stretch here
        # A group's tensors are either all spread over the same ranks or all whole.
        if units[0].process_group is not None:
            torch.distributed.all_reduce(squares_2U, group=units[0].process_group)
        weight_norms_U, update_norms_U = squares_2U.sqrt_()
        usable_U = (weight_norms_U > 0) & (update_norms_U > 0)
        ratios_U = torch.where(usable_U, weight_norms_U / update_norms_U, 1.0)
        if group["max_trust_ratio"] is not None:
            ratios_U.clamp_(max=group["max_trust_ratio"])
        ratios = ratios_U.tolist()
        self._trust_ratios.update(zip(names, ratios, strict=True))
        return [ratios[owner] for owner in owners]


def _stretches(flats: list[Tensor], units: list[_Units]) -> Iterator[Tensor]:
    """What `units` say that these tensors hold here, in their order."""
    for flat, unit in zip(flats, units, strict=True):
        yield from (stretch.of(flat) for stretch in unit.stretches)
