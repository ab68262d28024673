"""Sentences to tokens: load a tokenizer, and encode with it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from earlybert.core.errors import UserError, one_line
from earlybert.core.files import read_json
from earlybert.core.paths import did_you_mean
from earlybert.data_prep.tokens.accents import MOST, marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
VOCABULARY = "vocab.txt"
# Beside a vocabulary it says what happens to capitals and accents.
SETTINGS = "tokenizer_config.json"
# What a tokenizer's folder has; without config.json transformers cannot always tell which class it is.
FILES = ("*token*", "*vocab*", "merges.txt", "*.model", "config.json")
# SentencePiece and byte-level BPE write the space before a word as the beginning of its first token.
WORD_BEGINNINGS = SENTENCEPIECE_SPACE, BYTE_LEVEL_SPACE = ("▁", "Ġ")
# Code points that Unicode keeps free for such use inside programs.
SENTENCE_END = "\ufdd0"
HOLE = "\ufdd1"
SENTENCES_PER_TEXT = 64
PROBE = ["This is one.", "and (another); \u00e9t\u00e9", "x", "\u200b", "In 1999 [MASK]s!"]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens."""

    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """All of them, ascending."""
        return tuple(sorted((self.pad, self.unknown, self.cls, self.sep, self.mask)))


def bert_tokenizer(
    vocabulary: dict[str, int] | None, lowercase: bool, strip_accents: bool
) -> "PreTrainedTokenizerFast":
    """BERT's tokenizer with the tokens of a vocabulary and their numbers, or with its special tokens only."""
    from transformers import BertTokenizer

    # None follows lowercase, as in the files of published tokenizers.
    return BertTokenizer(
        vocab=vocabulary,
        do_lower_case=lowercase,
        strip_accents=None if strip_accents == lowercase else strip_accents,
    )


def local_tokenizer(name: str) -> str:
    """Where a tokenizer lies: the file or folder of this name, or a copy of the Hugging Face hub's tokenizer.

    Of a corpus or a run it is the folder of its own tokenizer.

    Raises:
        UserError: There is neither.
    """
    if (folder := Path(name)).exists():
        inside = [folder / "tokenizer", folder / "corpus" / "tokenizer"]
        own = [place for place in inside if (place / "tokenizer.json").is_file()]
        return str(own[0]) if own and not (folder / "tokenizer.json").is_file() else name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=[*FILES])
    # What can go wrong here is the library's and the network's: no list would be complete.
    except Exception as error:
        raise UserError(
            f"tokenizer: there is no file or folder {name}, and none of this name on the Hugging Face hub can be "
            f"loaded ({one_line(error)}){did_you_mean(folder) or '.'}"
        ) from error


def tokenizer_files(place: Path) -> list[Path]:
    """All files that `load_tokenizer` may read: those of a folder, or a file and the settings beside a vocabulary."""
    if place.is_dir():
        return sorted({file for pattern in FILES for file in place.glob(pattern) if file.is_file()})
    settings = place.with_name(SETTINGS)
    return [place, settings] if place.suffix != ".json" and settings.is_file() else [place]


def load_tokenizer(path: str, *, lowercase: bool, strip_accents: bool | None = None) -> "PreTrainedTokenizerFast":
    """Load a `vocab.txt` (a bare WordPiece vocabulary), a `tokenizer.json`, or a folder with one or a fast tokenizer.

    Args:
        path: The file or folder.
        lowercase: Only for a `vocab.txt` without a `tokenizer_config.json` beside it, which does not say.
        strip_accents: The same. None: where the text is lowercased and the vocabulary has hardly any accents.

    Raises:
        UserError: Nothing is there, it cannot be read, or a special token is missing.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = Path(path)
    if not file.exists():
        raise UserError(f"tokenizer: there is no file or folder {path}.")
    if (file / VOCABULARY).is_file() and not any((file / name).is_file() for name in ("tokenizer.json", SETTINGS)):
        file /= VOCABULARY  # the library would take it for an uncased one
    bare = not file.is_dir() and file.suffix != ".json"
    if strip_accents is not None and not (bare and not file.with_name(SETTINGS).is_file()):
        raise UserError(
            f"strip_accents is {strip_accents}, but the tokenizer {path} says itself what it does; leave it out."
        )
    try:
        if file.is_dir():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        elif file.suffix == ".json":
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)
        else:
            tokenizer = _load_vocabulary(file, lowercase, strip_accents)
    except UserError:
        raise
    # The Rust library raises plain Exception for a file that it cannot parse.
    except Exception as error:
        raise UserError(f"tokenizer: {path} is not a tokenizer that can be loaded ({one_line(error)}).") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"tokenizer: {path} has no fast (tokenizer.json) form, which preparation needs.")
    # A bare tokenizer.json does not say which of its tokens play the special parts.
    missing: dict[str, Any] = {name: token for name, token in SPECIAL_TOKENS.items() if not getattr(tokenizer, name)}
    _check_special_tokens(missing.values(), tokenizer.get_vocab(), path)
    tokenizer.add_special_tokens(missing)
    return tokenizer


def _load_vocabulary(file: Path, lowercase: bool, strip_accents: bool | None) -> "PreTrainedTokenizerFast":
    """A WordPiece vocabulary, with what is written beside it of case and accents, else with what the user says."""
    vocabulary = _vocabulary(file)
    _check_special_tokens(SPECIAL_TOKENS.values(), vocabulary, str(file))
    if (beside := file.with_name(SETTINGS)).is_file():
        settings = read_json(beside)
        lowercase = settings.get("do_lower_case", lowercase)
        stated = settings.get("strip_accents")
        strip_accents = lowercase if stated is None else stated
    elif strip_accents is None:
        strip_accents = lowercase and sum(map(bool, map(marks, vocabulary))) <= MOST * len(vocabulary)
    return bert_tokenizer(vocabulary, lowercase, strip_accents)


def _vocabulary(file: Path) -> dict[str, int]:
    """Number of each token of a `vocab.txt`, a token a line; raises UserError where one stands there twice."""
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")):
        if (first := vocabulary.setdefault(token, index)) != index:
            raise UserError(
                f"tokenizer: {file}:{index + 1} is {token!r}, which is already in line {first + 1}; a vocabulary "
                "must have every token once."
            )
    return vocabulary


def _check_special_tokens(tokens: Iterable[str], vocabulary: dict[str, int], path: str) -> None:
    for token in tokens:
        if token not in vocabulary:
            raise UserError(f"tokenizer: the vocabulary of {path} has no {token}, which masked-LM samples need.")


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> SpecialTokens:
    """The ids of a tokenizer's special tokens."""
    return SpecialTokens(
        pad=tokenizer.pad_token_id,
        unknown=tokenizer.unk_token_id,
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
    )


def token_dtype(size: int) -> np.dtype:
    """The narrowest of uint16 and uint32 that holds the ids of a vocabulary."""
    return np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)


def vocabulary_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The highest id plus one, added tokens included."""
    return max(tokenizer.get_vocab().values()) + 1


def continues_word(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
    """For whole-word masking: bool [vocabulary size], whether a token goes on with the word of the token before it.

    WordPiece marks such tokens (`##`); SentencePiece and byte-level BPE mark the others, which begin a word. So with
    these, punctuation belongs to the word that it touches, and so does an unknown piece: the mark before it is known.

    Raises:
        UserError: The tokenizer marks neither.
    """
    vocabulary = tokenizer.get_vocab()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    flags = np.zeros(vocabulary_size(tokenizer), dtype=bool)
    if prefix := model.get("continuing_subword_prefix"):
        flags[[index for token, index in vocabulary.items() if token.startswith(prefix)]] = True
        return flags
    marks = [mark for mark in WORD_BEGINNINGS if any(token.startswith(mark) for token in vocabulary)]
    if not marks:
        raise UserError("tokenizer: its tokens do not show where words begin, which whole-word masking needs.")
    flags[[index for token, index in vocabulary.items() if not token.startswith(marks[0])]] = True
    special = special_tokens(tokenizer)
    flags[list(special.ids)] = False
    flags[special.unknown] = marks[0] in vocabulary
    return flags


class Encoder:
    """Sentences to token ids, without what only pre-trained models need around them.

    Many sentences go to the tokenizer as one text, as one call for each would cost a third more time; a token of its
    own, which no text holds, ends each of them.
    """

    def __init__(self, file: Path) -> None:
        """Load a `tokenizer.json`; nothing is truncated or padded, and a special token in the text is text."""
        from tokenizers import AddedToken, Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Tokens are numbered from the vocabulary's size on, which another token has where that leaves numbers out.
        numbers = {*self._tokenizer.get_vocab().values()}
        holes = [f"{HOLE}{hole}" for hole in range(max(numbers) + 1 - len(numbers))]
        self._tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*holes, SENTENCE_END)])
        self._end = self._tokenizer.token_to_id(SENTENCE_END)
        # Byte-level BPE mostly puts no space in front itself, and a sentence would seem to go on with the word before.
        marked = self._tokenizer.encode(" x", add_special_tokens=False).tokens[:1] or [""]
        bare = self._tokenizer.encode("x", add_special_tokens=False).tokens[:1]
        self._lead = " " if marked[0].startswith(BYTE_LEVEL_SPACE) and bare != marked else ""
        self._sentences_per_text = SENTENCES_PER_TEXT
        # To some tokenizers the beginning of a text is something else than the beginning of a sentence in it.
        if not np.array_equal(self.encode(PROBE, np.uint32)[0], self._ids([self._lead + probe for probe in PROBE])):
            self._sentences_per_text = 1

    def encode(self, sentences: list[str], dtype: npt.DTypeLike) -> tuple[np.ndarray, np.ndarray]:
        """All tokens one after the other, and int64 [sentences] with their number in each sentence."""
        step = self._sentences_per_text
        ids = self._ids([self._text(sentences[first : first + step]) for first in range(0, len(sentences), step)])
        is_end = ids == self._end
        return ids[~is_end].astype(dtype), np.diff(np.flatnonzero(is_end), prepend=-1) - 1

    def normalise(self, text: str) -> str:
        """What becomes of a text before it is cut into tokens."""
        normalizer = self._tokenizer.normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def unknown_texts(self, sentences: list[str], unknown: int) -> Iterator[str]:
        """Every stretch of the sentences that becomes [UNK], whose id is `unknown`."""
        texts = [self._lead + sentence for sentence in sentences]
        for text, encoding in zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if token == unknown:
                    yield text[begin:end].strip()

    def _text(self, sentences: list[str]) -> str:
        return "".join([self._lead + sentence.replace(SENTENCE_END, "") + SENTENCE_END for sentence in sentences])

    def _ids(self, texts: list[str]) -> np.ndarray:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return np.fromiter(chain.from_iterable([encoding.ids for encoding in encodings]), np.uint32)
