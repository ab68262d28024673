"""Golden curves: the first 30 steps of three small recipes, stored beside this file and compared step by step.

    make golden      # writes them anew, after a change that is meant to change the numbers

`search` has LAMB, dropout, next-sentence prediction, the L1 term and a short last micro-batch; `narrow` cuts by a
random ticket, trains phase 1 and lengthens into phase 2; `dense` has AdamW, the continuous schedule and static masks
over more than one epoch.
"""

import hashlib
import importlib.metadata
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from earlybert.core.files import write_json
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import FullShape, TicketRule
from tests.conftest import ROOT, run_training, small_recipe, write_text

HERE = Path(__file__).parent
NAMES = ("search", "narrow", "dense")
STEPS = 30
MEASURED = ("loss", "gradient_norm")
TOLERANCE = 1e-4
COMMAND = "make golden"

Curve = dict[str, list[float]]


def stored_path(name: str) -> Path:
    return HERE / f"{name}.json"


def golden_recipe(name: str, folder: Path) -> dict[str, Any]:
    """The tests' small recipe, changed into one of the three; the ticket that `narrow` needs is written to `folder`."""
    recipe = small_recipe(folder / "text.txt") | {"export": []}
    if name == "search":
        recipe["plan"] = ["search"]
        recipe["search"]["steps"] = recipe["phase1"]["steps"] = STEPS
        return recipe
    recipe["model"] |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    if name == "narrow":
        recipe["plan"] = ["narrow", "phase1", "phase2"]
        recipe["phase1"]["steps"], recipe["phase2"]["steps"] = 18, STEPS - 18
        model = recipe["model"]
        shape = FullShape(
            num_layers=model["num_layers"],
            num_heads=model["num_heads"],
            head_size=model["hidden_size"] // model["num_heads"],
            intermediate_size=model["intermediate_size"],
        )
        random_ticket(shape, TicketRule(**recipe["draw"]), seed=0).save(folder / "ticket.json")
        return recipe | {"ticket": str(folder / "ticket.json")}
    recipe["corpus"]["objective"] = "full-sentences"
    recipe["phase1"] |= {"steps": STEPS, "learning_rate": 1e-3}
    settings = {"plan": ["phase1"], "schedule": "poly_continuous", "masking": "static"}
    return recipe | settings | {"deepspeed": str(ROOT / "ds_configs" / "adamw.json")}


def train_curve(name: str, folder: Path, *arguments: str, launcher: tuple[str, ...] | None = None) -> Curve:
    """Trains one of the recipes in an empty folder, as many ranks as the launcher starts; raises RuntimeError."""
    write_text(folder / "text.txt")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(golden_recipe(name, folder)))
    arguments = ("--config", "recipe.yaml", "--run-dir", "run", *arguments)
    status, output = run_training(folder, *arguments, launcher=launcher)
    if status:
        raise RuntimeError(output)
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["kind"] == "train"]
    return {measured: [step[measured] for step in steps] for measured in MEASURED}


def first_difference(name: str, expected: Curve, actual: Curve) -> str | None:
    """One sentence about the first step that is farther off than the tolerance; None where the curves agree."""
    for step in range(STEPS):
        for measured in MEASURED:
            wanted, found = expected[measured][step], actual[measured][step]
            if not abs(found - wanted) <= TOLERANCE * abs(wanted):
                return (
                    f"{name}: {measured} of step {step + 1} is {found:.7g}, stored is {wanted:.7g}, more than a "
                    f"relative {TOLERANCE:g} apart; if the change is meant to change the numbers, run `{COMMAND}`"
                )
    return None


def dropout_masks() -> str:
    """Fingerprint of the masks that PyTorch draws from a seed: they depend on its build and on the CPU's vendor."""
    torch.manual_seed(0)
    kept = torch.nn.functional.dropout(torch.ones(4096), 0.1) > 0
    return hashlib.sha256(kept.numpy().tobytes()).hexdigest()


def main() -> None:
    """Writes the stored curves."""
    versions = {
        package: importlib.metadata.version(package) for package in ("torch", "deepspeed", "numpy", "tokenizers")
    }
    versions["python"] = platform.python_version()
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            curve = train_curve(name, Path(folder))
        header = {"recipe": name, "versions": versions, "dropout_masks": dropout_masks()}
        write_json(stored_path(name), header | curve)
        print(f"{stored_path(name)}: loss {curve['loss'][0]:.4f} to {curve['loss'][-1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
