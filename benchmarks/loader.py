"""How many sequences a second one process prepares, and what handing them over costs the thread that trains.

    python benchmarks/loader.py [--data CORPUS] [--length 128] [--micro-batch 128] [--whole-words] [--out FILE.json]

Without a corpus one is made of Python's own documentation. The stages of preparing a micro-batch are timed in turn;
then a process prepares them, and this one takes them as training does. All times are processor time of one core, so
that what else the machine does hardly counts; of the stages, the least of several turns. `--before` reads an earlier
FILE.json, to print its numbers beside.

The share of the training's thread is that of the time in which the process prepares as many sequences. It does not
have the copy to a GPU.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from provenance import measured_on

from earlybert.core.devices import keep_freed_memory
from earlybert.core.files import read_json, write_json
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.samples.order import sample_order
from earlybert.pretrain.plan.recipe import PhaseConfig, Recipe
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.train.batches import StepLoader
from earlybert.pretrain.train.feeding import prefetched_steps

TURNS, STEPS = 5, 3
MICRO_BATCHES = 64
# Seconds between two micro-batches, more than it takes to prepare one.
BUSY = 0.01
GOAL = 30_000


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def stage_times(loader: StepLoader) -> dict[str, float]:
    """Seconds of each stage for one micro-batch."""
    seed, size = loader.recipe.seed, loader.micro_batch
    masking = loader.masking(0)

    def indices(turn: int) -> list[int]:
        first = turn * size % (len(loader.samples) - size)
        order = sample_order(len(loader.samples), seed=seed, epoch=0, first=first, last=first + size)
        found: list[int] = order.tolist()
        return found

    turns = range(MICRO_BATCHES)
    rows = [loader.samples.rows(indices(turn)) for turn in turns]
    places = [[(0, index) for index in indices(turn)] for turn in turns]
    batches = [loader.batch(0, turn) for turn in turns]
    slab = torch.empty(max(batch.layout.words for batch in batches), dtype=torch.int64)

    def hand_over() -> None:
        for batch in batches:
            batch.write(slab[: batch.layout.words])

    stages: dict[str, Callable[[], object]] = {
        "count (all of a step, before it begins)": lambda: loader.work(0),
        "read": lambda: [loader.samples.rows(indices(turn)) for turn in turns],
        "mask": lambda: [
            masking.mask(row.input_ids, row.bounds, place) for row, place in zip(rows, places, strict=True)
        ],
        "read, mask, collate": lambda: [loader.batch(0, turn) for turn in turns],
        "hand over": hand_over,
    }
    measured: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(TURNS):
        for name, run in stages.items():
            measured[name].append(seconds(run) / MICRO_BATCHES)
    return {name: min(times) for name, times in measured.items()}


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def worker_seconds(loader: StepLoader) -> float:
    """Of the process that prepares micro-batches, for each; they are taken as soon as they are there."""
    before, taken = children_seconds(), 0
    with closing(prefetched_steps(loader, 0, workers=1)) as steps:
        for step in islice(steps, STEPS):
            taken += len(list(step.batches))
    return (children_seconds() - before) / taken


def training_thread_seconds(loader: StepLoader) -> float:
    """Of the thread that takes micro-batches, for each; it is busy otherwise, and then finds the next one ready."""
    taken = []
    with closing(prefetched_steps(loader, 0, workers=1)) as steps:
        for step in islice(steps, STEPS):
            batches = iter(step.batches)
            for _ in range(step.micro_batches):
                until = time.perf_counter() + BUSY
                while time.perf_counter() < until:
                    pass
                began = time.thread_time()
                next(batches)
                taken.append(time.thread_time() - began)
    return statistics.median(taken)


def make_loader(corpus: Corpus, length: int, micro_batch: int, whole_words: bool) -> StepLoader:
    phase = PhaseConfig(
        length=length,
        max_predictions=-(-length * 20 // 128),
        global_batch=MICRO_BATCHES * micro_batch,
        micro_batch=micro_batch,
        steps=1000,
        learning_rate=0.01,
        warmup=0.1,
    )
    recipe = Recipe(phase1=phase, plan=["phase1"])
    return StepLoader(
        corpus,
        "train",
        build_stages(recipe)[0],
        recipe,
        global_batch=phase.global_batch,
        micro_batch=micro_batch,
        rank=0,
        world_size=1,
        whole_words=whole_words,
    )


def measure(corpus: Corpus, length: int, micro_batch: int, whole_words: bool) -> dict[str, float]:
    """Microseconds of processor time for one sequence."""
    loader = make_loader(corpus, length, micro_batch, whole_words)
    times = stage_times(loader)
    times["worker"] = statistics.median(worker_seconds(loader) for _ in range(TURNS))
    times["training's thread"] = training_thread_seconds(loader)
    return {name: 1e6 * spent / micro_batch for name, spent in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=128)
    parser.add_argument("--whole-words", action="store_true")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        config = CorpusConfig(source="pydocs", vocab_size=8192, lengths=[options.length])
        corpus = Corpus.open(options.data) if options.data else prepare(config, Path(folder) / "corpus")
        found = measure(corpus, options.length, options.micro_batch, options.whole_words)
    before = read_json(options.before)["microseconds"] if options.before else {}
    print(f"length {options.length}, micro-batches of {options.micro_batch}; processor time of one core")
    print(f"{'':<42}{'us a sequence':>14}{'sequences/s':>13}{'before':>10}")
    for name, spent in found.items():
        old = f"{1e6 / before[name]:,.0f}" if name in before else ""
        print(f"{name:<42}{spent:>14.2f}{1e6 / spent:>13,.0f}{old:>10}")
    for rate in (1e6 / found["worker"], GOAL):
        share = found["training's thread"] * rate / 1e6
        print(f"training's thread at {rate:,.0f} sequences/s: {share:.1%} of its time")
    if options.out:
        sizes = {"length": options.length, "micro_batch": options.micro_batch, "whole_words": options.whole_words}
        write_json(options.out, measured_on("numpy") | sizes | {"microseconds": found, "before": before})


if __name__ == "__main__":
    main()
