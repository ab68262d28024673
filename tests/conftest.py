"""What all tests share: a small corpus of made-up text, and a recipe that trains on it in seconds."""

import gc
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from tests.in_process import settings_put_back, train_here

ROOT = Path(__file__).parent.parent
RUN = ROOT / "pretrain" / "run.py"
BIN = Path(sys.executable).parent
# How many modules were imported when their objects were last set aside.
FROZEN = {"modules": 0}


def pytest_configure(config: pytest.Config) -> None:
    """Before anything asks for the device: `pytest -m gpu` takes the GPU, all other tests the CPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.option.markexpr == "gpu" else "cpu")
    # A deterministic run needs it from the first matrix product of the process on.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: a long one that began last would leave the other core without work."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup() -> None:
    """Sets aside what imports made: it is never garbage, and a full collection would go through all of it.

    Trainings collect at every border of stages.
    """
    if (modules := len(sys.modules)) != FROZEN["modules"]:
        FROZEN["modules"] = modules
        gc.collect()
        gc.freeze()


def write_text(path: Path, documents: int = 120, seed: int = 0) -> None:
    """Documents of made-up words whose frequencies differ, so that there is something to learn."""
    generator = random.Random(seed)
    letters = "abcdefghijklmnop"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 7))) for _ in range(150)]
    weights = [1 / (rank + 1) for rank in range(len(words))]

    def sentence() -> str:
        return " ".join(generator.choices(words, weights, k=generator.randint(5, 12))).capitalize() + "."

    path.write_text("\n\n".join("\n".join(sentence() for _ in range(12)) for _ in range(documents)) + "\n")


def small_recipe(text: Path) -> dict:
    """Two layers, 20 + 20 + 10 steps; every part of the method takes part."""
    return {
        "model": {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 64,
        },
        "corpus": {"source": "text", "files": [str(text)], "vocab_size": 300, "validation_fraction": 0.1},
        "search": {"steps": 20, "snapshot_every": 10},
        "draw": {"head_ratio": 0.25, "neuron_ratio": 0.3, "width_multiple": 8},
        "narrow": {"step_factor": 1.0},
        "phase1": {
            "length": 32,
            "max_predictions": 5,
            "global_batch": 50,
            "micro_batch": 16,
            "steps": 20,
            "learning_rate": 5e-3,
            "warmup": 0.3,
        },
        "phase2": {
            "length": 64,
            "max_predictions": 10,
            "global_batch": 20,
            "micro_batch": 8,
            "steps": 10,
            "learning_rate": 4e-3,
            "warmup": 0.2,
        },
        "validation": {"every": 10, "samples": 40},
        "checkpoint_every": 7,
        "log_every": 1,
        "matmul_precision": "highest",
        "export": ["earlybert", "bert"],
    }


def start(command: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """A process with one thread a rank, its output merged."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def free_port() -> str:
    """A port for the ranks of one launch to meet at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run_training(cwd: Path, *arguments: str, launcher: tuple[str, ...] | None = None) -> tuple[int, str]:
    """Trains to the end, in this process or by a launcher of pretrain/run.py; returns exit status and output."""
    if launcher is None:
        return train_here(cwd, *arguments)
    process = start([*launcher, str(RUN), *arguments], cwd)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def gradient_of(parameter: Tensor) -> Tensor:
    """What a backward pass left; fails where it left nothing."""
    assert parameter.grad is not None
    return parameter.grad


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """One thread, for models too small for more. What a command sets for its process ends with the test."""
    with settings_put_back():
        yield


@pytest.fixture(scope="session")
def shared_workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, small.yaml and (once a run has prepared it) corpora/."""
    folder = tmp_path_factory.mktemp("shared")
    write_text(folder / "text.txt")
    (folder / "small.yaml").write_text(yaml.safe_dump(small_recipe(folder / "text.txt")))
    (folder / "corpora").mkdir()
    return folder


@pytest.fixture(scope="module")
def workplace(shared_workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text, recipe and corpora, in a folder of its own for each file: two may call a run by the same name."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("text.txt", "corpora", "finished"):
        (folder / name).symlink_to(shared_workplace / name)
    # A file's tests may write another recipe: that must not become the finished run's.
    shutil.copy(shared_workplace / "small.yaml", folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(shared_workplace: Path) -> Path:
    """A complete run of the small recipe, made by plain python."""
    arguments = ("--config", "small.yaml", "--run-dir", "finished")
    status, output = run_training(shared_workplace, *arguments, launcher=(sys.executable,))
    assert status == 0, output
    return shared_workplace / "finished"
