"""Files of one's own: their rows, each with its place for messages, and the labels in them.

The standard library reads them. `datasets` would guess types (of "007" and "NA" it leaves no text), keep a copy of
every file, and could not say which line is wrong.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from earlybert.core.arguments import alternatives
from earlybert.core.errors import UserError
from earlybert.core.files import read_json, reading, write_text
from earlybert.core.text import in_utf8
from earlybert.finetune.config import TaskSettings

DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMS = (*DELIMITERS, ".json", ".jsonl")


def own_files(task: str, settings: TaskSettings) -> tuple[Path, Path]:
    """Those for training and for validation; raises UserError where one is not given."""
    for name in ("train", "validation"):
        if getattr(settings, name) is None:
            raise UserError(f"--{name} is missing; --task {task} needs --train FILE and --validation FILE")
    return Path(str(settings.train)), Path(str(settings.validation))


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each row, `FILE:LINE`, and its columns by name; raises UserError for what cannot be read."""
    if path.suffix not in FORMS:
        raise UserError(f"{path}: is of no known kind; its name must end with {', '.join(FORMS)}")
    empty = True
    with reading(path):
        for place, row in _table(path) if path.suffix in DELIMITERS else _json(path):
            empty = False
            yield place, row
    if empty:
        raise UserError(f"{path}: holds no examples")


def _table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # the library's own is 128 kB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=DELIMITERS[path.suffix], strict=True)
        try:
            for row in reader:
                place, columns = f"{path}:{reader.line_num}", len(reader.fieldnames or ())
                if None in row or None in row.values():
                    raise UserError(
                        f"{place}: has not {columns} fields as the first line; put texts into double quotes"
                    )
                yield place, row
        except csv.Error as error:
            place = f"{path}:{reader.line_num + 1}"  # where the row begins that cannot be read
            raise UserError(
                f"{place}: is not a row of {path.suffix[1:]} ({error}); a text that has a double quote must be within "
                "such, and its own written twice"
            ) from None


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of objects, or an object in each line."""
    with path.open(encoding="utf-8-sig") as file:
        if next(filter(str.strip, file), "").lstrip().startswith("["):
            rows = [(f"{path}: row {number}", row) for number, row in enumerate(read_json(path), start=1)]
        else:
            file.seek(0)
            rows = [(f"{path}:{number}", _object(path, number, line)) for number, line in enumerate(file, start=1)]
    for place, row in rows:
        if row is None:
            continue
        if not isinstance(row, dict):
            raise UserError(f"{place}: is {json.dumps(row)[:40]}; it must be an object with the columns as its keys")
        yield place, row


def _object(path: Path, number: int, line: str) -> Any:
    """Of one line; None of an empty one."""
    try:
        return json.loads(line) if line.strip() else None
    except ValueError as error:
        raise UserError(f"{path}:{number}: is not valid JSON ({error})") from None


def value_of(row: dict[str, Any], column: str, option: str, place: str) -> Any:
    """Raises UserError where the row lacks the column that the option names."""
    if column not in row:
        raise UserError(f"{place}: has no column {column!r} (--{option}); its columns are {', '.join(row)}")
    return row[column]


def text_of(row: dict[str, Any], column: str, option: str, place: str) -> str:
    text = value_of(row, column, option, place)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: {column} is {json.dumps(text)[:40]}; it must be text")
    return in_utf8(text)


def label_name(value: Any, column: str, place: str) -> str:
    """Labels are texts, integers, or true and false."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int):
        return json.dumps(value)
    raise UserError(f"{place}: {column} is {json.dumps(value)[:40]}; it must be text or an integer")


def sorted_labels(names: set[str], path: Path, column: str) -> tuple[str, ...]:
    """In the order of their numbers in the network: sorted, integers by size; raises UserError for fewer than two."""
    if len(names) < 2:
        raise UserError(f"{path}: {column} is always {next(iter(names))!r}; there must be two labels or more")
    if all(name.removeprefix("-").isdecimal() for name in names):
        # Of "1" and "01", too, the order is the same in every process.
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def write_predictions(folder: Path, column: str, predicted: Iterable[str | list[str]]) -> None:
    """A line for each row of the validation file, with what was predicted in a column of this name."""
    lines = [json.dumps({column: own}, ensure_ascii=False) for own in predicted]
    write_text(folder / "predictions.jsonl", "".join(f"{line}\n" for line in lines))


def label_number(name: str, labels: Sequence[str], column: str, place: str) -> int:
    """Raises UserError for a label that the training file lacks."""
    if name not in labels:
        raise UserError(f"{place}: {column} is {name!r}, which no training example has{alternatives(name, labels)}")
    return labels.index(name)
