"""The Trainer's checkpoints, each closed by a list of its files: one that lacks a byte is not resumed from."""

import re
from pathlib import Path
from typing import Any

from accelerate.utils import wait_for_everyone
from transformers import TrainerCallback

from earlybert.core.distributed import broadcast_object
from earlybert.core.errors import UserError
from earlybert.core.files import file_entry, read_json, write_json
from earlybert.core.progress import say
from earlybert.core.ranks import rank

FILES = "files.json"
# The one being written, and the one before it.
KEPT = 2


class CloseCheckpoints(TrainerCallback):
    """Writes the list, with sizes and checksums, when all ranks have written their files."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        wait_for_everyone()
        if rank() == 0:
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILES)
            write_json(folder / FILES, {str(path.relative_to(folder)): file_entry(path) for path in files})


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of which every file is as it was written; None where there is none. The same on all ranks.

    Each newer one is named with what is wrong with it.
    """
    found = None
    if rank() == 0:
        names = re.compile(r"checkpoint-(\d+)")
        numbered = {int(match[1]): path for path in folder.glob("*") if (match := names.fullmatch(path.name))}
        for _, checkpoint in sorted(numbered.items(), reverse=True):
            if (fault := _fault(checkpoint)) is None:
                found = checkpoint
                break
            say(f"{fault}; resuming from the checkpoint before it, or from the beginning")
    return broadcast_object(found)


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words."""
    try:
        expected = read_json(checkpoint / FILES) if (checkpoint / FILES).is_file() else {FILES: None}
    except UserError as error:
        return str(error)
    for name, entry in expected.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{file} is missing"
        if file_entry(file) != entry:
            return f"{file} is damaged"
    return None
