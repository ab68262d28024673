"""Is the searched ticket better than chance? Trains random tickets of the same width in every layer beside it.

    python benchmarks/ticket_vs_random.py runs/quickstart [--seeds 0 1 2] [--rankings weights] [--out FILE]

Everything but the ticket is the run's own: recipe, corpus, initial weights, data order, masks. Where the run continued
from its searched weights (narrow.rewind), so do the random tickets; it must have kept the checkpoint where its search
ended (--keep_checkpoints 99). With --rankings it also trains tickets that searches of their own draw in another order
(draw.ranking). Prints validation losses at the end of every stage. Interrupted, it goes on with the arm it was at.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from provenance import measured_on

from earlybert.core.errors import UserError
from earlybert.core.files import whole_folder, write_json
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.checkpoint.metrics import of_kind
from earlybert.pretrain.plan.recipe import load_recipe, run_config_path
from earlybert.pretrain.report.timeline import read_lines
from earlybert.pretrain.ticket.drawing import random_ticket_like
from earlybert.pretrain.ticket.ticket import Ticket

RUN = Path(__file__).parent.parent / "pretrain" / "run.py"


def final_losses(run_dir: Path) -> dict[str, float]:
    """Masked-token validation loss at the end of each stage, nats."""
    return {line["stage"]: line["masked_loss"] for line in of_kind(read_lines(run_dir), "validation")}


def copy_searched(run_dir: Path, arm: Path, ticket: Path) -> None:
    """Makes of `arm` what the run was when its search had ended, with this ticket."""
    ends = [
        path
        for path in list_checkpoints(run_dir / "checkpoints")
        if (state := Checkpoint(path).state).stage == "search" and state.finished
    ]
    if not ends:
        sys.exit(f"{run_dir}: has not kept the checkpoint of its search's end; train it with --keep_checkpoints 99")
    with whole_folder(arm) as temporary:
        shutil.copytree(ends[0], temporary / "checkpoints" / ends[0].name)
        shutil.copytree(run_dir / "search", temporary / "search")
        shutil.copy(ticket, temporary / "ticket.json")


def train(run_dir: Path, arm: Path, *options: str) -> None:
    """With the run's recipe, but for the options."""
    recipe = ["--config", str(run_dir / "config.yaml"), "--run-dir", str(arm), "--export", "[]"]
    subprocess.run([sys.executable, str(RUN), *recipe, *options], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="a finished run with a ticket")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rankings", choices=("importance", "weights"), nargs="+", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run_dir: Path = arguments.run_dir
    try:
        rewind = load_recipe(run_config_path(run_dir), []).narrow.rewind
        searched = Ticket.load(run_dir / "ticket.json")
    except UserError as error:
        parser.error(str(error))
    if not (run_dir / "DONE").is_file():
        parser.error(f"{run_dir}: has not been trained to its end; it must have been, to be compared with")
    arms = {"searched ticket": run_dir}
    for seed in arguments.seeds:
        arm = run_dir.with_name(f"{run_dir.name}-random-{seed}")
        ticket = arm.with_name(f"{arm.name}.ticket.json")
        if not ticket.is_file():
            random_ticket_like(searched, seed).save(ticket)
        options: list[str] = []
        if rewind == "initial":
            options = ["--ticket", str(ticket)]
        elif not arm.is_dir():
            copy_searched(run_dir, arm, ticket)
        train(run_dir, arm, *options)
        arms[f"random ticket, seed {seed}"] = arm
    for ranking in arguments.rankings:
        arm = run_dir.with_name(f"{run_dir.name}-{ranking}")
        train(run_dir, arm, "--draw.ranking", ranking)
        arms[f"searched by {ranking}"] = arm
    table = {name: final_losses(arm) for name, arm in arms.items()}
    stages = [stage["name"] for stage in json.loads((run_dir / "plan.json").read_text())["stages"] if stage["narrow"]]
    print(f"{'validation loss, nats':<26}" + "".join(f"{stage:>10}" for stage in stages))
    for name, losses in table.items():
        print(f"{name:<26}" + "".join(f"{losses[stage]:>10.4f}" for stage in stages))
    if arguments.out:
        write_json(arguments.out, measured_on("deepspeed") | {"losses": table})


if __name__ == "__main__":
    main()
