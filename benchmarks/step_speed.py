"""Speed of a whole training step: Hugging Face's BERT as people run it, our dense network, our ticket, and ours with
each of its parts switched off.

    python benchmarks/step_speed.py [--model mini|small|base] [--text FILE ...] [--vocabulary FILE]

All take the same batches of real text (by default Python's own documentation) in turn, one step each a round, in one
process; a row is the median of its rounds. A step is forward, backward and update: AdamW for Hugging Face's model, what
a run of ours does (DeepSpeed's engine, LAMB) for ours. Seconds are the clock's, or with `--clock cpu` the process's CPU
time, which neighbours on a shared machine disturb less; one thread unless `--threads` says otherwise. On a machine with
a GPU that is what is measured; DS_ACCELERATOR=cpu in the environment measures its CPU.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MODELS = {
    "tiny": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 192},
    "mini": {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "intermediate_size": 1024},
    "small": {"hidden_size": 512, "num_layers": 4, "num_heads": 8, "intermediate_size": 2048},
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096},
}
SEQUENCES = {"tiny": 4, "mini": 16, "small": 8, "base": 4, "large": 32}
VOCABULARY = 30522
BATCHES = 4


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mini")
    parser.add_argument("--text", nargs="+", help="text files as `earlybert prepare --source text` takes them")
    parser.add_argument("--data", type=Path, help="a prepared corpus instead of text")
    parser.add_argument("--vocabulary", help="WordPiece vocab.txt; without one a vocabulary is trained")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--sequences", type=int, help="sequences a step; default 16, 8, 4 and 32 by size of the model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name and precision contain one of these")
    parser.add_argument(
        "--rehearse", action="store_true", help="the rows of a GPU on a CPU, compiled ones by aot_eager"
    )
    parser.add_argument("--out", type=Path, help="JSON of the table")
    found = parser.parse_args()
    found.sequences = found.sequences or SEQUENCES[found.model]
    return found


OPTIONS = options()
os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)

import torch  # noqa: E402
from provenance import measured_on  # noqa: E402
from step_parts import (  # noqa: E402
    all_needed,
    bernoulli_dropout,
    no_kernels,
    padding_computed,
    plain_loss,
    settings,
)
from transformers import BertConfig, BertForPreTraining  # noqa: E402

from earlybert.core import devices, distributed  # noqa: E402
from earlybert.core.devices import synchronize  # noqa: E402
from earlybert.core.files import write_json  # noqa: E402
from earlybert.data_prep.config import CorpusConfig  # noqa: E402
from earlybert.data_prep.prepare import prepare  # noqa: E402
from earlybert.data_prep.samples.corpus import Corpus  # noqa: E402
from earlybert.pretrain.cost.hardware import measured_peak  # noqa: E402
from earlybert.pretrain.network.batch import Batch  # noqa: E402
from earlybert.pretrain.network.config import NetworkConfig, dense_config  # noqa: E402
from earlybert.pretrain.network.initial import initial_weights  # noqa: E402
from earlybert.pretrain.network.state import TrainingState  # noqa: E402
from earlybert.pretrain.network.work import Work, training_flops  # noqa: E402
from earlybert.pretrain.plan.plan import full_network  # noqa: E402
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, ModelConfig, PhaseConfig, Recipe  # noqa: E402
from earlybert.pretrain.plan.stages import build_stages  # noqa: E402
from earlybert.pretrain.ticket.drawing import random_ticket  # noqa: E402
from earlybert.pretrain.ticket.ticket import TicketRule, full_shape, narrow_config  # noqa: E402
from earlybert.pretrain.train import engine  # noqa: E402
from earlybert.pretrain.train.batches import StepLoader  # noqa: E402
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile  # noqa: E402
from earlybert.pretrain.train.step import forward_and_backward  # noqa: E402

DEVICE = torch.device(devices.device_type())
CLOCK = time.process_time if OPTIONS.clock == "cpu" else time.perf_counter
Precision = Literal["fp32", "bf16", "fp16"]
HALF: Precision = "bf16" if devices.half_precision(DEVICE) == torch.bfloat16 else "fp16"


@dataclass
class Row:
    """One contender: its step, the settings it runs under, and what its steps took."""

    name: str
    precision: Precision
    step: Callable[[Batch], None]
    setting: Callable[[], contextlib.AbstractContextManager[Any]]
    config: NetworkConfig
    seconds: list[float] = dataclasses.field(default_factory=list)
    # Until the host has issued a step, and memory that it takes beyond what is always there; of a GPU.
    issued: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def make_recipe() -> Recipe:
    phase = PhaseConfig(
        length=OPTIONS.length,
        max_predictions=-(-OPTIONS.length * 20 // 128),
        global_batch=OPTIONS.sequences,
        micro_batch=OPTIONS.sequences,
        steps=1000,
        learning_rate=1e-4,
        warmup=0.1,
    )
    shape = ModelConfig(**MODELS[OPTIONS.model], max_position_embeddings=max(512, OPTIONS.length))
    return Recipe(model=shape, phase1=phase, plan=["phase1"])


def real_batches(recipe: Recipe, folder: Path) -> list[Batch]:
    """A few steps' batches, masked, as a run would load them."""
    config = CorpusConfig(
        source="text" if OPTIONS.text else "pydocs",
        files=OPTIONS.text or [],
        tokenizer=OPTIONS.vocabulary,
        vocab_size=8192,
        max_megabytes=4,
        lengths=[OPTIONS.length],
    )
    corpus = Corpus.open(OPTIONS.data) if OPTIONS.data else prepare(config, folder / "corpus")
    loader = StepLoader(
        corpus,
        "train",
        build_stages(recipe)[0],
        recipe,
        global_batch=OPTIONS.sequences,
        micro_batch=OPTIONS.sequences,
        rank=0,
        world_size=1,
    )
    return [loader.batch(step * OPTIONS.sequences, 0).to(DEVICE) for step in range(BATCHES)]


def theirs(recipe: Recipe, *, autocast: bool, fused: bool, compiled: bool = False) -> Callable[[Batch], None]:
    """A step of `BertForPreTraining` with AdamW, scores of all positions as it computes them."""
    shape = recipe.model
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_position_embeddings,
    )
    with torch.device(DEVICE):
        network = BertForPreTraining(config)
    network.set_attn_implementation("sdpa")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01, fused=fused or None)
    network.train()
    if compiled:
        network.compile(dynamic=True, backend=engine.COMPILER)

    def step(batch: Batch) -> None:
        inputs = batch.padded(pad_token_id=0)
        labels_T = torch.full_like(batch.input_ids_T, -100)
        labels_T[batch.needed_rows_M[batch.predicted_rows_N]] = batch.masked_labels_N
        labels_BS = torch.full_like(inputs["input_ids"], -100)
        labels_BS[inputs["attention_mask"].bool()] = labels_T
        with torch.autocast(DEVICE.type, engine.DTYPES[HALF], enabled=autocast):
            loss = network(**inputs, labels=labels_BS, next_sentence_label=batch.segment_labels_B).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(
    recipe: Recipe, config: NetworkConfig, precision: Precision, compiled: bool = False
) -> Callable[[Batch], None]:
    """A step as a run makes it."""
    recipe = dataclasses.replace(recipe, precision=precision, compile=compiled)
    stage = build_stages(recipe)[0]
    state = TrainingState(initial_weights(config, recipe.seed))
    file = DeepSpeedFile.load(Path(DEFAULT_DEEPSPEED))
    built = engine.StageEngine(config, state, stage, recipe, file, DEVICE)
    built.set_learning_rate(1e-4)
    built.engine.train()

    def step(batch: Batch) -> None:
        search = recipe.search if config.searching else None
        forward_and_backward(built, [batch], Work.of(batch), [0], search)

    return step


def make_rows(recipe: Recipe) -> list[Row]:
    """Models are shared by the rows that differ in settings only, and made when the first of these warms up."""
    dense = full_network(recipe, VOCABULARY, "nsp")
    rule = TicketRule(head_ratio=1 / 3, neuron_ratio=0.3, width_multiple=64)
    ticket = narrow_config(dense, random_ticket(full_shape(dense), rule, seed=0))

    def theirs_when_needed(**options: bool) -> Callable[[Batch], None]:
        make = functools.cache(lambda: theirs(recipe, **options))
        return lambda batch: make()(batch)

    def ours_when_needed(
        config: NetworkConfig, precision: Precision, compiled: bool = False
    ) -> Callable[[Batch], None]:
        make = functools.cache(lambda: ours(recipe, config, precision, compiled))
        return lambda batch: make()(batch)

    default = theirs_when_needed(autocast=False, fused=False)
    fast, best = (theirs_when_needed(autocast=autocast, fused=True) for autocast in (False, True))
    exact, half = ours_when_needed(dense, "fp32"), ours_when_needed(dense, HALF)
    narrow_exact, narrow = ours_when_needed(ticket, "fp32"), ours_when_needed(ticket, HALF)

    def usual() -> contextlib.AbstractContextManager[Any]:
        return settings(matmul="highest", keep_memory=False)

    rows = [
        Row("transformers, defaults", "fp32", default, usual, dense),
        Row("transformers, oneDNN, fused AdamW", "fp32", fast, settings, dense),
        Row("transformers, autocast, fused AdamW", HALF, best, settings, dense),
        Row("ours, dense", "fp32", exact, settings, dense),
        Row("ours, ticket", "fp32", narrow_exact, settings, ticket),
        Row("ours, dense", HALF, half, settings, dense),
        Row("ours, ticket", HALF, narrow, settings, ticket),
        Row("  last layer on all tokens", HALF, lambda batch: half(all_needed(batch)), settings, dense),
        Row("  padding computed", HALF, lambda batch: half(padding_computed(batch)), settings, dense),
        Row("  loss not in chunks", HALF, half, plain_loss, dense),
    ]
    if DEVICE.type == "cpu" and not OPTIONS.rehearse:
        rows += [
            Row("  attention by its definition", HALF, half, lambda: settings(attention="reference"), dense),
            Row("  dropout from Bernoulli draws", HALF, half, bernoulli_dropout, dense),
            Row("  memory given back", HALF, half, lambda: settings(keep_memory=False), dense),
            Row("  no oneDNN", "fp32", exact, lambda: settings(matmul="highest"), dense),
        ]
    else:
        compiled = theirs_when_needed(autocast=True, fused=True, compiled=True)
        searching = dataclasses.replace(dense, searching=True)
        rows += [
            Row("ours, searching", HALF, ours_when_needed(searching, HALF), settings, searching),
            Row("ours, dense, torch.compile", HALF, ours_when_needed(dense, HALF, True), settings, dense),
            Row("transformers, autocast, torch.compile", HALF, compiled, settings, dense),
            Row("  no CUDA kernels", HALF, half, no_kernels, dense),
        ]
    return [row for row in rows if any(part in f"{row.name} {row.precision}" for part in OPTIONS.only)]


def memory_now() -> int:
    """Bytes of a GPU that tensors have at present; from now on their peak is measured."""
    if DEVICE.type == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_memory() -> int:
    return 0 if DEVICE.type == "cpu" else torch.cuda.max_memory_allocated()


def measure(rows: list[Row], batches: list[Batch]) -> None:
    """All rows in turn, round after round; the first round warms up."""
    for turn in range(OPTIONS.rounds + 1):
        for row in rows:
            with row.setting():
                synchronize(DEVICE)
                before = memory_now()
                began = CLOCK()
                row.step(batches[turn % BATCHES])
                issued = CLOCK() - began
                synchronize(DEVICE)
            if turn:
                row.seconds.append(CLOCK() - began)
                row.issued.append(issued)
                row.peak_bytes = max(row.peak_bytes, peak_memory() - before)
        print(f"round {turn} of {OPTIONS.rounds}", file=sys.stderr, flush=True)


def report(rows: list[Row], batches: list[Batch]) -> dict[str, Any]:
    """Prints the table and the comparisons; returns all of it."""
    work = Work.total(Work.of(batch) for batch in batches)
    fill = work.tokens / sum(len(batch.tokens.lengths) * max(batch.tokens.lengths) for batch in batches)
    peaks = {}
    with settings():
        for precision in {row.precision for row in rows}:
            peaks[precision] = measured_peak(DEVICE, engine.DTYPES[precision], CLOCK)
    found: dict[str, Any] = measured_on("transformers") | {
        "threads": OPTIONS.threads,
        "clock": OPTIONS.clock,
        "model": OPTIONS.model,
        "sequences": OPTIONS.sequences,
        "tokens_per_sequence": work.tokens / BATCHES / OPTIONS.sequences,
        "fill": fill,
        "peak": peaks,
        "rows": [],
    }
    print(
        f"{OPTIONS.model}, {OPTIONS.sequences} sequences of at most {OPTIONS.length} tokens (fill {fill:.2f}), "
        f"{DEVICE}, {OPTIONS.threads} thread(s), {OPTIONS.clock} clock, median of {OPTIONS.rounds}"
    )
    print(f"{'':42}{'':>6}{'ms/step':>9}{'sequences/s':>13}{'x first':>9}{'utilisation':>13}{'dense-equiv.':>14}")
    for row in rows:
        rate = training_flops(row.config, work) / BATCHES / row.median / peaks[row.precision]
        equivalent = training_flops(dense_config(row.config), work) / BATCHES / row.median / peaks[row.precision]
        print(
            f"{row.name:42}{row.precision:>6}{row.median * 1e3:9.0f}{OPTIONS.sequences / row.median:13.1f}"
            f"{rows[0].median / row.median:9.2f}{rate:13.1%}{equivalent:14.1%}"
        )
        found["rows"].append(
            {"name": row.name.strip(), "precision": row.precision, "seconds": row.seconds, "utilisation": rate}
            | {"issued": row.issued, "step_peak_bytes": row.peak_bytes}
        )
    by_name = {(row.name, row.precision): row for row in rows}
    pairs = {
        f"transformers' defaults (fp32) / our best ({HALF})": (
            ("transformers, defaults", "fp32"),
            ("ours, dense", HALF),
        ),
        "fp32 / fp32": (("transformers, oneDNN, fused AdamW", "fp32"), ("ours, dense", "fp32")),
        f"best ({HALF}) / best ({HALF})": (("transformers, autocast, fused AdamW", HALF), ("ours, dense", HALF)),
    }
    for name, (slow, fast) in pairs.items():
        if slow in by_name and fast in by_name:
            found[name] = by_name[slow].median / by_name[fast].median
            print(f"{name:51}{found[name]:.2f}x")
    precisions: tuple[Precision, Precision] = ("fp32", HALF)
    for precision in precisions:
        narrow, dense = by_name.get(("ours, ticket", precision)), by_name.get(("ours, dense", precision))
        if narrow and dense:
            flops = training_flops(narrow.config, work) / training_flops(dense.config, work)
            found[f"ticket, {precision}"] = {"time": narrow.median / dense.median, "flops": flops}
            print(f"ticket / dense, {precision}: time {narrow.median / dense.median:.3f}, operations {flops:.3f}")
    return found


def main() -> None:
    torch.set_num_threads(OPTIONS.threads)
    if OPTIONS.rehearse:
        engine.COMPILER = "aot_eager"
    distributed.start()
    recipe = make_recipe()
    with tempfile.TemporaryDirectory() as folder:
        batches = real_batches(recipe, Path(folder))
        rows = make_rows(recipe)
        measure(rows, batches)
    found = report(rows, batches)
    if OPTIONS.out:
        write_json(OPTIONS.out, found)


if __name__ == "__main__":
    main()
