"""Cleaning: what every document goes through, whatever it came from."""

import re
import sys
import unicodedata
from functools import lru_cache
from itertools import compress

import numpy as np

from earlybert.core.text import in_utf8
from earlybert.data_prep.cleaning.config import CleaningConfig
from earlybert.data_prep.cleaning.counts import Counts

# Control characters but white space, soft hyphens, zero-width spaces and joiners of words, marks of direction, byte
# order marks, replacement marks. Zero-width joiners stay: Persian and Indic scripts spell with them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffd]+"
)
# Two of these that Python calls printable.
_PRINTABLE = "\ufffc\ufffd"
_SYMBOLS = "=<>{}[]|\\_#@~^*`/+"
BLANK, LETTER, SYMBOL, OTHER = range(4)


def clean(text: str, rules: CleaningConfig, counts: Counts) -> str:
    """A document in clean form: one paragraph a line, Unicode form NFC, white space collapsed.

    Args:
        text: One paragraph a line.
        rules: What is dropped.
        counts: Is told what is dropped.

    Returns:
        The text that stays; empty when the document is dropped.
    """
    text = unicodedata.normalize("NFC", in_utf8(text))
    paragraphs = _paragraphs(text)
    kept = _drop_paragraphs(paragraphs, rules, counts) if paragraphs else []
    cleaned = "\n".join(kept)
    if len(cleaned) < rules.min_document_characters:
        # Its paragraphs were counted where they are why it is short.
        if kept or not paragraphs:
            counts.drop("document: short", cleaned)
        return ""
    return cleaned


def _paragraphs(text: str) -> list[str]:
    """The lines that hold something, without invisible characters, white space collapsed."""
    lines = text.split("\n")
    # Most text is clean already, and to see that takes a fifth of the time of cleaning it.
    spaced = "  " in text or any(line[:1] == " " or line[-1:] == " " for line in lines)
    if not spaced and not any(mark in text for mark in _PRINTABLE) and "".join(lines).isprintable():
        return [line for line in lines if line]
    # What stood apart may now be one character, a letter and its accent.
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return [words for line in text.split("\n") if (words := " ".join(line.split()))]


def _drop_paragraphs(paragraphs: list[str], rules: CleaningConfig, counts: Counts) -> list[str]:
    """Apply the rules in turn; a paragraph counts for the first that drops it."""
    letters, symbols, characters = _character_counts(paragraphs)
    lengths = np.array([len(paragraph) for paragraph in paragraphs])
    drops = {
        "paragraph: short": lengths < rules.min_paragraph_characters,
        "paragraph: few letters": letters <= rules.min_letter_share * characters,
        "paragraph: symbols": symbols > rules.max_symbol_share * characters,
    }
    stays = np.ones(len(paragraphs), dtype=bool)
    for rule, dropped in drops.items():
        for index in np.flatnonzero(dropped & stays):
            counts.drop(rule, paragraphs[index])
        stays &= ~dropped
    return list(compress(paragraphs, stays))


def _character_counts(paragraphs: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letters, symbols and all that is not blank in each paragraph: int64 [paragraphs] each."""
    lengths = [len(paragraph) for paragraph in paragraphs]
    points = np.frombuffer("".join(paragraphs).encode("utf-32-le"), dtype="<u4")
    kinds = _character_kinds()[points]
    starts = np.cumsum([0, *lengths[:-1]])
    letters, symbols, blanks = (
        np.add.reduceat(kinds == kind, starts, dtype=np.int64) for kind in (LETTER, SYMBOL, BLANK)
    )
    return letters, symbols, np.array(lengths) - blanks


@lru_cache
def _character_kinds() -> np.ndarray:
    """uint8 [code points]: BLANK (space, punctuation), LETTER (also vowel signs and other marks), SYMBOL or OTHER."""
    kinds = {"L": LETTER, "M": LETTER, "Z": BLANK, "P": BLANK}
    table = bytearray(kinds.get(unicodedata.category(chr(point))[0], OTHER) for point in range(sys.maxunicode + 1))
    for symbol in _SYMBOLS:
        table[ord(symbol)] = SYMBOL
    return np.frombuffer(bytes(table), dtype=np.uint8)
