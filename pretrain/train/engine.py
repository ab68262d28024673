"""A DeepSpeed engine for one stage, filled from canonical fp32 weights and moments."""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor, nn

from earlybert.core.ranks import world_size
from earlybert.kernels import extension, packed_attention
from earlybert.kernels.lamb import Lamb
from earlybert.kernels.muon import Muon
from earlybert.kernels.partition import (
    Partition,
    partition_layout,
    refresh_model_weights,
    set_step_count,
    start_state,
    step_count,
)
from earlybert.pretrain.cost.hardware import device_name, device_precision, peak_flops
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import NetworkOutput, network_with
from earlybert.pretrain.network.parameters import facts_of
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.plan.recipe import OptimizerConfig, Recipe
from earlybert.pretrain.plan.stages import Stage
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.gradient_sums import add_up_at_once
from earlybert.pretrain.train.timing import StepTimes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What torch.compile makes of a graph.
COMPILER = "inductor"
# State of DeepSpeed's dynamic loss scaler; a static one has only the first.
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def check_chosen_kernels() -> None:
    """Raises UserError where the environment names kernels or an attention that there are not."""
    extension.chosen()
    packed_attention.chosen()


def resolve_precision(recipe: Recipe, file: DeepSpeedFile, device: torch.device) -> str:
    """fp16 on sm_70, bf16 on sm_80 and newer, fp32 on CPU, unless the recipe or the DeepSpeed file names one."""
    wanted = device_precision(file.settled_precision(recipe.precision), device)
    file.require_precision(wanted)
    return wanted


def resolve_compile(wanted: bool | Literal["auto"], file: DeepSpeedFile, device: torch.device) -> bool:
    """Whether the network is compiled: "auto" does so where all of it, attention included, is one graph: from sm_80."""
    settled = file.settled_compile(wanted)
    if settled != "auto":
        return settled
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def work_layout(recipe: Recipe, file: DeepSpeedFile, device: torch.device) -> dict[str, Any]:
    """What a run may change when it goes on, and makes the same step take another time."""
    return {
        "ranks": world_size(),
        "device": device_name(device),
        "precision": resolve_precision(recipe, file, device),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "compile": resolve_compile(recipe.compile, file, device),
        "deterministic": recipe.deterministic,
        "zero_stage": file.zero_stage,
    }


def build_optimizer(
    model: nn.Module, kind: str, given: Mapping[str, Any], recipe: OptimizerConfig
) -> torch.optim.Optimizer:
    """LAMB, Muon or AdamW: a decayed group, one for everything without decay, and with Muon one of its matrices."""
    named = [(facts_of(name), parameter) for name, parameter in model.named_parameters()]
    numbers: dict[str, Any] = {**recipe.numbers(kind), **given}
    matrices = [p for facts, p in named if kind == "Muon" and facts.hidden_matrix]
    others = {p for facts, p in named if facts.decayed}.difference(matrices)
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in named if p in others], "weight_decay": numbers.pop("weight_decay")},
        {"params": [p for facts, p in named if not facts.decayed], "weight_decay": 0.0},
    ]
    numbers["betas"] = tuple(numbers["betas"])
    if kind == "AdamW":
        return torch.optim.AdamW(groups, lr=0.0, **numbers)
    row_blocks = {p: facts.row_blocks for facts, p in named if facts.decayed and facts.row_blocks > 1}
    if kind == "Lamb":
        return Lamb(groups, lr=0.0, row_blocks=row_blocks, **numbers)
    muon = {"params": matrices, "orthogonalize": True, "weight_decay": numbers.pop("muon_weight_decay")}
    return Muon([muon, *groups], lr=0.0, row_blocks=row_blocks, **numbers)


class StageEngine:
    """DeepSpeed's engine for one stage, and the layout in which its optimizer holds every parameter."""

    def __init__(
        self,
        config: NetworkConfig,
        state: TrainingState,
        stage: Stage,
        recipe: Recipe,
        file: DeepSpeedFile,
        device: torch.device,
    ) -> None:
        self.config = config
        self.precision = resolve_precision(recipe, file, device)
        self.peak_flops = peak_flops(device, DTYPES[self.precision])
        self.times = StepTimes(device)
        assert stage.micro_batch != "auto", "build_engine chooses one"
        self.micro_batch, accumulation = file.batches(stage.global_batch, stage.micro_batch, world_size())
        model = network_with(config, state.weights)
        optimizer = build_optimizer(model, file.optimizer, file.optimizer_numbers, recipe.optimizer)
        # What DeepSpeed is given, for the records of the run.
        self.resolved = file.resolve(recipe.optimizer, self.precision, self.micro_batch, accumulation, world_size())
        with contextlib.redirect_stdout(None):  # its bf16 optimizer prints the memory in use, six times
            self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=self.resolved)
        add_up_at_once(self.engine.optimizer)
        if isinstance(self.engine.optimizer, BF16_Optimizer):
            # Alone there is nobody to add gradients up with, yet they would be copied together and back.
            self.engine.enable_backward_allreduce = world_size() > 1
        self.optimizer = optimizer
        if isinstance(optimizer, Lamb):
            self.layout: list[Partition] = optimizer.bind(self.engine)
        else:
            self.layout = partition_layout(self.engine)
            start_state(self.engine, self.layout)
        self._muon_share = recipe.optimizer.muon_learning_rate / recipe.first_phase.learning_rate
        self.compiled = resolve_compile(recipe.compile, file, device)
        if self.compiled:
            # In place: a wrapper would give every parameter another name.
            self.engine.module.compile(backend=COMPILER, dynamic=True)
        self._unwrapped_norm: float | None = None
        self.device, self.dtype = device, DTYPES[self.precision]
        self._load(state)

    def _load(self, state: TrainingState) -> None:
        """Puts the fp32 values into the masters, which DeepSpeed made from weights it may have rounded."""
        for partition in self.layout:
            own = self.optimizer.state[partition.flat]
            targets = [(partition.flat, state.weights)]
            # Muon's matrices have one moment.
            targets += [(own[kind], source) for kind, source in state.moments.items() if kind in own]
            # With many ranks most pieces are empty here, and each source is read from disk when asked for.
            for piece in (piece for piece in partition.pieces if piece.numel):
                for flat, source in targets:
                    partition.scatter(piece, source[piece.name], flat)
        set_step_count(self.optimizer, state.optimizer_step)
        if self.precision == "fp16":
            scaler = self.engine.optimizer.loss_scaler
            # How long to put up with overflows is the training loop's decision.
            scaler.raise_error_at_min_scale = False
            for name in (name for name in LOSS_SCALE if name in state.loss_scale):
                setattr(scaler, name, state.loss_scale[name])
        refresh_model_weights(self.engine)

    def forward(self, batch: Batch) -> NetworkOutput:
        """The network's output for one micro-batch."""
        return cast(NetworkOutput, self.engine(batch=batch))

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next step; Muon's own is in proportion."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * (self._muon_share if group.get("orthogonalize") else 1.0)

    def backward_and_step(self, loss: Tensor) -> None:
        """Adds one micro-batch's gradient; the optimizer steps on the last one of the step, unless it is not finite."""
        self.engine.backward(loss)
        if self.engine.optimizer is self.optimizer and self.engine.is_gradient_accumulation_boundary():
            # Without a wrapper (ZeRO-0 in fp32) DeepSpeed clips but reports no norm, and would step on anything.
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self._unwrapped_norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(self._unwrapped_norm):
                return
        with self.times.computing("optimizer"):
            self.engine.step()

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient before clipping; infinite or NaN when it was not finite."""
        norm = self.engine.get_global_grad_norm() if self._unwrapped_norm is None else self._unwrapped_norm
        return float("nan") if norm is None else float(norm)

    def updated(self) -> bool:
        """Whether the last step changed the weights; it does not when the gradient was not finite."""
        return math.isfinite(self.gradient_norm()) and self.engine.was_step_applied()

    def trust_ratios(self) -> dict[str, float]:
        """LAMB's trust ratios of the last step by parameter name; empty for other optimizers."""
        return self.optimizer.trust_ratios() if isinstance(self.optimizer, Lamb) else {}

    def masters(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """Names and fp32 masters of the parameters whose names are wanted, whole, on the CPU of every rank.

        One after the other; all ranks must go through all of them.
        """
        for partition in self.layout:
            for piece in partition.pieces:
                if wanted(piece.name):
                    full = partition.gather(piece, [partition.flat])
                    assert full is not None
                    yield piece.name, full[0].float().cpu()

    def loss_scale_state(self) -> dict[str, Any]:
        """State of fp16's dynamic loss scale; empty in other precisions."""
        if self.precision != "fp16":
            return {}
        scaler = self.engine.optimizer.loss_scaler
        return {name: getattr(scaler, name) for name in LOSS_SCALE if hasattr(scaler, name)}

    def loss_scale(self) -> float:
        """What fp16's loss is multiplied with at present; 1 in other precisions."""
        return float(self.loss_scale_state().get("cur_scale", 1.0))

    def optimizer_step(self) -> int:
        """Updates since the optimizer last started afresh."""
        return step_count(self.optimizer)

    def destroy(self) -> None:
        """Gives its memory back, before the next stage's engine takes its own."""
        self.engine.destroy()
        if self.compiled:
            # Graphs count against a limit, and the next stage's network is another one.
            torch.compiler.reset()
        del self.engine, self.optimizer, self.layout
        # DeepSpeed's engine and optimizer hold each other, and with them weights, masters and moments. In bf16 weights
        # hold themselves, too: what held them besides goes first, they in the second collection.
        gc.collect()
        gc.collect()
        torch.cuda.empty_cache()
