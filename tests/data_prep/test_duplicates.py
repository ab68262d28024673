"""Duplicates against a brute-force search, near duplicates against the similarity of word sequences."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning import duplicates as duplicates_module
from earlybert.data_prep.cleaning.config import CleaningConfig
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.cleaning.duplicates import duplicates
from earlybert.data_prep.cleaning.near_duplicates import BANDS, minhash_bands, near_duplicates
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.steps.reading import read_unit, work_units


@pytest.mark.parametrize("at_once", [3, 50, 10_000])
def test_first_of_equal_documents_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_once: int) -> None:
    monkeypatch.setattr(duplicates_module, "DOCUMENTS_AT_ONCE", at_once)
    rng = np.random.default_rng(3)
    pool = rng.integers(0, 2**64, (120, 2), dtype=np.uint64)
    pool[:10, 0] = pool[0, 0]  # differ in the second half only
    pool[10], pool[11] = 0, 2**64 - 1
    digests = [pool[rng.integers(0, len(pool), size)] for size in (70, 0, 1, 130)]
    np.save(tmp_path / "last.npy", digests[-1])
    digests[-1] = np.load(tmp_path / "last.npy", mmap_mode="r")

    seen: set[bytes] = set()
    expected: list[list[bool]] = []
    for digest in digests:
        expected.append([])
        for row in digest:
            expected[-1].append(row.tobytes() in seen)
            seen.add(row.tobytes())
    found = duplicates(digests)
    assert [unit.tolist() for unit in found] == expected
    assert sum(map(sum, expected)) > 80


def test_nothing_has_no_duplicates() -> None:
    assert duplicates([]) == [] and near_duplicates([], []) == []
    assert [unit.tolist() for unit in near_duplicates([np.zeros((0, BANDS), np.uint64)], [np.zeros(0, bool)])] == [[]]


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_documents_tied_by_bands_are_the_components_of_a_graph(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(duplicates_module, "DOCUMENTS_AT_ONCE", at_once)
    rng = np.random.default_rng(4)
    bands = [rng.integers(0, 150, (size, BANDS)).astype(np.uint64) * 10**15 for size in (30, 5, 0, 25)]
    for unit in bands:  # else everything is tied
        unit[:, 2:] = rng.integers(0, 2**64, (len(unit), BANDS - 2), dtype=np.uint64)
    dropped = [rng.random(len(unit)) < 0.2 for unit in bands]
    rows, gone = np.concatenate(bands), np.concatenate(dropped)

    component = list(range(len(rows)))
    for _ in rows:
        for i in range(len(rows)):
            for j in range(i):
                if not gone[i] and not gone[j] and (rows[i] == rows[j]).any():
                    component[i] = component[j] = min(component[i], component[j])
    expected = np.array(component) < np.arange(len(rows))
    found = near_duplicates(bands, dropped)
    assert np.array_equal(np.concatenate(found), expected)
    assert [len(unit) for unit in found] == [30, 5, 0, 25]
    assert 5 < expected.sum() < 40


def sequences(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def test_bands_agree_as_often_as_the_similarity_says() -> None:
    rng = np.random.default_rng(6)
    found: dict[str, list[bool]] = {"like": [], "unlike": []}
    for _ in range(60):
        words = [f"word{number}" for number in rng.integers(0, 10_000, 400)]
        for kind, changes in (("like", 4), ("unlike", 60)):
            changed = list(words)
            for place in rng.choice(400, changes, replace=False):
                changed[place] = "other"
            shared, either = sequences(words) & sequences(changed), sequences(words) | sequences(changed)
            assert (len(shared) / len(either) > 0.88) if kind == "like" else (len(shared) / len(either) < 0.45)
            text, other = " ".join(words), " ".join(changed).upper() + "!"
            found[kind].append(bool((minhash_bands(text) == minhash_bands(other)).any()))
    assert np.mean(found["like"]) > 0.95 and np.mean(found["unlike"]) < 0.1


@pytest.mark.parametrize(("first", "count"), [(0x4E00, 2000), (0x0E01, 46), (0x3041, 80), (0x1780, 30)])
def test_text_without_spaces_is_compared_by_its_characters(first: int, count: int) -> None:
    rng = np.random.default_rng(0)
    agree: dict[int, list[bool]] = {3: [], 400: []}
    for _ in range(100):
        characters = [chr(first + int(point)) for point in rng.integers(count, size=681)]
        for changes in agree:
            changed = list(characters)
            for at in rng.choice(681, changes, replace=False):
                changed[at] = chr(first + int(rng.integers(count)))
            agree[changes].append(bool((minhash_bands("".join(characters)) == minhash_bands("".join(changed))).any()))
    assert np.mean(agree[3]) > 0.98 and np.mean(agree[400]) < 0.1


def test_words_with_the_same_consonants_are_not_the_same() -> None:
    """In Hindi the vowels are marks of their own."""
    rng = np.random.default_rng(3)
    skeletons = [rng.choice([*"कखगघचछजटठडतथदधनपफबभमयरलवशसह"], rng.integers(2, 5)) for _ in range(200)]
    one, other = (
        " ".join("".join(letter + rng.choice([*"ािीुूेैोौं"]) for letter in word) for word in skeletons) for _ in range(2)
    )
    assert len({*one.split()} & {*other.split()}) < 10
    assert not (minhash_bands(one) == minhash_bands(other)).any()
    assert (minhash_bands(one) == minhash_bands(one.replace(" ", ", "))).all()


def test_bands_are_the_same_in_another_process() -> None:
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind."
    program = f"from {minhash_bands.__module__} import *; print(minhash_bands({text!r}).tolist())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout
    bands = minhash_bands(text)
    assert bands.dtype == np.uint64 and bands.shape == (BANDS,) and len(set(bands.tolist())) == BANDS
    assert json.loads(printed) == bands.tolist()


def test_near_duplicates_of_real_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    texts = [" ".join(f"wort{number}" for number in rng.integers(0, 5000, 200)) + "." for _ in range(20)]
    texts[7] = texts[3].replace("wort1", "wort2", 1)
    texts[9] = "Short " + texts[2]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    config = CorpusConfig(source="text", files=[str(tmp_path / "a.txt")], cleaning=CleaningConfig(near_duplicates=True))
    found = list(read_unit(work_units(config)[0], config, Counts()))
    bands = np.array([document.bands for document in found])
    (dropped,) = near_duplicates([bands], [np.zeros(20, dtype=bool)])
    assert np.flatnonzero(dropped).tolist() == [7, 9]


def test_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UserError, match="near_duplicates is true, but the package rensa is missing"):
        work_units(CorpusConfig(cleaning=CleaningConfig(near_duplicates=True)))
