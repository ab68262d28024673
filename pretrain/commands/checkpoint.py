"""`earlybert checkpoint list|verify`."""

import sys
from pathlib import Path

from earlybert.core.arguments import ArgumentParser
from earlybert.core.errors import UserError
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.plan.recipe import run_config_path


def main(argv: list[str]) -> None:
    """Lists the checkpoints of a run, or compares every byte of them with their manifests."""
    parser = ArgumentParser("earlybert checkpoint", description=main.__doc__)
    parser.add_argument("action", choices=("list", "verify"))
    parser.add_argument("run_dir", type=Path)
    arguments = parser.parse_args(argv)
    paths = list_checkpoints(arguments.run_dir / "checkpoints")
    if not paths:
        run_config_path(arguments.run_dir)
        raise UserError(f"{arguments.run_dir / 'checkpoints'}: holds no checkpoint")
    damaged = 0
    for path in paths:
        try:
            checkpoint = Checkpoint(path)
            if arguments.action == "verify":
                checkpoint.verify()
            size = sum(entry["size"] for entry in checkpoint.manifest["files"].values())
            state = checkpoint.state
            note = "intact" if arguments.action == "verify" else f"{size / 1e6:,.1f} MB"
            print(f"{path}  {state.stage} step {state.step}  {note}")
        except UserError as error:
            # A run that goes on removes its oldest.
            if not path.exists():
                continue
            damaged += 1
            print(f"{path}  damaged: {error}")
    if damaged:
        print(f"earlybert: error: {damaged} of {len(paths)} checkpoints are damaged", file=sys.stderr)
        sys.exit(2)
