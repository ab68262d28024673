"""Training a tokenizer on a file of sentences: the same file, the same result."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from earlybert.core.errors import UserError, one_line
from earlybert.core.progress import say
from earlybert.data_prep.config import TokenizerKind
from earlybert.data_prep.tokens.accents import MOST, count_words, without_marks, words_that_lose_marks
from earlybert.data_prep.tokens.tokenizer import SPECIAL_TOKENS, bert_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

# Rarer characters become unknown, as in SentencePiece's own advice for texts in large alphabets.
CHARACTER_COVERAGE = 0.9999
# A vocabulary whose characters cover less of the text than this teaches nothing.
LEAST_COVERAGE = 0.95
# The longest line that SentencePiece trains on, bytes of UTF-8.
LONGEST_LINE = 1 << 16


def train_tokenizer(
    sentences_file: Path, *, kind: TokenizerKind, vocab_size: int, lowercase: bool, strip_accents: bool | None = None
) -> "PreTrainedTokenizerFast":
    """Train a tokenizer.

    Args:
        sentences_file: A sentence a line; blank lines between documents.
        kind: `wordpiece` is BERT's; `unigram` and `bpe` are SentencePiece's.
        vocab_size: Entries of the vocabulary, special tokens included; little text may give fewer.
        lowercase: Lowercase the text.
        strip_accents: Take accents and vowel signs off. None: where the text is lowercased and has hardly any, as
            English BERT does.

    Raises:
        UserError: There is too little text, or the vocabulary is too small for its characters.
    """
    if strip_accents is None:
        strip_accents = lowercase and not _needs_accents(sentences_file)
    if kind == "wordpiece":
        return _train_wordpiece(sentences_file, vocab_size, lowercase, strip_accents)
    return _train_sentencepiece(sentences_file, kind, vocab_size, _sentencepiece_normalizer(lowercase, strip_accents))


def _needs_accents(sentences_file: Path) -> bool:
    """Whether so many words have accents that a vocabulary must keep them, which the user is told."""
    with sentences_file.open(encoding="utf-8", newline="\n") as lines:
        share, example = words_that_lose_marks(count_words(lines), without_marks)
    if share > MOST:
        say(
            f"{share:.1%} of the words have accents or vowel signs, for example {example}; the vocabulary keeps them "
            "(--strip_accents true takes them off)"
        )
    return share > MOST


def _train_wordpiece(
    sentences_file: Path, vocab_size: int, lowercase: bool, strip_accents: bool
) -> "PreTrainedTokenizerFast":
    """A WordPiece vocabulary with BERT's normalisation.

    Left alone, the trainer numbers characters by the order of a hash table and breaks ties by these numbers, so no two
    runs agree (huggingface/tokenizers issue 1794). Tokens that are named to it beforehand have fixed numbers: a first
    pass finds the alphabet, and the second learns the pieces.
    """
    special = list(SPECIAL_TOKENS.values())
    # An untrained BertTokenizer brings normaliser and pre-tokeniser as BERT has them.
    backend = bert_tokenizer(None, lowercase, strip_accents).backend_tokenizer
    counts = _count_characters(sentences_file, backend.normalizer)
    alphabet, letters = _letters(sentences_file, backend, special, counts, vocab_size)
    _require_coverage(alphabet, counts, vocab_size)
    inside_words = sorted(piece for piece in letters if piece.startswith("##"))
    vocabulary = _train_vocabulary(
        sentences_file, backend, vocab_size=vocab_size, first=special + inside_words, alphabet=alphabet
    )
    return bert_tokenizer(vocabulary, lowercase, strip_accents)


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


def _letters(
    sentences_file: Path, backend: "Tokenizer", special: list[str], counts: np.ndarray, vocab_size: int
) -> tuple[list[str], dict[str, int]]:
    """The alphabet, and the vocabulary of single characters that comes of it, those inside words included.

    Small alphabets are taken whole; of large ones (Chinese, Korean) what covers the text, as far as there is room.
    """
    few = min(1000, vocab_size // 4)
    limit = max(few, _covering(counts))
    while True:
        alphabet = _most_frequent(counts, limit)
        letters = _train_vocabulary(sentences_file, backend, vocab_size=0, first=special, alphabet=alphabet)
        if len(letters) <= vocab_size or limit == few:
            return alphabet, letters
        limit = max(few, limit - (len(letters) - vocab_size))


def _most_frequent(counts: np.ndarray, limit: int) -> list[str]:
    """The most frequent characters, at most `limit`, ties in code point order."""
    return [chr(point) for point in np.argsort(-counts, kind="stable")[:limit] if counts[point]]


def _covering(counts: np.ndarray) -> int:
    """How many of the most frequent characters make up CHARACTER_COVERAGE of the text."""
    descending = np.sort(counts)[::-1]
    return int(np.searchsorted(descending.cumsum(), CHARACTER_COVERAGE * counts.sum())) + 1


def _require_coverage(alphabet: Iterable[str], counts: np.ndarray, vocab_size: int) -> None:
    """Raises UserError where too much of the text are characters that the vocabulary has no room for."""
    covered = counts[[ord(character) for character in alphabet]].sum() / max(1, counts.sum())
    if covered < LEAST_COVERAGE:
        raise UserError(
            f"vocab_size is {vocab_size}, but the text needs {_covering(counts)} characters alone, and those that fit "
            f"cover {covered:.0%} of it; it must be larger."
        )


def _count_characters(sentences_file: Path, normalizer: "normalizers.Normalizer") -> np.ndarray:
    """How often each code point stands in the normalised text, white space left out: int64 [0x110000]."""
    counts = np.zeros(0x110000, dtype=np.int64)
    with sentences_file.open(encoding="utf-8", newline="\n") as file:
        while lines := file.readlines(1 << 22):
            text = normalizer.normalize_str("".join(lines))
            points, seen = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_counts=True)
            counts[points] += seen
    counts[[ord(" "), ord("\n")]] = 0
    return counts


def _train_sentencepiece(
    sentences_file: Path,
    kind: Literal["unigram", "bpe"],
    vocab_size: int,
    normalizer: "normalizers.Normalizer",
) -> "PreTrainedTokenizerFast":
    """SentencePiece (Kudo and Richardson 2018), trained by its own library and turned into a fast tokenizer.

    The text is normalised here and not by the trainer, so that the fast tokenizer can do exactly the same.
    """
    import sentencepiece
    from transformers import PreTrainedTokenizerFast

    special = list(SPECIAL_TOKENS.values())
    with tempfile.TemporaryDirectory(dir=sentences_file.parent) as folder:
        model = Path(folder) / "tokenizer"
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_normalised(sentences_file, normalizer),
                model_prefix=str(model),
                model_type=kind,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=CHARACTER_COVERAGE,
                normalization_rule_name="identity",
                pad_id=0,
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                pad_piece=special[0],
                unk_piece=special[1],
                control_symbols=special[2:],
                max_sentence_length=LONGEST_LINE,
                # Threads would add up counts in an order of their own.
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            # After the place in its source and the condition that failed, the library says what is wrong, and then
            # names options of its own.
            reason = one_line(error).rpartition("] ")[2].partition(". Increase")[0].rstrip(".")
            raise UserError(
                f"vocab_size is {vocab_size}, but {kind} cannot reach it on this text ({reason})."
            ) from None
        trained = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    pieces = [(trained.id_to_piece(index), trained.get_score(index)) for index in range(len(trained))]
    known = {character for piece, _ in pieces[len(special) :] for character in piece}
    _require_coverage(known, _count_characters(sentences_file, normalizer), vocab_size)
    fast = _fast_sentencepiece(kind, pieces, normalizer)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=fast, model_input_names=inputs, **SPECIAL_TOKENS)


def _sentencepiece_normalizer(lowercase: bool, strip_accents: bool) -> "normalizers.Normalizer":
    from tokenizers import Regex, normalizers

    folding: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lowercase else []
    folding += [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence([normalizers.NFKC(), *folding, *spaces])


def _normalised(sentences_file: Path, normalizer: "normalizers.Normalizer") -> Iterator[str]:
    with sentences_file.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            sentence = normalizer.normalize_str(line)
            while len(sentence.encode()) > LONGEST_LINE:
                # Cut at a space; where there is none, anywhere. A character takes at most four bytes.
                end = sentence.rfind(" ", 1, LONGEST_LINE // 4) + 1 or LONGEST_LINE // 4
                yield sentence[:end].strip()
                sentence = sentence[end:]
            if sentence:
                yield sentence


def _fast_sentencepiece(
    kind: Literal["unigram", "bpe"], pieces: list[tuple[str, float]], normalizer: "normalizers.Normalizer"
) -> "Tokenizer":
    """The tokenizer of the Rust library that gives what SentencePiece gives."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    unknown = SPECIAL_TOKENS["unk_token"]
    if kind == "unigram":
        fast = Tokenizer(models.Unigram(pieces, unk_id=ids[unknown], byte_fallback=False))
    else:
        fast = Tokenizer(models.BPE(ids, _merges(ids), unk_token=unknown, fuse_unk=True))
    fast.normalizer = normalizer
    # In SentencePiece no text becomes a control symbol, so here the model must never see one in a piece.
    names = "|".join(token.strip("[]") for token in SPECIAL_TOKENS.values())
    written = pre_tokenizers.Split(Regex(rf"\[(?=(?:{names})\])"), "isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), written])
    fast.decoder = decoders.Metaspace()
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.values()])
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    return fast


def _merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that SentencePiece would make, in its order: it merges to any piece, those with low ids first."""
    return [
        (piece[:cut], piece[cut:])
        for piece in ids
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
