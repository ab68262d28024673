"""Is LAMB the same under every ZeRO stage, precision and number of ranks? Ours, a naive one, and AdamW as the control.

    python benchmarks/lamb_parity.py [--ranks 1 2 3 4] [--steps 20] [--optimizers Muon "DeepSpeed's Muon"] [--out FILE]

Trains a small EarlyBERT model with DeepSpeed and prints, for every stage, dtype and number of ranks, the largest
difference of any element of any fp32 master from the same optimizer in float64 without any sharding. Sizes are odd, so
borders between ranks cut tensors; a group has two elements, so with three ranks some hold nothing of it; one parameter
gets no gradient; a batch is divided over ranks and over two micro-batches; every gradient is clipped.

Shape suffixes: B sequences, S positions, N predicted positions.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import socket
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from provenance import measured_on
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from earlybert.core.files import write_json
from earlybert.kernels.lamb import Lamb
from earlybert.kernels.lamb_reference import LambReference
from earlybert.kernels.muon import Muon
from earlybert.kernels.muon_reference import MuonReference
from earlybert.kernels.partition import partition_layout, start_state
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork

LEGEND = """\
fp32    The reference trains by itself: float64 weights, whole batches.
bf16    End to end, what bf16 does to the forward and backward pass would hide the optimizer. The reference has float64
        masters of its own, from the same rounded initial weights, but at every step takes the gradients of a bf16 model
        that holds the run's current masters, rounded: micro-batch by micro-batch in one process, added up in float64,
        then clipped. DeepSpeed is asked to add up gradients in fp32. It cannot under ZeRO-0, where its sums are bf16;
        under ZeRO-2 it divides by the number of ranks in bf16 before, which rounds unless that is a power of two.
naive   Textbook LAMB handed to DeepSpeed as it is: under ZeRO it takes one trust ratio per flat partition (ZeRO-3's
        end in uninitialised memory), and with ZeRO-0 in bf16 it does not know which masters consist of row blocks.
Muon    On the matrices between hidden states, LAMB on the rest, against the textbook's.
DeepSpeed's Muon
        Its MuonWithAuxAdam, with its own AdamW on the rest, against its own formulas on whole matrices, of clipped
        gradients; query, key and value are one matrix.
AdamW   torch.optim.AdamW against itself in float64: what DeepSpeed and fp32 arithmetic do to any optimizer.

All tensors count, the biases of the keys too: their true gradient is zero, and Adam's normalisation would turn what
rounding leaves of it into full-size steps, so EarlyBERT's model detaches them and they stay where they are."""
STAGES, DTYPES, OPTIMIZERS = (0, 1, 2, 3), ("fp32", "bf16"), ("Lamb", "naive LAMB", "AdamW")
MUONS = ("Muon", "DeepSpeed's Muon")
ACCUMULATION, SEQUENCES, LENGTH, PREDICTIONS = 2, 24, 13, 3
LEARNING_RATE, WEIGHT_DECAY, EPS, CLIP = 5e-3, 0.01, 1e-6, 0.25
MUON_LEARNING_RATE, MUON_WEIGHT_DECAY = 3e-3, 0.1
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Token ids [B, S], predicted positions [N] of the flattened ones, their labels [N], next-sentence labels [B]."""


class Case(NamedTuple):
    """One run of one optimizer."""

    stage: int
    dtype: str
    optimizer: str


class Task(nn.Module):
    """EarlyBERT's network and loss, and a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        config = NetworkConfig(
            vocab_size=101,
            hidden_size=33,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=47,
            max_position_embeddings=19,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = PreTrainingNetwork(config)
        self.unused = nn.Parameter(torch.ones(5))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in self.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.data = 1 + noise if name.endswith("LayerNorm.weight") else noise
        self.bert.decoder_weight.data[config.vocab_size :] = 0.0

    def forward(
        self, input_ids_BS: Tensor, positions_N: Tensor, labels_N: Tensor, next_sentence_labels_B: Tensor
    ) -> Tensor:
        logits = self.bert.padded_logits(input_ids_BS, masked_positions=positions_N)
        masked = F.cross_entropy(logits["masked"].to(self.loss_dtype), labels_N)
        return masked + F.cross_entropy(logits["next_sentence"].to(self.loss_dtype), next_sentence_labels_B)

    @property
    def loss_dtype(self) -> torch.dtype:
        return torch.promote_types(self.unused.dtype, torch.float32)


def share(step: int, part: int, parts: int) -> Batch:
    """One of equal parts of a step's global batch. All sequences have as many predictions: means of means are exact."""
    generator = torch.Generator().manual_seed(step)
    tokens_BS = torch.randint(101, (SEQUENCES, LENGTH), generator=generator)
    labels_BN = torch.randint(101, (SEQUENCES, PREDICTIONS), generator=generator)
    next_sentence_labels_B = torch.randint(2, (SEQUENCES,), generator=generator)
    own = slice(part * SEQUENCES // parts, (part + 1) * SEQUENCES // parts)
    starts_B1 = LENGTH * torch.arange(SEQUENCES // parts)[:, None]
    positions_BN = starts_B1 + torch.tensor([1, 5, 12])
    return tokens_BS[own], positions_BN.flatten(), labels_BN[own].flatten(), next_sentence_labels_B[own]


def muon_groups(task: Task, groups: list[dict[str, Any]], flag: str) -> list[dict[str, Any]]:
    """The matrices between hidden states as a group of their own, first, and what is left."""
    named = task.named_parameters()
    hidden = [p for name, p in named if p.ndim > 1 and "embed" not in name and "next_sentence" not in name]
    matrices, *others = groups
    rest = {id(parameter) for parameter in matrices["params"]} - {id(parameter) for parameter in hidden}
    left = matrices | {"params": [parameter for parameter in matrices["params"] if id(parameter) in rest]}
    muon = {"params": hidden, flag: True, "lr": MUON_LEARNING_RATE, "weight_decay": MUON_WEIGHT_DECAY}
    return [muon, left, *others]


class DeepSpeedsMuonReference(MuonReference):
    """DeepSpeed's formulas: whole matrices, another scale, AdamW."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups[:1], lr=LEARNING_RATE)
        self.adamw = torch.optim.AdamW(groups[1:], lr=LEARNING_RATE, eps=EPS)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.adamw.step()

    def scale(self, rows: int, columns: int) -> float:
        return max(1.0, rows / columns) ** 0.5


def deepspeeds_muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        group["use_muon"] = "use_muon" in group
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
    rest = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": EPS}
    return MuonWithAuxAdam([groups[0], *(rest | group for group in groups[1:])])


def make_optimizer(kind: str, task: Task) -> torch.optim.Optimizer:
    """Decay for matrices and, so that it has a trust ratio, for the group of two elements; none for other vectors."""
    tiny = task.bert.get_parameter("next_sentence.bias")
    vectors = [parameter for parameter in task.parameters() if parameter.ndim == 1 and parameter is not tiny]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in task.parameters() if parameter.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
        {"params": [tiny], "weight_decay": WEIGHT_DECAY},
    ]
    if kind == "AdamW":
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, eps=EPS)
    if kind == "DeepSpeed's Muon":
        return deepspeeds_muon(muon_groups(task, groups, "use_muon"))
    if kind == "textbook of DeepSpeed's Muon":
        return DeepSpeedsMuonReference(muon_groups(task, groups, "orthogonalize"))
    row_blocks = {parameter: 3 for name, parameter in task.named_parameters() if name.endswith("qkv.weight")}
    kinds = {"Lamb": Lamb, "naive LAMB": LambReference, "Muon": Muon, "textbook of Muon": MuonReference}
    if "Muon" in kind:
        groups = muon_groups(task, groups, "orthogonalize")
    return kinds[kind](groups, lr=LEARNING_RATE, eps=EPS, row_blocks=row_blocks)


class Reference:
    """The same training in float64, unsharded, with the textbook's formulas."""

    def __init__(self, case: Case) -> None:
        self.diverges = case.optimizer == "naive LAMB"
        self.masters = Task().to(torch.bfloat16 if case.dtype == "bf16" else torch.float32).double()
        textbooks = {"AdamW": "AdamW"} | {muon: f"textbook of {muon}" for muon in MUONS}
        self.optimizer = make_optimizer(textbooks.get(case.optimizer, "naive LAMB"), self.masters)

    def step(self, step: int, model: Task, parts: int) -> None:
        """One step with the gradient of `model`, its batch taken in so many parts."""
        self.optimizer.zero_grad()
        for part in range(parts):
            loss = model(*share(step, part, parts))
            gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            for master, gradient in zip(self.masters.parameters(), gradients, strict=True):
                if gradient is not None:
                    mean = gradient.double() / parts
                    master.grad = mean if master.grad is None else master.grad + mean
        norm = nn.utils.clip_grad_norm_(self.masters.parameters(), CLIP)
        assert norm > CLIP or self.diverges, "every gradient is to be clipped"
        self.optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.masters.named_parameters()}


class Run:
    """A case under DeepSpeed, on one rank."""

    def __init__(self, case: Case) -> None:
        import deepspeed

        self.case, task = case, Task()
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": SEQUENCES // ACCUMULATION // torch.distributed.get_world_size(),
            "gradient_accumulation_steps": ACCUMULATION,
            "gradient_clipping": CLIP,
            "zero_optimization": {"stage": case.stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": case.dtype == "bf16"},
            "steps_per_print": 2**31,
        }
        if case.optimizer == "DeepSpeed's Muon":
            config["zero_optimization"]["reduce_scatter"] = False  # it asks for that
        if case.dtype == "bf16" and case.stage:
            config |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
        optimizer = make_optimizer(case.optimizer, task)
        self.engine, *_ = deepspeed.initialize(model=task, optimizer=optimizer, config=config)
        if isinstance(optimizer, Lamb):
            self.layout = optimizer.bind(self.engine)
        else:
            self.layout = partition_layout(self.engine)
            if case.optimizer != "DeepSpeed's Muon":
                start_state(self.engine, self.layout)

    def step(self, step: int) -> None:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        for micro_step in range(ACCUMULATION):
            self.engine.backward(self.engine(*share(step, micro_step * ranks + rank, ACCUMULATION * ranks)))
            self.engine.step()

    def masters(self) -> dict[str, Tensor]:
        """fp32 weights by name; empty on all ranks but the first."""
        pairs = [(partition, piece) for partition in self.layout for piece in partition.pieces]
        full = {piece.name: partition.gather(piece, [partition.flat], destination=0) for partition, piece in pairs}
        return {name: values[0] for name, values in full.items() if values is not None}


def observe(case: Case, steps: int) -> dict[str, Any]:
    """Trains one case; on rank 0, returns its largest difference from the reference and where that is."""
    run, reference, first = Run(case), Reference(case), torch.distributed.get_rank() == 0
    rounded = Task().bfloat16()
    for step in range(steps):
        if case.dtype == "bf16" and (masters := run.masters()):
            rounded.load_state_dict(masters)
            reference.step(step, rounded, ACCUMULATION * torch.distributed.get_world_size())
        elif case.dtype == "fp32" and first:
            reference.step(step, reference.masters, parts=1)
        run.step(step)
    masters = run.masters()
    run.engine.destroy()
    if not first:
        return {}
    expected = reference.weights()
    assert masters.keys() == expected.keys()
    differences = {
        name: (masters[name] - expected[name]).abs().nan_to_num(nan=math.inf).max().item() for name in expected
    }
    worst = max(differences, key=differences.__getitem__)
    return case._asdict() | {
        "ranks": torch.distributed.get_world_size(),
        "wrapper": type(run.engine.optimizer).__name__,
        "difference": differences[worst] if math.isfinite(differences[worst]) else None,
        "tensor": worst,
    }


def run_rank(rank: int, ranks: int, port: int, steps: int, optimizers: tuple[str, ...], out: Path) -> None:
    """All cases on one rank of one launch."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # DeepSpeed compiles its Newton-Schulz
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    warnings.simplefilter("ignore", FutureWarning)
    console = Console(stderr=True, quiet=rank > 0)
    cases = [Case(*choice) for choice in itertools.product(STAGES, DTYPES, optimizers)]
    # DeepSpeed logs to stdout, where the table goes.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        import deepspeed

        # For inference only; it would be compiled for a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed()
        progress = track(cases, _ranks(ranks), console=console, transient=True)
        found = [observe(case, steps) for case in progress]
        torch.distributed.destroy_process_group()
    if rank == 0:
        out.write_text(json.dumps(found))


def launch(ranks: int, steps: int, optimizers: tuple[str, ...]) -> list[dict[str, Any]]:
    """What all cases gave on so many ranks."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        torch.multiprocessing.spawn(run_rank, args=(ranks, port, steps, optimizers, out), nprocs=ranks)
        return json.loads(out.read_text())


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


def print_table(found: list[dict[str, Any]], ranks: list[int], optimizers: tuple[str, ...]) -> None:
    differences = {(row["stage"], row["dtype"], row["optimizer"], row["ranks"]): row["difference"] for row in found}
    shown = {key: f"{'diverged' if value is None else f'{value:.1e}':>9}" for key, value in differences.items()}
    print(" " * 11 + "".join(f"{name:>{9 * len(ranks) + 2}}" for name in optimizers))
    print("dtype  ZeRO" + len(optimizers) * ("  " + "".join(f"{_ranks(number):>9}" for number in ranks)))
    for dtype, stage in itertools.product(DTYPES, STAGES):
        blocks = ("".join(shown[stage, dtype, optimizer, number] for number in ranks) for optimizer in optimizers)
        print(f"{dtype:7}{stage:<4}  " + "  ".join(blocks))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=LEGEND, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4], choices=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=[*OPTIMIZERS, *MUONS])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    optimizers = tuple(arguments.optimizers)
    found = [row for ranks in arguments.ranks for row in launch(ranks, arguments.steps, optimizers)]
    print(f"largest difference from unsharded float64 after {arguments.steps} steps")
    print_table(found, arguments.ranks, optimizers)
    print(f"\n{LEGEND}")
    if arguments.out:
        results = measured_on("deepspeed") | {"steps": arguments.steps, "differences": found}
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
