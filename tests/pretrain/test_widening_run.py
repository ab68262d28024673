"""Runs that end wide after narrow, through the real entry: stopped anywhere, other layouts, reports and exports."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.checkpoint.trained import newest
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.parameters import facts_of
from earlybert.pretrain.ticket.ticket import Ticket
from tests.conftest import BIN, ROOT, free_port, run_training, small_recipe, start
from tests.in_process import train_here
from tests.pretrain import patched_run
from tests.pretrain.run_files import metrics, require_same

GROW = [{"until": 0.25, "layers": 2, "width": "ticket"}, {"until": 0.5, "layers": 4}, {"width": "full"}]
STAGES = ["search", "phase1-2-layers", "phase1-narrow", "phase1", "phase2"]


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    """The folder of a recipe whose ticket of two layers grows to four, then gets all units back; dropout is on."""
    recipe = small_recipe(workplace / "text.txt")
    recipe["grow"] = GROW
    recipe["model"]["num_layers"] = 4
    recipe["search"] = {"steps": 4, "snapshot_every": 2}
    recipe |= {"stack": {"moments": "copied"}, "widen": {"moments": "copied"}}
    recipe["phase2"]["steps"] = 4
    recipe["keep_checkpoints"] = 20
    (workplace / "wide.yaml").write_text(yaml.safe_dump(recipe))
    return workplace


@pytest.fixture(scope="module")
def widened(place: Path) -> Path:
    status, output = run_training(place, "--config", "wide.yaml", "--run-dir", "wide")
    assert status == 0, output
    assert "network at the end     full width again" in output
    return place / "wide"


def test_its_stages_and_losses(widened: Path) -> None:
    """The loss goes on where the narrow network left it: fresh weights would be back at the first one."""
    stages = {line["stage"]: line for line in metrics(widened)}
    assert list(stages) == STAGES and [line["step"] for line in stages.values()] == [4, 5, 5, 10, 4]
    curve = [(line["stage"], line["masked_loss"]) for line in metrics(widened)]
    values = {stage: [loss for name, loss in curve if name == stage] for stage in STAGES}
    first, narrow, wide = values["phase1-2-layers"][0], values["phase1-narrow"][-1], values["phase1"][0]
    assert abs(wide - narrow) < 0.5 * (first - narrow) and values["phase1"][-1] < first


def test_it_is_reported_and_exported_whole(widened: Path) -> None:
    from transformers import BertForPreTraining

    from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertForPreTraining

    report = json.loads((widened / "report.json").read_text())
    assert report["network"]["heads"] == [4] * 4 and report["narrow"]["heads"] == [3] * 4
    page = (widened / "report.md").read_text()
    assert "ticket of it is trained first, then the full network, stacked from 2 to 4 layers. Steps made" in page
    assert "| widen | give cut heads and neurons back" in page
    ours = EarlyBertForPreTraining.from_pretrained(widened / "export" / "earlybert").eval()
    bert = BertForPreTraining.from_pretrained(widened / "export" / "bert").eval()
    assert ours.config.kept_heads is None and ours.config.ticket_sha256 is None
    ids = torch.randint(5, ours.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = ours(ids).prediction_logits, bert(ids).prediction_logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_came_back_has_been_trained(widened: Path) -> None:
    """On the way in and on the way out."""
    trained, ticket = newest(widened), Ticket.load(widened / "ticket.json")
    assert trained is not None
    fresh = initial_weights(trained.config, trained.recipe.seed)
    for layer in range(4):
        (neuron, *_) = sorted(set(range(96)) - set(ticket.neurons[layer % 2]))
        into, out = (f"layers.{layer}.feed_forward.{part}.weight" for part in ("intermediate", "output"))
        assert float((trained.weights[into][neuron] - fresh[into][neuron]).abs().max()) > 0
        assert float(trained.weights[out][:, neuron].abs().min()) > 0


@pytest.mark.parametrize("step", [14, 21], ids=["at the border", "in the middle"])
def test_resumes_bit_for_bit(widened: Path, place: Path, step: int) -> None:
    """With everything gone that came after 4 + 5 + 5 steps, and after the last checkpoint of the wide part."""
    run = Path(shutil.copytree(widened, place / f"cut-{step}"))
    (run / "DONE").unlink()
    for checkpoint in list_checkpoints(run / "checkpoints"):
        if checkpoint.name > f"step-{step:08d}":
            shutil.rmtree(checkpoint)
    status, output = run_training(place, "--config", "wide.yaml", "--run-dir", run.name)
    assert status == 0 and (f"step-{step:08d}: step 7" in output) == (step == 21), output
    require_same(run, widened)


@pytest.mark.slow
def test_resumes_wherever_it_is_stopped(widened: Path, place: Path) -> None:
    for stop in ("phase1-narrow:0", "phase1-narrow:3", "phase1:0", "phase1:6", "phase2:2"):
        stage, step = stop.split(":")
        arguments = ("--config", "wide.yaml", "--run-dir", "stopped")
        status, output = train_here(place, *arguments, prepare=partial(patched_run.stop_once, stage, int(step)))
        assert status == 0 and f"stopped as asked at step {step} of {stage};" in output, output
    status, output = run_training(place, "--config", "wide.yaml", "--run-dir", "stopped")
    assert status == 0, output
    require_same(place / "stopped", widened)


LAYOUTS = [
    ("copied", 3, "lamb"),
    pytest.param("copied", 1, "lamb", marks=pytest.mark.slow),
    pytest.param("reset", 1, "lamb", marks=pytest.mark.slow),
    pytest.param("reset", 3, "lamb", marks=pytest.mark.slow),
    pytest.param("copied", 1, "muon", marks=pytest.mark.slow),
    pytest.param("copied", 3, "muon", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("moments", "stage", "optimizer"), LAYOUTS)
def test_what_the_engine_starts_from_is_exact(place: Path, moments: str, stage: int, optimizer: str) -> None:
    """Two ranks: masters, moments and step count right after widening, against the narrow network's on disk."""
    deepspeed = json.loads((ROOT / "ds_configs" / f"{optimizer}.json").read_text())
    name = f"wide-{moments}-{stage}-{optimizer}"
    (place / f"{name}.json").write_text(json.dumps(deepspeed | {"zero_optimization": {"stage": stage}}))
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port())
    arguments = ["--config", "wide.yaml", "--run-dir", name, "--deepspeed", f"{name}.json", "--export", "[]"]
    arguments += ["--plan", "[search, narrow, phase1]", "--grow", "[{until: 0.5}, {width: full}]"]
    arguments += ["--phase1.steps", "6", "--model.num_layers", "2", "--widen.moments", moments]
    process = start([*launcher, patched_run.__file__, "checkpoint_after_surgery", *arguments], place)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    before = Checkpoint(place / name / "checkpoints" / "step-00000007")
    after = Checkpoint(place / name / "after" / "phase1" / "step-00000007")
    assert before.state.finished and before.state.optimizer_step == 3
    assert after.state.optimizer_step == (3 if moments == "copied" else 0)
    ticket, trained = Ticket.load(place / name / "ticket.json"), newest(place / name)
    assert trained is not None and trained.config.kept_heads is None
    fresh = initial_weights(trained.config, trained.recipe.seed)
    for each in after.weights:
        unit, axis = facts_of(each).unit, facts_of(each).unit_axis
        for kind, old, new in (
            ("master", before.weights, after.weights),
            *((moment, before.moments[moment], after.moments[moment]) for moment in after.moments),
        ):
            if each not in new:  # Muon keeps one moment of its matrices
                assert optimizer == "muon" and kind == "exp_avg_sq" and each not in old
                continue
            expected = fresh[each].clone() if kind == "master" and axis == 0 else torch.zeros_like(fresh[each])
            if kind != "master" and moments == "reset":
                pass
            elif unit is None or axis is None:
                expected = old[each]
            else:
                kept = getattr(ticket, unit)[int(each.split(".")[1])]
                size, units = (16, 4) if unit == "heads" else (1, 96)
                blocks = expected.shape[axis] // (size * units)
                places = [(b * units + u) * size + d for b in range(blocks) for u in kept for d in range(size)]
                expected.index_copy_(axis, torch.tensor(places), old[each])
            assert torch.equal(new[each], expected), (kind, each)
