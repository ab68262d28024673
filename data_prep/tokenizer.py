"""Sentences to tokens: train or load a tokenizer, and encode a whole corpus into flat arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earlybert.data_prep.errors import CorpusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
DOCUMENTS_PER_BATCH = 1024


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


@dataclass(frozen=True)
class TokenisedText:
    """Documents as tokens, without special tokens.

    Attributes:
        tokens: uint16 or uint32 [tokens], all sentences one after the other.
        sentence_bounds: int64 [sentences + 1]; sentence i is `tokens[sentence_bounds[i] : sentence_bounds[i + 1]]`.
        document_bounds: int64 [documents + 1]; document i has the sentences from `document_bounds[i]` to
            `document_bounds[i + 1]`, the latter excluded.
    """

    tokens: np.ndarray
    sentence_bounds: np.ndarray
    document_bounds: np.ndarray

    @property
    def token_bounds(self) -> np.ndarray:
        """int64 [documents + 1]; document i is `tokens[token_bounds[i] : token_bounds[i + 1]]`."""
        return self.sentence_bounds[self.document_bounds]


def train_tokenizer(sentences_file: Path, *, vocab_size: int, lowercase: bool) -> "PreTrainedTokenizerFast":
    """Train a WordPiece vocabulary with BERT's normalisation on a file of sentences; the same file, the same result.

    Left alone, the trainer numbers characters by the order of a hash table and breaks ties by these numbers, so no two
    runs agree (huggingface/tokenizers issue 1794). Tokens that are named to it beforehand have fixed numbers: a first
    pass finds the alphabet, and the second learns the pieces.
    """
    from transformers import BertTokenizer

    special = list(SPECIAL_TOKENS.values())
    # An untrained BertTokenizer brings normaliser and pre-tokeniser as BERT has them.
    backend = BertTokenizer(do_lower_case=lowercase).backend_tokenizer
    alphabet = _alphabet(sentences_file, backend, limit=min(1000, vocab_size // 4))
    letters = _train_vocabulary(sentences_file, backend, vocab_size=0, first=special, alphabet=alphabet)
    inside_words = sorted(piece for piece in letters if piece.startswith("##"))
    vocabulary = _train_vocabulary(
        sentences_file, backend, vocab_size=vocab_size, first=special + inside_words, alphabet=alphabet
    )
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)


def _train_vocabulary(
    sentences_file: Path, backend: "Tokenizer", *, vocab_size: int, first: list[str], alphabet: list[str]
) -> dict[str, int]:
    """A vocabulary that begins with the tokens `first`, in their order."""
    from tokenizers import Tokenizer, trainers
    from tokenizers.models import WordPiece

    learner = Tokenizer(WordPiece(unk_token=SPECIAL_TOKENS["unk_token"]))
    learner.normalizer, learner.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=first,
        # The most frequent characters; the trainer's own choice breaks ties by chance.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train([str(sentences_file)], trainer)
    return learner.get_vocab(with_added_tokens=False)


def _alphabet(sentences_file: Path, backend: "Tokenizer", limit: int) -> list[str]:
    """The most frequent characters of the normalised text, at most `limit`, ties in code point order."""
    counts = np.zeros(0x110000, dtype=np.int64)
    with sentences_file.open(encoding="utf-8", newline="\n") as file:
        while lines := file.readlines(1 << 22):
            text = backend.normalizer.normalize_str("".join(lines))
            points, seen = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_counts=True)
            counts[points] += seen
    counts[[ord(" "), ord("\n")]] = 0
    frequent = np.argsort(-counts, kind="stable")[:limit]
    return [chr(point) for point in frequent if counts[point]]


def load_tokenizer(path: str, *, lowercase: bool) -> "PreTrainedTokenizerFast":
    """Load a `vocab.txt` (a bare WordPiece vocabulary), a `tokenizer.json` or a folder with a fast tokenizer.

    Args:
        path: The file or folder.
        lowercase: Only for `vocab.txt`, which does not say.

    Raises:
        CorpusError: Nothing is there, it cannot be read, or a special token is missing.
    """
    from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

    file = Path(path)
    if not file.exists():
        raise CorpusError(f"tokenizer: there is no file or folder {path}.")
    try:
        if file.is_dir():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        elif file.suffix == ".json":
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)
        else:
            tokens = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            vocabulary = {token: index for index, token in enumerate(tokens)}
            _check_special_tokens(SPECIAL_TOKENS.values(), vocabulary, path)
            tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)
    except CorpusError:
        raise
    # The Rust library raises plain Exception for a file that it cannot parse.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"tokenizer: {path} is not a tokenizer that can be loaded ({reason}).") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CorpusError(f"tokenizer: {path} has no fast (tokenizer.json) form, which preparation needs.")
    # A bare tokenizer.json does not say which of its tokens play the special parts.
    missing: dict[str, Any] = {name: token for name, token in SPECIAL_TOKENS.items() if not getattr(tokenizer, name)}
    _check_special_tokens(missing.values(), tokenizer.get_vocab(), path)
    tokenizer.add_special_tokens(missing)
    return tokenizer


def _check_special_tokens(tokens: Iterable[str], vocabulary: dict[str, int], path: str) -> None:
    for token in tokens:
        if token not in vocabulary:
            raise CorpusError(f"tokenizer: the vocabulary of {path} has no {token}, which masked-LM samples need.")


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> SpecialTokens:
    """The ids of a tokenizer's special tokens."""
    return SpecialTokens(
        pad=tokenizer.pad_token_id,
        unknown=tokenizer.unk_token_id,
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
    )


def vocabulary_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The highest id plus one, added tokens included."""
    return max(tokenizer.get_vocab().values()) + 1


def encode(documents: Iterable[list[str]], tokenizer: "PreTrainedTokenizerFast") -> TokenisedText:
    """Tokenise documents with the parallel Rust encoder; a sentence or document that gives no token is left out.

    A special token that is written out in the text is text.

    Args:
        documents: Lists of sentences.
        tokenizer: The tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    dtype = np.uint16 if vocabulary_size(tokenizer) <= 1 << 16 else np.uint32
    tokens = [np.zeros(0, dtype)]
    # Each begins with a zero, so that the running sums begin there.
    sentence_lengths = [np.zeros(1, np.int64)]
    document_lengths = [np.zeros(1, np.int64)]
    for batch in _batches(documents):
        encoded = [e.ids for e in backend.encode_batch_fast(list(chain(*batch)), add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        tokens.append(np.fromiter(chain(*encoded), dtype, lengths.sum()))
        sentence_lengths.append(lengths[lengths > 0])
        kept_before = np.concatenate([[0], np.cumsum(lengths > 0)])
        in_document = np.diff(kept_before[np.cumsum([0, *map(len, batch)])])
        document_lengths.append(in_document[in_document > 0])
    return TokenisedText(
        np.concatenate(tokens),
        np.cumsum(np.concatenate(sentence_lengths)),
        np.cumsum(np.concatenate(document_lengths)),
    )


def _batches(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, DOCUMENTS_PER_BATCH)):
        yield batch
