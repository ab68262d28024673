"""Where the elements of every parameter live in the fp32 tensors that a DeepSpeed engine hands to its optimizer.

DeepSpeed's optimizer does not step on the module's parameters. ZeRO 1, 2 and 3 and BF16_Optimizer lay the parameters of
a group end to end and give each rank one flat fp32 part of them; a border may cut a tensor anywhere. Whoever needs
whole tensors (trust ratios, checkpoints that do not depend on the number of ranks) needs the same description of that
layout, and this module is the one place that reads it from DeepSpeed's structures.

    layout = partition_layout(engine)
    start_state(engine, layout)  # once, directly after deepspeed.initialize
    for partition in layout:
        moments = engine.basic_optimizer.state[partition.flat]
        for piece in partition.pieces:
            full = partition.gather(piece, [partition.flat, moments["exp_avg"], moments["exp_avg_sq"]], destination=0)

Shape suffixes: K tensors of one layout, N elements of one parameter. Dots stand for the parameter's own shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from earlybert.kernels.sizes import MOMENTS

# Elements per collective of a gather: larger ones leave more free memory behind, smaller ones take longer.
_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False)
class Piece:
    """One parameter, and the stretch of it that this rank's flat tensor holds.

    Every wrapper gives a rank at most one contiguous stretch of a parameter; `numel` is 0 when it gives none.
    """

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    """The full shape, also under ZeRO-3, where `parameter.shape` is (0,) between uses."""
    flat_start: int
    parameter_start: int
    numel: int

    def of(self, flat: Tensor) -> Tensor:
        """The stretch as a view (numel,) of a tensor laid out like the flat one: master, gradient or moment."""
        return flat.detach().view(-1)[self.flat_start : self.flat_start + self.numel]

    def of_full(self, full: Tensor) -> Tensor:
        """The stretch as a view (numel,) of the parameter's full tensor (...)."""
        return full.view(-1)[self.parameter_start : self.parameter_start + self.numel]

    def row_blocks(self, blocks: int) -> list[Piece]:
        """The parameter as so many equal blocks of rows, called `name[i]`, each with what is here of it."""
        if blocks == 1:
            return [self]
        shape = torch.Size((self.shape[0] // blocks, *self.shape[1:]))
        return [self._row_block(index, shape) for index in range(blocks)]

    def _row_block(self, index: int, shape: torch.Size) -> Piece:
        begin = index * shape.numel()
        start = max(self.parameter_start, begin)
        numel = min(self.parameter_start + self.numel, begin + shape.numel()) - start
        place = (self.flat_start + start - self.parameter_start, start - begin, numel) if numel > 0 else (0, 0, 0)
        return Piece(f"{self.name}[{index}]", self.parameter, shape, *place)


@dataclass(frozen=True, eq=False)
class Partition:
    """One tensor that the optimizer steps on, and every parameter that it is a part of.

    `pieces` has the same parameters in the same order on all ranks of `process_group`, also those of which this rank
    holds nothing, so collectives over them match. `process_group` is None where every rank holds all of it.
    """

    flat: Tensor
    pieces: tuple[Piece, ...]
    process_group: ProcessGroup | None

    @staticmethod
    def whole(name: str, parameter: nn.Parameter, flat: Tensor) -> Partition:
        """Of a parameter that is not cut at all; `flat` is what the optimizer steps on."""
        return Partition(flat, (Piece(name, parameter, parameter.shape, 0, 0, parameter.numel()),), process_group=None)

    def in_row_blocks(self, blocks: Mapping[nn.Parameter, int]) -> Partition:
        """The same, with the parameters that consist of several equal blocks of rows cut into these."""
        pieces = (block for piece in self.pieces for block in piece.row_blocks(blocks.get(piece.parameter, 1)))
        return replace(self, pieces=tuple(pieces))

    def gather(self, piece: Piece, tensors: Sequence[Tensor], destination: int | None = None) -> Tensor | None:
        """Full values of one parameter, from K tensors laid out like `flat`, bit for bit.

        All ranks of the process group must call it for the same pieces in the same order. Returns a new tensor (K, ...)
        like the tensors on the global rank `destination`, or on all ranks when that is None, and None elsewhere.
        """
        wanted = destination is None or destination == torch.distributed.get_rank()
        full = tensors[0].new_empty((len(tensors), *piece.shape)) if wanted else None
        for row, tensor in enumerate(tensors):
            self.gather_into(piece, tensor, None if full is None else full[row], destination)
        return full

    def gather_into(self, piece: Piece, tensor: Tensor, full: Tensor | None, destination: int | None = None) -> None:
        """Like `gather`, of one tensor, into a contiguous tensor (...) of any device, which only receivers give.

        It communicates in pieces of `_CHUNK` elements, and needs memory for one of them on the tensor's own device; not
        at all where every rank holds the whole parameter.
        """
        if self.process_group is None:
            if full is not None:
                piece.of_full(full).copy_(piece.of(tensor))
            return
        for start in range(0, piece.shape.numel(), _CHUNK):
            # Each element comes from one rank; x + (-0.0) is x bit for bit, where +0.0 would turn a -0.0 into +0.0.
            chunk_N = tensor.new_full((min(_CHUNK, piece.shape.numel() - start),), -0.0)
            first = max(start, piece.parameter_start)
            last = min(start + len(chunk_N), piece.parameter_start + piece.numel)
            if first < last:
                held_N = piece.of(tensor)[first - piece.parameter_start : last - piece.parameter_start]
                chunk_N[first - start : last - start].copy_(held_N)
            if destination is None:
                torch.distributed.all_reduce(chunk_N, group=self.process_group)
            else:
                torch.distributed.reduce(chunk_N, dst=destination, group=self.process_group)
            if full is not None:
                full.view(-1)[start : start + len(chunk_N)].copy_(chunk_N)

    def scatter(self, piece: Piece, full: Tensor, tensor: Tensor) -> None:
        """Copy this rank's stretch of `full` (...), any dtype and device, into a tensor laid out like `flat`.

        The inverse of `gather` without communication: every rank passes the full tensor, of which only the rank's own
        stretch is read, so it may be mapped from a file. Raises ValueError when its shape is not the parameter's.
        """
        if full.shape != piece.shape:
            raise ValueError(f"{piece.name} has shape {tuple(piece.shape)}, but got values of {tuple(full.shape)}.")
        piece.of(tensor).copy_(piece.of_full(full.contiguous()))


def partition_layout(engine: Any) -> list[Partition]:
    """Describe every tensor that the optimizer of a `deepspeed.DeepSpeedEngine` steps on.

    Every trainable parameter that the optimizer was given appears exactly once; the order is the same on all ranks.
    Raises ValueError when the engine wraps its optimizer in a class whose layout is not known here.
    """
    names: dict[nn.Parameter, str] = engine.param_names
    match _wrapper_kind(engine):
        case "whole fp32":
            parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            return [Partition.whole(names[parameter], parameter, parameter) for parameter in trained]
        case "FP16_UnfusedOptimizer":
            parameters = [parameter for group in engine.optimizer.fp16_groups for parameter in group]
            masters = [master for group in engine.optimizer.fp32_groups for master in group]
            return [Partition.whole(names[pair[0]], *pair) for pair in zip(parameters, masters, strict=True)]
        case "DeepSpeedZeroOptimizer_Stage3":
            return list(_stage3_partitions(names, engine.optimizer))
        case _:
            return list(_consecutive_partitions(names, engine.optimizer))


def _both_moments(parameter: nn.Parameter) -> Sequence[str]:
    return MOMENTS


def start_state(
    engine: Any, layout: Sequence[Partition], moments_of: Callable[[nn.Parameter], Sequence[str]] = _both_moments
) -> None:
    """Put the optimizer at step 0 with zero moments. Call it once, directly after `deepspeed.initialize`.

    Works for any optimizer whose state is called `step`, `exp_avg` and `exp_avg_sq`, as Lamb's and torch's AdamW's is.
    `moments_of` says which of the two a parameter has; all of a partition must have the same.
    """
    wrapper, optimizer = engine.optimizer, engine.basic_optimizer
    if _wrapper_kind(engine) == "FP16_UnfusedOptimizer":
        # Its constructor takes a real step with zero gradients, and weight decay moves the masters in it.
        wrapper.refresh_fp32_params()
    optimizer.state.clear()
    for partition in layout:
        moments = moments_of(partition.pieces[0].parameter)
        optimizer.state[partition.flat].update(zero_moments(partition.flat, moments))
    if hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed links its per-parameter views of the states (for safe_get_full_optimizer_state) at the first step of
        # the first group, when the other groups would have no state yet, and never again.
        wrapper._hp_optimizer_states_linked = False
        wrapper._lazy_init_hp_params_optimizer_state()


def zero_moments(flat: Tensor, moments: Sequence[str]) -> dict[str, Tensor]:
    """State of an Adam-like optimizer before its first step for a tensor (any shape): moments like it, `step` ()."""
    step = {"step": torch.zeros((), dtype=torch.float32)}
    return step | {moment: torch.zeros_like(flat, requires_grad=False) for moment in moments}


def step_count(optimizer: torch.optim.Optimizer) -> int:
    """Steps taken so far, read from the states (the largest, should they differ); 0 without states."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)


def set_step_count(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Pretend that the optimizer has taken `step` steps on everything it holds a state for."""
    for state in optimizer.state.values():
        state["step"] = torch.full_like(state["step"], step)


def refresh_model_weights(engine: Any) -> None:
    """Round the fp32 masters into the weights that the module computes with, as the end of an optimizer step does.

    To be called on all ranks after masters were written to.
    """
    wrapper = engine.optimizer
    match _wrapper_kind(engine):
        case "whole fp32":
            pass  # The optimizer steps on the module's own parameters.
        case "FP16_UnfusedOptimizer":
            for weights, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
                torch._foreach_copy_([weight.data for weight in weights], [master.data for master in masters])
        case "DeepSpeedZeroOptimizer_Stage3":
            # Small parameters stay gathered between steps: the two events drop and renew those copies.
            wrapper.checkpoint_event_prologue()
            for sub_group in range(len(wrapper.fp16_groups)):
                wrapper._reassign_or_swap_out_partitioned_parameters(sub_group)
            wrapper.checkpoint_event_epilogue()
        case _:
            wrapper.update_lp_params()


_WRAPPERS = ("FP16_UnfusedOptimizer", "DeepSpeedZeroOptimizer", "BF16_Optimizer", "DeepSpeedZeroOptimizer_Stage3")


def _wrapper_kind(engine: Any) -> str:
    """Name of DeepSpeed's class around the optimizer, or "whole fp32" when there is none (ZeRO-0 in fp32)."""
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        return "whole fp32"
    # By name: to import the classes costs seconds, and plain PyTorch users of this package need no DeepSpeed.
    kind = type(engine.optimizer).__name__
    if kind not in _WRAPPERS:
        raise ValueError(f"DeepSpeed wraps the optimizer in {kind}; only {', '.join(_WRAPPERS)} or none can be read.")
    return kind


def _shared_group(process_group: ProcessGroup) -> ProcessGroup | None:
    """The group, or None when it has one rank, which then holds everything."""
    return process_group if torch.distributed.get_world_size(process_group) > 1 else None


def _consecutive_partitions(names: dict[nn.Parameter, str], wrapper: Any) -> Iterator[Partition]:
    """ZeRO-1, ZeRO-2, BF16_Optimizer: a group's parameters end to end, cut into as many equal parts as ranks."""
    if hasattr(wrapper, "round_robin_bit16_groups"):
        # The order and the padding that the flat buffer really has, also with `round_robin_gradients`, where
        # DeepSpeed's own per-parameter map is wrong.
        groups, offsets = wrapper.round_robin_bit16_groups, wrapper.round_robin_bit16_offsets
        flats = wrapper.single_partition_of_fp32_groups
    else:
        groups, flats = wrapper.bf16_groups, wrapper.fp32_groups_flat_partition
        offsets = [_running_offsets(group) for group in groups]
    for group, group_offsets, flat, process_group in zip(
        groups, offsets, flats, wrapper.real_dp_process_group, strict=True
    ):
        part_start = torch.distributed.get_rank(process_group) * flat.numel()
        pieces = []
        for parameter, offset in zip(group, group_offsets, strict=True):
            start = max(offset, part_start)
            numel = min(offset + parameter.numel(), part_start + flat.numel()) - start
            place = (start - part_start, start - offset, numel) if numel > 0 else (0, 0, 0)
            pieces.append(Piece(names[parameter], parameter, parameter.shape, *place))
        yield Partition(flat, tuple(pieces), _shared_group(process_group))


def _running_offsets(parameters: Sequence[nn.Parameter]) -> list[int]:
    offsets = [0]
    for parameter in parameters[:-1]:
        offsets.append(offsets[-1] + parameter.numel())
    return offsets


def _stage3_partitions(names: dict[nn.Parameter, str], wrapper: Any) -> Iterator[Partition]:
    """ZeRO-3: every parameter cut into as many equal parts as ranks, a sub-group's parts end to end.

    A parameter's last part is padded with whatever the memory held, so no piece covers the padding.
    """
    for group, flat, process_group in zip(
        wrapper.fp16_groups, wrapper.fp32_partitioned_groups_flat, wrapper.sub_group_process_groups, strict=True
    ):
        rank = torch.distributed.get_rank(process_group)
        flat_start, pieces = 0, []
        for parameter in group:
            part = parameter.partition_numel()
            numel = min(part, parameter.ds_numel - rank * part)
            place = (flat_start, rank * part, numel) if numel > 0 else (0, 0, 0)
            pieces.append(Piece(names[parameter], parameter, parameter.ds_shape, *place))
            flat_start += part
        yield Partition(flat, tuple(pieces), _shared_group(process_group))
