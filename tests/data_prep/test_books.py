"""What is a chapter, and what a paragraph, in a book of plain text."""

from pathlib import Path

import pytest

from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.steps.reading import read_unit, work_units
from tests.data_prep.reading import read_texts

BOOK = """The Project Gutenberg eBook of A Title, by An Author

This eBook is for the use of anyone anywhere.

*** START OF THE PROJECT GUTENBERG EBOOK A TITLE ***

A TITLE

By An Author

CONTENTS

CHAPTER I. A Beginning
CHAPTER II. An End

CHAPTER I.
A Beginning

It was a _very_ long day for all who
had to wait in the rain.

[Illustration: Rain]

"Part of me is still waiting," said the
first of them.
Letter to nobody, he thought.

* * * * *

CHAPTER THE SECOND

In the end the sun came out again, and they went home with dry clothes.

*** END OF THE PROJECT GUTENBERG EBOOK A TITLE ***

Updated editions will replace the previous one, of which there are many.
"""


def test_chapters_are_documents_and_wrapped_lines_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    config = CorpusConfig(source="books", files=[str(tmp_path / "*.txt")])
    assert read_texts(config) == [
        "A TITLE\nBy An Author",
        "It was a very long day for all who had to wait in the rain.\n"
        '"Part of me is still waiting," said the first of them. Letter to nobody, he thought.',
        "In the end the sun came out again, and they went home with dry clothes.",
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
            "End of this Project Gutenberg Etext of X",
        ),
        ("*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*", "End of Project Gutenberg's X, by Y"),
        (
            "***START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK, A\nVERY LONG TITLE ***",
            "The End of The Project Gutenberg EBook",
        ),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK X ***", "***END OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK X***"),
        ("**END THE SMALL PRINT!**", "Ende dieses Project Gutenberg Etextes von X"),
    ],
)
@pytest.mark.parametrize("between", ["\n", "\n\n"], ids=["paragraph a line", "blank lines"])
def test_licence_of_any_year_is_left_out(before: str, after: str, between: str, tmp_path: Path) -> None:
    """The licence has headings of its own, and may speak of the other form before or after the text."""
    licence = [
        "**The Project Gutenberg Etext of X**",
        "***START**THE SMALL PRINT!**FOR ETEXTS**START***",
        "I.",
        "Why is this here?",
    ]
    text = ["It was the end of the project that Gutenberg began.", "So it ended."]
    parts = [*licence, before, *text, after, "PREFACE", "We are volunteers.", "*END*THE SMALL PRINT!*END*", "Donate."]
    (tmp_path / "book.txt").write_text(between.join(parts))
    config = CorpusConfig(source="books", files=[str(tmp_path / "*.txt")])
    (found,) = read_texts(config)
    assert found.replace("\n", " ").removeprefix("VERY LONG TITLE *** ") == " ".join(text)


@pytest.mark.parametrize(
    "heading",
    [
        "CHAPTER XIV",
        "Chapter 3: The Storm",
        "Part Two",
        "XII.",
        "BOOK THE FIRST",
        "Letter 4",
        "Epilogue",
        "chapter twenty-one",
    ],
)
def test_headings(tmp_path: Path, heading: str) -> None:
    (tmp_path / "book.txt").write_text(
        f"One part of the story is here.\n\n{heading}\n\nAnother part follows it here.\n"
    )
    config = CorpusConfig(source="books", files=[str(tmp_path / "book.txt")])
    assert read_texts(config) == ["One part of the story is here.", "Another part follows it here."]


@pytest.mark.parametrize(
    "line", ["Part of the town was lost.", "I.e. nothing.", "Letter by letter he wrote.", "Volume was low."]
)
def test_no_headings(tmp_path: Path, line: str) -> None:
    (tmp_path / "book.txt").write_text(f"One part of the story is here.\n\n{line}\n\nAnother part follows it here.\n")
    config = CorpusConfig(source="books", files=[str(tmp_path / "book.txt")])
    assert read_texts(config) == [f"One part of the story is here.\n{line}\nAnother part follows it here."]


def test_book_with_a_paragraph_a_line(tmp_path: Path) -> None:
    long = "This paragraph stands on a single line, however long it is, and the next paragraph on the line after it. "
    (tmp_path / "book.txt").write_text(long * 2 + "\n" + long * 3 + "\n")
    config = CorpusConfig(source="books", files=[str(tmp_path / "book.txt")])
    assert read_texts(config) == [(long * 2).strip() + "\n" + (long * 3).strip()]


@pytest.mark.parametrize("between", ["\n", "\n\n"], ids=["no blank line", "blank lines around headings"])
def test_a_paragraph_a_line_has_chapters_and_short_paragraphs(between: str, tmp_path: Path) -> None:
    first = ['"Did you see her?" he asked.', '"No," she said, and left.', *["They waited for a while."] * 60]
    second = ["The morning was cold and grey.", "Nobody spoke at breakfast, which was a long one. " * 3]
    text = between.join(["Chapter 1", "\n".join(first), "Chapter 2", "\n".join(second), ""])
    (tmp_path / "book.txt").write_text(text)
    config = CorpusConfig(source="books", files=[str(tmp_path / "book.txt")])
    assert read_texts(config) == ["\n".join(first), "\n".join(second).strip()]


def test_wrapped_lines_without_a_blank_one_stay_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("The lines of this\nbook are wrapped, but\nno blank line is\nin it. None.\n")
    config = CorpusConfig(source="books", files=[str(tmp_path / "book.txt")])
    assert read_texts(config) == ["The lines of this book are wrapped, but no blank line is in it. None."]


def test_wrapped_lines_of_scripts_without_spaces_are_joined_without_one(tmp_path: Path) -> None:
    lines = "我们今天去公\n园玩，天气很好，大家都\n很高兴。\n\n我们说 English\nwords 一样。今天是很好的一天。\n"
    (tmp_path / "book.txt").write_text(lines)
    config = CorpusConfig(source="books", files=[str(tmp_path / "book.txt")])
    assert read_texts(config) == [
        "我们今天去公园玩，天气很好，大家都很高兴。\n我们说 English words 一样。今天是很好的一天。"
    ]


def test_small_books_share_a_unit(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"The text of book number {number} is here.")
    config = CorpusConfig(source="books", files=[str(tmp_path / "*.txt")])
    (unit,) = work_units(config)
    assert len(list(read_unit(unit, config, Counts()))) == 5
