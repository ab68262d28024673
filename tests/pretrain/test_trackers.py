"""Trackers beside TensorBoard: Weights & Biases offline, Trackio, and stand-ins for them."""

import importlib
import importlib.machinery
import importlib.util
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from earlybert.core.errors import UserError
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import FullShape, TicketRule
from earlybert.pretrain.train.telemetry import Telemetry
from earlybert.pretrain.train.trackers.registry import open_trackers, require_installed
from earlybert.pretrain.train.trackers.tracker import Tracker
from tests.in_process import train_here
from tests.pretrain.run_files import events_of, metrics

TICKET = random_ticket(FullShape(num_layers=2, num_heads=4, head_size=8, intermediate_size=64), TicketRule(), 0)
SHORT = ("--config", "small.yaml", "--plan", "[phase1]", "--export", "[]", "--phase1.steps", "4")


def write_steps(run_dir: Path, trackers: Sequence[Tracker], steps: range, resume_after: int, value: float) -> None:
    telemetry = Telemetry(run_dir, trackers, enabled=True, resume_after=resume_after, layout={})
    telemetry.hyperparameters({"seed": 42, "phase1.steps": 20, "plan": ["phase1"], "data": None}, ["train/loss"])
    for step in steps:
        telemetry.scalars("train", step, {"stage": "phase1", "step": step, "loss": value + step, "bad": float("nan")})
    telemetry.histogram("coefficients/heads", torch.linspace(0.5, 1.5, 8).reshape(2, 4), steps[-1])
    telemetry.ticket(TICKET, steps[-1])
    telemetry.close()


def records(path: Path) -> Iterator[Any]:
    """What a file of Weights & Biases holds: records in pieces of blocks, as LevelDB's logs have them."""
    # The module makes its classes as it is imported.
    protocol: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content, at, whole = path.read_bytes(), 7, b""
    while at < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = protocol.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(path: Path) -> list[dict[str, str]]:
    """The values of every call of `log`, as JSON."""
    found = [record.history for record in records(path) if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): item.value_json for item in one.item} for one in found]


def test_a_resumed_run_is_one_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps after the checkpoint are made again: its own step grows, and the run's step is the axis."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps, resume_after, value in ((range(1, 11), -1, 100.0), (range(7, 13), 6, 200.0)):
        write_steps(tmp_path, open_trackers(["wandb"], tmp_path, resume_after), steps, resume_after, value)
    wandb.teardown()  # waits for its writer
    first, second = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    points = [
        [(int(line["global_step"]), float(line["train/loss"])) for line in history(path) if "train/loss" in line]
        for path in (first, second)
    ]
    assert points == [[(step, 100.0 + step) for step in range(1, 11)], [(step, 200.0 + step) for step in range(7, 13)]]
    (begun,), (resumed,) = ([one.run for one in records(path) if one.HasField("run")][:1] for path in (first, second))
    assert begun.run_id == resumed.run_id and begun.project == "earlybert"
    assert begun.display_name == f"{tmp_path.name}-{begun.run_id}" == resumed.display_name
    assert {one.metric.step_metric for one in records(second) if one.metric.glob_name == "*"} == {"global_step"}
    config = {item.key: item.value_json for one in records(second) for item in one.config.update}
    assert config["phase1.steps"] == "20" and config["plan"] == '["phase1"]'
    kinds = {key: value for line in history(second) for key, value in line.items() if key.endswith("_type")}
    assert kinds == {
        "coefficients/heads._type": '"histogram"',
        "ticket._type": '"image-file"',
        "ticket_text._type": '"html-file"',
    }
    assert list(first.parent.glob("files/media/images/*.png")) and list(first.parent.glob("files/media/html/*.html"))


def test_a_resumed_run_is_one_run_of_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    for steps, resume_after, value in ((range(1, 11), -1, 100.0), (range(7, 13), 6, 200.0)):
        write_steps(tmp_path, open_trackers(["trackio"], tmp_path, resume_after), steps, resume_after, value)
    (run,) = trackio.Api().runs("earlybert")
    assert run.name.startswith(f"{tmp_path.name}-")
    assert run.config["phase1.steps"] == 20
    lines = importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_logs("earlybert", run.name)
    points = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert points == [
        *((step, 100.0 + step) for step in range(1, 11)),
        *((step, 200.0 + step) for step in range(7, 13)),
    ]
    kinds = {key: value["_type"] for line in lines for key, value in line.items() if isinstance(value, dict)}
    assert kinds == {
        "coefficients/heads": "trackio.histogram",
        "ticket": "trackio.image",
        "ticket_text": "trackio.markdown",
    }


class Recording:
    """A tracker that remembers, and fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, int]] = []
        self.failing = False

    def _note(self, kind: str, what: Any, global_step: int) -> None:
        if self.failing:
            raise OSError("the service is away")
        self.calls.append((kind, what, global_step))

    def scalars(self, values: Mapping[str, float], global_step: int) -> None:
        self._note("scalars", dict(values), global_step)

    def histogram(self, name: str, values: torch.Tensor, global_step: int) -> None:
        self._note("histogram", (name, tuple(values.shape)), global_step)

    def text(self, name: str, markdown: str, global_step: int) -> None:
        self._note("text", name, global_step)

    def figure(self, name: str, figure: Any, global_step: int) -> None:
        self._note("figure", name, global_step)

    def hyperparameters(self, values: Mapping[str, Any], results: Sequence[str]) -> None:
        self._note("hyperparameters", values["seed"], 0)

    def close(self) -> None:
        self._note("close", None, 0)


EXPECTED = [
    ("hyperparameters", 42, 0),
    ("scalars", {"train/loss": 101.0}, 1),
    ("scalars", {"train/loss": 102.0}, 2),
    ("histogram", ("coefficients/heads", (2, 4)), 2),
    ("figure", "ticket", 2),
    ("text", "ticket", 2),
    ("close", None, 0),
]


def test_every_tracker_gets_everything_and_one_that_fails_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, broken, last = Recording(), Recording(), Recording()
    broken.failing = True
    write_steps(tmp_path, [first, broken, last], range(1, 3), -1, 100.0)
    assert first.calls == EXPECTED == last.calls and broken.calls == []
    said = capsys.readouterr().err
    assert said.count("curves cannot be written (the service is away); training continues") == 1
    assert [line["loss"] for line in metrics(tmp_path)] == [101.0, 102.0]


class StandIn(ModuleType):
    """Of the library wandb: notes what it is called with."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="a test")
        self.begun: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.finished = 0
        self.refuses: Exception | None = None
        for kind in ("Html", "Histogram", "Image"):
            setattr(self, kind, lambda *_, kind=kind, **__: kind)

    def init(self, **arguments: Any) -> Any:
        if self.refuses:
            raise self.refuses
        self.begun.append(arguments)
        config = SimpleNamespace(update=lambda values, allow_val_change: arguments.update(config=values))
        return SimpleNamespace(config=config, define_metric=lambda *_, **__: None, log=self.lines.append)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    library = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", library)
    return library


def test_a_training_goes_to_the_trackers_of_its_recipe(workplace: Path, stand_in: StandIn) -> None:
    """The same command again is the same run there, also with another choice of trackers beside it."""
    folder = workplace / "tracked"
    status, output = train_here(workplace, *SHORT, "--run-dir", "tracked", "--trackers", "[wandb]")
    assert status == 0 and "tensorboard" not in output, output
    assert not (folder / "tensorboard").exists()
    (folder / "DONE").unlink()
    status, output = train_here(workplace, *SHORT, "--run-dir", "tracked", "--trackers", "[tensorboard,wandb]")
    assert status == 0, output
    assert (folder / "tensorboard").is_dir() and stand_in.finished == 2
    first, second = stand_in.begun
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["config"]["phase1.steps"] == 4
    written = {line["global_step"]: line["loss"] for line in metrics(folder)}
    assert {line["global_step"]: line["train/loss"] for line in stand_in.lines if "train/loss" in line} == written
    assert sum("plan_text" in line for line in stand_in.lines) == 1


def test_nothing_is_tracked_where_nothing_is_asked_for(workplace: Path) -> None:
    status, output = train_here(workplace, *SHORT, "--run-dir", "untracked", "--trackers", "[]")
    assert status == 0, output
    assert not list((workplace / "untracked").glob("t[er]*")) and len(metrics(workplace / "untracked")) == 4


def test_a_library_that_is_missing_is_named_before_anything_is_written(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else found(name))
    status, output = train_here(workplace, *SHORT, "--run-dir", "missing", "--trackers", "[tensorboard,trackio]")
    assert status == 2 and not (workplace / "missing").exists()
    expected = "error: trackers has trackio, which is not installed; pip install 'earlybert[trackio]' installs it"
    assert expected in output and "Traceback" not in output


def test_a_folder_of_that_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries leave such folders where they ran."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if not Path(path, "wandb").is_dir())])
    importlib.invalidate_caches()
    with pytest.raises(UserError, match="trackers has wandb, which is not installed"):
        require_installed(["wandb"])


def test_a_service_that_refuses_is_one_sentence(workplace: Path, stand_in: StandIn) -> None:
    stand_in.refuses = RuntimeError("No API key configured.\nUse `wandb login` to log in.")
    status, output = train_here(workplace, *SHORT, "--run-dir", "refused", "--trackers", "[wandb]")
    assert status == 2 and "Traceback" not in output
    assert (
        "trackers has wandb, which cannot begin a run (No API key configured. Use `wandb login` to log in.)" in output
    )


def test_an_unknown_tracker_is_refused(workplace: Path) -> None:
    status, output = train_here(workplace, *SHORT, "--run-dir", "unknown", "--trackers", "[tensorbord]")
    assert status == 2 and "trackers is" in output and "tensorboard" in output, output


def test_tensorboard_gets_what_the_others_get(tmp_path: Path) -> None:
    write_steps(tmp_path, open_trackers(["tensorboard", "tensorboard"], tmp_path, -1), range(1, 3), -1, 100.0)
    tags = events_of(tmp_path).Tags()
    assert tags["scalars"] == ["loss/train (nats)"]
    assert tags["histograms"] == ["search/coefficients of heads (values)"]
    assert tags["images"] == ["ticket"] and "ticket/text_summary" in tags["tensors"]
    assert [event.value for event in events_of(tmp_path).Scalars("loss/train (nats)")] == [101.0, 102.0]
