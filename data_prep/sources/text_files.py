"""Files of one's own that hold documents."""

from collections.abc import Iterator

from earlybert.data_prep.sources.file_source import FileSource
from earlybert.data_prep.sources.input_files import read_lines
from earlybert.data_prep.sources.source import Fragment


class TextFiles(FileSource):
    """Paragraphs are lines and documents end at blank lines; in rows, a document a row."""

    name = "text"
    meaning = (
        "files of one's own, .txt (a paragraph a line, a blank line between documents), .jsonl or .parquet (a document "
        "a row)"
    )

    def read_plain(self, fragment: Fragment) -> Iterator[str]:
        """A document belongs to the fragment in which the blank line before it begins, or the file."""
        paragraphs: list[str] = []
        inside = fragment.start == 0
        for offset, line in read_lines(fragment):
            if not line.strip():
                if paragraphs:
                    yield "\n".join(paragraphs)
                    paragraphs = []
                if fragment.end is not None and offset >= fragment.end:
                    return
                inside = True
            elif inside:
                paragraphs.append(line)
            elif fragment.end is not None and offset >= fragment.end:
                return
        if paragraphs:
            yield "\n".join(paragraphs)

    def read_row(self, text: str) -> Iterator[str]:
        """The row is the document."""
        yield text
