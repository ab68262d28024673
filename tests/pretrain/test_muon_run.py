"""Whole runs with Muon: tickets, growth, checkpoints, and resumes on other layouts."""

import json
import random
import re
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.model import NetworkOutput, network_with
from earlybert.pretrain.network.parameters import moments_of, network_parameters
from earlybert.pretrain.plan.recipe import OptimizerConfig
from earlybert.pretrain.ticket.ticket import Ticket
from earlybert.pretrain.train.engine import StageEngine, build_optimizer
from tests.conftest import BIN, ROOT, RUN, free_port, run_training, small_recipe, start
from tests.in_process import train_here
from tests.pretrain import patched_run
from tests.pretrain.run_files import last_step, metrics, require_close, require_same
from tests.pretrain.small_models import small_config

MUON = str(ROOT / "ds_configs" / "muon.json")
# Moments go through the ticket and the stack.
PLAN = "[search, narrow, phase1, stack, phase1, phase2]"
STEPS = 6 + 10 + 10 + 4


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    """The folder of a recipe without dropout whose ticket grows from two layers to four; masked shares fall."""
    recipe = small_recipe(workplace / "text.txt")
    recipe["model"] |= {"num_layers": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    recipe["plan"] = yaml.safe_load(PLAN)
    recipe["search"] = {"steps": 6, "snapshot_every": 2}
    recipe["narrow"] = {"step_factor": 1.0, "rewind": "searched"}
    recipe["stack"] = {"layers": [2], "until": [0.5], "moments": "copied"}
    recipe["phase2"]["steps"] = 4
    recipe["mask_probability"] = {"from": 0.3, "to": 0.15}
    for phase in ("phase1", "phase2"):
        del recipe[phase]["max_predictions"]  # it would cut the shares
    recipe["optimizer"] = {"muon_learning_rate": 1e-2}
    recipe["keep_checkpoints"] = 20
    recipe["deepspeed"] = MUON
    (workplace / "muon.yaml").write_text(yaml.safe_dump(recipe))
    content = json.loads(Path(MUON).read_text())
    for stage in (0, 2, 3):
        file = content | {"zero_optimization": {"stage": stage}}
        (workplace / f"muon{stage}.json").write_text(json.dumps(file))
    return workplace


RATES: list[tuple[float, float]] = []
"""LAMB's and Muon's learning rate at every step of `trained`."""
MASKED: list[list[tuple[list[int], int]]] = []
"""The lengths of the sequences and the number of masked tokens in every micro-batch of every step of `trained`."""


def watch() -> None:
    """Notes the rates and the masked tokens, and writes checkpoints right after surgery."""
    original, forward = StageEngine.set_learning_rate, StageEngine.forward

    def watched(engine: StageEngine, learning_rate: float) -> None:
        original(engine, learning_rate)
        muon, *others = (group["lr"] for group in engine.optimizer.param_groups)
        assert set(others) == {learning_rate}
        RATES.append((learning_rate, muon))
        MASKED.append([])

    def counted(engine: StageEngine, batch: Batch) -> NetworkOutput:
        if engine.engine.module.training:
            MASKED[-1].append((list(batch.tokens.lengths), len(batch.masked_labels_N)))
        return forward(engine, batch)

    mock.patch.object(StageEngine, "set_learning_rate", watched).start()
    mock.patch.object(StageEngine, "forward", counted).start()
    patched_run.checkpoint_after_surgery()


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    status, output = train_here(place, "--config", "muon.yaml", "--run-dir", "muon", prepare=watch)
    assert status == 0, output
    return place / "muon"


def test_it_learns(trained: Path) -> None:
    curve = [line["masked_loss"] for line in metrics(trained)]
    assert len(curve) == STEPS
    assert curve[25] < curve[0] - 0.3


def test_matrices_have_one_moment(trained: Path) -> None:
    """By their shapes: what maps hidden states to hidden states, in narrow layers too."""
    checkpoint = Checkpoint(list_checkpoints(trained / "checkpoints")[-1])
    weights, moments = checkpoint.weights, checkpoint.moments
    hidden = {name for name in weights if weights[name].ndim == 2 and "embeddings" not in name}
    hidden -= {"next_sentence.weight"}
    assert len(hidden) == 4 * 4 + 2
    assert weights["layers.0.attention.qkv.weight"].shape == (3 * 48, 64)
    assert set(moments["exp_avg"]) == set(weights)
    assert set(moments["exp_avg_sq"]) == set(weights) - hidden
    assert all(moments["exp_avg"][name].any() for name in hidden)
    assert checkpoint.state.optimizer["type"] == "Muon"


@pytest.mark.parametrize("kind", ["Lamb", "Muon", "AdamW"])
def test_the_table_knows_which_moments_a_parameter_has(kind: str) -> None:
    """Checkpoints are read by the table of parameters, and written from what the optimizer has."""
    config = small_config(searching=True)
    model = network_with(config, initial_weights(config, seed=1))
    optimizer = build_optimizer(model, kind, {}, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    assert {name: tuple(sorted(own.keys() - {"step"})) for name, own in state.items()} == {
        name: moments_of(name, kind) for name in network_parameters(config)
    }


def test_rates_keep_their_proportion(trained: Path) -> None:
    """5e-3 and 1e-2 at the peaks of phase 1; as far from them in warm-up, decay and phase 2."""
    assert len(RATES) == STEPS and all(muon == pytest.approx(2 * rate) for rate, muon in RATES)
    assert max(muon for _, muon in RATES) == pytest.approx(1e-2, rel=0.2)


def test_ever_less_is_masked(trained: Path) -> None:
    """0.3 in the first of the 24 steps of both phases, 0.15 in the last; the search has the shares of the first six."""
    steps = [*range(6), *range(10 + 10 + 4)]
    for step, micro_batches in zip(steps, MASKED, strict=True):
        share = 0.3 - 0.15 * step / 23
        assert sum(len(lengths) for lengths, _ in micro_batches) == (50 if step < 20 else 20)
        for lengths, masked in micro_batches:
            assert masked == sum(max(1, int(share * length + 0.5)) for length in lengths), step


def test_momentum_goes_through_the_ticket(trained: Path) -> None:
    """Rows of what is kept, of the searched network's."""
    before = Checkpoint(trained / "checkpoints" / "step-00000006").moments["exp_avg"]
    after = Checkpoint(trained / "after" / "phase1-2-layers" / "step-00000006").moments["exp_avg"]
    ticket = Ticket.load(trained / "ticket.json")
    for layer in range(2):
        name = f"layers.{layer}.feed_forward.intermediate.weight"
        assert torch.equal(after[name], before[name][list(ticket.neurons[layer])]) and after[name].any()
        name = f"layers.{layer}.attention.qkv.weight"
        by_head = before[name].view(3, 4, 16, 64)[:, list(ticket.heads[layer])]
        assert torch.equal(after[name], by_head.reshape(-1, 64)) and after[name].any()


def test_momentum_goes_through_the_stack(trained: Path) -> None:
    before = Checkpoint(trained / "checkpoints" / "step-00000016")
    after = Checkpoint(trained / "after" / "phase1" / "step-00000016")
    assert before.state.optimizer_step == after.state.optimizer_step == 16
    for moment in ("exp_avg", "exp_avg_sq"):
        old, new = before.moments[moment], after.moments[moment]
        for name in new:
            source = re.sub(r"^layers\.(\d)", lambda found: f"layers.{int(found[1]) % 2}", name)
            assert torch.equal(new[name], old[source]), name
        assert any(name.startswith("layers.3.") for name in new)


def test_stopped_and_resumed_it_is_the_same(place: Path, trained: Path) -> None:
    arguments = ["--config", "muon.yaml", "--run-dir", "muon-stopped"]
    for stage, step in (("search", 3), ("phase1-2-layers", 4), ("phase1", 5)):
        status, output = train_here(place, *arguments, prepare=partial(patched_run.stop_once, stage, step))
        assert status == 0 and "stopped as asked" in output, output
    status, output = run_training(place, *arguments)
    assert status == 0, output
    require_same(place / "muon-stopped", trained)


@pytest.mark.slow
def test_kill_9_changes_no_bit(place: Path, trained: Path) -> None:
    run_dir, generator = place / "muon-killed", random.Random(time.time_ns())
    command = [sys.executable, str(RUN), "--config", "muon.yaml", "--run-dir", "muon-killed"]
    reached = 0
    for _ in range(3):
        reached = generator.randint(reached + 1, min(STEPS - 1, reached + 12))
        process = start(command, place)
        while process.poll() is None and last_step(run_dir) < reached:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    status, output = run_training(place, *command[2:])
    assert status == 0, output
    require_same(run_dir, trained)


def test_stages_and_micro_batches_may_change(place: Path, trained: Path) -> None:
    """On one rank: ZeRO-1, then 3, then 0, then 2."""
    arguments = ["--config", "muon.yaml", "--run-dir", "muon-changed"]
    layouts = [
        ([], ("search", 3)),
        (["--deepspeed", "muon3.json", "--phase1.micro_batch", "11"], ("phase1-2-layers", 4)),
        (["--deepspeed", "muon0.json", "--phase1.micro_batch", "50"], ("phase1", 5)),
    ]
    for layout, (stage, step) in layouts:
        status, output = train_here(place, *arguments, *layout, prepare=partial(patched_run.stop_once, stage, step))
        assert status == 0 and "stopped as asked" in output, output
    status, output = run_training(place, *arguments, "--deepspeed", "muon2.json")
    assert status == 0, output
    require_close(place / "muon-changed", trained)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (2, 1), (2, 3), (3, 2)])
def test_ranks_may_change(place: Path, trained: Path, ranks: int, stage: int) -> None:
    """From the middle of the first part of phase 1 on."""
    name = f"muon-{ranks}-{stage}"
    run = Path(shutil.copytree(trained, place / name))
    (run / "DONE").unlink()
    for checkpoint in list_checkpoints(run / "checkpoints"):
        if checkpoint.name > "step-00000013":
            shutil.rmtree(checkpoint)
    file = MUON if stage == 1 else f"muon{stage}.json"
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", free_port())
    arguments = ("--config", "muon.yaml", "--run-dir", name, "--deepspeed", file, "--phase1.micro_batch", "7")
    status, output = run_training(place, *arguments, launcher=launcher)
    assert status == 0 and "step-00000013" in output, output
    require_close(run, trained)


@pytest.mark.parametrize("file", ["lamb.json", "adamw.json"])
def test_a_run_keeps_its_optimizer(place: Path, trained: Path, file: str) -> None:
    run = Path(shutil.copytree(trained, place / f"muon-{file}"))
    (run / "DONE").unlink()
    arguments = ("--config", "muon.yaml", "--run-dir", run.name, "--deepspeed", str(ROOT / "ds_configs" / file))
    status, output = run_training(place, *arguments)
    assert status == 2 and "a run keeps its optimizer" in output and "Traceback" not in output
    assert "'Muon'" in output


def test_bf16_trains(place: Path) -> None:
    arguments = ["--config", "muon.yaml", "--run-dir", "muon-bf16", "--plan", "[phase1]", "--precision", "bf16"]
    arguments += ["--stack.layers", "[]", "--stack.until", "[]", "--model.num_layers", "1"]
    status, output = run_training(place, *arguments, "--export", "[]")
    assert status == 0, output
    curve = [line["masked_loss"] for line in metrics(place / "muon-bf16")]
    assert curve[-1] < curve[0] - 0.3
