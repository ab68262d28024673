"""The one command line: names and suggestions, dashes and underscores, what ends with which status."""

import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from earlybert.core import cli
from earlybert.core.arguments import with_underscores


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and what was printed, an error without its `earlybert: error: `."""
    status = 0
    try:
        cli.main(list(arguments))
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        status = stopped.code
    captured = capsys.readouterr()
    if status:
        assert captured.err.startswith("earlybert: error: ") and captured.err.count("\n") == 1
        return status, captured.err.removeprefix("earlybert: error: ")
    return status, captured.out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, listed = outcome(capsys, "--help")
    assert (status, listed) == outcome(capsys) == outcome(capsys, "-h")
    named = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert named[: len(cli.COMMANDS)] == list(cli.COMMANDS) and "train" in named
    assert all(importlib.util.find_spec(module) for module, _ in cli.COMMANDS.values())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--version") == (0, f"earlybert {importlib.metadata.version('earlybert')}\n")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("repotr", "report"),
        ("checkpiont list run", "checkpoint"),
        ("ticket shwo file", "show"),
        ("checkpoint vrify run", "verify"),
        ("export run --out x --fromat bert", "format"),
        ("report run --ot x", "out"),
        ("plan --phase1.step 3", "phase1.steps"),
        ("train --draw.haed-ratio 0.1", "draw.head_ratio"),
        ("prepare --out x --vocab-sise 200", "vocab_size"),
        ("prepare stats corpus --pgn x", "png"),
    ],
)
def test_what_was_probably_meant_is_said(arguments: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, sentence = outcome(capsys, *arguments.split())
    assert status == 2 and meant in sentence.partition("did you mean")[2]


def test_options_are_never_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ("export run --ou x", "plan --conf quickstart", "train --run x", "prepare --ou x"):
        status, _ = outcome(capsys, *arguments.split())
        assert status == 2, arguments


@pytest.mark.parametrize(
    ("dashes", "underscores"),
    [
        ("plan --phase1.micro-batch 4 --phase1.global-batch=8", "plan --phase1.micro_batch 4 --phase1.global_batch=8"),
        (
            "plan --config bert_large --network-gbit 50 --cluster 1x8 A100-80GB",
            "plan --config bert_large --network_gbit=50 --cluster 1x8 A100-80GB",
        ),
        ("ticket tune --run-dir nowhere", "ticket tune --run_dir nowhere"),
        (
            "ticket tune --config quickstart --device cpu --draw.width-multiple 7",
            "ticket tune --config quickstart --device cpu --draw.width_multiple=7",
        ),
        ("train --run-dir x --draw.head-ratio many", "train --run_dir x --draw.head_ratio=many"),
        ("prepare --out x --max-megabytes many", "prepare --out x --max_megabytes many"),
    ],
)
def test_dashes_and_underscores_are_the_same(
    dashes: str, underscores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = outcome(capsys, *dashes.split())
    assert first == outcome(capsys, *underscores.split()) and "unknown option" not in first[1]


def test_only_names_of_options_are_changed() -> None:
    untouched = ["verify", "my-run", "--out", "a-b", "--", "-h", "--files+", "x-y"]
    assert with_underscores([*untouched, "--run-dir=my-run"]) == [*untouched, "--run_dir=my-run"]


def ended_with(folder: Path, work: str, output: int) -> tuple[int, str]:
    """Exit status and messages of a command that does this."""
    (folder / "busy.py").write_text(f"def main(arguments):\n    {work}\n")
    code = "from earlybert.core import cli; cli.COMMANDS['plan'] = ('busy', ''); cli.main(['plan'])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, stdout=output, stderr=subprocess.PIPE, text=True)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("work", ["print('line\\n' * 100_000)", "print('short')"])
def test_a_closed_output_ends_a_command_quietly(tmp_path: Path, work: str) -> None:
    """As `earlybert plan | head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    assert ended_with(tmp_path, work, writer) == (128 + signal.SIGPIPE, "")
    os.close(writer)


def test_a_closed_output_ends_the_help_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-c", "from earlybert.core import cli; cli.main()", "--help"]
    ended = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


def test_without_an_output_a_command_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it where the output was closed before
    cli.main(["--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["ticket", "--help"])
    assert ended.value.code == 0


def test_what_else_breaks_is_said(tmp_path: Path) -> None:
    ended = ended_with(tmp_path, "raise BrokenPipeError(32, 'Broken pipe')", subprocess.DEVNULL)
    assert ended == (2, "earlybert: error: Broken pipe\n")
