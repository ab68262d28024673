"""What pre-training's search ranks units by: against autograd in float64, in any layout, and over an interruption.

Shape suffixes: U units (heads or neurons) in a layer, B sequences, S padded length, T tokens.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from earlybert.core import distributed
from earlybert.core.errors import UserError
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.bert_format import to_bert
from earlybert.pretrain.network.config import NetworkConfig, without_coefficients
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, load_recipe, recipe_path
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.ticket.rankings import make_ranking
from earlybert.pretrain.ticket.search import (
    DrawConfig,
    RankingName,
    SearchConfig,
    Snapshot,
    draw_from_snapshot,
    load_snapshot,
    recorded_steps,
    snapshot_path,
)
from earlybert.pretrain.ticket.ticket import Ticket, full_shape
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import StageEngine
from earlybert.pretrain.train.recording import CoefficientGradients
from earlybert.pretrain.train.step import forward_and_backward
from tests.conftest import BIN, free_port, run_training, small_recipe
from tests.in_process import run_here, train_here
from tests.pretrain import patched_run
from tests.pretrain.small_models import batch_of, padded_labels, random_weights, small_config

# Strong, so that a gradient with the L1 term in it would be another one.
SEARCH = SearchConfig(lambda_heads=0.03, lambda_neurons=0.01)
STEPS = 3


def zero_file(folder: Path, stage: int) -> DeepSpeedFile:
    content = json.loads(DEFAULT_DEEPSPEED.read_text())
    content["zero_optimization"]["stage"] = stage
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps(content))
    return DeepSpeedFile.load(path)


def sensitivities(config: NetworkConfig, masters: dict[str, Tensor], batches: list[Batch]) -> dict[str, Tensor]:
    """abs(c x dL/dc) by name: Hugging Face's BERT in float64, whose activations are scaled, and autograd."""
    coefficients = {name: value.double().requires_grad_() for name, value in masters.items() if "coefficients" in name}
    others = {name: value for name, value in masters.items() if name not in coefficients}
    bert: Any = to_bert(without_coefficients(config), others).double().train()
    for index, layer in enumerate(bert.bert.encoder.layer):
        heads = coefficients[f"layers.{index}.attention.output.coefficients"]
        neurons = coefficients[f"layers.{index}.feed_forward.output.coefficients"]
        rows = heads.repeat_interleave(config.head_size)
        layer.attention.output.dense.register_forward_pre_hook(lambda _, inputs, c=rows: (inputs[0] * c,))
        layer.output.dense.register_forward_pre_hook(lambda _, inputs, c=neurons: (inputs[0] * c,))
    masked = next_sentence = torch.zeros((), dtype=torch.float64)
    counts = [0, 0]
    for batch in batches:
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        output = bert(
            input_ids=pad(batch.input_ids_T.split(batch.tokens.lengths)),
            token_type_ids=pad(batch.token_type_ids_T.split(batch.tokens.lengths)),
            attention_mask=pad([torch.ones(length) for length in batch.tokens.lengths]),
        )
        labels = padded_labels(batch)
        logits = output.prediction_logits.flatten(0, 1)
        masked = masked + F.cross_entropy(logits, labels["labels"].flatten(), reduction="sum")
        next_sentence = next_sentence + F.cross_entropy(
            output.seq_relationship_logits, labels["next_sentence_label"], reduction="sum"
        )
        counts = [counts[0] + len(batch.masked_labels_N), counts[1] + len(batch.tokens.lengths)]
    loss = masked / counts[0] + next_sentence / counts[1]
    slopes = torch.autograd.grad(loss, list(coefficients.values()))
    return {name: (slope * own).abs().detach() for (name, own), slope in zip(coefficients.items(), slopes, strict=True)}


@pytest.mark.parametrize(("stage", "parts"), [(0, 1), (0, 3), (1, 1), (1, 3), (2, 3), (3, 3)])
def test_importance_is_that_of_autograd_in_float64(tmp_path: Path, stage: int, parts: int) -> None:
    """Three updates of micro-batches of unequal sizes; gradients are clipped, which importance must not see."""
    distributed.start()
    config = small_config(searching=True)
    recipe = dataclasses.replace(load_recipe(recipe_path("quickstart"), []), precision="fp32")
    planned = dataclasses.replace(build_stages(recipe)[0], global_batch=3 * parts, micro_batch=3)
    state = TrainingState(random_weights(config))
    engine = StageEngine(config, state, planned, recipe, zero_file(tmp_path, stage), torch.device("cpu"))
    ranking = make_ranking("importance", SEARCH.lambda_heads, SEARCH.lambda_neurons)
    gradients, expected = CoefficientGradients(engine), dict[str, Tensor]()
    engine.engine.train()
    engine.set_learning_rate(1e-2)
    for step in range(STEPS):
        batches = [batch_of(lengths, step) for lengths in ((17, 9, 13), (4, 1, 12), (20, 3, 8))[:parts]]
        before = dict(engine.masters(lambda name: True))
        for name, change_U in sensitivities(config, before, batches).items():
            expected[name] = expected.get(name, 0) + change_U
        forward_and_backward(engine, batches, Work.total(map(Work.of, batches)), range(len(batches)), SEARCH)
        assert engine.updated() and engine.gradient_norm() > 1
        ranking.see({name: value for name, value in before.items() if "coefficients" in name}, gradients.taken())
    assert any((before[name] != value).any() for name, value in engine.masters(lambda name: "coefficients" in name))
    engine.destroy()
    assert ranking.sums.keys() == expected.keys()
    for name, exact_U in expected.items():
        found_U = ranking.sums[name]
        assert found_U.dtype == torch.float32
        np.testing.assert_allclose(found_U, exact_U, rtol=1e-4, atol=1e-5 * float(exact_U.max()), err_msg=name)


def test_norms_are_those_of_rows_and_columns() -> None:
    config = small_config(searching=True)
    weights = random_weights(config)
    size = config.head_size
    found = make_ranking("weights", 0.0, 0.0).scores(lambda wanted: ((n, w) for n, w in weights.items() if wanted(n)))
    for layer in range(3):
        qkv, output = (weights[f"layers.{layer}.attention.{name}.weight"] for name in ("qkv", "output"))
        for head in range(4):
            own = slice(size * head, size * (head + 1))
            parts = [*(block[own] for block in qkv.chunk(3)), output[:, own]]
            exact = sum(float(part.double().square().sum()) for part in parts) ** 0.5
            assert float(found[f"layers.{layer}.attention.output.coefficients"][head]) == pytest.approx(exact)
        into, out = (weights[f"layers.{layer}.feed_forward.{name}.weight"] for name in ("intermediate", "output"))
        for neuron in range(48):
            exact = float(torch.cat((into[neuron], out[:, neuron])).double().norm())
            assert float(found[f"layers.{layer}.feed_forward.output.coefficients"][neuron]) == pytest.approx(exact)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    """With search.yaml, which searches for 12 steps without dropout and trains the ticket for two."""
    recipe = small_recipe(workplace / "text.txt")
    recipe["model"] |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    recipe["search"] = {"steps": 12, "snapshot_every": 4}
    recipe["phase1"] |= {"steps": 12}
    recipe |= {"plan": ["search", "narrow", "phase1"], "checkpoint_every": 3, "export": []}
    (workplace / "search.yaml").write_text(yaml.safe_dump(recipe))
    for stage in (0, 3):
        zero_file(workplace, stage)
    return workplace


def searched(place: Path, name: str, ranking: RankingName, *arguments: str, **options: Any) -> Path:
    given = ("--config", "search.yaml", "--run-dir", name, "--draw.ranking", ranking, *arguments)
    status, output = run_training(place, *given, **options)
    assert status == 0, output
    return place / name


@pytest.fixture(scope="module")
def by_importance(place: Path) -> Path:
    return searched(place, "importance", "importance")


def recordings(run: Path) -> list[Snapshot]:
    steps = recorded_steps(run / "search")
    assert steps == [0, 4, 8, 12]
    return [load_snapshot(snapshot_path(run / "search", step)) for step in steps]


def test_rankings_cut_as_much_and_all_say_by_which(place: Path, by_importance: Path) -> None:
    runs = {"importance": by_importance, "weights": searched(place, "weights", "weights")}
    tickets = {name: Ticket.load(run / "ticket.json") for name, run in runs.items()}
    for name, ticket in tickets.items():
        assert [len(heads) for heads in ticket.heads] == [3, 3] and sum(map(len, ticket.neurons)) == 2 * 96 - 56
        assert ticket.source.ranking == name
        assert f"a searched ticket of it by {name} is trained to the end" in (runs[name] / "report.md").read_text()
    assert tickets["importance"].neurons != tickets["weights"].neurons
    status, output = run_here(place, "ticket", "show", str(by_importance / "ticket.json"))
    assert status == 0 and "ranking importance" in output
    status, output = run_here(place, "ticket", "draw", str(by_importance), "--step", "12", "--out", "again.json")
    assert status == 0 and Ticket.load(place / "again.json") == tickets["importance"]


def test_a_ticket_by_coefficient_is_as_it_was(place: Path, by_importance: Path) -> None:
    """Its content, and so its hash, is that of the time before there was a choice."""
    shape = full_shape(small_config(num_hidden_layers=2, num_attention_heads=4, hidden_size=64, intermediate_size=96))
    ticket = draw_from_snapshot(by_importance / "search", 12, shape, DrawConfig(width_multiple=8), seed=1)
    content = ticket.content()
    assert set(content["source"]) == {"kind", "stage", "step", "seed", "coefficients_sha256"}
    assert "ranking" not in content["rule"]


def test_importance_only_grows(by_importance: Path) -> None:
    first, *others = recordings(by_importance)
    assert not first.heads_LU.any() and not first.neurons_LU.any()
    for before, after in zip([first, *others], others, strict=False):
        assert (after.heads_LU > before.heads_LU).all() and (after.neurons_LU > before.neurons_LU).all()


def test_stopped_and_resumed_it_is_the_same(place: Path, by_importance: Path) -> None:
    """Stopped before the first update, between two recordings, and at one."""
    arguments = ["--config", "search.yaml", "--run-dir", "stopped", "--draw.ranking", "importance"]
    for step in (0, 5, 8):
        status, output = train_here(place, *arguments, prepare=partial(patched_run.stop_once, "search", step))
        assert status == 0 and "stopped as asked" in output, output
    stopped = searched(place, "stopped", "importance")
    for found, whole in zip(recordings(stopped), recordings(by_importance), strict=True):
        assert np.array_equal(found.heads_LU, whole.heads_LU) and np.array_equal(found.neurons_LU, whole.neurons_LU)
    assert (stopped / "ticket.json").read_bytes() == (by_importance / "ticket.json").read_bytes()


def require_close(run: Path, other: Path) -> None:
    for found, expected in zip(recordings(run), recordings(other), strict=True):
        for ours, theirs in ((found.heads_LU, expected.heads_LU), (found.neurons_LU, expected.neurons_LU)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.max()))


@pytest.mark.parametrize(("stage", "micro_batch"), [(0, "50"), (3, "7")])
def test_stages_and_micro_batches_do_not_change_importance(
    place: Path, by_importance: Path, stage: int, micro_batch: str
) -> None:
    arguments = ("--deepspeed", f"zero{stage}.json", "--phase1.micro_batch", micro_batch)
    require_close(searched(place, f"stage-{stage}", "importance", *arguments), by_importance)


@pytest.mark.slow
@pytest.mark.parametrize(("ranking", "file"), [("importance", "lamb.json"), ("importance", "3"), ("weights", "3")])
def test_two_ranks_rank_as_one(place: Path, ranking: RankingName, file: str) -> None:
    """Two ranks make the first half, one the rest."""
    alone, name = place / f"alone-{ranking}", f"two-{ranking}-{file}"
    if not alone.exists():
        searched(place, alone.name, ranking)
    layout = () if file == "lamb.json" else ("--deepspeed", f"zero{file}.json")
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port())
    searched(place, name, ranking, "--phase1.micro_batch", "6", *layout, launcher=launcher)
    require_close(place / name, alone)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--draw.ranking", "weights", "--plan", "[phase1]"), "draw.ranking is 'weights', but plan is ['phase1']"),
        (("--draw.ranking", "gradient"), "draw.ranking"),
    ],
)
def test_what_cannot_be_ranked_is_refused(place: Path, arguments: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError) as refused:
        check_recipe(load_recipe(place / "search.yaml", list(arguments)))
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_keeps_its_ranking(place: Path, by_importance: Path) -> None:
    status, output = run_training(place, "--config", "search.yaml", "--run-dir", "importance")
    assert status == 2 and "draw.ranking is 'coefficient', but this run began with 'importance'" in output
