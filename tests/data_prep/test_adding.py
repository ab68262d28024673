"""Words that a vocabulary gets beside its own, and where a folder's tokenizer is found."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.tokens.adding import add_tokens
from earlybert.data_prep.tokens.tokenizer import (
    Encoder,
    bert_tokenizer,
    continues_word,
    load_tokenizer,
    local_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "whale",
    "##s",
    "##ship",
    "harp",
    "##oon",
    "##er",
    ".",
]


@pytest.fixture
def published(tmp_path: Path) -> "PreTrainedTokenizerFast":
    """Uncased."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return load_tokenizer(str(tmp_path / "vocab.txt"), lowercase=True)


def words(folder: Path, text: str) -> Path:
    (folder / "words.txt").write_text(text, encoding="utf-8")
    return folder / "words.txt"


def test_added_words_are_tokens_where_they_stand_alone(published: "PreTrainedTokenizerFast", tmp_path: Path) -> None:
    add_tokens(published, words(tmp_path, "Harpooner\nwhaleship\n"))
    published.save_pretrained(tmp_path / "saved")
    encoder = Encoder(tmp_path / "saved" / "tokenizer.json")
    tokens, lengths = encoder.encode(["The HARPOONER.", "Harpooners.", "the whale whaleship"], np.uint32)
    the, whale, harp = (VOCABULARY.index(token) for token in ("the", "whale", "harp"))
    harpooner, whaleship = len(VOCABULARY), len(VOCABULARY) + 1
    assert lengths.tolist() == [3, 5, 3]
    assert tokens.tolist() == [the, harpooner, 12, harp, 10, 11, 7, 12, the, whale, whaleship]
    # For masks of whole words they begin one.
    loaded = load_tokenizer(str(tmp_path / "saved"), lowercase=True)
    assert continues_word(loaded).tolist() == [token.startswith("##") for token in VOCABULARY] + [False, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "words.txt names no token"),
        ("whaleship\n\nharpooner\n", "words.txt:2 is empty"),
        ("whaleship\nWhaleship\n", "words.txt:2 is 'Whaleship', the same as line 1"),
        ("[MASK]\n", r"words.txt:1 is \[MASK\], a special token"),
        ("whaleship\n\u200b\n", r"words.txt:2 is '\\u200b', of which the tokenizer leaves nothing"),
        ("\u0301\n", "of which the tokenizer leaves nothing"),
        ("Whale\n", "words.txt:1 is 'Whale', which is one token of the vocabulary already"),
    ],
)
def test_words_that_cannot_be_added_are_named(
    published: "PreTrainedTokenizerFast", tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as raised:
        add_tokens(published, words(tmp_path, text))
    assert "\n" not in str(raised.value)
    assert len(published) == len(VOCABULARY)


def test_words_beside_a_vocabulary_that_leaves_numbers_out_are_refused(tmp_path: Path) -> None:
    """The first of them would get the number of the full stop."""
    vocabulary = {token: number for number, token in enumerate(VOCABULARY[:-1])} | {".": len(VOCABULARY)}
    with pytest.raises(UserError, match="add_tokens: whaleship would get the number of another token"):
        add_tokens(bert_tokenizer(vocabulary, True, True), words(tmp_path, "whaleship\n"))


def test_a_file_that_cannot_be_read_is_named(published: "PreTrainedTokenizerFast", tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"add_tokens: .*absent cannot be read"):
        add_tokens(published, tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary is not UTF-8"):
        add_tokens(published, tmp_path / "binary")


@pytest.mark.parametrize("inside", ["", "tokenizer", "corpus/tokenizer"], ids=["a model", "a corpus", "a run"])
def test_the_tokenizer_of_a_folder_is_found(published: "PreTrainedTokenizerFast", tmp_path: Path, inside: str) -> None:
    published.save_pretrained(tmp_path / "folder" / inside)
    loaded = load_tokenizer(local_tokenizer(str(tmp_path / "folder")), lowercase=False)
    assert loaded.tokenize("The Whales") == ["the", "whale", "##s"]
