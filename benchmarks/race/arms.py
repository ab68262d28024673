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
from earlybert.pretrain.plan.recipe import load_recipe
from earlybert.pretrain.ticket.drawing import random_ticket_like
from earlybert.pretrain.ticket.ticket import Ticket

# On CPUs: 3,000 steps of 4,096 tokens; on a GPU BERT-Base on 6,000 steps of 32,768. Without max_predictions: a limit
# would cut the larger share of a falling one.
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
        # Its learning rates add up to 0.24, as those of the paper's search do.
        "search": {"steps": 120, "snapshot_every": 10},
        "draw": {"head_ratio": 0.25, "neuron_ratio": 0.3, "width_multiple": 32},
        "phase1": {
            "length": 64,
            "global_batch": 64,
            "micro_batch": 64,
            "steps": 3000,
            "learning_rate": 1e-2,
            "warmup": 0.1,
        },
        "validation": {"every": 100, "samples": 800},
    },
    "cuda": {
        "model": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
        "search": {"steps": 340, "snapshot_every": 20},
        "draw": {"head_ratio": 1 / 3, "neuron_ratio": 0.3, "width_multiple": 64},
        "phase1": {
            "length": 128,
            "global_batch": 256,
            "micro_batch": 256,
            "steps": 6000,
            "learning_rate": 4e-3,
            "warmup": 0.1,
        },
        "validation": {"every": 200, "samples": 4096},
    },
}
# Shares of the steps at which a part of the growth ends, and its layers.
GROWTH = {"cpu": ((0.5, 2), (1.0, 6)), "cuda": ((0.125, 3), (0.3, 6), (1.0, 12))}
ADAMW_RATES = {"cpu": (5e-4, 1e-3, 2e-3), "cuda": (1e-4, 2e-4, 4e-4)}
REPOSITORY = Path(__file__).parent.parent.parent
# Muon on the matrices between hidden states; LAMB's rate on the rest is lower then.
MUON = {"deepspeed": str(REPOSITORY / "ds_configs" / "muon.json")}
MUON_RATE = 0.7
FALLING_MASKS = {"mask_probability": {"from": 0.3, "to": 0.15}}
# 0.02, the usual, was made for BERT-Base: 0.05 is as large beside the square root of this width.
LARGER_WEIGHTS = {"model.initializer_range": 0.05}
# Controls: networks as deep as growth begins with, and those of full depth with the same optimizer. Growth is shown
# to pay only where depth does: where a control ends above the other.
SHALLOW = "shallow network, same tokens"
CONTROLS = {SHALLOW: "dense", "shallow network, Muon": "dense, Muon"}
COMMON = {"schedule": "poly_continuous", "checkpoint_every": 250, "keep_checkpoints": 1, "log_every": 1, "export": []}


@dataclass(frozen=True)
class Arm:
    """A contender: what differs from the recipe, and whose ticket's widths it takes by chance, if it does."""

    plan: Sequence[str]
    settings: dict[str, Any] = field(default_factory=dict)
    step_factor: float = 1.0
    rate_factor: float = 1.0
    widths_of: str | None = None


@dataclass(frozen=True)
class HuggingFaceArm:
    """Hugging Face's BERT and Trainer, with AdamW at this peak rate, and what else differs from the recipe."""

    learning_rate: float
    settings: dict[str, Any] = field(default_factory=dict)


def arms(device: str) -> dict[str, Arm | HuggingFaceArm]:
    """All arms by name; a random ticket comes after the one it imitates."""
    depths = [{"until": until, "layers": layers} for until, layers in GROWTH[device]]
    shallow = depths[0]["layers"]
    searching = ("search", "narrow", "phase1")
    # The network of the ticket grows in layers, and has all its units for the last quarter of the steps.
    widened = [depths[0] | {"width": "ticket"}, *depths[1:-1], depths[-1] | {"until": 0.75}, {"width": "full"}]
    grown = {"grow": depths}
    together = MUON | grown | FALLING_MASKS
    found: dict[str, Arm | HuggingFaceArm] = {
        "dense": Arm(("phase1",)),
        "dense, 0.7 of the rate": Arm(("phase1",), rate_factor=0.7),
        "dense, 1.3 of the rate": Arm(("phase1",), rate_factor=1.3),
        "dense, Muon": Arm(("phase1",), MUON, rate_factor=MUON_RATE),
        **{f"Hugging Face, AdamW {rate:g}": HuggingFaceArm(rate) for rate in ADAMW_RATES[device]},
        SHALLOW: Arm(("phase1",), {"model.num_layers": shallow}),
        "shallow network, Muon": Arm(("phase1",), MUON | {"model.num_layers": shallow}, rate_factor=MUON_RATE),
        "dense, 80 % of the steps": Arm(("phase1",), step_factor=0.8),
        "dense, 60 % of the steps": Arm(("phase1",), step_factor=0.6),
        "EarlyBERT": Arm(searching),
        "EarlyBERT, Muon": Arm(searching, MUON, rate_factor=MUON_RATE),
        # A little more operations than "EarlyBERT, Muon" has.
        "dense, Muon, 2/3 of the steps": Arm(("phase1",), MUON, step_factor=2 / 3, rate_factor=MUON_RATE),
        "random ticket": Arm(("narrow", "phase1"), widths_of="EarlyBERT"),
        "random ticket, Muon": Arm(("narrow", "phase1"), MUON, rate_factor=MUON_RATE, widths_of="EarlyBERT, Muon"),
        "stacking": Arm(("phase1",), grown),
        "ticket, grown": Arm(searching, {"grow": widened, "narrow.step_factor": 1.0}),
        "falling masks": Arm(("phase1",), FALLING_MASKS),
        "best plan": Arm(("phase1",), together, step_factor=0.5, rate_factor=MUON_RATE),
        # Long enough for Muon's own final loss.
        "best plan, 85 % of the steps": Arm(("phase1",), together, step_factor=0.85, rate_factor=MUON_RATE),
    }
    if device == "cpu":
        later = together | {"grow": [{"until": 0.7, "layers": shallow}, depths[-1]]}
        found |= {
            "best plan, 85 %, grown at 70 %": Arm(("phase1",), later, step_factor=0.85, rate_factor=MUON_RATE),
            "dense, larger initial weights": Arm(("phase1",), LARGER_WEIGHTS, rate_factor=0.5),
            "shallow network, larger initial weights": Arm(
                ("phase1",), LARGER_WEIGHTS | {"model.num_layers": shallow}, rate_factor=0.5
            ),
            "EarlyBERT, larger initial weights": Arm(searching, LARGER_WEIGHTS, rate_factor=0.5),
            "random ticket, larger initial weights": Arm(
                ("narrow", "phase1"), LARGER_WEIGHTS, rate_factor=0.5, widths_of="EarlyBERT, larger initial weights"
            ),
            "dense, Muon, larger initial weights": Arm(("phase1",), MUON | LARGER_WEIGHTS, rate_factor=MUON_RATE),
            "Hugging Face, AdamW 0.001, larger initial weights": HuggingFaceArm(1e-3, LARGER_WEIGHTS),
        }
    return found


def references(device: str) -> dict[str, list[str]]:
    """Whose final losses are to be reached: of each the arm that ends lowest, of several rates and initial weights."""
    everybody = arms(device)
    names = {
        "LAMB": ["dense", "dense, 0.7 of the rate", "dense, 1.3 of the rate", "dense, larger initial weights"],
        "Muon": ["dense, Muon", "dense, Muon, larger initial weights"],
        "Hugging Face": [name for name, arm in everybody.items() if isinstance(arm, HuggingFaceArm)],
    }
    return {title: [name for name in found if name in everybody] for title, found in names.items()}


def experiments() -> dict[str, Arm | HuggingFaceArm]:
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
    pieces = (("wikipedia", "wiki-*.jsonl.xz", 60.0), ("novels", "eltec.jsonl.xz", 15.0))
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


def command(arm: Arm | HuggingFaceArm, recipe: Path, corpus: Path, out: Path, seed: int) -> list[str]:
    """The command line that runs, or goes on with, one arm."""
    everybody = ["--config", str(recipe), "--data", str(corpus), "--run-dir", str(out), "--seed", str(seed)]
    settings = [text for name, value in arm.settings.items() for text in (f"--{name}", str(value))]
    if isinstance(arm, HuggingFaceArm):
        script = Path(__file__).parent / "hugging_face.py"
        return [sys.executable, str(script), *everybody, "--learning_rate", str(arm.learning_rate), *settings]
    phase = load_recipe(recipe, []).phase("phase1")
    found = [sys.executable, str(REPOSITORY / "pretrain" / "run.py"), *everybody, "--plan", f"[{', '.join(arm.plan)}]"]
    found += ["--phase1.steps", str(round(arm.step_factor * phase.steps))]
    found += ["--phase1.learning_rate", f"{arm.rate_factor * phase.learning_rate:g}"]
    found += settings
    if arm.widths_of is not None:
        ticket = out.with_suffix(".ticket.json")
        imitated = run_dir(out.parent, arm.widths_of, seed) / "ticket.json"
        if not imitated.is_file():
            sys.exit(f"time_to_loss: a random ticket needs that of {arm.widths_of}, seed {seed}; run it first")
        if not ticket.is_file():
            random_ticket_like(Ticket.load(imitated), seed).save(ticket)
        found += ["--ticket", str(ticket)]
    return found
