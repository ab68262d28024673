"""Is an interrupted run the same as the undisturbed one?"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from earlybert.core.files import file_hash, read_json
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.report.timeline import read_lines
from earlybert.pretrain.ticket.ticket import Ticket, masks

TIMINGS = {"time", "seconds", "data_seconds", "tokens_per_second", "utilisation", "dense_equivalent_utilisation"}
# The other kinds of lines in metrics.jsonl tell about starts and times.
KINDS = {"train", "validation", "mask_distance"}
TOLERANCE = 1e-5
# Whatever a run writes that has no time of day in it.
FILES = ("ticket.json", "plan.json", "search/*", "export/*/model.safetensors")


def results(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that say what was computed, without timings, by step."""
    lines = [line for line in read_lines(run_dir) if line["kind"] in KINDS]
    kept = [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]
    return sorted(kept, key=lambda line: (line["global_step"], line["kind"]))


def missing_or_repeated(reference: Path, run_dir: Path) -> list[str]:
    """Sentences about lines of metrics.jsonl and files that are not there exactly once."""
    expected, found = (
        Counter((line["kind"], line["global_step"]) for line in results(run)) for run in (reference, run_dir)
    )
    problems = [
        f"{kind} of step {step} stands {found[kind, step]} times in metrics.jsonl, not {expected[kind, step]}"
        for kind, step in sorted(expected.keys() | found.keys())
        if found[kind, step] != expected[kind, step]
    ]
    absent = _files(reference).keys() ^ _files(run_dir).keys()
    return problems + [f"{name} exists in one of the runs only" for name in sorted(absent)]


def _files(run_dir: Path) -> dict[str, Path]:
    return {str(path.relative_to(run_dir)): path for pattern in FILES for path in run_dir.glob(pattern)}


def different_bits(reference: Path, run_dir: Path) -> list[str]:
    """Sentences about everything in which a run differs from one of the same layout: nothing may."""
    lines = []
    for first, second in zip(results(reference), results(run_dir), strict=True):
        if changed := sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key)):
            lines.append(f"{first['kind']} of step {first['global_step']} in {', '.join(changed)}")
    problems = [f"{len(lines)} lines of metrics.jsonl differ, the first is {lines[0]}"] if lines else []
    expected, found = _files(reference), _files(run_dir)
    problems += [f"{name} differs" for name in expected if file_hash(expected[name]) != file_hash(found[name])]
    ours, theirs = (Checkpoint(list_checkpoints(run / "checkpoints")[-1]) for run in (run_dir, reference))
    for kind, tensors in {"master": theirs.weights, **theirs.moments}.items():
        others = {"master": ours.weights, **ours.moments}[kind]
        changed = [name for name in tensors if not torch.equal(tensors[name], others[name])]
        problems += [f"{kind}/{name} of the last checkpoint differs" for name in changed]
    return problems


def layout_differences(reference: Path, run_dir: Path) -> dict[str, Any]:
    """Units of the ticket that differ, and per stage the largest relative difference of training and validation losses.

    Where a neuron at the cut differs, the narrow networks are not the same and are not compared.
    """
    found: dict[str, Any] = {}
    if (reference / "ticket.json").is_file():
        first, second = (masks(Ticket.load(run / "ticket.json")) for run in (reference, run_dir))
        found = {f"{kind}_different": int(np.sum(first[kind] != second[kind])) for kind in first}
    different = any(found.values())
    narrow = {stage["name"] for stage in read_json(reference / "plan.json")["stages"] if stage["narrow"]}
    worst: dict[str, float] = {}
    for expected, actual in zip(results(reference), results(run_dir), strict=True):
        stage = expected["stage"]
        if "loss" in expected and not (different and stage in narrow):
            difference = abs(actual["loss"] - expected["loss"]) / expected["loss"]
            worst[stage] = max(worst.get(stage, 0.0), difference)
    return found | {"loss_difference": worst}


def compare(reference: Path, run_dir: Path, *, same_layout: bool) -> tuple[list[str], dict[str, Any]]:
    """What is wrong with a run that was interrupted, one sentence each; and how far it is from the undisturbed one."""
    if problems := missing_or_repeated(reference, run_dir):
        return problems, {}
    if same_layout:
        return different_bits(reference, run_dir), {}
    differences = layout_differences(reference, run_dir)
    if differences.get("heads_different"):
        problems.append(f"the ticket has {differences['heads_different']} other heads")
    for stage, worst in differences["loss_difference"].items():
        if not worst <= TOLERANCE:
            problems.append(f"losses of {stage} differ by a relative {worst:.1e}, more than {TOLERANCE:g}")
    return problems, differences
