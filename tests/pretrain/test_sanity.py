"""Runs in which something is made to go wrong stop with a sentence that names it, and leave what was intact."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints, newest_intact
from earlybert.pretrain.plan.plan import full_network
from earlybert.pretrain.plan.recipe import load_recipe
from earlybert.pretrain.train.health import symptom
from tests.conftest import BIN, ROOT, free_port, run_training, start
from tests.in_process import train_here
from tests.pretrain import patched_run
from tests.pretrain.run_files import losses, metrics

STILL = ("--plan=[search]", "--model.hidden_dropout=0", "--model.attention_dropout=0")


def run_patched(workplace: Path, patch: str, run_dir: str, *arguments: str, ranks: int = 1) -> tuple[int, str]:
    """Exit status and output of the small recipe's run with a patch."""
    arguments = ("--config", "small.yaml", "--run-dir", run_dir, *arguments)
    if ranks == 1:
        return train_here(workplace, *arguments, prepare=getattr(patched_run, patch))
    launcher = [str(BIN / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", free_port()]
    process = start([*launcher, patched_run.__file__, patch, *arguments], workplace)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def zero_stage(workplace: Path, stage: int, **sections: dict) -> str:
    """Path of a DeepSpeed file."""
    path = workplace / f"sanity-{stage}-{'-'.join(sections)}.json"
    content = json.loads((ROOT / "ds_configs" / "lamb.json").read_text())
    path.write_text(json.dumps(content | {"zero_optimization": {"stage": stage}} | sections))
    return str(path)


def error_line(output: str) -> str:
    """The one sentence, of however many ranks."""
    lines = {line for line in output.splitlines() if line.startswith("earlybert: error: ")}
    assert len(lines) == 1 and "Traceback (most recent call last)" not in output.split("earlybert: error")[0], output
    return lines.pop()


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize(
    ("patch", "symptom_text", "tensor", "micro_batch"),
    [
        ("poison_activation", "the loss became nan", "output of layers.1.feed_forward.intermediate", 1),
        ("poison_gradient", "the gradient norm became", "gradient of layers.0.attention.output.weight", 2),
    ],
)
def test_nan_names_step_samples_and_tensor(
    finished_run: Path, workplace: Path, patch: str, symptom_text: str, tensor: str, micro_batch: int, stage: int
) -> None:
    name = f"{patch}-{stage}"
    arguments = ("--checkpoint_every", "2", "--deepspeed", zero_stage(workplace, stage))
    status, output = run_patched(workplace, patch, name, *arguments)
    assert status == 2, output
    error = error_line(output)
    assert symptom_text in error and "at step 5 of search" in error
    assert f"first non-finite tensor is the {tensor} (nan)" in error
    assert f"in micro-batch {micro_batch} of rank 0" in error
    # The micro-batch of 16 in question, found independently: the loader's order is that of the corpus' permutation.
    named = re.search(r"samples ([\d, ]+);", error)
    assert named is not None, error
    assert list(map(int, named[1].split(", "))) == expected_samples(workplace, name, 4 * 50 + 16 * micro_batch, 16)
    newest = newest_intact(workplace / name / "checkpoints", pytest.fail)
    assert newest is not None and newest.state.global_step == 4
    assert all(newest.weights[weight].isfinite().all() for weight in newest.weights)
    assert losses(workplace / name) == losses(workplace / name)[:4]


def expected_samples(workplace: Path, name: str, position: int, count: int) -> list[int]:
    from earlybert.data_prep.samples.corpus import Corpus
    from earlybert.data_prep.samples.order import sample_order

    recipe = load_recipe(workplace / name / "config.yaml", [])
    size = len(Corpus.open(Path(recipe.data or "")).samples("train", 32))
    epoch, first = divmod(position, size)
    assert first + count <= size, "the step lies in one epoch"
    return sample_order(size, seed=42, epoch=epoch, first=0, last=size)[first : first + count].tolist()


def test_a_run_that_diverges_stops(workplace: Path) -> None:
    """A learning rate that is absurd, and nothing patched."""
    recipe = ("--phase1.learning_rate", "300", "--phase1.warmup", "0.05", "--checkpoint_every", "1")
    status, output = run_training(workplace, "--config", "small.yaml", "--run-dir", "diverged", *recipe)
    assert status == 2, output
    error = error_line(output)
    assert re.search(
        r"the loss (exploded to [\d.]+ \(guessing would cost [\d.]+\)|became \w+) at step \d+ of search", error
    )
    assert "tensor is the" in error and "phase1.learning_rate 300 may be too high" in error


def test_symptoms(workplace: Path) -> None:
    config = full_network(load_recipe(workplace / "small.yaml", []), 1000, "nsp")
    uniform = math.log(1000) + math.log(2)
    assert symptom({"loss": 2.9 * uniform, "gradient_norm": 1e9}, config) is None
    assert "exploded" in (symptom({"loss": 3.1 * uniform, "gradient_norm": 1.0}, config) or "")
    assert "loss became inf" in (symptom({"loss": math.inf, "gradient_norm": 1.0}, config) or "")
    assert "gradient norm became nan" in (symptom({"loss": 1.0, "gradient_norm": math.nan}, config) or "")


def test_ranks_that_differ_are_noticed_before_the_next_checkpoint(finished_run: Path, workplace: Path) -> None:
    status, output = run_patched(workplace, "flip_a_weight", "flipped", ranks=2)
    assert status != 0
    error = error_line(output)
    assert "layers.1.feed_forward.output.weight: the weights of rank 1 are not those of rank 0" in error
    assert list_checkpoints(workplace / "flipped" / "checkpoints") == []


def test_fp16_skips_updates_that_overflow_under_zero_3(finished_run: Path, workplace: Path) -> None:
    """fp16's logic on a CPU: the first scales overflow, and those updates don't count. ZeRO-1 is in test_gpu.py."""
    file = zero_stage(workplace, 3, fp16={"initial_scale_power": 24, "hysteresis": 1})
    status, output = run_patched(workplace, "fp16_on_cpu", "half-3", "--deepspeed", file, *STILL)
    assert status == 0, output
    half = metrics(workplace / "half-3")
    state = Checkpoint(list_checkpoints(workplace / "half-3" / "checkpoints")[-1]).state
    skipped = state.position // 50 - 20
    assert skipped > 0 and state.step == state.optimizer_step == 20
    assert state.loss_scale["cur_scale"] == 2.0 ** (24 - skipped)
    assert [line["step"] for line in half] == list(range(1, 21))
    assert half[-1]["loss"] < half[0]["loss"] - 0.1


def test_fp16_that_always_overflows_stops(finished_run: Path, workplace: Path) -> None:
    file = zero_stage(workplace, 1, fp16={"initial_scale_power": 60, "hysteresis": 1})
    arguments = ("--max_skipped_updates", "6", "--deepspeed", file, *STILL)
    status, output = run_patched(workplace, "fp16_on_cpu", "overflown", *arguments)
    assert status == 2, output
    assert "after 6 skipped updates in a row at step 1 of search; the first non-finite tensor is the" in error_line(
        output
    )


def test_fp16_equals_fp32_to_its_precision(finished_run: Path, workplace: Path) -> None:
    status, output = run_patched(workplace, "fp16_on_cpu", "half", *STILL)
    assert status == 0, output
    status, output = run_training(workplace, "--config", "small.yaml", "--run-dir", "full", *STILL)
    assert status == 0, output
    half, whole = (np.array([loss for _, loss in losses(workplace / name)]) for name in ("half", "full"))
    np.testing.assert_allclose(half, whole, rtol=1e-3)
