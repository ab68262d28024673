"""Numerical settings of these tests, and a corpus small enough to look through."""

from pathlib import Path

import numpy as np
import pytest
import torch

from earlybert.data_prep.config import CorpusConfig, Objective
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus

LENGTHS = [16, 32]
SMALL = """\
model: {hidden_size: 32, num_layers: 2, num_heads: 4, intermediate_size: 64, max_position_embeddings: 64}
search: {steps: 5, snapshot_every: 1}
draw: {width_multiple: 8}
phase1:
  length: 16
  max_predictions: 3
  global_batch: 8
  micro_batch: 4
  steps: 10
  learning_rate: 1e-2
  warmup: 0.2
phase2: {length: 32, max_predictions: 5, global_batch: 8, micro_batch: 4, steps: 6, learning_rate: 5.0e-3, warmup: 0.1}
"""


@pytest.fixture(autouse=True)
def exact(own_settings: None) -> None:
    """True fp32 matrix products."""
    torch.set_float32_matmul_precision("highest")


def write_text(path: Path) -> None:
    """Documents of invented words, a paragraph a line, a blank line between documents."""
    rng = np.random.default_rng(3)
    words = ["".join(rng.choice(list("bdfgklmnprst")) + rng.choice(list("aeiou")) for _ in range(2)) for _ in range(90)]
    documents = []
    for _ in range(30):
        sentences = [" ".join(rng.choice(words, rng.integers(3, 9))).capitalize() + "." for _ in range(8)]
        documents.append(" ".join(sentences))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def make_corpus(
    folder: Path, objective: Objective, *, packing: bool = False, short_sequence_probability: float = 0.3
) -> Corpus:
    write_text(folder / "documents.txt")
    config = CorpusConfig(
        source="text",
        files=[str(folder / "documents.txt")],
        vocab_size=150,
        lengths=LENGTHS,
        objective=objective,
        short_sequence_probability=short_sequence_probability,
        packing=packing,
        validation_fraction=0.2,
    )
    return prepare(config, folder / "corpus")


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Pairs of segments, for lengths 16 and 32."""
    return make_corpus(tmp_path_factory.mktemp("pairs"), "nsp")


@pytest.fixture(scope="session")
def packed_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The same text in many short samples, with a plan of the rows that they share."""
    return make_corpus(tmp_path_factory.mktemp("packed"), "nsp", packing=True, short_sequence_probability=0.9)


@pytest.fixture(scope="session")
def single_segment_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The same text without next-sentence prediction."""
    return make_corpus(tmp_path_factory.mktemp("singles"), "full-sentences")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path
