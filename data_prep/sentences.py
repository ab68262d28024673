"""Documents to sentences, kept in a file in BERT's own input form: a sentence a line, a blank line after a document."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencex

# sentencex shares its full stops, question marks and list rules among languages; the code picks the abbreviations.
LANGUAGE = "en"


def split_sentences(document: str) -> list[str]:
    """The sentences of a document, white space normalised; a sentence never crosses a line (paragraph) end."""
    sentences = []
    for paragraph in document.split("\n"):
        # Normalised first: sentencex takes runs of white space for sentences of their own.
        sentences += sentencex.segment(LANGUAGE, " ".join(paragraph.split()))
    return [stripped for sentence in sentences if (stripped := sentence.strip())]


def write_sentences(documents: Iterable[str], path: Path) -> int:
    """Split documents and write them to `path`; documents without a sentence are left out.

    Returns:
        The number of documents written.
    """
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            if sentences := split_sentences(document):
                file.write("\n".join(sentences) + "\n\n")
                count += 1
    return count


def read_sentences(path: Path) -> Iterator[list[str]]:
    """The documents written by `write_sentences`, as lists of sentences."""
    sentences: list[str] = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line == "\n":
                yield sentences
                sentences = []
            else:
                sentences.append(line[:-1])
