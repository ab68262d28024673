"""The whole method through its real entry: what a run leaves behind, resuming, launchers, exports."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.ticket.ticket import Ticket
from tests.conftest import BIN, RUN, free_port, run_training, start
from tests.pretrain.run_files import events_of, last_step, losses, metrics
from tests.pretrain.signals import end_under_signals


def test_run_directory_holds_what_it_should(finished_run: Path) -> None:
    for name in (
        "config.yaml",
        "plan.json",
        "ticket.json",
        "metrics.jsonl",
        "report.json",
        "DONE",
        "search/mask_distance.json",
    ):
        assert (finished_run / name).is_file(), name
    assert [step for step, _ in losses(finished_run)] == list(range(1, 51))
    stages = [line["stage"] for line in metrics(finished_run)]
    assert stages == ["search"] * 20 + ["phase1"] * 20 + ["phase2"] * 10
    assert len(list_checkpoints(finished_run / "checkpoints")) == 3
    ticket = Ticket.load(finished_run / "ticket.json")
    assert [len(heads) for heads in ticket.heads] == [3, 3]
    narrow = Checkpoint(list_checkpoints(finished_run / "checkpoints")[-1])
    assert narrow.weights["layers.0.attention.qkv.weight"].shape == (3 * 3 * 16, 64)
    assert narrow.weights["layers.1.feed_forward.intermediate.weight"].shape == (len(ticket.neurons[1]), 64)


def test_training_learns(finished_run: Path) -> None:
    """Even 50 steps must leave the loss of guessing at random, log(vocabulary), behind."""
    report = json.loads((finished_run / "report.json").read_text())
    assert report["validation"]["masked_loss"] < math.log(300) - 0.2


def test_tensorboard_has_every_curve_once(finished_run: Path) -> None:
    events = events_of(finished_run)
    for name in (
        "loss/train (nats)",
        "predictions/train, masked (share that is right)",
        "optimizer/learning rate (factor)",
        "optimizer/gradient norm (nats)",
        "speed/tokens (1 per second)",
    ):
        series = events.Scalars(name)
        assert [event.step for event in series] == list(range(1, 51)), name
    written = {line["global_step"]: line["loss"] for line in metrics(finished_run)}
    assert all(event.value == pytest.approx(written[event.step]) for event in events.Scalars("loss/train (nats)"))
    assert [event.step for event in events.Scalars("search/mask distance of neurons (share of the units)")] == [10, 20]
    assert [event.step for event in events.Histograms("search/coefficients of heads (values)")] == [0, 10, 20]


def test_learning_rate_and_l1_follow_the_recipe(finished_run: Path) -> None:
    search = [line for line in metrics(finished_run) if line["stage"] == "search"]
    # Warm-up to 5e-3 over 30 % of phase 1's 20 steps; the first L1 term is lambda times the number of coefficients.
    assert search[2]["learning_rate"] == pytest.approx(5e-3 * 3 / 6)
    assert search[0]["l1"] == pytest.approx(1e-4 * (2 * 4 + 2 * 96), rel=1e-6)
    assert all(line["l1"] == 0 for line in metrics(finished_run) if line["stage"] != "search")


def test_a_second_call_says_that_it_is_done(finished_run: Path, workplace: Path) -> None:
    before = (finished_run / "metrics.jsonl").read_bytes()
    status, output = run_training(workplace, "--config", "small.yaml", "--run-dir", "finished")
    assert status == 0 and "is done" in output, output
    assert (finished_run / "metrics.jsonl").read_bytes() == before


def test_kill_9_at_random_steps_changes_no_bit(finished_run: Path, workplace: Path) -> None:
    """Dropout is on. Killed three times, whenever a random step has been logged, then left to finish."""
    run_dir = workplace / "killed"
    generator = random.Random(time.time_ns())
    command = [sys.executable, str(RUN), "--config", "small.yaml", "--run-dir", "killed"]
    reached = 0
    for _ in range(3):
        reached = generator.randint(reached + 1, min(49, reached + 20))
        process = start(command, workplace)
        while process.poll() is None and last_step(run_dir) < reached:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    status, output = run_training(workplace, "--config", "small.yaml", "--run-dir", "killed")
    assert status == 0, output
    assert losses(run_dir) == losses(finished_run)
    assert (run_dir / "ticket.json").read_bytes() == (finished_run / "ticket.json").read_bytes()
    ends = [Checkpoint(list_checkpoints(run / "checkpoints")[-1]) for run in (run_dir, finished_run)]
    assert all(torch.equal(ends[0].weights[name], ends[1].weights[name]) for name in ends[0].weights)


def test_deepspeed_launcher_gives_the_same_losses(finished_run: Path, workplace: Path) -> None:
    """Plain python and the deepspeed launcher: dropout on, bit for bit; signals at the end change no exit status."""
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", "1", "--master_port", free_port()]
    command = [*launcher, str(RUN), "--config", "small.yaml", "--run-dir", "launched", "--plan", "[search]"]
    end_under_signals(start(command, workplace), workplace / "launched")
    assert losses(workplace / "launched") == losses(finished_run)[:20]


def test_bert_export_needs_only_transformers(finished_run: Path, tmp_path: Path) -> None:
    """A process that cannot import this package loads the padded form and gives the narrow model's logits."""
    from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertForPreTraining

    narrow = EarlyBertForPreTraining.from_pretrained(finished_run / "export" / "earlybert").eval()
    ids = torch.randint(5, narrow.config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.no_grad():
        expected = narrow(ids, mask)
    torch.save({"ids": ids, "mask": mask}, tmp_path / "in.pt")
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "earlybert":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoTokenizer, BertForPreTraining
torch.set_float32_matmul_precision("highest")
model, info = BertForPreTraining.from_pretrained({str(finished_run / "export" / "bert")!r}, output_loading_info=True)
assert not any(info["missing_keys"]) and not any(info["unexpected_keys"]), info
AutoTokenizer.from_pretrained({str(finished_run / "export" / "bert")!r})
batch = torch.load({str(tmp_path / "in.pt")!r}, weights_only=True)
with torch.no_grad():
    out = model.eval()(batch["ids"], attention_mask=batch["mask"])
torch.save([out.prediction_logits, out.seq_relationship_logits], {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    logits, relationship = torch.load(tmp_path / "out.pt", weights_only=True)
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected.prediction_logits[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(relationship, expected.seq_relationship_logits, rtol=0, atol=1e-5)


def test_searched_weights_can_be_carried_on(finished_run: Path, workplace: Path) -> None:
    """Without rewinding, the narrow stage starts far below the loss of fresh weights."""
    arguments = ("--plan", "[search, narrow, phase1]", "--narrow.rewind", "searched", "--export", "[]")
    status, output = run_training(workplace, "--config", "small.yaml", "--run-dir", "carried", *arguments)
    assert status == 0, output
    carried, rewound = (
        next(line for line in metrics(run) if line["stage"] == "phase1")
        for run in (workplace / "carried", finished_run)
    )
    searched = [line for line in metrics(finished_run) if line["stage"] == "search"][-1]
    assert abs(carried["masked_loss"] - searched["masked_loss"]) < abs(carried["masked_loss"] - rewound["masked_loss"])
    assert carried["masked_loss"] < rewound["masked_loss"]


def test_search_stops_early_when_masks_agree(workplace: Path) -> None:
    arguments = ("--plan", "[search]", "--search.stop_window", "2", "--search.stop_threshold", "1.0", "--export", "[]")
    status, output = run_training(
        workplace, "--config", "small.yaml", "--run-dir", "early", "--search.snapshot_every", "4", *arguments
    )
    assert status == 0, output
    # Recordings after updates 4, 8 and 12: the third is the first with two before it.
    assert len(losses(workplace / "early")) == 12
    assert Ticket.load(workplace / "early" / "ticket.json").source.step == 12
    assert json.loads((workplace / "early" / "report.json").read_text())["steps"] == {"search": 12}


def test_adamw_and_bf16_train(workplace: Path) -> None:
    arguments = ("--plan", "[phase1]", "--phase1.learning_rate", "1e-3", "--precision", "bf16", "--export", "[]")
    file = str(RUN.parent.parent / "ds_configs" / "adamw.json")
    status, output = run_training(
        workplace, "--config", "small.yaml", "--run-dir", "adamw", "--deepspeed", file, *arguments
    )
    assert status == 0, output
    curve = [line["masked_loss"] for line in metrics(workplace / "adamw")]
    assert curve[-1] < curve[0] - 0.2


def test_packed_rows_train_the_same_in_any_micro_batch(workplace: Path) -> None:
    common = ["--config", "small.yaml", "--plan", "[phase1]", "--packed_rows", "true", "--corpus.packing", "true"]
    common += ["--corpus.short_sequence_probability", "0.8", "--phase1.global_batch", "20", "--phase1.steps", "6"]
    common += ["--model.hidden_dropout", "0", "--model.attention_dropout", "0"]
    for micro_batch in ("20", "7"):
        options = [*common, "--phase1.micro_batch", micro_batch, "--run-dir", f"packed-{micro_batch}"]
        status, output = run_training(workplace, *options)
        assert status == 0, output
    first, second = (dict(losses(workplace / f"packed-{micro_batch}")) for micro_batch in ("20", "7"))
    assert second == pytest.approx(first, rel=1e-5)


def test_packed_rows_of_a_corpus_without_packing_are_refused(workplace: Path) -> None:
    options = ["--config", "small.yaml", "--packed_rows", "true", "--run-dir", "unpacked"]
    status, output = run_training(workplace, *options)
    assert status == 2 and "packing" in output and "Traceback" not in output
