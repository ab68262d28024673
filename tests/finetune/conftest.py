"""A tiny BERT with its tokenizer, and made-up data in the official layouts."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers.utils.logging import disable_progress_bar

from tests.finetune.made_up import save_tiny_bert, write_all_glue, write_squad, write_sst2


@pytest.fixture(autouse=True)
def exact_and_alone(own_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """True fp32 matrix products, no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    torch.set_float32_matmul_precision("highest")
    disable_progress_bar()


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face BERT of three layers with 4 heads and 64 neurons each."""
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 that a word gives away, and SQuAD that an article gives away."""
    folder = tmp_path_factory.mktemp("data")
    write_sst2(folder)
    write_squad(folder)
    return folder


@pytest.fixture(scope="session")
def all_glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of every GLUE task."""
    folder = tmp_path_factory.mktemp("glue")
    write_all_glue(folder)
    return folder
