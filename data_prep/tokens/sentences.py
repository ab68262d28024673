"""Documents to sentences, kept in a file in BERT's own input form: a sentence a line, a blank line after a document."""

import re
from collections.abc import Iterator
from pathlib import Path

import sentencex

CHARACTERS_PER_BATCH = 1 << 20
# Where Chinese and Japanese put no spaces, sentencex takes time that grows with the square of the text.
PIECE, LONGEST_PIECE = 2_000, 10_000
# What ends a sentence there, before what begins one.
_STOP = re.compile(r"[。！？]+[”’」』]*(?=[“‘「『《（\u3040-\u30ff\u3400-\u9fff])")
# Inside these a sentence goes on after a stop.
_PAIRS = (("“", "”"), ("「", "」"), ("『", "』"), ("（", "）"), ("《", "》"))


def split_sentences(document: str, language: str = "en") -> list[str]:
    """The sentences of a document, white space normalised; a sentence never crosses a line (paragraph) end.

    Args:
        document: A paragraph a line.
        language: Its code picks abbreviations and the like; full stops and question marks are those of all languages.
    """
    sentences = []
    for paragraph in document.split("\n"):
        # Normalised first: sentencex takes runs of white space for sentences of their own.
        for piece in _pieces(" ".join(paragraph.split())):
            sentences += sentencex.segment(language, piece)
    return [stripped for sentence in sentences if (stripped := sentence.strip())]


def _pieces(paragraph: str) -> Iterator[str]:
    """The paragraph, if it is a long one cut at ends of Chinese or Japanese sentences outside quotes and brackets."""
    start = 0
    for stop in _STOP.finditer(paragraph, PIECE):
        piece = paragraph[start : stop.end()]
        if len(piece) >= LONGEST_PIECE or (len(piece) >= PIECE and _is_whole(piece)):
            yield piece
            start = stop.end()
    yield paragraph[start:]


def _is_whole(piece: str) -> bool:
    return all(piece.count(opening) == piece.count(closing) for opening, closing in _PAIRS)


def read_sentences(path: Path) -> Iterator[tuple[list[str], list[int]]]:
    """The sentences of a file, about `CHARACTERS_PER_BATCH` at a time, however long the documents are.

    Yields:
        Sentences in their order, and for each document that ends among them the number of all its sentences.
    """
    so_far = 0
    with path.open(encoding="utf-8", newline="\n") as file:
        while lines := file.readlines(CHARACTERS_PER_BATCH):
            ended = []
            for line in lines:
                if line == "\n":
                    ended.append(so_far)
                    so_far = 0
                else:
                    so_far += 1
            yield [line[:-1] for line in lines if line != "\n"], ended
