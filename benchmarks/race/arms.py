"""Who takes part in the race: one recipe per device, and per arm what differs from it."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from earlybert.data_prep.config import CorpusConfig, MixedSource
from earlybert.data_prep.prepare import prepare
from earlybert.pretrain.ticket.ticket import Ticket, random_ticket_like

# On CPUs: 1,500 steps of 2,048 tokens; on a GPU BERT-Base on 6,000 steps of 32,768.
RECIPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "model": {
            "hidden_size": 128,
            "num_layers": 6,
            "num_heads": 4,
            "intermediate_size": 512,
            "max_position_embeddings": 64,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "search": {"steps": 85, "snapshot_every": 5},
        "draw": {"head_ratio": 0.25, "neuron_ratio": 0.3, "width_multiple": 32},
        "stack": {"layers": [3], "until": [0.3]},
        "phase1": {
            "length": 64,
            "max_predictions": 10,
            "global_batch": 32,
            "micro_batch": 32,
            "steps": 1500,
            "learning_rate": 1e-2,
            "warmup": 0.2843,
        },
        "validation": {"every": 100, "samples": 800},
    },
    "cuda": {
        "model": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
        "search": {"steps": 340, "snapshot_every": 20},
        "draw": {"head_ratio": 1 / 3, "neuron_ratio": 0.3, "width_multiple": 64},
        "stack": {"layers": [3, 6], "until": [0.125, 0.3]},
        "phase1": {
            "length": 128,
            "max_predictions": 20,
            "global_batch": 256,
            "micro_batch": 256,
            "steps": 6000,
            "learning_rate": 4e-3,
            "warmup": 0.2843,
        },
        "validation": {"every": 200, "samples": 4096},
    },
}
COMMON = {"checkpoint_every": 250, "keep_checkpoints": 1, "log_every": 1, "export": []}


@dataclass(frozen=True)
class Arm:
    """A contender: what differs from the recipe, and whose ticket's widths it takes by chance, if it does."""

    plan: Sequence[str]
    settings: dict[str, Any] = field(default_factory=dict)
    step_factor: float = 1.0
    widths_of: str | None = None


def arms(device: str) -> dict[str, Arm]:
    """All arms by name; the dense run comes first, and a random ticket after the one it imitates."""
    grow = [word for _ in RECIPES[device]["stack"]["layers"] for word in ("phase1", "stack")]
    searched = {"narrow.rewind": "searched"}
    return {
        "dense": Arm(("phase1",)),
        "dense, 80 % of the steps": Arm(("phase1",), step_factor=0.8),
        "dense, 60 % of the steps": Arm(("phase1",), step_factor=0.6),
        "EarlyBERT": Arm(("search", "narrow", "phase1")),
        "random ticket": Arm(("narrow", "phase1"), widths_of="EarlyBERT"),
        "EarlyBERT, not rewound": Arm(("search", "narrow", "phase1"), searched),
        "stacking": Arm((*grow, "phase1")),
        "ticket, then stacking": Arm(("search", "narrow", *grow, "phase1")),
        "stacking, then ticket": Arm((*grow, "search", "narrow", "phase1"), searched),
    }


def experiments() -> dict[str, Arm]:
    """More arms, for one network of six layers: what was tried to be there sooner."""
    described = yaml.safe_load((Path(__file__).parent / "experiments.yaml").read_text())
    return {name: Arm(**fields) for name, fields in described.items()}


def run_dir(work_dir: Path, name: str, seed: int) -> Path:
    """Where an arm's run of one seed lies."""
    words = "".join(letter if letter.isalnum() else " " for letter in name).split()
    return work_dir / f"{'-'.join(words)}-seed{seed}".lower()


def make_corpus(device: str, work_dir: Path) -> Path:
    """Wikipedia articles and novels from EARLYBERT_DATA, prepared once."""
    source = Path(os.environ.get("EARLYBERT_DATA", ""))
    if not (source / "wikipedia").is_dir():
        sys.exit("time_to_loss: EARLYBERT_DATA must name the folder with wikipedia/ and novels/")
    small = device == "cpu"
    pieces = (("wikipedia", "wiki-*.jsonl.xz", 12.0), ("novels", "eltec.jsonl.xz", 4.0))
    mix = [
        MixedSource(
            name=name, source="text", files=[str(source / name / files)], max_megabytes=megabytes if small else None
        )
        for name, files, megabytes in pieces
    ]
    config = CorpusConfig(
        source="mix",
        mix=mix,
        vocab_size=4096,
        tokenizer=None if small else str(source / "vocab" / "bert-base-uncased-vocab.txt"),
        lengths=[RECIPES[device]["phase1"]["length"]],
        objective="full-sentences",
        validation_fraction=0.02,
    )
    prepare(config, work_dir / "corpus", workers=1 if small else os.cpu_count() or 1)
    return work_dir / "corpus"


def write_recipe(device: str, work_dir: Path, changes: dict[str, Any]) -> Path:
    """The recipe that all arms start from, the same in every call. `changes` are dotted fields."""
    recipe = {**RECIPES[device], **COMMON}
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        recipe = recipe | ({section: recipe.get(section, {}) | {key: value}} if section else {key: value})
    # Longer sequences would change what the loss means; the recipe has to have a second phase all the same.
    recipe["phase2"] = recipe["phase1"]
    path = work_dir / "recipe.yaml"
    before = yaml.safe_load(path.read_text()) if path.is_file() else recipe
    differs = [name for name in recipe | before if recipe.get(name) != before.get(name)]
    if differs and any(work_dir.glob("*-seed*/")):
        sys.exit(
            f"time_to_loss: {path} has another {' and '.join(differs)}, and runs have begun with it; all arms of a "
            "race have one recipe, so name another --work-dir"
        )
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def command(arm: Arm, recipe: Path, corpus: Path, out: Path, seed: int) -> list[str]:
    """The command line that runs, or goes on with, one arm."""
    steps = yaml.safe_load(recipe.read_text())["phase1"]["steps"]
    run = Path(__file__).parent.parent.parent / "pretrain" / "run.py"
    found = [sys.executable, str(run), "--config", str(recipe), "--data", str(corpus), "--run-dir", str(out)]
    found += ["--seed", str(seed), "--plan", f"[{', '.join(arm.plan)}]"]
    found += ["--phase1.steps", str(round(arm.step_factor * steps))]
    for name, value in arm.settings.items():
        found += [f"--{name}", str(value)]
    if arm.widths_of is not None:
        ticket = out.with_suffix(".ticket.json")
        imitated = run_dir(out.parent, arm.widths_of, seed) / "ticket.json"
        if not imitated.is_file():
            sys.exit(f"time_to_loss: a random ticket needs that of {arm.widths_of}, seed {seed}; run that arm, too")
        if not ticket.is_file():
            random_ticket_like(Ticket.load(imitated), seed).save(ticket)
        found += ["--ticket", str(ticket)]
    return found
