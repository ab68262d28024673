"""What a run tells, read back: event files, metrics.jsonl, where the time went, the console."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from earlybert.pretrain.train.telemetry import Telemetry
from earlybert.pretrain.train.timing import StepTimes, _TimedBackend
from earlybert.pretrain.train.trackers.tensorboard import TensorBoard
from tests.conftest import BIN, free_port, run_training
from tests.pretrain.run_files import events_of, metrics

TIMES = {"data", "checkpoint", "validation", "forward_backward", "communication", "optimizer"}


def test_tensorboard_shows_everything(finished_run: Path) -> None:
    events = events_of(finished_run)
    tags = events.Tags()
    parts = [f"{split}, {part}" for split in ("train", "validation") for part in ("masked", "next sentence")]
    expected = {f"loss/{name} (nats)" for name in ("train", "validation", "train, L1 term of the search", *parts)}
    expected |= {f"predictions/{name} (share that is right)" for name in parts}
    expected |= {"loss/validation, masked, below guessing by frequency (nats)"}
    expected |= {"optimizer/learning rate (factor)", "optimizer/gradient norm (nats)"}
    expected |= {f"speed/{name}" for name in ("tokens (1 per second)", "step (seconds)", "waiting for data (seconds)")}
    expected |= {f"speed/utilisation{name} (share of the peak)" for name in ("", ", dense equivalent")}
    # On one rank nothing is communicated.
    expected |= {f"time/{part.replace('_', ' ')} (seconds a step)" for part in TIMES - {"communication"}}
    expected |= {f"search/mask distance of {units} (share of the units)" for units in ("heads", "neurons")}
    # In fp32 there is no loss scale.
    assert {tag for tag in tags["scalars"] if not tag.startswith("trust_ratio/")} == expected
    # Query, key and value have a ratio each, as LAMB takes them for three matrices.
    layer = ["qkv.weight[0]", "qkv.weight[1]", "qkv.weight[2]", "output.weight"]
    assert {f"trust_ratio/layers.1.attention.{name} (ratio)" for name in layer} <= set(tags["scalars"])
    # Every 50 steps of a stage, and at its end: of hundreds of curves more would be waited for.
    assert [value.step for value in events.Scalars("trust_ratio/layers.1.attention.output.weight (ratio)")] == [
        20,
        40,
        50,
    ]
    assert set(tags["histograms"]) == {f"search/coefficients of {units} (values)" for units in ("heads", "neurons")}
    assert {"plan/text_summary", "ticket/text_summary"} <= set(tags["tensors"])
    # The matrix as far as it goes at every recording after the first; the ticket when it begins to be trained.
    assert [image.step for image in events.Images("mask_distance")] == [10, 20]
    assert [image.step for image in events.Images("ticket")] == [21]
    for image in (*events.Images("mask_distance"), *events.Images("ticket")):
        assert image.encoded_image_string.startswith(b"\x89PNG") and image.width > 300


def test_tensorboard_opens_on_the_losses_and_shows_what_there_is(finished_run: Path) -> None:
    """It sorts groups by name, whatever kind of chart. Numbers that say nothing in a stage stay in metrics.jsonl."""
    events = events_of(finished_run)
    tags = events.Tags()
    charts = sorted([*tags["scalars"], *tags["histograms"], *tags["images"]])
    assert charts[0] == "loss/train (nats)" and charts[2].startswith("loss/")
    assert all(re.search(r" \(.+\)$", tag) for tag in (*tags["scalars"], *tags["histograms"]))
    searched = [line["global_step"] for line in metrics(finished_run) if line["stage"] == "search"]
    assert [event.step for event in events.Scalars("loss/train, L1 term of the search (nats)")] == searched
    narrow = [line["global_step"] for line in metrics(finished_run) if line["stage"] != "search"]
    dense_equivalent = events.Scalars("speed/utilisation, dense equivalent (share of the peak)")
    assert [event.step for event in dense_equivalent] == narrow
    assert all({"l1", "loss_scale", "dense_equivalent_utilisation"} <= line.keys() for line in metrics(finished_run))
    assert all("communication" in line for line in metrics(finished_run, "time"))


def test_texts_say_what_the_run_does(finished_run: Path) -> None:
    events = events_of(finished_run)
    (plan,), (ticket,) = (events.Tensors(f"{name}/text_summary") for name in ("plan", "ticket"))
    (plan_text,), (ticket_text,) = (event.tensor_proto.string_val for event in (plan, ticket))
    stored = json.loads((finished_run / "plan.json").read_text())
    for stage in stored["stages"]:
        assert f"| {stage['name']} | {stage['begin']} | {stage['steps']:,} |" in plan_text.decode()
    kept = json.loads((finished_run / "ticket.json").read_text())
    assert kept["sha256"][:12] in ticket_text.decode()
    for layer, heads in enumerate(kept["heads"]):
        assert f"| {layer} | 3 of 4 | {', '.join(map(str, heads))} | {len(kept['neurons'][layer])} |" in (
            ticket_text.decode()
        )


def test_utilisation_counts_the_work_that_is_done(finished_run: Path) -> None:
    """The full network does what a dense one would; a narrow one does less, by about the FLOP ratio of the plan."""
    plan = json.loads((finished_run / "plan.json").read_text())
    for line in metrics(finished_run):
        assert 0 < line["utilisation"] < 2
        ratio = line["utilisation"] / line["dense_equivalent_utilisation"]
        if line["stage"] == "search":
            assert ratio == pytest.approx(1, rel=1e-9)
        else:
            assert 0.5 < ratio < 0.95
    assert {stage["name"] for stage in plan["stages"]} == {line["stage"] for line in metrics(finished_run)}


def write_steps(run_dir: Path, steps: range, resume_after: int, value: float, ranks: int) -> None:
    trackers = [TensorBoard(run_dir, resume_after)]
    layout = {"ranks": ranks, "device": "cpu"}
    telemetry = Telemetry(run_dir, trackers, enabled=True, resume_after=resume_after, layout=layout)
    for step in steps:
        telemetry.scalars("train", step, {"stage": "phase1", "loss": value + step})
    telemetry.close()


def test_one_timeline_across_restarts_and_world_sizes(tmp_path: Path) -> None:
    """Thrice the run goes on before where it had got to; every step is there once, as last computed."""
    write_steps(tmp_path, range(1, 11), -1, 100.0, ranks=4)
    write_steps(tmp_path, range(7, 16), 6, 200.0, ranks=2)
    write_steps(tmp_path, range(11, 21), 10, 300.0, ranks=1)
    expected = {step: 100.0 + step for step in range(1, 7)}
    expected |= {step: 200.0 + step for step in range(7, 11)} | {step: 300.0 + step for step in range(11, 21)}
    series = events_of(tmp_path).Scalars("loss/train (nats)")
    assert [(event.step, event.value) for event in series] == sorted(expected.items())
    assert {line["global_step"]: line["loss"] for line in metrics(tmp_path)} == expected
    assert len(metrics(tmp_path)) == 20
    starts = metrics(tmp_path, "start")
    assert [(line["global_step"], line["ranks"]) for line in starts] == [(0, 4), (6, 2), (10, 1)]
    assert [line.get("lost_steps") for line in starts] == [None, 4, 5]
    assert starts[0]["time"] <= starts[1]["last_alive"] <= starts[1]["time"] <= starts[2]["last_alive"]
    # An older checkpoint than the last one: what an earlier session started from does not count again.
    write_steps(tmp_path, range(3, 5), 2, 400.0, ranks=1)
    write_steps(tmp_path, range(4, 6), 3, 500.0, ranks=1)
    assert [line.get("lost_steps") for line in metrics(tmp_path, "start")] == [None, 4, 5, 18, 1]


def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    """A machine that lost its power leaves zeros where lines were to be written, a killed run half a line."""
    write_steps(tmp_path, range(1, 4), -1, 100.0, ranks=1)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 30 + b"\n\xff\xfe\n" + b'{"kind": "train", "glo')
    write_steps(tmp_path, range(4, 6), 3, 200.0, ranks=1)
    found = {line["global_step"]: line["loss"] for line in metrics(tmp_path)}
    assert found == {1: 101.0, 2: 102.0, 3: 103.0, 4: 204.0, 5: 205.0}


def test_a_run_killed_before_its_first_checkpoint_leaves_nothing_double(workplace: Path) -> None:
    """Its recordings, histograms and pictures are made again from the start."""
    arguments = ["--config", "small.yaml", "--run-dir", "twice", "--export", "[]", "--checkpoint_every", "100"]
    arguments += ["--plan", "[search]", "--search.steps", "15", "--phase1.steps", "15"]
    (workplace / "twice").mkdir()
    write_steps(workplace / "twice", range(0, 12), -1, 100.0, ranks=1)
    status, output = run_training(workplace, *arguments)
    assert status == 0, output
    events = events_of(workplace / "twice")
    assert [event.step for event in events.Scalars("loss/train (nats)")] == list(range(1, 16))
    assert [event.step for event in events.Histograms("search/coefficients of heads (values)")] == [0, 10, 15]
    assert [event.step for event in events.Tensors("plan/text_summary")] == [0]


def test_nested_parts_count_once() -> None:
    """Communication inside the backward pass and inside the optimizer is taken off those."""
    now = 100.0

    class Clocked(StepTimes):
        def _now(self) -> float:
            return now

        _moment = _now

    class Slow:
        rank = 3

        def all_reduce(self, seconds: float) -> None:
            pass_by(seconds)

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    def loaded() -> Iterator[object]:
        pass_by(0.5)
        yield object()

    times = Clocked(torch.device("cpu"))
    backend = _TimedBackend(Slow(), times)
    assert len(list(times.waiting_for_data(loaded()))) == 1
    with times.step(0):
        pass_by(2)
        backend.all_reduce(4)
        with times.computing("optimizer"):
            pass_by(3)
            backend.all_reduce(5)
    taken = times.taken()
    assert taken is not None and backend.rank == 3
    assert {part: taken[part] for part in ("communication", "forward_backward", "optimizer", "data")} == {
        "communication": 9,
        "forward_backward": 2,
        "optimizer": 3,
        "data": 0.5,
    }
    with times.step(1):
        backend.all_reduce(7)
    assert times.taken() is None


def test_a_gpu_that_still_computes_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three micro-batches take 3 s each to compute and 2, 2 and 8 s to load: it idles before the first and the last."""
    now = busy_until = 100.0

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...

        def record(self) -> None:
            self.reached = max(now, busy_until)

        def synchronize(self) -> None: ...

        def elapsed_time(self, later: "Event") -> float:
            return (later.reached - self.reached) * 1000

    def loaded() -> Iterator[object]:
        nonlocal now
        for seconds in (2, 2, 8):
            now += seconds
            yield object()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    times = StepTimes(torch.device("cuda"))
    for _ in times.waiting_for_data(loaded()):
        busy_until = max(now, busy_until) + 3
    # Loaded at 102, 104 and 112, computed until 105, 108 and 115.
    assert times.newly_waited_for_data() == pytest.approx(2 + 4)


def test_two_ranks_communicate_and_speak_once(workplace: Path) -> None:
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port())
    arguments = ("--config", "small.yaml", "--run-dir", "two-ranks", "--plan", "[phase1]", "--export", "[]")
    status, output = run_training(workplace, *arguments, launcher=launcher)
    assert status == 0, output
    split = metrics(workplace / "two-ranks", "time")
    assert [line["step"] for line in split] == [1, 11]
    assert all(line[part] > 0 for line in split for part in ("forward_backward", "communication", "optimizer"))
    steps = {line["step"]: line["seconds"] for line in metrics(workplace / "two-ranks")}
    for line in split:
        parts = line["forward_backward"] + line["communication"] + line["optimizer"]
        assert parts == pytest.approx(steps[line["step"]], rel=0.3)
    assert metrics(workplace / "two-ranks", "start")[0]["ranks"] == 2
    assert len(list((workplace / "two-ranks" / "tensorboard").iterdir())) == 1
    assert output.count("phase1: 20 steps") == 1
    warned = [line for line in output.splitlines() if "Warning:" in line]
    assert len(warned) == len(set(warned)), output


def in_terminal(code: str) -> tuple[int, str]:
    """Runs Python code with a terminal as its standard error; returns status and what the terminal got."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave, stdout=subprocess.DEVNULL, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            if not (read := os.read(master, 4096)):
                break
        except OSError:  # the other side is closed
            break
        shown += read
    os.close(master)
    return process.wait(), shown.decode()


PROGRESS = """
import time
from earlybert.core.progress import StageProgress
with StageProgress("phase1", 7038, 1000, enabled=ENABLED) as progress:
    for step in range(1001, 1008):
        progress.update(step, f"loss {2000 - step}  1,464,090 tokens/s")
        time.sleep(0.05)
    raise KeyError("a fault")
"""


def test_terminal_gets_a_bar_and_is_given_back_after_a_fault() -> None:
    """All of it fits into 80 columns, the time left too."""
    status, shown = in_terminal(PROGRESS.replace("ENABLED", "True"))
    assert status == 1
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"phase1 \S+ 1007/7038 loss 993  1,464,090 tokens/s 0:\d\d:\d\d left", plain), plain
    assert "\x1b[?25l" in shown and "\x1b[?25h" in shown.split("\x1b[?25l")[-1], "the cursor stays hidden"


def test_other_ranks_show_no_progress() -> None:
    _, shown = in_terminal(PROGRESS.replace("ENABLED", "False"))
    assert "phase1" not in shown.split("Traceback")[0]


def test_a_log_file_gets_plain_lines(finished_run: Path, workplace: Path) -> None:
    arguments = ("--config", "small.yaml", "--run-dir", "logged", "--plan", "[phase1]", "--export", "[]")
    _, output = run_training(workplace, *arguments)
    lines = [line for line in output.splitlines() if line.startswith("phase1 ")]
    assert "\x1b" not in output
    assert lines and all("loss" in line and "tokens/s" in line and line.endswith("left") for line in lines)
