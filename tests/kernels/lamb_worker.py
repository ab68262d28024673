"""One rank of the tests of Lamb, Muon and the partition layout: a small model, trained under every ZeRO stage.

`main` does it in one process (importing DeepSpeed takes seconds) and writes what it saw to the file named on the
command line, where the library of the emulated kernels may follow. `lamb_launch.launch` starts the ranks and collects
that.

Shape suffixes: G micro-batches of a step, B sequences, S tokens, E embedding size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from earlybert.kernels import muon
from earlybert.kernels.lamb import Lamb
from earlybert.kernels.lamb_reference import LambReference
from earlybert.kernels.muon import Muon
from earlybert.kernels.newton_schulz import orthogonalized
from earlybert.kernels.partition import (
    partition_layout,
    refresh_model_weights,
    set_step_count,
    start_state,
    step_count,
)
from earlybert.kernels.sizes import MOMENTS
from tests.kernels import emulated

STEPS, SAVED_STEP = 8, 4
ACCUMULATION, BATCH, SEQUENCE = 2, 12, 7
VOCABULARY, EMBEDDING = 37, 13
LEARNING_RATE, WEIGHT_DECAY, CLIP = 5e-3, 0.01, 1.0
MUON_LEARNING_RATE, MUON_WEIGHT_DECAY = 1e-2, 0.1


class Model(nn.Module):
    """Odd sizes, so that borders between ranks cut tensors; three weights in one; an unused vector; a lone element."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.query_key_value = nn.Linear(EMBEDDING, 3 * EMBEDDING)
        self.norm = nn.LayerNorm(EMBEDDING)
        self.unused = nn.Parameter(torch.ones(5))
        self.output = nn.Linear(EMBEDDING, VOCABULARY)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        hidden_BSE = self.embedding(tokens_BS)
        query_BSE, key_BSE, value_BSE = self.query_key_value(hidden_BSE).chunk(3, dim=-1)
        hidden_BSE = self.norm(hidden_BSE + query_BSE * key_BSE.tanh() + value_BSE)
        logits_BSV = self.output(hidden_BSE) * self.temperature
        # Scaled so that the gradients are clipped.
        return 10 * functional.cross_entropy(logits_BSV.flatten(0, 1).float(), tokens_BS.roll(1, dims=1).flatten())


def seeded_model() -> Model:
    torch.manual_seed(11)
    return Model()


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Decay for matrices; none for vectors; a group of one element, of which most ranks hold nothing, with decay."""
    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1 and p.numel() > 1], "weight_decay": 0.0},
        {"params": [parameter for parameter in parameters if parameter.numel() == 1], "weight_decay": WEIGHT_DECAY},
    ]


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Muon for two of the matrices."""
    matrices, *others = parameter_groups(model)
    embedding, *hidden = matrices["params"]
    numbers = {"orthogonalize": True, "lr": MUON_LEARNING_RATE, "weight_decay": MUON_WEIGHT_DECAY}
    return [{"params": hidden, **numbers}, matrices | {"params": [embedding]}, *others]


def row_blocks(model: nn.Module) -> dict[nn.Parameter, int]:
    return {model.get_parameter("query_key_value.weight"): 3}


def step_tokens(step: int) -> Tensor:
    """The global batch of a step, (G, B, S)."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(VOCABULARY, (ACCUMULATION, BATCH, SEQUENCE), generator=generator)


@dataclass(frozen=True)
class Case:
    """One DeepSpeed configuration to train under."""

    zero: dict[str, Any]
    wrapper: str
    dtype: torch.dtype = torch.float32
    fp32_sums: bool = False
    optimizer: str = "lamb"
    initial_scale_power: int = 8
    world_sizes: tuple[int, ...] = (1, 2)

    @property
    def same_batch(self) -> bool:
        """Half-precision gradients depend on how a batch is split, so there every rank gets the whole batch."""
        return self.dtype != torch.float32


BF16, FP16 = torch.bfloat16, torch.float16
# Otherwise half-precision gradients are added up in their own dtype, over micro-batches and over ranks.
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
FLAT, STAGE3 = "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"
SMALL_PARTS = {"stage": 3, "sub_group_size": 200, "stage3_param_persistence_threshold": 50}
CASES = {
    "fp32 zero 0": Case({"stage": 0}, "CountingLamb"),
    "fp32 zero 1": Case({"stage": 1}, FLAT, world_sizes=(1, 2, 3)),
    "fp32 zero 2": Case({"stage": 2}, FLAT, world_sizes=(1, 2, 3)),
    "fp32 zero 3": Case({"stage": 3}, STAGE3, world_sizes=(1, 2, 3)),
    "fp32 zero 2, round robin": Case({"stage": 2, "round_robin_gradients": True}, FLAT),
    "fp32 zero 3, sub-groups": Case(SMALL_PARTS, STAGE3),
    "bf16 zero 0": Case({"stage": 0}, "FP16_UnfusedOptimizer", BF16),
    "bf16 zero 1": Case({"stage": 1}, FLAT, BF16),
    "bf16 zero 1, fp32 sums": Case({"stage": 1}, "BF16_Optimizer", BF16, True, world_sizes=(1, 2, 3)),
    "bf16 zero 2": Case({"stage": 2}, FLAT, BF16),
    "bf16 zero 3": Case({"stage": 3}, STAGE3, BF16),
    "bf16 zero 3, sub-groups": Case(SMALL_PARTS, STAGE3, BF16),
    "fp16 zero 1": Case({"stage": 1}, FLAT, FP16, world_sizes=(2,)),
    "fp16 zero 1, another loss scale": Case({"stage": 1}, FLAT, FP16, initial_scale_power=12, world_sizes=(2,)),
    "fp16 zero 2": Case({"stage": 2}, FLAT, FP16, world_sizes=(2,)),
    "fp16 zero 3": Case({"stage": 3}, STAGE3, FP16, world_sizes=(2,)),
    "direction fp32 zero 1": Case({"stage": 1}, FLAT, optimizer="direction"),
    "adamw fp32 zero 0": Case({"stage": 0}, "AdamW", optimizer="adamw"),
    "adamw fp32 zero 1": Case({"stage": 1}, FLAT, optimizer="adamw"),
    "adamw fp32 zero 3": Case({"stage": 3}, STAGE3, optimizer="adamw"),
    "adamw bf16 zero 0": Case({"stage": 0}, "FP16_UnfusedOptimizer", BF16, optimizer="adamw"),
    "muon fp32 zero 0": Case({"stage": 0}, "CountingMuon", optimizer="muon", world_sizes=(1, 2, 4)),
    "muon fp32 zero 1": Case({"stage": 1}, FLAT, optimizer="muon", world_sizes=(1, 2, 4)),
    "muon fp32 zero 2": Case({"stage": 2}, FLAT, optimizer="muon", world_sizes=(1, 2, 4)),
    "muon fp32 zero 3": Case({"stage": 3}, STAGE3, optimizer="muon", world_sizes=(1, 2, 4)),
    "muon fp32 zero 2, round robin": Case(
        {"stage": 2, "round_robin_gradients": True}, FLAT, optimizer="muon", world_sizes=(2,)
    ),
    "muon fp32 zero 3, sub-groups": Case(SMALL_PARTS, STAGE3, optimizer="muon", world_sizes=(2,)),
    "muon bf16 zero 0": Case({"stage": 0}, "FP16_UnfusedOptimizer", BF16, optimizer="muon"),
    "muon bf16 zero 1, fp32 sums": Case({"stage": 1}, "BF16_Optimizer", BF16, True, optimizer="muon"),
    "muon bf16 zero 3": Case({"stage": 3}, STAGE3, BF16, optimizer="muon"),
    "muon fp16 zero 1": Case({"stage": 1}, FLAT, FP16, optimizer="muon", world_sizes=(2,)),
    "muon fp16 zero 3": Case({"stage": 3}, STAGE3, FP16, optimizer="muon", world_sizes=(2,)),
    # With the emulated CUDA kernels.
    "kernels fp32 zero 1": Case({"stage": 1}, FLAT, optimizer="kernels", world_sizes=(2,)),
    "kernels fp32 zero 3": Case(SMALL_PARTS, STAGE3, optimizer="kernels", world_sizes=(2,)),
    "naive fp32 zero 1": Case({"stage": 1}, FLAT, optimizer="naive"),
}

Full = dict[str, Tensor]
"""Master, exp_avg and, unless it is Muon's, exp_avg_sq (3 or 2, ...) of every parameter by name."""


@dataclass
class Seen:
    """What one rank saw in one case."""

    wrapper: str
    trust_ratios: dict[str, float]
    step_count: int
    start: Full
    saved: Full
    end: Full
    collectives: int = 0
    """Made inside the optimizer's steps up to `end`."""
    orthogonalised: int = 0
    """Matrices, by this rank, in these steps."""
    loss_scale: float = 1.0
    checks: dict[str, bool] = field(default_factory=dict)
    overflow_checks: dict[str, bool] = field(default_factory=dict)


class Collectives(TorchDispatchMode):
    """Counts the collectives of any kind that are made in its context."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.namespace == "c10d"
        return function(*args, **(kwargs or {}))


class CountingLamb(Lamb):
    """Counts the collectives of its steps."""

    collectives = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        with Collectives() as made:
            loss = super().step(closure)
        self.collectives += made.count
        return loss


class CountingMuon(CountingLamb, Muon):
    """Counts the matrices that this rank orthogonalises, too."""

    orthogonalised = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        def counted(matrices_BRC: Tensor, dtype: torch.dtype) -> Tensor:
            self.orthogonalised += len(matrices_BRC)
            return orthogonalized(matrices_BRC, dtype)

        with mock.patch.object(muon, "orthogonalized", counted):
            return super().step(closure)


class Run:
    """A model under DeepSpeed in one rank."""

    def __init__(self, case: Case) -> None:
        import deepspeed

        self.case, model = case, seeded_model()
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=self._optimizer(model), config=self._config())
        self.optimizer = self.engine.basic_optimizer
        if isinstance(self.optimizer, Lamb):
            self.layout = self.optimizer.bind(self.engine)
        else:
            self.layout = partition_layout(self.engine)
            if case.optimizer == "adamw":
                start_state(self.engine, self.layout)

    def _optimizer(self, model: Model) -> torch.optim.Optimizer:
        groups = parameter_groups(model)
        match self.case.optimizer:
            case "lamb" | "kernels":
                return CountingLamb(groups, lr=LEARNING_RATE, row_blocks=row_blocks(model))
            case "muon":
                return CountingMuon(muon_groups(model), lr=LEARNING_RATE, row_blocks=row_blocks(model))
            case "direction":
                return CountingLamb(groups, lr=LEARNING_RATE, trust_ratio=False)
            case "adamw":
                return torch.optim.AdamW(groups, lr=LEARNING_RATE, eps=1e-6)
            case _:
                return LambReference(groups, lr=LEARNING_RATE)

    def _config(self) -> dict[str, Any]:
        micro_batch = BATCH if self.case.same_batch else BATCH // torch.distributed.get_world_size()
        return {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": ACCUMULATION,
            "gradient_clipping": CLIP,
            "bf16": {"enabled": self.case.dtype == BF16},
            "fp16": {
                "enabled": self.case.dtype == FP16,
                "initial_scale_power": self.case.initial_scale_power,
                "hysteresis": 1,
            },
            **(FP32_SUMS if self.case.fp32_sums else {}),
            "zero_optimization": self.case.zero,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }

    def train(self, first: int, last: int, loss_factor: float = 1.0) -> None:
        for step in range(first, last):
            for tokens_BS in step_tokens(step):
                if not self.case.same_batch:
                    tokens_BS = tokens_BS.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]
                self.engine.backward(self.engine(tokens_BS.contiguous()) * loss_factor)
                self.engine.step()

    def _tensors(self, flat: Tensor) -> list[Tensor]:
        state = self.optimizer.state[flat]
        return [flat, *(state[moment] for moment in MOMENTS if moment in state)]

    def gather(self, destination: int | None = None) -> Full:
        gathered = {
            piece.name: partition.gather(piece, self._tensors(partition.flat), destination)
            for partition in self.layout
            for piece in partition.pieces
        }
        return {name: full for name, full in gathered.items() if full is not None}

    def scatter(self, state: Full) -> None:
        for partition in self.layout:
            for piece in partition.pieces:
                for full, tensor in zip(state[piece.name], self._tensors(partition.flat), strict=True):
                    partition.scatter(piece, full, tensor)
        refresh_model_weights(self.engine)

    def weights(self) -> Full:
        """What the module computes with."""
        import deepspeed

        parameters = dict(self.engine.module.named_parameters())
        if self.case.zero["stage"] < 3:
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}
        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def equal(left: Full, right: Full) -> bool:
    """The same names and the same bits."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in left
    )


def observe(case: Case) -> Seen:
    """Train, restore the state of half-way from gathered tensors, train again, then write noise everywhere."""
    run = Run(case)
    if case.optimizer == "naive":
        run.train(0, STEPS)
        weights = {name: weight[None] for name, weight in run.weights().items()}
        return Seen(type(run.engine.optimizer).__name__, {}, 0, {}, {}, weights)
    start = run.gather()
    run.train(0, SAVED_STEP)
    saved = run.gather()
    run.train(SAVED_STEP, STEPS)
    end = run.gather()
    seen = Seen(type(run.engine.optimizer).__name__, {}, step_count(run.optimizer), start, saved, end)
    if isinstance(run.optimizer, CountingLamb):
        seen.trust_ratios, seen.collectives = run.optimizer.trust_ratios(), run.optimizer.collectives
    if isinstance(run.optimizer, CountingMuon):
        seen.orthogonalised = run.optimizer.orthogonalised
    seen.checks["weights are the rounded masters"] = equal(
        run.weights(), {name: full[0].to(case.dtype) for name, full in end.items()}
    )
    on_rank_zero = run.gather(destination=0)
    seen.checks["gathers on rank 0 only"] = equal(on_rank_zero, end if torch.distributed.get_rank() == 0 else {})
    run.scatter(saved)
    set_step_count(run.optimizer, SAVED_STEP)
    run.train(SAVED_STEP, STEPS)
    seen.checks["resumes bit for bit"] = equal(run.gather(), end)

    # The sign bit of zero has to survive, too.
    noise = {name: torch.randn(full.shape).mul_(torch.randint(2, full.shape)) for name, full in sorted(end.items())}
    run.scatter(noise)
    seen.checks["gathers what was scattered"] = equal(run.gather(), noise)
    seen.checks["weights follow scattered masters"] = equal(
        run.weights(), {name: full[0].to(case.dtype) for name, full in noise.items()}
    )
    run.engine.destroy()
    if torch.distributed.get_world_size() >= 3:
        seen.checks["resumes from DeepSpeed's own checkpoint"] = equal(resume_own_checkpoint(case, saved), end)
    if case.dtype == FP16:
        seen.loss_scale = run.engine.optimizer.loss_scaler.cur_scale
        seen.overflow_checks = check_overflows(case)
    return seen


def resume_own_checkpoint(case: Case, saved: Full) -> Full:
    """What the end of the training is when a new engine goes on from DeepSpeed's checkpoint of the state `saved`."""
    run = Run(case)
    run.scatter(saved)
    set_step_count(run.optimizer, SAVED_STEP)
    # All ranks write into one folder.
    folder = [tempfile.mkdtemp()]
    torch.distributed.broadcast_object_list(folder)
    try:
        run.engine.save_checkpoint(folder[0], tag="half")
        run.engine.destroy()
        run = Run(case)
        run.engine.load_checkpoint(folder[0], tag="half")
    finally:
        torch.distributed.barrier()
        shutil.rmtree(folder[0], ignore_errors=True)
    run.train(SAVED_STEP, STEPS)
    end = run.gather()
    run.engine.destroy()
    return end


def check_overflows(case: Case) -> dict[str, bool]:
    """Steps that overflow on every rank until the loss scale fits, then one that overflows on rank 0 alone."""
    run, checks = Run(replace(case, initial_scale_power=32)), {}
    scaler = run.engine.optimizer.loss_scaler

    def skips(loss_factor: float) -> bool:
        """Whether one step leaves masters, moments and step count as they are, and halves the loss scale."""
        before, ratios = run.gather(), run.optimizer.trust_ratios()
        steps, scale = run.optimizer.step_count, scaler.cur_scale
        run.train(0, 1, loss_factor)
        untouched = equal(run.gather(), before) and run.optimizer.trust_ratios() == ratios
        return untouched and run.optimizer.step_count == steps and scaler.cur_scale == scale / 2

    checks["overflow everywhere"] = skips(loss_factor=1.0) and run.optimizer.step_count == 0
    while run.optimizer.step_count < 2 and scaler.cur_scale > 1:
        run.train(0, 1)
    checks["recovers"] = run.optimizer.step_count == 2
    checks["overflow on one rank"] = skips(loss_factor=1e9 if torch.distributed.get_rank() == 0 else 1.0)
    checks["counts skipped steps"] = run.engine.skipped_steps == math.log2(2.0**32 / scaler.cur_scale)
    run.engine.destroy()
    return checks


def main() -> None:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    torch.set_float32_matmul_precision("highest")
    # Inference only, and it would be compiled for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    # DeepSpeed refuses fp16 on CPUs, where it is slow; its logic is the same.
    accelerator = type(get_accelerator())
    accelerator.is_fp16_supported = lambda self: True
    accelerator.supported_dtypes = lambda self: [torch.float32, FP16, BF16]
    world_size = torch.distributed.get_world_size()
    seen = {}
    output, *kernels = sys.argv[1:]
    registered = emulated.register(ctypes.CDLL(kernels[0])) if kernels else None
    for name, case in CASES.items():
        if world_size in case.world_sizes and (registered or case.optimizer != "kernels"):
            with emulated.lamb_kernels() if case.optimizer == "kernels" else contextlib.nullcontext():
                seen[name] = observe(case)
    torch.save(seen, output)
    torch.distributed.destroy_process_group()
