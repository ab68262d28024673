"""metrics.jsonl as it is read: line by line, each with what its kind must have."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError
from earlybert.pretrain.network.losses.part import LossPart

Lines = list[dict[str, Any]]

# What a line says of itself, beside the numbers that it is there for.
BOOKKEEPING = ("kind", "global_step", "time", "stage", "step")
# What is read of every line, and more of some kinds.
COMMON_FIELDS = {"kind", "global_step", "time"}


def read_metrics(run_dir: Path, fields: Mapping[str, set[str]]) -> Lines:
    """All lines in their order, none where there is no file; raises UserError for a line that no run writes.

    `fields` says by kind what lines must have beside the common ones. A last line without its end does not count: the
    run is just writing it, or was killed then.
    """
    path = run_dir / "metrics.jsonl"
    lines: Lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else [], start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}:{number}: is not a line of JSON ({error})") from None
        if not isinstance(line, dict) or not COMMON_FIELDS | fields.get(line.get("kind", ""), set()) <= line.keys():
            raise UserError(
                f"{path}:{number}: is not what this version writes; report the run with the one that made it"
            )
        lines.append(line)
    return lines


def of_kind(lines: Lines, kind: str) -> Lines:
    return [line for line in lines if line["kind"] == kind]


def score_names(parts: Sequence[LossPart]) -> set[str]:
    """What a step or a validation says of these parts of the loss."""
    return {f"{part.name}_{score}" for part in parts for score in ("loss", "accuracy")}
