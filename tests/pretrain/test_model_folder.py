"""What an export's folder holds beside the weights, who may read it, and how it comes to the hub."""

import dataclasses
import json
import resource
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from earlybert.core import files
from earlybert.core.cli import main
from earlybert.core.errors import UserError
from earlybert.data_prep.tokens.tokenizer import SPECIAL_TOKENS
from earlybert.pretrain.checkpoint.card import run_card
from earlybert.pretrain.checkpoint.model_folder import push, require_pushable, write_model_folder
from earlybert.pretrain.checkpoint.trained import newest
from earlybert.pretrain.network.bert_format import to_bert
from tests.finetune.made_up import tiny_tokenizer
from tests.pretrain.small_models import random_weights, small_config


def written(tokenizer: Any, folder: Path) -> Path:
    write_model_folder(to_bert(small_config(), random_weights(small_config())), tokenizer, "# Card\n", folder)
    return folder


def test_the_tokenizer_knows_the_models_length_and_no_place(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "first")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "first", local_files_only=True)
    folder = written(loaded, tmp_path / "out")
    content = json.loads((folder / "tokenizer_config.json").read_text())
    assert content["model_max_length"] == 40
    assert not {"is_local", "local_files_only", "name_or_path", "tokenizer_file"} & content.keys()
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.glob("*.json"))
    again = AutoTokenizer.from_pretrained(folder)
    assert len(again("the old tree " * 40, truncation=True)["input_ids"]) == 40
    assert again("the old tree")["input_ids"] == tiny_tokenizer()("the old tree")["input_ids"]
    assert (folder / "README.md").read_text() == "# Card\n" and not list(tmp_path.glob(".*"))


def test_a_tokenizer_of_no_class_has_the_name_that_transformers_4_knows(tmp_path: Path) -> None:
    """Transformers 5 calls it TokenizersBackend, which 4.57 refuses to load."""
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer,
        **SPECIAL_TOKENS,
    )
    folder = written(plain, tmp_path / "out")
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = AutoTokenizer.from_pretrained(folder)
    assert again("the old tree")["input_ids"] == plain("the old tree")["input_ids"] and again.mask_token == "[MASK]"


def test_modes_follow_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors makes its files their owner's alone."""
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        monkeypatch.setattr(files, "UMASK", umask)
        folder = written(tiny_tokenizer(), tmp_path / "out")
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {mode}
    alone = tmp_path / "alone.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, alone)
    files.open_to_readers(alone)
    assert alone.stat().st_mode & 0o777 == 0o640


class Hub:
    """In the place of the hub's client: remembers what was asked of it."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append({"name": name} | options)
        return f"https://hub/{name}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(options)


def test_a_folder_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    assert push(tmp_path, "me/model") == "https://hub/me/model"
    created, uploaded = Hub.calls
    assert created == {"name": "me/model", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "me/model" and uploaded["folder_path"] == tmp_path


def test_what_the_hub_says_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Hub):
        def upload_folder(self, **options: Any) -> None:
            raise OSError("403 Forbidden: this is not yours\nmore\nlines")

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    with pytest.raises(UserError) as error:
        push(tmp_path, "me/model")
    assert str(error.value) == (
        f"--push is 'me/model', which cannot be uploaded to (403 Forbidden: this is not yours); {tmp_path} is complete"
    )


def test_pushing_without_token_or_name_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="--push needs a token of the hub; set HF_TOKEN or run hf auth login"):
        require_pushable("me/model")
    for name in ("me/a model", "model"):
        with pytest.raises(UserError, match=f"--push is '{name}'; it must be a repository of the hub, as OWNER/NAME"):
            require_pushable(name)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    require_pushable("me/model")


def test_a_run_is_exported_with_its_card_and_pushed(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    monkeypatch.setattr(Hub, "calls", [])
    out = tmp_path / "out"
    main(["export", str(finished_run), "--format", "earlybert", "--out", str(out), "--push", "me/model"])
    assert "uploaded to https://hub/me/model" in capsys.readouterr().out
    assert Hub.calls[1]["folder_path"] == out
    _, head, card = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["bert", "earlybert"],
    }
    ticket = json.loads((finished_run / "ticket.json").read_text())
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "validation"][-1]
    for text in (
        "A BERT of 2 layers and width 64",
        f"the ticket `{ticket['sha256']}`",
        "it has 3 3 of 4 attention heads",
        "The vocabulary (wordpiece) has 300 tokens",
        "| phase2 | lengthen | 10 | 20 | 64 | 0.004 |",
        f"| masked tokens | {last['masked_loss']:.3f} |",
        'AutoModelForPreTraining.from_pretrained("THIS FOLDER", trust_remote_code=True)',
    ):
        assert text in card, text
    assert str(finished_run.parent) not in card
    assert (out / "modeling_earlybert.py").is_file()
    # The run's own exports, and its checkpoints.
    for folder in (
        finished_run / "export" / "bert",
        *(finished_run / "checkpoints").iterdir(),
        finished_run / "search",
    ):
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir() if file.is_file()} == {0o666 & ~files.UMASK}


@pytest.mark.parametrize(
    ("initial", "named", "begins"),
    [
        ("owner/bert", "owner/bert", ["It begins with the weights of owner/bert."]),
        ("/runs/base", None, ["It begins with the weights of the folder base."]),
        (None, None, []),
    ],
)
def test_the_card_names_the_published_model_that_the_run_began_with(
    initial: str | None, named: str | None, begins: list[str], finished_run: Path
) -> None:
    trained = newest(finished_run)
    assert trained is not None
    recipe = dataclasses.replace(trained.recipe, initial=initial)
    begun = dataclasses.replace(trained, recipe=recipe, plan=dataclasses.replace(trained.plan, recipe=recipe))
    card = run_card(begun, "bert", "BertForPreTraining", finished_run)
    assert yaml.safe_load(card.split("---")[1]).get("base_model") == named
    # The card is for readers who do not have this disk.
    assert "/runs" not in card
    assert [line for line in card.splitlines() if line.startswith("It begins")] == begins


@pytest.mark.parametrize("largest", [100, 10_000])
def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(largest: int, tmp_path: Path) -> None:
    """The system refuses larger files: configuration or weights, which two libraries write."""
    tokenizer = tiny_tokenizer()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        with pytest.raises(UserError, match="out cannot be written"):
            written(tokenizer, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
