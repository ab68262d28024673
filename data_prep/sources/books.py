"""Books, the way Project Gutenberg and others wrap them; chapters become documents."""

import re
from collections.abc import Iterable, Iterator

from earlybert.data_prep.sources.file_source import FileSource
from earlybert.data_prep.sources.input_files import file_fragment, read_lines
from earlybert.data_prep.sources.source import Fragment, InputPath

# Lines of a wrapped paragraph are at most so long; a longer line is a paragraph of its own.
WRAPPED = 100
# With fewer blank lines than this share they do not part paragraphs.
BLANK = 0.1

# Until about 2003 the licence ("small print") stood before the text and had an end of its own.
_BEGIN = re.compile(
    r"\*{3} ?START OF TH(?:E|IS) (?:COPYRIGHTED )?PROJECT GUTENBERG|^\*+ ?END ?\*{0,2} ?(?:OF )?THE SMALL PRINT",
    re.IGNORECASE,
)
_END = re.compile(
    r"\*{3} ?END OF TH(?:E|IS) (?:COPYRIGHTED )?PROJECT GUTENBERG"
    r"|^\W*(?:The )?End of (?:the |this |this is )?(?:COPYRIGHTED )?(?:The )?Project Gutenberg"
    r"|^\W*(?:Ende dies\w+|Fin de (?:ce|cet|l)\W?) ?Proje[ck]t Gutenberg",
    re.IGNORECASE,
)
_NUMBER = (
    r"(?:[ivxlc]+|\d+|(?:the )?(?:first|second|third|fourth|fifth|last)|one|two|three|four|five|six|seven|eight|nine"
    r"|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-[a-z]+)?)"
)
_HEADING = re.compile(
    rf"(?:(?:chapter|book|part|volume|canto|act|letter|stave|section)\s+{_NUMBER}(?:[.:,—–\-\s].{{0,80}})?"
    r"|(?:prologue|epilogue|preface|introduction|contents|foreword|afterword|appendix)\W*|[ivxlc]+\.?)",
    re.IGNORECASE,
)
# What ends a paragraph, but only few of the lines of a wrapped one.
_SENTENCE_END = re.compile(r"[.!?…。！？]\W*$")
# Between lines of Chinese or Japanese, which have no spaces.
_WIDE = r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uff60]"
_GAP = re.compile(rf"(?<={_WIDE}) (?={_WIDE})")
_PICTURE = re.compile(r"\[Illustration[^\]]*\]", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<!\w)_([^_]+)_(?!\w)")


class Books(FileSource):
    """A book a file, or a row; its chapters are the documents."""

    name = "books"
    meaning = (
        "books, .txt (a book a file, a blank line between paragraphs), .jsonl or .parquet (a book a row); their "
        "chapters become documents"
    )

    def plain_fragments(self, file: InputPath) -> list[Fragment]:
        """The file, whole."""
        return [file_fragment(file)]

    def read_plain(self, fragment: Fragment) -> Iterator[str]:
        """The chapters of the book."""
        return chapters(line for _, line in read_lines(fragment))

    def read_row(self, text: str) -> Iterator[str]:
        """The chapters of the book."""
        return chapters(text.split("\n"))


def chapters(lines: Iterable[str]) -> Iterator[str]:
    """The chapters of one book; what stands before the first heading is one too."""
    paragraphs: list[str] = []
    for block in _blocks(_unwrapped(list(lines))):
        if _is_heading(block):
            if paragraphs:
                yield "\n".join(paragraphs)
            paragraphs = []
        else:
            paragraphs += _paragraphs(block)
    if paragraphs:
        yield "\n".join(paragraphs)


def _unwrapped(lines: list[str]) -> list[str]:
    """The book without the licence and notes around it: from its last beginning before its first end."""
    end = next((number for number, line in enumerate(lines) if _END.search(line)), len(lines))
    begins = [number + 1 for number, line in enumerate(lines[:end]) if _BEGIN.search(line)]
    if not begins:
        return lines[:end]
    # The mark names the book, whose title may take more lines.
    blank = (number for number in range(begins[-1], min(begins[-1] + 3, end)) if not lines[number].strip())
    return lines[next(blank, begins[-1]) : end]


def _is_heading(block: list[str]) -> bool:
    """A heading, which may have its title below, or headings only: a table of contents."""
    headings = [bool(_HEADING.fullmatch(line.strip())) for line in block]
    return all(headings) or (headings[0] and len(block) <= 3 and len(block[-1]) < WRAPPED // 2)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines between blank lines; where a paragraph is a line, each of them."""
    if _has_paragraph_a_line(lines):
        yield from ([line] for line in lines if line.strip())
        return
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _has_paragraph_a_line(lines: list[str]) -> bool:
    filled = [line for line in lines if line.strip()]
    ends = sum(bool(_SENTENCE_END.search(line)) for line in filled)
    return len(lines) - len(filled) < BLANK * len(lines) and ends > len(filled) / 2


def _paragraphs(block: list[str]) -> Iterator[str]:
    wrapped: list[str] = []
    for line in block:
        if len(line) > WRAPPED:
            yield _clean(_joined(wrapped))
            yield _clean(line)
            wrapped = []
        else:
            wrapped.append(line.strip())
    yield _clean(_joined(wrapped))


def _joined(lines: list[str]) -> str:
    return _GAP.sub("", " ".join(lines))


def _clean(paragraph: str) -> str:
    return _EMPHASIS.sub(r"\1", _PICTURE.sub("", paragraph))
