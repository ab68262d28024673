"""Tokenizers that are given: a vocabulary, a file, a folder, a name of the hub."""

import json
import lzma
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.tokens.tokenizer import (
    SpecialTokens,
    bert_tokenizer,
    load_tokenizer,
    local_tokenizer,
    special_tokens,
)

if TYPE_CHECKING:
    pass
from tests.data_prep.conftest import SENTENCES
from tests.data_prep.test_tokenizer import GERMAN, SPECIAL, encode, train_tokenizer, write_vocabulary


def test_a_token_that_stands_twice_in_a_vocabulary_is_named(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path, [*SPECIAL, "one", "two", "one"])
    with pytest.raises(UserError, match=r"vocab\.txt:8 is 'one', which is already in line 6"):
        load_tokenizer(path, lowercase=True)
    path = write_vocabulary(tmp_path, [*SPECIAL, "", "two", ""])
    with pytest.raises(UserError, match=r"vocab\.txt:8 is '', which is already in line 6"):
        load_tokenizer(path, lowercase=True)


def test_a_vocabulary_that_leaves_numbers_out_keeps_all_its_tokens(tmp_path: Path) -> None:
    """Its last token has the number that the library would give to what ends a sentence."""
    words = ["one", "two", "three", "four"]
    vocabulary = {token: number for number, token in enumerate(SPECIAL)} | {"one": 5, "two": 6, "three": 9, "four": 10}
    assert len(vocabulary) == vocabulary["three"]
    found = encode([*words, "four three two"], bert_tokenizer(vocabulary, True, True), tmp_path)
    assert found == [[5], [6], [9], [10], [10, 9, 6]]


def test_a_folder_with_a_bare_vocabulary_alone_is_one(tmp_path: Path) -> None:
    write_vocabulary(tmp_path, [*SPECIAL, "One", "one"])
    for lowercase, expected in ((False, ["One", "one"]), (True, ["one", "one"])):
        assert load_tokenizer(str(tmp_path), lowercase=lowercase).tokenize("One one") == expected


def test_vocabulary_file_json_and_folder_give_the_same_tokens(sentences_file: Path, tmp_path: Path) -> None:
    trained = train_tokenizer(sentences_file, vocab_size=200, lowercase=False)
    trained.save_pretrained(tmp_path / "folder")
    tokens = sorted(trained.get_vocab(), key=lambda token: trained.get_vocab()[token])
    expected = trained.tokenize(" ".join(SENTENCES))
    for path in (tmp_path / "folder", tmp_path / "folder" / "tokenizer.json", write_vocabulary(tmp_path, tokens)):
        # lowercase counts for the bare vocabulary only; the others know that they are cased.
        loaded = load_tokenizer(str(path), lowercase=str(path).endswith("json") or Path(path).is_dir())
        assert loaded.tokenize(" ".join(SENTENCES)) == expected
        assert special_tokens(loaded) == SpecialTokens(pad=0, unknown=1, cls=2, sep=3, mask=4)


def test_truncation_in_a_tokenizer_file_does_not_cut_the_text(sentences_file: Path, tmp_path: Path) -> None:
    trained = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    trained.backend_tokenizer.enable_truncation(4)
    trained.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"), lowercase=True)
    assert len(encode([SENTENCES[0]], loaded, tmp_path)[0]) == len(trained.tokenize(SENTENCES[0])) > 4


@pytest.mark.parametrize("missing", SPECIAL)
def test_missing_special_token_is_named(missing: str, sentences_file: Path, tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path, [token for token in [*SPECIAL, "a", "b"] if token != missing])
    with pytest.raises(UserError) as raised:
        load_tokenizer(path, lowercase=True)
    assert f"has no {missing}," in str(raised.value) and path in str(raised.value)
    trained = train_tokenizer(sentences_file, vocab_size=200, lowercase=True)
    content = json.loads(trained.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != missing]
    content["post_processor"] = None
    del content["model"]["vocab"][missing]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as raised:
        load_tokenizer(str(tmp_path / "tokenizer.json"), lowercase=True)
    assert f"has no {missing}," in str(raised.value)


def test_tokenizer_that_is_not_there_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*absent"):
        load_tokenizer(str(tmp_path / "absent"), lowercase=True)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "tokenizer.json", tmp_path / "empty"):
        with pytest.raises(UserError) as raised:
            load_tokenizer(str(path), lowercase=True)
        assert f"{path} is not a tokenizer" in str(raised.value) and "\n" not in str(raised.value)


def test_tokenizer_of_the_hub_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier download has left in the hub's cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"^tokenizer: there is no file or folder some/model, and none of this name .*\.$"
    ):
        local_tokenizer("some/model")
    kept = tmp_path / "models--some--model"
    snapshot = kept / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    load_tokenizer(write_vocabulary(tmp_path, [*SPECIAL, *GERMAN]), lowercase=True).save_pretrained(snapshot)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    found = local_tokenizer("some/model")
    assert load_tokenizer(found, lowercase=True).tokenize("Für") == ["für"]
    assert local_tokenizer(str(snapshot)) == str(snapshot)


@pytest.mark.skipif("EARLYBERT_DATA" not in os.environ, reason="EARLYBERT_DATA names no folder with real text")
@pytest.mark.parametrize("case", ["uncased", "cased"])
def test_published_vocabulary_agrees_with_hugging_face(case: str, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    data = Path(os.environ["EARLYBERT_DATA"])
    vocabulary = data / "vocab" / f"bert-base-{case}-vocab.txt"
    folder, lowercase = vocabulary.parent, case == "uncased"
    published = BertTokenizer.from_pretrained(folder, vocab_file=str(vocabulary), do_lower_case=lowercase)
    loaded = load_tokenizer(str(vocabulary), lowercase=lowercase)
    assert special_tokens(loaded) == SpecialTokens(pad=0, unknown=100, cls=101, sep=102, mask=103)
    with lzma.open(data / "wikipedia" / "wiki-00000.jsonl.xz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, 20)]
    assert encode(texts, loaded, tmp_path) == published(texts, add_special_tokens=False)["input_ids"]
