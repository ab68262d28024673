"""What users get wrong: one sentence on standard error, exit status 2, nothing half-written."""

import json
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from earlybert.core import cli
from earlybert.pretrain import run
from earlybert.pretrain.commands.train import parse_arguments
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import FullShape, TicketRule
from tests.conftest import RUN, free_port, small_recipe, start, write_text
from tests.pretrain.signals import signal_until_gone

SHAPE = FullShape(num_layers=2, num_heads=4, head_size=16, intermediate_size=96)
RULE = TicketRule(head_ratio=0.25, neuron_ratio=0.3, width_multiple=8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a good recipe with text."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt", documents=30)
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(small_recipe(tmp_path / "text.txt")))
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, command: str = "run") -> str:
    """Runs the entry point, which must refuse; returns its sentence."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", [command, *arguments])
        (cli.main if command == "earlybert" else run.main)()
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    sentences = [line for line in captured.err.splitlines() if "error" in line]
    assert len(sentences) == 1 and sentences[0].startswith("earlybert: error: "), captured.err
    assert "Traceback" not in captured.err
    assert not Path("run").exists()
    return sentences[0]


def deepspeed_file(place: Path, **changes: object) -> str:
    path = place / "deepspeed.json"
    path.write_text(json.dumps(json.loads(DEFAULT_DEEPSPEED.read_text()) | changes))
    return str(path)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--draw.head_ratio", "1.2"], ["draw.head_ratio", "1.2", "below 1"]),
        (["--draw.neuron_ratio", "-0.1"], ["draw.neuron_ratio", "-0.1", "at least 0"]),
        (["--model.num_heads", "3"], ["model.num_heads", "3", "divide", "64"]),
        (["--draw.width_multiple", "7"], ["draw.width_multiple", "7", "divisor", "96"]),
        (["--phase2.length", "80"], ["phase2.length", "80", "max_position_embeddings", "64"]),
        (["--phase1.steps", "many"], ["phase1.steps", "many", "a whole number"]),
        (["--phase1.step", "3"], ["--phase1.step", "phase1.steps"]),
        (["--plan", "[phase2, phase1]"], ["plan", "phase 2 is the last stage", "not phase1"]),
        (["--plan", "[narrow, phase1]"], ["plan", "search", "--ticket"]),
        (["--deepspeed", "missing.json"], ["missing.json", "cannot be read"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["--corpus.files", "[nothing-*.txt]"], ["nothing-*.txt"]),
        (["--precision", "fp8"], ["precision", "fp8", "bf16"]),
    ],
)
def test_bad_flags(place: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: list[str]) -> None:
    sentence = refusal(capsys, "--config", "good.yaml", "--run-dir", "run", *flags)
    assert all(part in sentence for part in expected), sentence


def test_an_accelerator_that_there_is_not(place: Path) -> None:
    """The script says it in one sentence, though DeepSpeed reads the variable as soon as it is imported."""
    process = start([sys.executable, str(RUN), "--config=good.yaml", "--run-dir=run"], place, DS_ACCELERATOR="gpu")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output == "earlybert: error: DS_ACCELERATOR is 'gpu'; it must be cpu or cuda, or not be set\n"
    assert not (place / "run").exists()


def test_unknown_recipe_key_is_named_with_its_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.yaml").write_text("phase1:\n  length: 32\n  lerning_rate: 1.0\n")
    sentence = refusal(capsys, "--config", "bad.yaml", "--run-dir", "run")
    assert "bad.yaml:3" in sentence and "phase1.lerning_rate" in sentence and "learning_rate" in sentence


def test_global_batch_smaller_than_the_world(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "64", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    sentence = refusal(capsys, "--config", "good.yaml", "--run-dir", "run")
    assert "global_batch is 50" in sentence or "global_batch is 20" in sentence
    assert "64" in sentence


def test_deepspeed_file_with_contradicting_batch_numbers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = {"train_batch_size": 50, "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 2}
    sentence = refusal(
        capsys, "--config", "good.yaml", "--run-dir", "run", "--deepspeed", deepspeed_file(place, **batches)
    )
    assert "deepspeed.json" in sentence and all(str(number) in sentence for number in batches.values())


def test_deepspeed_file_with_unknown_keys(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(
        capsys, "--config", "good.yaml", "--run-dir", "run", "--deepspeed", deepspeed_file(place, gradient_cliping=1.0)
    )
    assert "gradient_cliping" in sentence and "gradient_clipping" in sentence
    nested = deepspeed_file(place, zero_optimization={"stag": 2})
    sentence = refusal(capsys, "--config", "good.yaml", "--run-dir", "run", "--deepspeed", nested)
    assert "zero_optimization.stag" in sentence and "zero_optimization.stage" in sentence


def test_empty_corpus(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "text.txt").write_text("\n\n")
    sentence = refusal(capsys, "--config", "good.yaml", "--run-dir", "run")
    assert "text.txt" in sentence
    assert not list(place.glob("corpora/*"))


def test_text_that_is_not_utf_8(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "text.txt").write_bytes("Grüße aus Köln.\n".encode("latin-1") * 20)
    sentence = refusal(capsys, "--config", "good.yaml", "--run-dir", "run")
    assert "text.txt" in sentence and "UTF-8" in sentence
    assert not list(place.glob("corpora/*"))


def test_vocabulary_without_mask(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop"]))
    sentence = refusal(capsys, "--config", "good.yaml", "--run-dir", "run", "--corpus.tokenizer", "vocab.txt")
    assert "vocab.txt" in sentence and "[MASK]" in sentence


def test_ticket_for_another_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = FullShape(num_layers=3, num_heads=4, head_size=16, intermediate_size=96)
    random_ticket(other, RULE, 0).save(place / "ticket.json")
    sentence = refusal(capsys, "--config", "good.yaml", "--run-dir", "run", "--ticket", "ticket.json")
    assert "ticket.json" in sentence and "num_layers 3" in sentence and "2" in sentence


def test_ticket_with_a_changed_byte(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_ticket(SHAPE, RULE, 0).save(place / "ticket.json")
    text = (place / "ticket.json").read_text()
    (place / "ticket.json").write_text(text.replace('"num_layers": 2', '"num_layers": 3'))
    sentence = refusal(capsys, "--config", "good.yaml", "--run-dir", "run", "--ticket", "ticket.json")
    assert "ticket.json" in sentence and "sha256" in sentence


def test_another_recipe_in_the_same_run_directory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, *_ = parse_arguments(["--config", "good.yaml"])
    recipe.save(place / "begun" / "config.yaml")
    sentence = refusal(capsys, "--run-dir", "begun", "--seed", "43")
    assert "seed is 43" in sentence and "42" in sentence
    again, *_ = parse_arguments(["--run-dir", "begun", "--phase1.micro_batch", "5"])
    assert again.phase("phase1").micro_batch == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], ["nonsense", "prepare"]),
        (["ticket", "show", "missing.json"], ["missing.json", "cannot be read"]),
        (["ticket", "draw", "nowhere", "--out", "t.json"], ["nowhere", "config.yaml"]),
        (["ticket", "random", "--out", "t.json"], ["--config"]),
        (
            ["ticket", "all", "--config", "stacking_base", "--plan", "[phase1,stack,phase1]", "--out", "t.json"],
            ["plan is ['phase1', 'stack', 'phase1'], but grow makes it", "--grow '[]'"],
        ),
        (["checkpoint", "verify", "nowhere"], ["nowhere", "is not a run directory"]),
        (["export", "nowhere", "--out", "x"], ["nowhere", "config.yaml"]),
        (["plan", "--config", "nothing"], ["nothing", "quickstart"]),
        (["plan", "--phase1.lenght", "3"], ["--phase1.lenght", "phase1.length"]),
        (["prepare", "--out", "corpus", "--source", "text"], ["files"]),
    ],
)
def test_bad_commands(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[str]
) -> None:
    sentence = refusal(capsys, *arguments, command="earlybert")
    assert all(part in sentence for part in expected), sentence


def test_exit_status_of_the_real_process(place: Path) -> None:
    """Also with signals that come as soon as the sentence is said."""
    process = start([sys.executable, str(RUN), "--config", "good.yaml", "--model.num_heads", "5"], place)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "error" in line:
            signal_until_gone(psutil.Process(process.pid))
    assert process.wait() == 2
    assert lines[-1].startswith("earlybert: error: model.num_heads is 5")
    assert not any("Traceback" in line for line in lines)


def test_run_directory_that_cannot_be_written_to_ends_all_ranks(workplace: Path) -> None:
    command = [sys.executable, str(RUN), "--config", "small.yaml", "--run-dir", "text.txt/run"]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for process in [start(command, workplace, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in "01"]:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert "run-dir is text.txt/run, which cannot be written to (" in output and "text.txt is a file" in output
        assert "Traceback" not in output
