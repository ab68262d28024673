"""The same bytes however many workers and parts there are, and however often they are killed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import merge, prepare, prepare_part
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.steps import preparation, reading
from earlybert.data_prep.tokens import text
from earlybert.data_prep.workers import Workers
from tests.data_prep import small_steps

DRIVER = Path(small_steps.__file__)


@pytest.fixture(autouse=True, scope="module")
def small_steps_here() -> Iterator[None]:
    """Before any other fixture of this file; what comes after this file has the usual sizes."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (reading, "SMALLEST_UNIT"),
            (text, "TOKENS_PER_BLOCK"),
            (preparation, "TOKENS_PER_SHARD"),
        ):
            patch.setattr(module, name, getattr(module, name))
        small_steps.make_steps_small()
        yield


@pytest.fixture(scope="module")
def options(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Text in several files, with documents that occur twice, and everything that preparation can do."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(8):
        lines = [json.dumps({"text": text}) for text in [*documents[number::8], documents[0]]]
        (folder / f"part-{number}.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "source": "text",
        "files": [str(folder / "*.jsonl")],
        "vocab_size": 400,
        "lengths": [32, 64],
        "duplicates": 2,
        "packing": True,
        "validation_fraction": 0.2,
    }


@pytest.fixture(scope="module")
def config(options: dict[str, object]) -> CorpusConfig:
    return CorpusConfig(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(config: CorpusConfig, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The manifest of one worker that nobody disturbs. It holds the checksum of every file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "SMALLEST_UNIT", 0)
        corpus = prepare(config, tmp_path_factory.mktemp("expected") / "corpus")
    files = list(corpus.manifest["files"])
    assert len([file for file in files if file.startswith("train/length-32/shard")]) > 3
    return manifest(corpus)


def manifest(corpus: Corpus) -> bytes:
    return (corpus.directory / "manifest.json").read_bytes()


def start(
    options: dict[str, object], out: Path, *arguments: str, start_new_session: bool = False
) -> subprocess.Popen[str]:
    flags = [f"--{name}={json.dumps(value) if name != 'source' else value}" for name, value in options.items()]
    command = [sys.executable, str(DRIVER), *flags, "--out", str(out), *arguments]
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=start_new_session,
    )


def finished_files(work: Path) -> int:
    # Unlike Path.rglob, os.walk does not mind a folder that goes away meanwhile.
    return sum(not name.startswith(".") for _, _, names in os.walk(work) for name in names)


@pytest.mark.parametrize("workers", [2, 5])
def test_number_of_workers_does_not_show(workers: int, config: CorpusConfig, expected: bytes, tmp_path: Path) -> None:
    assert manifest(prepare(config, tmp_path / "corpus", workers=workers)) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_killed_at_random_points_and_started_again(
    workers: int, options: dict[str, object], expected: bytes, tmp_path: Path
) -> None:
    rng = random.Random(workers)
    out, work = tmp_path / "corpus", tmp_path / "corpus.partial"
    kills = 0
    for _ in range(4):
        process = start(options, out, "--workers", str(workers))
        wanted = finished_files(work) + rng.randint(1, 90)
        while process.poll() is None and finished_files(work) < wanted:
            time.sleep(0.003)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    process = start(options, out, "--workers", str(workers))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert kills >= 2 and manifest(Corpus.open(out, verify_checksums=True)) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_it_ends_with_a_sentence_and_is_taken_up(
    workers: int, options: dict[str, object], expected: bytes, tmp_path: Path
) -> None:
    """Ctrl-C goes to all processes of the terminal."""
    out, work = tmp_path / "corpus", tmp_path / "corpus.partial"
    process = start(options, out, "--workers", str(workers), start_new_session=True)
    while process.poll() is None and finished_files(work) < 20:
        time.sleep(0.003)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert errors.splitlines()[-1].startswith("earlybert: stopped; what is finished stays: run the same command again")
    before = finished_files(work)
    assert before >= 20
    process = start(options, out, "--workers", str(workers))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and manifest(Corpus.open(out)) == expected, errors


def test_parts_at_the_same_time_or_one_by_one_and_one_merge(
    options: dict[str, object], config: CorpusConfig, expected: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    processes = [start(options, out, "--part", f"{part}/3") for part in (3, 1)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    with pytest.raises(UserError, match=r"lacks \d+ of \d+ units, the first of them text-00001; prepare the missing"):
        merge(out)
    prepare_part(config, out, 2, 3)
    prepare_part(config, out, 1, 3)
    assert manifest(merge(out, workers=2)) == expected


def test_bad_parts_and_workers_are_named(config: CorpusConfig, tmp_path: Path) -> None:
    for part, parts in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(UserError, match=rf"part is {part}/{parts}"):
            prepare_part(config, tmp_path / "corpus", part, parts)
    with pytest.raises(UserError, match="workers is 0"):
        prepare(config, tmp_path / "corpus", workers=0)
    with pytest.raises(UserError, match="no part of the corpus"):
        merge(tmp_path / "corpus")


def test_what_was_done_is_not_done_again(config: CorpusConfig, expected: bytes, tmp_path: Path) -> None:
    """After an error in one file the others stay; only what changed is read again."""
    (original,) = {Path(pattern).parent for pattern in config.files}
    copies = tmp_path / "text"
    copies.mkdir()
    for file in original.iterdir():
        (copies / file.name).write_bytes(file.read_bytes())
    good = (copies / "part-7.jsonl").read_bytes()
    (copies / "part-7.jsonl").write_bytes(good[:-3])
    moved = replace(config, files=[str(copies / "*.jsonl")])
    with pytest.raises(UserError, match=r"part-7\.jsonl:\d+ is not JSON"):
        prepare(moved, tmp_path / "corpus")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus.partial").rglob("digests.bin")}
    (copies / "part-7.jsonl").write_bytes(good)
    prepare_part(moved, tmp_path / "corpus", 1, 1)
    assert len(done) >= 2 and all(path.stat().st_mtime_ns == time_before for path, time_before in done.items())
    files = json.loads(manifest(merge(tmp_path / "corpus")))["files"]
    assert files == json.loads(expected)["files"]


def as_if_fresh(config: CorpusConfig, tmp_path: Path) -> Corpus:
    """The unfinished corpus in `tmp_path`, finished: it has become what a first preparation makes."""
    resumed, fresh = prepare(config, tmp_path / "corpus"), prepare(config, tmp_path / "fresh")
    assert manifest(resumed) == manifest(fresh)
    return resumed


@pytest.mark.parametrize("name", ["a.txt", "b.txt"])
def test_vocabulary_is_that_of_the_text_as_it_is(name: str, documents: list[str], tmp_path: Path) -> None:
    """After a failure on too little text, a file has changed, or another one has come."""
    (tmp_path / "a.txt").write_text("Here are six words of text.\n\nAnd here is one document more.\n")
    config = CorpusConfig(source="text", files=[str(tmp_path / "*.txt")], vocab_size=400, lengths=[32])
    with pytest.raises(UserError, match="each needs at least 2"):
        prepare(config, tmp_path / "corpus")
    assert list((tmp_path / "corpus.partial").rglob("tokenised.json"))
    (tmp_path / name).write_text("\n\n".join(documents))
    corpus = as_if_fresh(config, tmp_path)
    assert corpus.manifest["vocabulary"]["unknown_share"] < 0.01 and corpus.vocab_size > 300


def test_given_vocabulary_is_that_of_the_file_as_it_is(config: CorpusConfig, tmp_path: Path) -> None:
    """Another vocabulary of the same size takes the name; the text stays, its tokens do not."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789."]

    def write(order: list[str]) -> None:
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *order, *(f"##{letter}" for letter in order)]
        (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")

    given = replace(config, tokenizer=str(tmp_path / "vocab.txt"))
    write(letters)
    prepare_part(given, tmp_path / "corpus", 1, 1)
    read = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus.partial").rglob("digests.bin")}
    write(letters[::-1])
    with pytest.raises(UserError, match="units, the first of them text-00000; prepare the missing"):
        merge(tmp_path / "corpus")
    prepare_part(given, tmp_path / "corpus", 1, 1)
    assert all(path.stat().st_mtime_ns == before for path, before in read.items()), "the text was read again"
    corpus = as_if_fresh(given, tmp_path)
    assert corpus.tokenizer.convert_tokens_to_ids(".") == 5


def test_another_version_of_the_program_begins_anew(
    config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_part(config, tmp_path / "corpus", 1, 1)
    (tmp_path / "changed.py").write_text("pass\n")
    monkeypatch.setattr(preparation, "CODE", (*preparation.CODE, tmp_path))
    monkeypatch.setattr(preparation, "code_key", preparation.code_key.__wrapped__)
    with pytest.raises(UserError, match="units, the first of them text-00000; prepare the missing"):
        merge(tmp_path / "corpus")


def fail(number: int) -> int:
    if number == 3:
        raise UserError("Three is wrong.")
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_results_keep_their_order_and_errors_arrive() -> None:
    with Workers(2) as pool:
        assert pool.run(fail, [(0,), (1,), (2,)], "Squares") == [0, 1, 4]
    with pytest.raises(UserError, match="Three is wrong"), Workers(2) as pool:
        pool.run(fail, [(3,), (1,)], "Squares")
    with pytest.raises(UserError, match="worker process was killed"), Workers(2) as pool:
        pool.run(fail, [(4,), (1,)], "Squares")


def test_shards_are_a_shuffle_of_the_whole(config: CorpusConfig, expected: bytes, tmp_path: Path) -> None:
    """Where a sample lies says nothing about the document that it comes from."""
    corpus = prepare(config, tmp_path / "corpus")
    samples = corpus.samples("train", 64)
    texts = corpus.tokenizer.batch_decode([row.input_ids.tolist() for row in samples.rows(range(len(samples)))])
    matches = [(place, re.search(r"entry (\d+) part", text)) for place, text in enumerate(texts)]
    places, entries = np.array([(place, int(match[1])) for place, match in matches if match]).T
    assert len(places) > 150 and abs(np.corrcoef(places, entries)[0, 1]) < 5 / np.sqrt(len(places))
