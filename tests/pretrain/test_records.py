"""What a run keeps for whoever wants to run it again: the numbers that were used, and where that was."""

import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from earlybert.core.errors import UserError
from earlybert.pretrain.plan.recipe import OptimizerConfig
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from tests.conftest import RUN, run_training

SHORT = ("--plan", "[phase1]", "--export", "[]", "--phase1.steps", "4", "--validation.every", "2")


def test_the_file_s_numbers_are_in_the_configuration(workplace: Path, tmp_path: Path) -> None:
    file = tmp_path / "clipped.json"
    file.write_text(
        json.dumps({"gradient_clipping": 0.5, "optimizer": {"type": "Lamb", "params": {"weight_decay": 0.02}}})
    )
    arguments = (
        "--config",
        "small.yaml",
        "--run-dir",
        "records",
        "--deepspeed",
        str(tmp_path / "clipped.json"),
        *SHORT,
    )
    status, output = run_training(workplace, *arguments)
    assert status == 0, output
    assert f"optimizer numbers of {file} take the recipe's places" in output
    run = workplace / "records"
    used = yaml.safe_load((run / "config.yaml").read_text())["optimizer"]
    assert (used["max_grad_norm"], used["weight_decay"]) == (0.5, 0.02)
    assert json.loads((run / "deepspeed" / "phase1.json").read_text())["gradient_clipping"] == 0.5
    # The recipe says 1.0 still: the same command is the same run.
    (run / "DONE").unlink()
    status, output = run_training(workplace, *arguments)
    assert status == 0, output
    first, second = json.loads((run / "environment.json").read_text())
    assert first["versions"]["torch"] == torch.__version__ and first["python"] == platform.python_version()
    assert first["ranks"] == 1 and second["time"] >= first["time"]
    commit = subprocess.run(["git", "-C", str(RUN.parent), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert first["commit"] is None or first["commit"].rstrip("+") == commit.strip()
    tags = EventAccumulator(str(run / "tensorboard")).Reload().summary_metadata
    assert any(name.startswith("_hparams_") for name in tags)


@pytest.mark.parametrize(
    ("name", "given"),
    [("weight_decay", OptimizerConfig(weight_decay=0.3)), ("max_grad_norm", OptimizerConfig(max_grad_norm=0.3))],
)
def test_a_recipe_that_contradicts_the_file_is_refused(name: str, given: OptimizerConfig, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(
        json.dumps({"gradient_clipping": 0.5, "optimizer": {"type": "Lamb", "params": {"weight_decay": 0.02}}})
    )
    with pytest.raises(UserError, match=rf"optimizer.{name} is 0.3, but .*file.json says 0\.\d+; make them agree"):
        DeepSpeedFile.load(path).settled(given)
