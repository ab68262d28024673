"""Runs that are asked to stop, and go on: in the same layout bit for bit, in another one to rounding."""

import json
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from earlybert.pretrain.checkpoint.checkpoint import newest_intact
from earlybert.pretrain.ticket.ticket import Ticket
from earlybert.pretrain.train.stopping import SAME
from tests.conftest import BIN, RUN, free_port, run_training, small_recipe, start
from tests.pretrain.run_files import last_step, losses, require_close
from tests.pretrain.signals import end_under_signals, rank_process, signal_until_gone

PLAIN = (sys.executable,)


def stop_after(process: subprocess.Popen[str], run_dir: Path, step: int, number: signal.Signals, rank: int = 0) -> str:
    """Waits until a step is logged and sends the signal to one rank, and more until it is gone; returns the output.

    What comes later must do no harm, not even to the exit status.
    """
    while process.poll() is None and last_step(run_dir) < step:
        time.sleep(0.01)
    target = rank_process(process.pid, rank)
    target.send_signal(number)
    time.sleep(0.02)
    signal_until_gone(target)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def require_stopped_at_last_step(run_dir: Path, output: str) -> None:
    """The checkpoint that the stop left is of the last step that was made."""
    assert re.search(r"stopped as asked at step \d+ of \w+; run the same command again to resume", output), output
    assert "Traceback" not in output
    checkpoint = newest_intact(run_dir / "checkpoints", pytest.fail)
    assert checkpoint is not None
    assert checkpoint.state.global_step == last_step(run_dir) < 50
    assert not (run_dir / "DONE").exists()
    assert not list((run_dir / "checkpoints").glob(".*"))


def test_stopped_by_signals_a_run_loses_no_step(finished_run: Path, workplace: Path) -> None:
    """Dropout is on, and checkpoints are due every 7 steps: the curve goes on bit for bit."""
    generator = random.Random(time.time_ns())
    reached = 0
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        reached = generator.randint(reached + 1, reached + 10)
        process = start([*PLAIN, str(RUN), "--config", "small.yaml", "--run-dir", "asked"], workplace)
        require_stopped_at_last_step(workplace / "asked", stop_after(process, workplace / "asked", reached, number))
        reached = last_step(workplace / "asked")
    process = start([*PLAIN, str(RUN), "--config", "small.yaml", "--run-dir", "asked"], workplace)
    end_under_signals(process, workplace / "asked")
    assert losses(workplace / "asked") == losses(finished_run)


LISTENING = """
import time
from earlybert.pretrain.train.stopping import StopRequest
stop = StopRequest()
stop.listen()
print("listening", flush=True)
for _ in range(1000):
    time.sleep(0.1)
    print(stop.signal, flush=True)
"""


def test_second_interrupt_ends_at_once_and_one_that_a_launcher_repeats_does_not() -> None:
    process = start([*PLAIN, "-c", LISTENING], Path.cwd())
    assert process.stdout is not None
    wait_for_line(process, "listening")
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    wait_for_line(process, "stopping after this step; Ctrl-C again ends at once")
    wait_for_line(process, "SIGINT")
    time.sleep(SAME)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT and "Traceback" not in output


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert any(found.strip() == line for found in process.stdout)


def test_going_on_with_other_ranks_stages_and_micro_batches(workplace: Path) -> None:
    """Dropout 0. One rank, ZeRO-1; two ranks, ZeRO-3, from the middle of the search into phase 1; one rank, ZeRO-0."""
    recipe = small_recipe(workplace / "text.txt")
    recipe["model"] |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (workplace / "still.yaml").write_text(yaml.safe_dump(recipe))
    status, output = run_training(workplace, "--config", "still.yaml", "--run-dir", "still")
    assert status == 0, output
    content = json.loads((RUN.parent.parent / "ds_configs" / "lamb.json").read_text())
    for stage in (0, 3):
        (workplace / f"stage{stage}.json").write_text(json.dumps(content | {"zero_optimization": {"stage": stage}}))
    run_dir = workplace / "elastic"
    command = [str(RUN), "--config", "still.yaml", "--run-dir", "elastic"]
    process = start([*PLAIN, *command], workplace)
    require_stopped_at_last_step(run_dir, stop_after(process, run_dir, 8, signal.SIGTERM))

    launcher = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port()]
    layout = ["--deepspeed", "stage3.json", "--phase1.micro_batch", "11"]
    process = start([*launcher, *command, *layout], workplace)
    require_stopped_at_last_step(run_dir, stop_after(process, run_dir, 26, signal.SIGUSR1, rank=1))
    assert last_step(run_dir) >= 26

    status, output = run_training(workplace, *command[1:], "--deepspeed", "stage0.json", "--phase2.micro_batch", "3")
    assert status == 0, output
    require_close(run_dir, workplace / "still")
    tickets = [Ticket.load(folder / "ticket.json") for folder in (workplace / "still", run_dir)]
    assert (tickets[0].heads, tickets[0].neurons) == (tickets[1].heads, tickets[1].neurons)


def test_signals_that_come_while_they_are_made_to_be_ignored_are_not_told_of() -> None:
    """Python takes such a one for an error of its own; without our hook it says so dozens of times.

    No run listens again, and to listen where signals were ignored has a race of its own: it is kept from it.
    """
    script = textwrap.dedent("""
        import signal, time
        from earlybert.pretrain.train.stopping import SIGNALS, StopRequest, ignore_signals
        stop, end = StopRequest(), time.monotonic() + 3
        stop.listen()
        print("listening", flush=True)
        while time.monotonic() < end:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            stop.listen()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            ignore_signals()
        print("left", flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        end = time.monotonic() + 2
        while time.monotonic() < end:
            process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"left\n"
    assert process.returncode == 0
