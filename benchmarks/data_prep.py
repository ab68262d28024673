"""How quick is the way from clean text to samples, against the tokenizer alone, and does memory stay flat?

    python benchmarks/data_prep.py FILE... [--tokenizer VOCABULARY] [--megabytes 20] [--memory 10 100] [--out FILE.json]

FILEs are clean text as `.jsonl` or `.txt`, packed or not. Without a vocabulary one is trained, in every turn. Speeds
are in MB (10**6 bytes of UTF-8 text) and samples a second of one core's processor time, so that what else the machine
does hardly counts; medians of three turns in which the steps take turns. `earlybert prepare` is one call of the whole
thing in one process: reading, cleaning, exact duplicates, sentences, tokens, next-sentence pairs for lengths 128 and
512, shuffle, shards, checksums. It is compared with `tokenizers`' `encode_batch` over the same documents, the quicker
way to use it, and over the same sentences.

`--memory` prepares the text repeated to so many MB, each copy with words of its own so that no document is a duplicate,
and prints the peak memory of a worker and of the process that leads it: their own, and with the pages of the files
that they map, which the system drops when it needs room. It takes a minute of a core for 100 MB.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core

from provenance import measured_on
from tokenizers import Tokenizer

from earlybert.core.errors import UserError
from earlybert.core.files import write_json
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.samples.shards import SampleSet, write_shard, write_spill
from earlybert.data_prep.steps.joining import join
from earlybert.data_prep.steps.preparation import Preparation
from earlybert.data_prep.steps.reading import read_unit
from earlybert.data_prep.tokens.sentences import split_sentences
from earlybert.data_prep.tokens.text import TokenisedText
from earlybert.data_prep.tokens.tokenizer import Encoder
from earlybert.data_prep.workers import Workers

TURNS = 3
LENGTHS = (128, 512)
DOCUMENTS_PER_CALL, SENTENCES_PER_CALL = 256, 8192


def read_documents(files: list[str], megabytes: float) -> list[str]:
    """Cleaned documents of some files, as many as asked for."""
    config = CorpusConfig(source="text", files=files, max_megabytes=megabytes)
    with tempfile.TemporaryDirectory() as folder, Workers(1) as workers:
        units = Preparation(config, Path(folder) / "corpus", workers).units
    return [document.text for unit in units for document in read_unit(unit.unit, config, Counts())]


def write_documents(documents: list[str], file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for text in documents:
            lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


class Steps:
    """Every step of the preparation on its own, on the same text, in a folder."""

    def __init__(self, documents: list[str], config: CorpusConfig, folder: Path) -> None:
        self.documents, self.config, self.folder = documents, config, folder
        with Workers(1) as workers:
            self.preparation = Preparation(config, folder / "corpus", workers)
            self.vocabulary = self.preparation.vocabulary()
        self.encoder = Encoder(self.vocabulary.file)
        self.tokenizer = Tokenizer.from_file(str(self.vocabulary.file))
        self.tokenizer.no_truncation()
        self.sentences = list(chain.from_iterable(map(split_sentences, documents)))
        self.blocks: list[tuple[int, int]] = []

    def all(self) -> dict[str, Callable[[], object]]:
        """By name, in an order in which each finds what it needs."""
        units = self.preparation.units
        steps: dict[str, Callable[[], object]] = {
            "encode_batch, documents": lambda: self.encode_batch(self.documents, DOCUMENTS_PER_CALL),
            "encode_batch, sentences": lambda: self.encode_batch(self.sentences, SENTENCES_PER_CALL),
            "read and clean": lambda: [sum(1 for _ in read_unit(unit.unit, self.config, Counts())) for unit in units],
            "split sentences": lambda: [len(split_sentences(text)) for text in self.documents],
            "read, clean, split, write": self.read,
            "tokenise": self.tokenise,
            "duplicates and join": self.join,
        }
        for length in LENGTHS:
            steps[f"samples of {length}"] = partial(self.spill, length)
            steps[f"shuffle of {length}"] = partial(self.shuffle, length)
        return steps

    def read(self) -> None:
        for unit in self.preparation.units:
            unit.read(self.config)

    def tokenise(self) -> None:
        for tokens in self.preparation.tokens(self.vocabulary):
            tokens.make(self.encoder, self.vocabulary.dtype)

    def shuffle(self, length: int) -> None:
        samples = self.samples(length)
        write_shard(samples, 0, [samples.spill(0, block) for block in range(len(self.blocks))])

    def encode_batch(self, texts: list[str], size: int) -> int:
        batches = (texts[first : first + size] for first in range(0, len(texts), size))
        return sum(len(encoding.ids) for batch in batches for encoding in self.tokenizer.encode_batch(batch))

    def join(self) -> None:
        shutil.rmtree(self.folder / "text", ignore_errors=True)
        join(self.preparation.tokens(self.vocabulary), self.config, self.vocabulary.dtype, self.folder / "text")
        self.blocks = list(TokenisedText.open(self.folder / "text" / "train", self.vocabulary.dtype).blocks())

    def samples(self, length: int) -> SampleSet:
        return SampleSet(
            split="train",
            length=length,
            shards=1,
            text=self.folder / "text" / "train",
            folder=self.folder / f"shards-{length}",
            work=self.folder / f"work-{length}",
            dtype=self.vocabulary.dtype.name,
            special=self.vocabulary.special,
            config=self.config,
        )

    def spill(self, length: int) -> None:
        shutil.rmtree(self.folder / f"work-{length}", ignore_errors=True)
        for block, (first, last) in enumerate(self.blocks):
            write_spill(self.samples(length), 0, block, first, last)


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one turn."""
    began = time.process_time()
    run()
    return time.process_time() - began


def measure_speeds(documents: list[str], config: CorpusConfig, folder: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds of each step and of the whole, and the number of samples of each length."""
    steps = Steps(documents, config, folder)
    times: dict[str, list[float]] = {}
    for turn in range(TURNS):
        for name, run in steps.all().items():
            times.setdefault(name, []).append(seconds(run))
        whole = seconds(partial(prepare, config, folder / f"whole-{turn}"))
        times.setdefault("earlybert prepare", []).append(whole)
    samples = Corpus.open(folder / "whole-0").manifest["counts"]["train"]["samples"]
    return {name: statistics.median(found) for name, found in times.items()}, samples


def print_speeds(documents: list[str], times: dict[str, float], samples: dict[str, int]) -> dict[str, Any]:
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    print(f"{megabytes:.1f} MB of clean text, {len(documents):,} documents; one core")
    for name, taken in times.items():
        made = re.search(r"of (\d+)$", name)
        rate = f"{samples[made[1]] / taken:>14,.0f} samples/s" if made else ""
        print(f"  {name:28}{taken:>8.2f} s{megabytes / taken:>9.2f} MB/s{rate}")
    whole = times["earlybert prepare"]
    ratios = {name: times[f"encode_batch, {name}"] / whole for name in ("documents", "sentences")}
    without = times["encode_batch, documents"] / (whole - times["split sentences"])
    print(f"  the whole preparation runs at {ratios['documents']:.0%} of encode_batch over documents,")
    print(f"  {ratios['sentences']:.0%} of it over sentences; {without:.0%} of documents but for splitting sentences")
    return {"megabytes": megabytes, "seconds": times, "ratios": ratios, "ratio without splitting": without}


def changed_copies(documents: list[str], megabytes: float) -> Iterator[str]:
    """The documents again and again, every copy with other words, until there are enough."""
    size = copy = 0
    while size < megabytes * 1e6:
        for text in documents:
            changed = re.sub(r"\b(\w{5,})\b", rf"\1{'abcdefghij'[copy % 10]}", text) if copy else text
            changed = f"Copy {copy} of a text. {changed}"
            yield changed
            size += len(changed.encode())
            if size >= megabytes * 1e6:
                return
        copy += 1


def _memory(process: int) -> dict[str, float]:
    """MiB that a process has: its own, and with the pages of mapped files, which the system can drop."""
    try:
        found = dict(re.findall(r"(\w+):\s*(\d+) kB", Path(f"/proc/{process}/status").read_text()))
        return {"own": (int(found["RssAnon"]) + int(found["RssShmem"])) / 1024, "mapped": int(found["VmRSS"]) / 1024}
    except (OSError, KeyError):
        return {}  # it has ended


def _prepare_and_report(config: CorpusConfig, folder: Path, queue: "multiprocessing.Queue[dict[str, float]]") -> None:
    began, ended = time.perf_counter(), threading.Event()
    peaks: dict[str, float] = defaultdict(float)

    def watch() -> None:
        while not ended.wait(0.05):
            workers = [("worker", child.pid) for child in multiprocessing.active_children() if child.pid]
            for role, process in [("lead", os.getpid()), *workers]:
                for kind, value in _memory(process).items():
                    peaks[f"{role} {kind} MiB"] = max(peaks[f"{role} {kind} MiB"], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    prepare(config, folder / "corpus", workers=2)
    ended.set()
    watcher.join()
    queue.put({**peaks, "minutes": (time.perf_counter() - began) / 60})


def peak_memory(documents: list[str], config: CorpusConfig, megabytes: float) -> dict[str, float]:
    """Peak memory of the leading process and of its largest worker."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "text.jsonl").open("w", encoding="utf-8") as lines:
            for text in changed_copies(documents, megabytes):
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        fields = vars(config) | {"files": [str(folder / "text.jsonl")]}
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        child = context.Process(target=_prepare_and_report, args=(CorpusConfig(**fields), folder, queue))
        child.start()
        found = queue.get()
        child.join()
    return found


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--tokenizer", help="a published vocabulary; one is trained without it")
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--memory", type=float, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        documents = read_documents(options.files, options.megabytes)
    except UserError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_documents(documents, folder / "text.jsonl")
        config = CorpusConfig(
            source="text", files=[str(folder / "text.jsonl")], tokenizer=options.tokenizer, lengths=list(LENGTHS)
        )
        times, samples = measure_speeds(documents, config, folder)
        results = {"speed": print_speeds(documents, times, samples)}
        for size in options.memory:
            found = peak_memory(documents, config, size)
            results[f"memory, {size:g} MB"] = found
            print(f"{size:g} MB, 2 workers: " + ", ".join(f"{what} {value:,.1f}" for what, value in found.items()))
    if options.out:
        found = measured_on("tokenizers", "datasets") | results
        write_json(options.out, found)


if __name__ == "__main__":
    main()
