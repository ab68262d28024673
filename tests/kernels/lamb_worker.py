"""What the tests of Lamb and of the partition layout share: a small model, textbook LAMB, and ranks that train.

`main` is one rank: it trains the model under every ZeRO stage in one process (importing DeepSpeed takes seconds) and
writes what it saw to the file named on the command line. `launch` starts the ranks and collects that.

Shape suffixes: G micro-batches of a step, B sequences, S tokens, E embedding size, V vocabulary.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earlybert.kernels.lamb import Lamb
from earlybert.kernels.partition import partition_layout, refresh_model_weights, set_step_count, start_state, step_count

STEPS, SAVED_STEP = 8, 4
ACCUMULATION, BATCH, SEQUENCE = 2, 8, 7
VOCABULARY, EMBEDDING = 37, 13
LEARNING_RATE, WEIGHT_DECAY, CLIP = 5e-3, 0.01, 1.0


class Model(nn.Module):
    """Odd sizes, so that borders between ranks cut tensors; three weights in one; a parameter without any gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.query_key_value = nn.Linear(EMBEDDING, 3 * EMBEDDING)
        self.norm = nn.LayerNorm(EMBEDDING)
        self.unused = nn.Parameter(torch.ones(5))
        self.output = nn.Linear(EMBEDDING, VOCABULARY)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        hidden_BSE = self.embedding(tokens_BS)
        query_BSE, key_BSE, value_BSE = self.query_key_value(hidden_BSE).chunk(3, dim=-1)
        hidden_BSE = self.norm(hidden_BSE + query_BSE * key_BSE.tanh() + value_BSE)
        logits_BSV = self.output(hidden_BSE)
        # Scaled so that the gradients are clipped.
        return 10 * functional.cross_entropy(logits_BSV.flatten(0, 1).float(), tokens_BS.roll(1, dims=1).flatten())


def seeded_model() -> Model:
    torch.manual_seed(11)
    return Model()


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Decay for matrices; none for biases, LayerNorm and the unused vector."""
    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [parameter for parameter in parameters if parameter.ndim == 1], "weight_decay": 0.0},
    ]


def step_tokens(step: int) -> Tensor:
    """The global batch of a step, (G, B, S)."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(VOCABULARY, (ACCUMULATION, BATCH, SEQUENCE), generator=generator)


class TextbookLamb(torch.optim.Optimizer):
    """LAMB as it is written in a textbook, one tensor after the other and in the tensors' own precision."""

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = WEIGHT_DECAY,
        bias_correction: bool = True,
        nvlamb: bool = False,
        max_trust_ratio: float = float("inf"),
        row_blocks: dict[nn.Parameter, int] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.betas, self.eps, self.bias_correction = betas, eps, bias_correction
        self.nvlamb, self.max_trust_ratio, self.row_blocks = nvlamb, max_trust_ratio, row_blocks or {}
        self.ratios: dict[Tensor, list[float]] = {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = self._direction(weight) + group["weight_decay"] * weight
                self.ratios[weight] = []
                blocks = self.row_blocks.get(weight, 1)
                for block, block_update in zip(weight.chunk(blocks), update.chunk(blocks), strict=True):
                    ratio = 1.0
                    if group["weight_decay"] or self.nvlamb:
                        numerator, denominator = block.norm().item(), block_update.norm().item()
                        if numerator > 0 and denominator > 0:
                            ratio = numerator / denominator
                        ratio = min(ratio, self.max_trust_ratio)
                        self.ratios[weight].append(ratio)
                    block -= group["lr"] * ratio * block_update

    def _direction(self, weight: Tensor) -> Tensor:
        state = self.state.setdefault(weight, {})
        (beta1, beta2), step = self.betas, state.get("step", 0) + 1
        state["step"] = step
        state["exp_avg"] = beta1 * state.get("exp_avg", 0) + (1 - beta1) * weight.grad
        state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", 0) + (1 - beta2) * weight.grad**2
        correct = self.bias_correction
        first = state["exp_avg"] / (1 - beta1**step if correct else 1)
        second = state["exp_avg_sq"] / (1 - beta2**step if correct else 1)
        return first / (second.sqrt() + self.eps)


@dataclass(frozen=True)
class Case:
    """One DeepSpeed configuration to train under."""

    zero: dict[str, Any]
    wrapper: str
    bf16: bool = False
    fp32_accumulation: bool = False
    optimizer: str = "lamb"

    @property
    def same_batch(self) -> bool:
        """bf16 gradients depend on how a batch is split, so there every rank gets the whole batch."""
        return self.bf16


FLAT, STAGE3 = "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"
SMALL_PARTS = {"stage": 3, "sub_group_size": 200, "stage3_param_persistence_threshold": 50}
CASES = {
    "fp32 zero 0": Case({"stage": 0}, "Lamb"),
    "fp32 zero 1": Case({"stage": 1}, FLAT),
    "fp32 zero 2": Case({"stage": 2}, FLAT),
    "fp32 zero 3": Case({"stage": 3}, STAGE3),
    "fp32 zero 2, round robin": Case({"stage": 2, "round_robin_gradients": True}, FLAT),
    "fp32 zero 3, sub-groups": Case(SMALL_PARTS, STAGE3),
    "bf16 zero 0": Case({"stage": 0}, "FP16_UnfusedOptimizer", bf16=True),
    "bf16 zero 1": Case({"stage": 1}, FLAT, bf16=True),
    "bf16 zero 1, fp32 accumulation": Case({"stage": 1}, "BF16_Optimizer", bf16=True, fp32_accumulation=True),
    "bf16 zero 2": Case({"stage": 2}, FLAT, bf16=True),
    "bf16 zero 3": Case({"stage": 3}, STAGE3, bf16=True),
    "bf16 zero 3, sub-groups": Case(SMALL_PARTS, STAGE3, bf16=True),
    "adamw fp32 zero 0": Case({"stage": 0}, "AdamW", optimizer="adamw"),
    "adamw fp32 zero 1": Case({"stage": 1}, FLAT, optimizer="adamw"),
    "adamw fp32 zero 3": Case({"stage": 3}, STAGE3, optimizer="adamw"),
    "adamw bf16 zero 0": Case({"stage": 0}, "FP16_UnfusedOptimizer", bf16=True, optimizer="adamw"),
    "naive fp32 zero 1": Case({"stage": 1}, FLAT, optimizer="naive"),
}

Full = dict[str, Tensor]
"""Master, exp_avg and exp_avg_sq (3, ...) of every parameter by name."""


@dataclass
class Seen:
    """What one rank saw in one case."""

    wrapper: str
    trust_ratios: dict[str, float]
    step_count: int
    start: Full
    saved: Full
    end: Full
    checks: dict[str, bool] = field(default_factory=dict)


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
            case "lamb":
                return Lamb(groups, lr=LEARNING_RATE, row_blocks={model.query_key_value.weight: 3})
            case "adamw":
                return torch.optim.AdamW(groups, lr=LEARNING_RATE)
            case _:
                return TextbookLamb(groups, lr=LEARNING_RATE)

    def _config(self) -> dict[str, Any]:
        micro_batch = BATCH if self.case.same_batch else BATCH // torch.distributed.get_world_size()
        return {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": ACCUMULATION,
            "gradient_clipping": CLIP,
            "bf16": {"enabled": self.case.bf16},
            "data_types": {"grad_accum_dtype": "fp32"} if self.case.fp32_accumulation else {},
            "zero_optimization": self.case.zero,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            for tokens_BS in step_tokens(step):
                if not self.case.same_batch:
                    tokens_BS = tokens_BS.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]
                self.engine.backward(self.engine(tokens_BS.contiguous()))
                self.engine.step()

    def _tensors(self, flat: Tensor) -> list[Tensor]:
        state = self.optimizer.state[flat]
        return [flat, state["exp_avg"], state["exp_avg_sq"]]

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
    ratios = run.optimizer.trust_ratios() if isinstance(run.optimizer, Lamb) else {}
    seen = Seen(type(run.engine.optimizer).__name__, ratios, step_count(run.optimizer), start, saved, end)

    dtype = torch.bfloat16 if case.bf16 else torch.float32
    seen.checks["weights are the rounded masters"] = equal(
        run.weights(), {name: full[0].to(dtype) for name, full in end.items()}
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
        run.weights(), {name: full[0].to(dtype) for name, full in noise.items()}
    )
    run.engine.destroy()
    return seen


def launch(world_size: int) -> list[dict[str, Seen]]:
    """Observe all cases on so many ranks, once per test session; what each rank saw, by case."""
    failures, seen = _train_on_ranks(world_size)
    assert not failures, failures
    return seen


@functools.cache
def _train_on_ranks(world_size: int) -> tuple[str, list[dict[str, Seen]]]:
    """What failed ranks wrote last, and what the ranks saw when none failed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"rank{rank}.pt") for rank in range(world_size)]
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(world_size),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        ranks = []
        for rank, output in enumerate(outputs):
            with output.with_suffix(".log").open("w") as log:
                command = [sys.executable, "-c", "import lamb_worker; lamb_worker.main()", str(output)]
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # The folder makes this module importable.
                here = Path(__file__).parent
                ranks.append(subprocess.Popen(command, cwd=here, env=environment | own, stdout=log, stderr=log))
        deadline = time.monotonic() + 300
        # When one rank has failed the others wait for it in a collective.
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        codes = [rank.poll() for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.wait()
        if any(code != 0 for code in codes):
            logs = "\n".join(output.with_suffix(".log").read_text()[-3000:] for output in outputs)
            return f"Exit codes {codes} (None: killed).\n{logs}", []
        return "", [torch.load(output, weights_only=False) for output in outputs]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    import deepspeed

    torch.set_float32_matmul_precision("highest")
    # Inference only, and it would be compiled for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    torch.save({name: observe(case) for name, case in CASES.items()}, sys.argv[1])
