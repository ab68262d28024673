"""A small text of known structure, and a corpus made from it."""

import json
from pathlib import Path

import numpy as np
import pytest

from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus

DOCUMENTS = 60
SENTENCES = [
    "Näive users were using useful user interfaces.",
    "The usual user uses 北京 and the unusual user misuses [MASK] in the interface.",
    "Interfaces of users' users; using interfaces is usual!",
]


def make_documents(count: int = DOCUMENTS) -> list[str]:
    """Documents whose every sentence names its document and its place, in words of an invented language."""
    rng = np.random.default_rng(7)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    words = ["".join(rng.choice(syllables, 3)) for _ in range(400)]

    def sentence(document: int, paragraph: int, line: int) -> str:
        said = " ".join(rng.choice(words, rng.integers(2, 15)))
        return f"Entry {document} part {paragraph} line {line} says {said}."

    return [
        "\n".join(
            " ".join(sentence(document, paragraph, line) for line in range(rng.integers(1, 8)))
            for paragraph in range(rng.integers(1, 4))
        )
        for document in range(count)
    ]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents()


@pytest.fixture(scope="session")
def text_file(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "entries.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def config(text_file: Path) -> CorpusConfig:
    return CorpusConfig(
        source="text", files=[str(text_file)], vocab_size=400, lengths=[32, 64], duplicates=2, validation_fraction=0.1
    )


@pytest.fixture(scope="session")
def corpus(config: CorpusConfig, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(config, tmp_path_factory.mktemp("corpora") / "entries")


@pytest.fixture
def sentences_file(tmp_path: Path) -> Path:
    file = tmp_path / "sentences.txt"
    file.write_text("\n".join(SENTENCES), encoding="utf-8")
    return file
