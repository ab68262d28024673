"""Text as it can be stored; tables and durations as text, for TensorBoard, reports and the console."""

from collections.abc import Sequence


def in_utf8(text: str) -> str:
    """The text with ? for each lone surrogate, which JSON can hold and no tokenizer takes: it has no UTF-8 form."""
    return text.encode(errors="replace").decode()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    # A folder's name may have the sign that separates cells.
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def duration(seconds: float) -> str:
    """Two units of time, e.g. 3 d 4 h, 12 min 5 s, or seconds alone."""
    for unit, size, smaller, rest in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            whole, left = divmod(round(seconds / rest), size // rest)
            return f"{whole} {unit} {left} {smaller}"
    return f"{seconds:.1f} s"
