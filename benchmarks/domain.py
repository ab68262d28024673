"""Does a ticket of a published BERT beat chance when it is trained on in a domain? Arms that differ in one thing each.

    python benchmarks/domain.py MODEL --data CORPUS [--tickets 3] [--arms ARM ...] [--work-dir DIR] [--out FILE.json]
        [--FIELD VALUE ...]

The recipe is domain_base, changed by the fields given. Dense training and training from scratch have all steps of phase
1. A ticket has those that its search leaves of them. The random tickets have the searched one's widths and its steps,
and so the search's steps less than everybody else. Shortened is dense training with as many operations as the searched
ticket has, search included. Held-out text, masks, order of the data and seed are the same in all. The arms are runs:
what is done stays and is told of again, and a call that is interrupted is taken up by the next one.
"""

import argparse
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import measured_on

from earlybert.core.errors import UserError
from earlybert.core.files import read_json, write_json
from earlybert.pretrain.checkpoint.metrics import of_kind
from earlybert.pretrain.plan.recipe import load_recipe
from earlybert.pretrain.report.timeline import read_lines
from earlybert.pretrain.ticket.drawing import random_ticket, random_ticket_like
from earlybert.pretrain.ticket.ticket import Ticket, TicketRule, full_shape, narrow_config

RUN = Path(__file__).parent.parent / "pretrain" / "run.py"
DENSE, SEARCHED, SHORTENED, SCRATCH = "dense", "searched ticket", "shortened", "from scratch"


def inverse(name: str) -> dict[str, float]:
    """Largest differences of logits and hidden states, imported and exported, in full and cut, from what they were."""
    import torch
    from transformers import BertModel

    from earlybert.pretrain.checkpoint.pretrained import open_pretrained
    from earlybert.pretrain.network.bert_format import to_bert, to_earlybert
    from earlybert.pretrain.network.initial import initial_weights
    from earlybert.pretrain.network.surgery import narrow_weights, widen_weights

    opened = open_pretrained(name)
    full, weights = opened.config, initial_weights(opened.config, 0, opened.weights)
    ticket = random_ticket(full_shape(full), TicketRule(), seed=1)
    cut = narrow_weights(full, weights, ticket)
    text = opened.tokenizer(["It was the best of times, it was the worst of times."], return_tensors="pt")
    with torch.no_grad():
        published = BertModel.from_pretrained(name).eval()(**text).last_hidden_state
        again = to_bert(full, weights).eval().base_model(**text).last_hidden_state
        narrow = to_earlybert(narrow_config(full, ticket), cut).eval()(**text).prediction_logits
        wide = to_bert(full, widen_weights(full, cut, ticket)).eval()(**text).prediction_logits
    return {"exported": float((again - published).abs().max()), "narrow_export": float((narrow - wide).abs().max())}


def train(out: Path, *arguments: str) -> None:
    """Runs an arm to its end, or what is left of it; a call that ends early lets it save where it is."""
    process = subprocess.Popen([sys.executable, str(RUN), "--run-dir", str(out), *arguments], stdout=subprocess.DEVNULL)
    try:
        if process.wait():
            sys.exit(f"domain: status {process.returncode} of the arm {out}")
    finally:
        process.terminate()
        process.wait()


def stages_of(out: Path) -> list[dict[str, Any]]:
    """An arm's stages as planned, with the operations of a step."""
    stages: list[dict[str, Any]] = read_json(out / "plan.json")["stages"]
    return stages


def arguments_of(arm: str, dense: Path, searched: Path) -> list[str]:
    """What makes an arm of the dense one's recipe."""
    recipe = load_recipe(dense / "config.yaml", [])
    cut = ["--plan", "[search, narrow, phase1]"]
    cut += ["--narrow.step_factor", str(1 - recipe.search.steps / recipe.phase("phase1").steps)]
    config = ["--config", str(dense / "config.yaml")]
    if arm == SCRATCH:
        return [*config, "--initial", "null"]
    if arm == SEARCHED:
        return [*config, *cut]
    if arm == SHORTENED:
        spent = sum(stage["steps"] * stage["flops_per_step"] for stage in stages_of(searched))
        return [*config, "--phase1.steps", str(round(spent / stages_of(dense)[0]["flops_per_step"]))]
    seed = int(arm.rpartition(" ")[2])
    ticket = searched.parent / f"random-{seed}.ticket.json"
    if not ticket.is_file():
        random_ticket_like(Ticket.load(searched / "ticket.json"), seed).save(ticket)
    return [*config, *cut, "--ticket", str(ticket)]


def outcome(out: Path) -> dict[str, Any]:
    """Steps, seconds of their training and tokens that an arm took, padding not counted; its held-out losses, nats.

    The curve's points are (step, seconds until then, loss).
    """
    lines = read_lines(out)
    steps = of_kind(lines, "train")
    validations = of_kind(lines, "validation")

    def seconds_until(step: float) -> float:
        return sum(line["seconds"] for line in steps if line["global_step"] <= step)

    return {
        "steps": len(steps),
        "seconds": seconds_until(math.inf),
        "tokens": sum(round(line["tokens_per_second"] * line["seconds"]) for line in steps),
        "tokens_of_search": sum(
            round(line["tokens_per_second"] * line["seconds"]) for line in steps if line["stage"] == "search"
        ),
        "masked_loss": validations[-1]["masked_loss"],
        "masked_accuracy": validations[-1]["masked_accuracy"],
        "curve": [
            (line["global_step"], seconds_until(line["global_step"]), line["masked_loss"]) for line in validations
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a BERT: its folder or its name on the hub")
    parser.add_argument("--data", type=Path, required=True, help="a corpus prepared with the model's tokenizer")
    parser.add_argument("--tickets", type=int, default=3, help="number of random tickets")
    parser.add_argument("--arms", nargs="+", help="only these; the first two are always run before them")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/domain"))
    parser.add_argument("--out", type=Path, help="JSON of the results")
    given, overrides = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("domain: asked to stop; call it again to resume"))
    work_dir: Path = given.work_dir.resolve()
    names = [DENSE, SEARCHED, SHORTENED, *(f"random ticket {seed}" for seed in range(1, given.tickets + 1)), SCRATCH]
    wanted = {DENSE, SEARCHED, *(given.arms or names)}
    if unknown := sorted(wanted - set(names)):
        parser.error(f"--arms has {unknown[0]!r}; with --tickets {given.tickets} there are {', '.join(names)}")
    folders = {name: work_dir / name.replace(" ", "-") for name in names}
    results = {}
    try:
        differences = inverse(given.model)
    except UserError as error:
        parser.error(str(error))
    print(f"imported and exported: hidden states differ by {differences['exported']:.1e} at most; ", end="")
    print(f"logits of the two exports of a ticket by {differences['narrow_export']:.1e}", flush=True)
    for name in names:
        done = (folders[name] / "DONE").is_file()
        if not done:
            if name not in wanted:
                continue
            print(f"{name}: training", flush=True)
        if name == DENSE:
            changes = ["--plan", "[phase1]", "--export", "[]", "--log_every", "1", *overrides]
            changes += ["--config", "domain_base", "--initial", given.model, "--data", str(given.data.resolve())]
            # Also where it is done: a run refuses another model, corpus or field than it began with.
            train(folders[name], *changes)
        elif not done:
            train(folders[name], *arguments_of(name, folders[DENSE], folders[SEARCHED]))
        results[name] = outcome(folders[name])
        found = results[name]
        print(f"{name:<18} {found['tokens']:>12,} tokens  held-out masked loss {found['masked_loss']:.4f}", flush=True)
        if given.out:
            write_json(
                given.out, measured_on("transformers") | {"fields": overrides, "inverse": differences, "arms": results}
            )


if __name__ == "__main__":
    main()
