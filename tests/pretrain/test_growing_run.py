"""Runs that grow in depth, through the real entry: alone and with tickets, stopped anywhere, in other layouts."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.checkpoint.trained import newest
from earlybert.pretrain.commands.report import main as report_command
from earlybert.pretrain.ticket.ticket import Ticket
from tests.conftest import BIN, RUN, free_port, run_training, small_recipe, start
from tests.in_process import train_here
from tests.pretrain import patched_run
from tests.pretrain.run_files import metrics, require_same

TICKET_THEN_STACK = "[search, narrow, phase1, stack, phase1, stack, phase1, phase2]"
STACK_THEN_TICKET = "[phase1, stack, phase1, stack, search, narrow, phase1]"


@pytest.fixture(scope="module")
def growing(workplace: Path) -> Path:
    """The folder of a recipe that grows from one to two to four layers; dropout is on."""
    recipe = small_recipe(workplace / "text.txt")
    recipe["model"]["num_layers"] = 4
    recipe["search"] = {"steps": 4, "snapshot_every": 2}
    recipe["stack"] = {"layers": [1, 2], "until": [0.25, 0.5]}
    recipe["phase2"]["steps"] = 4
    recipe["keep_checkpoints"] = 20
    (workplace / "growing.yaml").write_text(yaml.safe_dump(recipe))
    return workplace


@pytest.fixture(scope="module")
def ticket_then_stack(growing: Path) -> Path:
    arguments = ("--config", "growing.yaml", "--run-dir", "ticket-stack", "--plan", TICKET_THEN_STACK)
    status, output = run_training(growing, *arguments)
    assert status == 0, output
    return growing / "ticket-stack"


def test_a_shallow_ticket_grows(ticket_then_stack: Path) -> None:
    """The ticket has one layer, the trained network and its exports four of the same widths."""
    stages = {line["stage"]: line for line in metrics(ticket_then_stack)}
    assert list(stages) == ["search", "phase1-1-layers", "phase1-2-layers", "phase1", "phase2"]
    assert [line["step"] for line in stages.values()] == [4, 5, 5, 10, 4]
    ticket = Ticket.load(ticket_then_stack / "ticket.json")
    assert ticket.model.num_layers == 1
    report = json.loads((ticket_then_stack / "report.json").read_text())
    assert report["narrow"]["heads"] == [3] * 4 and report["narrow"]["neurons"] == [len(ticket.neurons[0])] * 4
    trained = newest(ticket_then_stack)
    assert trained is not None and trained.config.kept_neurons is not None
    assert [set(kept) for kept in trained.config.kept_neurons] == [set(ticket.neurons[0])] * 4
    assert trained.network().config.ticket_sha256 == ticket.sha256
    assert sum(p.numel() for p in trained.network().parameters()) == sum(t.numel() for t in trained.weights.values())


def test_exports_of_a_grown_ticket_agree(ticket_then_stack: Path) -> None:
    from transformers import BertForPreTraining

    from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertForPreTraining

    narrow = EarlyBertForPreTraining.from_pretrained(ticket_then_stack / "export" / "earlybert").eval()
    bert = BertForPreTraining.from_pretrained(ticket_then_stack / "export" / "bert").eval()
    assert bert.config.num_hidden_layers == 4 and narrow.config.heads == [3] * 4
    ids = torch.randint(5, narrow.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = narrow(ids), bert(ids)
    torch.testing.assert_close(found.prediction_logits, expected.prediction_logits, rtol=0, atol=1e-5)


def test_learning_rate_is_one_curve_through_the_stacks(ticket_then_stack: Path) -> None:
    """20 steps up to 5e-3 over 30 % and down as the square root, PolyWarmUp's only jump at the end of warm-up."""
    grown = [line["learning_rate"] for line in metrics(ticket_then_stack) if line["stage"].startswith("phase1")]
    shares = [(step + 1) / 20 for step in range(20)]
    expected = [5e-3 * (share / 0.3 if share < 0.3 else (1 - share) ** 0.5) for share in shares]
    assert grown == pytest.approx(expected)


def stop_and_go_on(growing: Path, name: str, stops: list[str]) -> Path:
    """The run of `ticket_then_stack`, stopped in every place and started again."""
    arguments = ["--config", "growing.yaml", "--run-dir", name, "--plan", TICKET_THEN_STACK]
    for stop in stops:
        stage, step = stop.split(":")
        status, output = train_here(growing, *arguments, prepare=partial(patched_run.stop_once, stage, int(step)))
        assert status == 0 and f"stopped as asked at step {step} of {stage};" in output, output
    status, output = run_training(growing, *arguments)
    assert status == 0, output
    return growing / name


def test_resumes_right_after_surgery(ticket_then_stack: Path, growing: Path) -> None:
    """With everything gone that came after the first part of phase 1, 4 + 5 steps, the run begins with the stacking."""
    run = Path(shutil.copytree(ticket_then_stack, growing / "cut-off"))
    (run / "DONE").unlink()
    for checkpoint in list_checkpoints(run / "checkpoints"):
        if checkpoint.name > "step-00000009":
            shutil.rmtree(checkpoint)
    arguments = ("--config", "growing.yaml", "--run-dir", "cut-off", "--plan", TICKET_THEN_STACK)
    status, output = run_training(growing, *arguments)
    assert status == 0 and "step-00000009" not in output, output
    assert "phase1-2-layers: 5 steps" in output and "phase1-1-layers: 5 steps" not in output
    require_same(run, ticket_then_stack)


@pytest.mark.slow
def test_resumes_in_the_middle_of_every_stage(ticket_then_stack: Path, growing: Path) -> None:
    stops = ["search:1", "phase1-1-layers:0", "phase1-1-layers:3", "phase1-2-layers:2", "phase1:0", "phase1:6"]
    require_same(stop_and_go_on(growing, "stopped-often", [*stops, "phase2:2"]), ticket_then_stack)


def test_a_grown_network_is_searched_and_cut(growing: Path) -> None:
    """The search goes on where the last stack left off; the narrow network goes on where the search ended."""
    arguments = ("--plan", STACK_THEN_TICKET, "--narrow.rewind", "searched", "--export", "[bert]")
    status, output = run_training(growing, "--config", "growing.yaml", "--run-dir", "stack-ticket", *arguments)
    assert status == 0, output
    run = growing / "stack-ticket"
    lines = metrics(run)
    assert [line["stage"] for line in lines] == (
        ["phase1-1-layers"] * 5 + ["phase1-2-layers"] * 5 + ["search"] * 4 + ["phase1"] * 6
    )
    ticket = Ticket.load(run / "ticket.json")
    assert ticket.model.num_layers == 4 and ticket.source.step == 4
    assert all(
        line["l1"] == pytest.approx(1e-4 * 4 * (4 + 96), rel=0.02) for line in lines if line["stage"] == "search"
    )
    # Fresh weights would be back at the first loss.
    assert lines[14]["masked_loss"] < lines[0]["masked_loss"] - 0.5 * (
        lines[0]["masked_loss"] - lines[13]["masked_loss"]
    )
    report_command([str(run), "--out", str(run / "page")])
    page = (run / "page" / "report.md").read_text()
    assert "stacked from 1 to 2 to 4 layers" in page and "phase1-2-layers" in page
    assert "time_saved" in json.loads((run / "report.json").read_text())


LAYOUTS = [
    ("copied", 3, "stacked"),
    pytest.param("copied", 1, "interleaved", marks=pytest.mark.slow),
    pytest.param("reset", 1, "stacked", marks=pytest.mark.slow),
    pytest.param("reset", 3, "interleaved", marks=pytest.mark.slow),
    pytest.param("copied", 3, "identity", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("moments", "stage", "order"), LAYOUTS)
def test_what_the_engine_starts_from_is_exact(growing: Path, moments: str, stage: int, order: str) -> None:
    """Two ranks: masters, moments and step count right after the surgery, against the shallow network's on disk."""
    deepspeed = json.loads((RUN.parent.parent / "ds_configs" / "lamb.json").read_text())
    (growing / "zero.json").write_text(json.dumps(deepspeed | {"zero_optimization": {"stage": stage}}))
    name = f"{moments}-{stage}-{order}"
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port())
    arguments = ["--config", "growing.yaml", "--run-dir", name, "--deepspeed", "zero.json", "--keep_checkpoints", "9"]
    arguments += ["--plan", "[phase1, stack, phase1]", "--stack.layers", "[2]", "--stack.until", "[0.5]"]
    arguments += ["--stack.copy", order, "--stack.moments", moments, "--phase1.steps", "6", "--export", "[]"]
    process = start([*launcher, patched_run.__file__, "checkpoint_after_surgery", *arguments], growing)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    before = Checkpoint(growing / name / "checkpoints" / "step-00000003")
    after = Checkpoint(growing / name / "after" / "phase1" / "step-00000003")
    assert before.state.finished and before.state.optimizer_step == 3
    assert after.state.optimizer_step == (3 if moments == "copied" else 0)
    orders: dict[str, list[int | None]] = {
        "stacked": [0, 1, 0, 1],
        "interleaved": [0, 0, 1, 1],
        "identity": [0, 1, None, None],
    }
    assert len(after.weights) == len(before.weights) + 2 * sum(each.startswith("layers.0.") for each in before.weights)
    for each in after.weights:
        source: str | None = each
        if each.startswith("layers."):
            _, layer, part = each.split(".", 2)
            old = orders[order][int(layer)]
            if order == "identity" and part.startswith("feed_forward.LayerNorm"):
                old = [0, None, None, 1][int(layer)]  # what ends the encoder goes on ending it
            source = None if old is None else f"layers.{old}.{part}"
        for kind, found in (("master", after.weights), *after.moments.items()):
            tensor = found[each]
            if kind != "master" and (moments == "reset" or source is None):
                assert not torch.count_nonzero(tensor), (kind, each)
            elif source is not None:
                expected = before.weights[source] if kind == "master" else before.moments[kind][source]
                assert torch.equal(tensor, expected), (kind, each)
            elif ".output." in each:
                assert not torch.count_nonzero(tensor), each


@pytest.mark.slow
def test_stackingbert_recipe_on_a_small_scale(growing: Path) -> None:
    """The paper's recipe with its optimizer, a thousandth of its width and 40 of its 400,000 steps."""
    small = ["--model.hidden_size", "32", "--model.num_heads", "4", "--model.intermediate_size", "64"]
    small += ["--model.max_position_embeddings", "32", "--corpus.vocab_size", "300", "--corpus.source", "text"]
    small += ["--corpus.files", f"[{growing / 'text.txt'}]", "--corpus.validation_fraction", "0.1"]
    small += ["--phase1.length", "32", "--phase1.max_predictions", "5", "--phase1.global_batch", "32"]
    small += ["--phase1.steps", "40", "--phase1.micro_batch", "16", "--validation.samples", "40", "--log_every", "1"]
    adamw = str(RUN.parent.parent / "ds_configs" / "adamw.json")
    status, output = run_training(
        growing, "--config", "stacking_base", "--run-dir", "paper", "--deepspeed", adamw, "--export", "[bert]", *small
    )
    assert status == 0, output
    lines = metrics(growing / "paper")
    assert [line["stage"] for line in lines] == ["phase1-3-layers"] * 5 + ["phase1-6-layers"] * 7 + ["phase1"] * 28
    assert [lines[step]["learning_rate"] for step in (0, 4, 11, 39)] == pytest.approx([8e-4, 5.5e-4, 3e-4, 1.95e-4])
    trained = newest(growing / "paper")
    assert trained is not None and trained.config.num_hidden_layers == 12
    for layer in (3, 6, 9):  # copies that have been trained apart
        one, two = (trained.weights[f"layers.{each}.attention.qkv.weight"] for each in (0, layer))
        assert float((one - two).abs().max()) > 0
