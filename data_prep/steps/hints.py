"""What about a text or a vocabulary is worth a sentence to the user: known reasons for a network that learns little."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlybert.core.errors import UserError
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.sources.pydocs import PythonDocumentation
from earlybert.data_prep.steps.unit_files import UnitFiles
from earlybert.data_prep.tokens.accents import MOST, count_words, words_that_lose_marks
from earlybert.data_prep.tokens.tokenizer import SETTINGS, Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# How much of the text is looked at, in characters.
SAMPLE = 10**6
# More than these shares are worth a sentence.
UNKNOWN, CAPITALS, RANDOM, REPEATED = 0.01, 0.01, 0.9, 0.01
# Short sentences ("Yes, sir.") repeat in every language.
LINE = 40
EXAMPLE = 40


def unknown_characters(
    documents: Iterable[list[str]], encoder: Encoder, unknown_token: int
) -> tuple[float, str | None]:
    """Share of the characters of the first documents, given as sentences, that become [UNK]; and what to say of it."""
    characters, unknown = 0, Counter[str]()
    for sentences in documents:
        characters += sum(map(len, sentences))
        unknown.update(encoder.unknown_texts(sentences, unknown_token))
        if characters >= SAMPLE:
            break
    share = sum(len(text) * count for text, count in unknown.items()) / max(characters, 1)
    examples = ", ".join(text[:EXAMPLE] for text, _ in unknown.most_common(5))
    hint = (
        f"Warning: {share:.1%} of the characters become [UNK], for example {examples}; "
        "a larger vocab_size, tokenizer_kind unigram or another tokenizer may fit the text better."
    )
    return share, hint if share > UNKNOWN else None


def require_own_case(tokenizer: "PreTrainedTokenizerFast", path: str) -> None:
    """Raises UserError where a cased vocabulary is used on lowercased text, so that many of its tokens never occur."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or normalizer.normalize_str("A") == "A":
        return
    vocabulary = tokenizer.get_vocab()
    # Special tokens are written in capitals everywhere, and letters below U+0180 may stand for bytes.
    capitals = [
        token
        for token in vocabulary
        if not token.startswith("[") and any(letter.isupper() and not "\x7f" < letter < "\u0180" for letter in token)
    ]
    if len(capitals) > CAPITALS * len(vocabulary):
        bare = Path(path).suffix == ".txt"
        fits = "--lowercase false fits it" if bare else f"its {SETTINGS} must say do_lower_case false"
        raise UserError(
            f"tokenizer: {len(capitals):,} of the {len(vocabulary):,} tokens of {path} have capital letters, for "
            f"example {min(capitals)}, but it is used on lowercased text, where they never occur; {fits}."
        )


def marks_removed(units: Sequence[UnitFiles], encoder: Encoder) -> str | None:
    """Of text whose accents or vowel signs the tokenizer takes off."""
    words = Counter[str]()
    for unit in units:
        characters = 0
        for sentences in unit.sentences_of():
            words.update(count_words(sentences))
            if (characters := characters + sum(map(len, sentences))) >= SAMPLE:
                break
    share, example = words_that_lose_marks(words, encoder.normalise)
    if share <= MOST:
        return None
    return (
        f"Warning: {share:.1%} of the words lose accents or vowel signs, for example {example} becomes "
        f"{encoder.normalise(example).strip()}; --strip_accents false, or a tokenizer that keeps them, fits the text."
    )


def one_sentence_documents(config: CorpusConfig, training: Mapping[str, Any]) -> str | None:
    """Of text in which a document seldom has a next sentence; `training` counts what is in that split."""
    samples = sum(training["samples"].values())
    share = sum(usage["labels"] for usage in training["usage"].values()) / samples
    if config.objective != "nsp" or share <= RANDOM:
        return None
    return (
        f"Warning: {share:.0%} of the second segments are random, because most documents are one sentence; next-"
        "sentence prediction learns nothing from that: put what belongs together into one document, or take another "
        "objective."
    )


def repeated_lines(units: Sequence[UnitFiles]) -> str | None:
    """Of text in which whole sentences stand again and again, whole documents that repeat left out.

    Encyclopedia articles and novels have less than 0.2 % of such sentences. Python's documentation has more, but nobody
    can change it.
    """
    counts, documents = Counter[str](), set[tuple[int, int]]()
    for unit in (unit for unit in units if unit.unit.source.source != PythonDocumentation.name):
        characters = 0
        for digest, sentences in zip(map(tuple, unit.digests.tolist()), unit.sentences_of(), strict=True):
            if digest not in documents and characters < SAMPLE:
                counts.update(sentence for sentence in sentences if len(sentence) >= LINE)
                characters += sum(map(len, sentences))
            documents.add(digest)
    repeated = counts.total() - len(counts)
    if repeated <= REPEATED * counts.total():
        return None
    ((sentence, times),) = counts.most_common(1)
    return (
        f"Warning: {repeated / counts.total():.1%} of the sentences of {LINE} characters or more repeat earlier ones, "
        f'for example "{sentence[:EXAMPLE]}" ({times:,} times); networks learn such text by heart first, and the loss '
        "of masked tokens stays near 7 for long: take repeated lines out of the text."
    )
