"""Accents and vowel signs: whether normalising takes them off so many words that the language is harmed.

English has few ("naïve"), and BERT's uncased model drops them. In Hindi or Thai a vowel is such a mark, and in German
an umlaut tells words apart.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

# More than this share of the words is too many.
MOST = 0.01


def marks(text: str) -> int:
    """How many accents and vowel signs a text has, those inside letters such as `ü` counted."""
    if text.isascii():
        return 0
    return sum(unicodedata.category(character) == "Mn" for character in unicodedata.normalize("NFD", text))


def count_words(lines: Iterable[str]) -> Counter[str]:
    """How often each word stands in the lines; words are what white space parts."""
    words = Counter[str]()
    for line in lines:
        words.update(line.split())
    return words


def words_that_lose_marks(words: Mapping[str, int], normalise: Callable[[str], str]) -> tuple[float, str]:
    """Share of the words that lose marks where they are normalised, and the most frequent of them.

    Args:
        words: How often each stands in the text.
        normalise: What is done to them.
    """
    lost = Counter(
        {word: count for word, count in words.items() if marks(word) and marks(normalise(word)) < marks(word)}
    )
    return lost.total() / max(1, sum(words.values())), lost.most_common(1)[0][0] if lost else ""


def without_marks(text: str) -> str:
    """What stripping accents leaves, in Unicode's form NFD."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(character for character in decomposed if unicodedata.category(character) != "Mn")
