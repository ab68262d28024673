"""The wheel alone trains: installed where the checkout cannot be seen, and started in every way that is offered."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port, write_text

PACKAGE = ("core", "data_prep", "kernels", "pretrain", "finetune", "ds_configs")
# Where these lie the others do, too; the checkout's own editable installation is a finder, which is not taken over.
DEPENDENCIES = ("torch", "deepspeed", "jsonargparse", "numpy")
# The quickstart's own plan, in a few steps of a tiny network.
OVERRIDES = {
    "corpus.source": "text",
    "corpus.files": "[text.txt]",
    "corpus.vocab_size": "200",
    "model.hidden_size": "32",
    "model.num_layers": "2",
    "model.intermediate_size": "64",
    "search.steps": "3",
    "search.snapshot-every": "1",
    "phase1.steps": "4",
    "phase1.global-batch": "4",
    "phase2.steps": "2",
    "phase2.global-batch": "4",
    "validation.samples": "4",
    "matmul_precision": "highest",
}


def run(command: list[str], folder: Path) -> str:
    """Runs a command, which must succeed, without a way to the checkout; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    finished = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def tracked() -> list[str]:
    """Every file of the checkout that git knows or would add."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, without network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run([sys.executable, "-c", build, str(out)], source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of a virtual environment with the wheel, which borrows the dependencies."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    run([*pip, "install", "--no-index", "--no-deps", str(wheel)], folder.parent)
    # Afterwards, so that pip does not see the checkout's installation.
    packages = next(folder.glob("lib/python3*/site-packages"))
    borrowed = set()
    for name in DEPENDENCIES:
        found = importlib.util.find_spec(name)
        assert found is not None and found.origin is not None
        borrowed.add(str(Path(found.origin).parent.parent))
    (packages / "dependencies.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return folder / "bin"


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    expected = {f"earlybert/{name}" for name in tracked() if name.split("/")[0] in PACKAGE}
    expected.add("earlybert/__init__.py")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("earlybert/")}
    assert inside == expected
    assert {"recipes", "csrc", "ds_configs"} <= {Path(name).parent.name for name in inside}


@pytest.mark.slow
def test_the_installed_package_trains_however_it_is_started(environment: Path, tmp_path: Path) -> None:
    python, earlybert = str(environment / "python"), str(environment / "earlybert")
    where = run([python, "-c", "import earlybert.pretrain; print(earlybert.pretrain.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(environment.parent), where
    assert run([earlybert, "--version"], tmp_path).startswith("earlybert ")

    # What the programs torchrun and deepspeed start.
    torchrun = [python, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--master_port", free_port()]
    deepspeed = [python, "-m", "deepspeed.launcher.runner", "--num_accelerators", "1", "--master_port", free_port()]
    ways = {
        "command": [earlybert, "train"],
        "module": [python, "-m", "earlybert.pretrain.run"],
        "torchrun": [*torchrun, "-m", "earlybert.pretrain.run"],
        "torchrun-command": [*torchrun, "--no-python", earlybert, "train"],
        "deepspeed": [*deepspeed, "--module", "earlybert.pretrain.run"],
    }
    write_text(tmp_path / "text.txt", documents=40)
    overrides = [f"--{name}={value}" for name, value in OVERRIDES.items()]
    losses = {}
    for name, command in ways.items():
        run([*command, "--run-dir", name, *overrides], tmp_path)
        assert (tmp_path / name / "DONE").is_file()
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses[name] = [(line["stage"], line["loss"]) for line in lines if line["kind"] == "train"]
        assert [stage for stage, _ in losses[name]] == ["search"] * 3 + ["phase1"] * 3 + ["phase2"] * 2
    assert all(curve == losses["command"] for curve in losses.values())
    assert "is done" in run([earlybert, "train", "--run_dir", "command", *overrides], tmp_path)
    assert "intact" in run([earlybert, "checkpoint", "verify", "command"], tmp_path)
    run([earlybert, "plan", "--data", str(next((tmp_path / "corpora").iterdir())), *overrides], tmp_path)
