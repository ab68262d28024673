"""Widening to a wider ticket: drawn with the ticket, in the same order of units; the function stays the same."""

import dataclasses
import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from earlybert.core.errors import UserError
from earlybert.core.files import content_hash, read_json, write_json
from earlybert.kernels.sizes import MOMENTS
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.parameters import parameter_shapes
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.plan.borders.stack import Stack
from earlybert.pretrain.plan.borders.widen import Widen
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import Plan
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, Recipe, load_recipe, recipe_path
from earlybert.pretrain.ticket.drawing import draw, random_ticket, random_ticket_like
from earlybert.pretrain.ticket.search import DrawConfig
from earlybert.pretrain.ticket.ticket import Ticket, TicketSource, full_shape
from tests.conftest import BIN, free_port, run_training, small_recipe
from tests.in_process import run_here, train_here
from tests.pretrain import patched_run
from tests.pretrain.run_files import metrics, require_same
from tests.pretrain.small_models import VOCABULARY, build, padded_logits, random_inputs, random_weights, small_config

DRAW = DrawConfig(head_ratio=0.5, neuron_ratio=0.5, width_multiple=8)
FRESH = partial(initial_weights, seed=3)
NARROW_FIRST = ["search", "narrow", "phase1", "widen", "phase1"]
STACKED = ["search", "narrow", "phase1", "widen", "phase1", "stack", "phase1", "widen", "phase1", "widen", "phase1"]
TWICE: list[Any] = [{"neuron_ratio": 0.3}, {"head_ratio": 0.25, "neuron_ratio": 0.1}]


def recipe_of(plan: list[str], **changes: Any) -> Recipe:
    recipe = load_recipe(recipe_path("bert_base"), ["--draw.width_multiple", "1"])
    return dataclasses.replace(recipe, plan=plan, **({"draw": DRAW} | changes))


def logits(config: NetworkConfig, weights: Any) -> torch.Tensor:
    with torch.no_grad():
        output = padded_logits(build(config, dict(weights), torch.float64), **random_inputs())
    return output.prediction_logits[..., :VOCABULARY]


@pytest.mark.parametrize("multiple", [1, 8])
def test_each_is_what_its_ratios_alone_would_draw(multiple: int) -> None:
    """And it holds the one before, also where rounding goes the other way."""
    shape = full_shape(small_config())
    generator = np.random.default_rng(0)
    source = TicketSource(kind="search")
    for _ in range(20):
        scores = generator.random((3, 4), dtype=np.float32), generator.random((3, 48), dtype=np.float32)
        rule = dataclasses.replace(DRAW.rule, width_multiple=multiple)
        ratios = [(0.5, 0.3), (0.25, 0.1)]
        ticket = draw(shape, *scores, rule, source, ratios)
        assert [each.ratios for each in ticket.wider] == ratios
        widths: list[Any] = [ticket, *ticket.wider]
        for before, after in pairwise(widths):
            smaller = dataclasses.replace(rule, head_ratio=after.head_ratio, neuron_ratio=after.neuron_ratio)
            alone = draw(shape, *scores, smaller, source)
            assert after.heads == alone.heads
            for layer in range(3):
                small, found, wanted = (set(each.neurons[layer]) for each in (before, after, alone))
                assert found == small | wanted and (multiple > 1 or found == wanted)
                assert len(found) % multiple == 0 and found == set(np.argsort(scores[1][layer])[-len(found) :].tolist())


def test_the_ticket_is_written_with_them(tmp_path: Path) -> None:
    ticket = random_ticket(full_shape(small_config()), DRAW.rule, 3, [(0.5, 0.3), (0.25, 0.1)])
    ticket.save(tmp_path / "ticket.json")
    assert Ticket.load(tmp_path / "ticket.json") == ticket
    status, output = run_here(tmp_path, "ticket", "show", "ticket.json")
    assert status == 0 and output.count("wider   ") == 2 and "9 heads" in output
    like = random_ticket_like(ticket, seed=5)
    pairs: list[Any] = [(like, ticket), *zip(like.wider, ticket.wider, strict=True)]
    for found, wanted in pairs:
        for ours, theirs in ((found.heads, wanted.heads), (found.neurons, wanted.neurons)):
            assert list(map(len, ours)) == list(map(len, theirs))
        assert found.neurons != wanted.neurons
    like.save(tmp_path / "like.json")
    assert Ticket.load(tmp_path / "like.json") == like
    content = read_json(tmp_path / "ticket.json")
    content["wider"][0]["neurons"][1] = [0, 1]
    content["sha256"] = content_hash({key: value for key, value in content.items() if key != "sha256"})
    write_json(tmp_path / "lacking.json", content)
    with pytest.raises(UserError, match=r'lacking.json: "wider" lacks neurons .* of layer 1'):
        Ticket.load(tmp_path / "lacking.json")


@pytest.mark.parametrize("copy", ["stacked", "interleaved", "identity"])
def test_the_function_stays_and_layers_keep_their_units(copy: Any) -> None:
    """A wider ticket of three layers, copies of them, a wider one again, everything; other weights in every stage."""
    widen = Widen(until=[0.2, 0.6, 0.8], to=[*TWICE, "full"], moments="copied")
    recipe = recipe_of(STACKED, widen=widen, stack=Stack(layers=[3], until=[0.4], copy=copy))
    full = small_config(num_hidden_layers=6)
    open_plan = Plan(recipe, full)
    wider = open_plan.wider_tickets(DRAW)
    assert wider == [(0.5, 0.3), (0.25, 0.1)]
    ticket = random_ticket(open_plan.ticket_shape, DRAW.rule, 8, wider)
    plan = open_plan.with_ticket(ticket, "the ticket")
    sources = [0, 0, 1, 1, 2, 2] if copy == "interleaved" else [0, 1, 2, 0, 1, 2]
    first, second = ticket.wider
    expected = [
        (ticket.heads, ticket.neurons),
        (first.heads, first.neurons),
        (tuple(first.heads[i] for i in sources), tuple(first.neurons[i] for i in sources)),
        (tuple(second.heads[i] for i in sources), tuple(second.neurons[i] for i in sources)),
    ]
    assert [planned.network.kept_units for planned in plan.stages[1:]] == [*expected, None]
    assert plan.stages[-1].network == full
    # Before the ticket is drawn, the plan's costs are those of equally many units.
    counts = [[sum(planned.network.neurons) for planned in each.stages] for each in (open_plan, plan)]
    assert counts[0] == counts[1]
    for number, (before, after) in enumerate(pairwise(plan.stages)):
        if after.stage.begin.word != "widen":
            continue
        narrow, wide = before.network, after.network
        moments = {moment: random_weights(narrow, seed=7) for moment in MOMENTS}
        trained = TrainingState(random_weights(narrow, seed=number), moments, optimizer_step=9)
        begun = after.stage.begin.begin(trained, after.before, wide, FRESH)
        assert {name: tensor.shape for name, tensor in begun.weights.items()} == parameter_shapes(wide)
        torch.testing.assert_close(logits(wide, begun.weights), logits(narrow, trained.weights), rtol=0, atol=1e-6)
        name = "layers.1.feed_forward.intermediate.weight"
        here, there = (each.kept_units.neurons[1] if each.kept_units else range(48) for each in (narrow, wide))
        fresh = FRESH(dataclasses.replace(wide, kept_heads=None, kept_neurons=None))[name]
        for place, neuron in enumerate(there):
            old = list(here).index(neuron) if neuron in here else None
            row = fresh[neuron] if old is None else trained.weights[name][old]
            assert torch.equal(begun.weights[name][place], row)
            moment = begun.moments["exp_avg"][name][place]
            assert torch.equal(moment, torch.zeros_like(moment) if old is None else moments["exp_avg"][name][old])


NONSENSE: list[tuple[list[str], Widen, str]] = [
    (
        NARROW_FIRST,
        Widen(until=[0.5], to=[{"neuron_ratio": 0.6}]),
        "widen.to[0].neuron_ratio is 0.6; it must be at least 0 and below 0.5",
    ),
    (
        NARROW_FIRST,
        Widen(until=[0.5], to=[{"neurons": 0.1}]),
        "widen.to[0] is {'neurons': 0.1}; it must have head_ratio",
    ),
    (NARROW_FIRST, Widen(until=[0.5], to=[{}]), "widen.to[0] is {}"),
    (
        [*NARROW_FIRST, "widen", "phase1"],
        Widen(until=[0.5, 0.6], to=["all_neurons", {"neuron_ratio": 0.1}]),
        "widen number 2 has no units to give back",
    ),
    (
        [*NARROW_FIRST, "widen", "phase1"],
        Widen(until=[0.5, 0.6], to=[{"head_ratio": 0.0, "neuron_ratio": 0.0}, "full"]),
        "widen number 2 has no units to give back",
    ),
    (
        [*NARROW_FIRST, "widen", "phase1"],
        Widen(until=[0.5, 0.6], to=[{"neuron_ratio": 0.1}, {"neuron_ratio": 0.2}]),
        "widen.to[1].neuron_ratio is 0.2; it must be at least 0 and below 0.1",
    ),
]


@pytest.mark.parametrize(("plan", "widen", "message"), NONSENSE)
def test_a_wider_ticket_without_sense_is_refused(plan: list[str], widen: Widen, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_recipe(recipe_of(plan, widen=widen))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ({"head_ratio": 0.0}, "all_heads"),
        ({"neuron_ratio": 0}, "all_neurons"),
        ({"head_ratio": 0.0, "neuron_ratio": 0.0}, "full"),
    ],
)
def test_a_share_of_nothing_is_all_units(shares: dict[str, float], word: Any) -> None:
    """As in the draw section, where nothing is cut then."""
    networks = []
    for width in (shares, word):
        recipe = recipe_of(NARROW_FIRST, widen=Widen(until=[0.5], to=[width]))
        check_recipe(recipe)
        plan = Plan(recipe, small_config())
        ticket = random_ticket(plan.ticket_shape, DRAW.rule, 1, plan.wider_tickets(DRAW))
        networks.append(plan.with_ticket(ticket, "the ticket").stages[-1].network)
    assert networks[0].kept_units == networks[1].kept_units
    assert (networks[0].heads, networks[0].neurons) == (networks[1].heads, networks[1].neurons)


def test_a_ticket_file_is_widened_by_what_it_cuts_itself() -> None:
    """The recipe would cut half of the neurons, and the file cuts 70 %, of which 60 % stay cut."""
    widen = Widen(until=[0.5], to=[{"neuron_ratio": 0.6}])
    recipe = recipe_of(NARROW_FIRST[1:], widen=widen, ticket="FILE")
    check_recipe(recipe)
    plan, rule = Plan(recipe, small_config()), dataclasses.replace(DRAW.rule, neuron_ratio=0.7, width_multiple=1)
    plan = plan.with_ticket(random_ticket(plan.ticket_shape, rule, 1, plan.wider_tickets(rule)), "FILE")
    assert [sum(planned.network.neurons) for planned in plan.stages] == [144 - 101, 144 - 86]
    with pytest.raises(UserError, match=r"FILE: is drawn for widening to the ratios \[\]"):
        plan.with_ticket(random_ticket(plan.ticket_shape, DRAW.rule, 1), "FILE")


def test_a_ticket_that_was_drawn_for_other_widths_is_refused() -> None:
    plan = Plan(recipe_of(NARROW_FIRST, widen=Widen(until=[0.5], to=[{"neuron_ratio": 0.1}])), small_config())
    for wider in ([], [(0.5, 0.2)]):
        ticket = random_ticket(plan.ticket_shape, DRAW.rule, 1, wider)
        with pytest.raises(UserError, match=r"FILE: is drawn for widening to the ratios .* but widen.to is"):
            plan.with_ticket(ticket, "FILE")


# --- a run -----------------------------------------------------------------------------------------------------------

STEPS = {"search": 4, "phase1-2-layers": 3, "phase1-narrow": 3, "phase1": 6}


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    """With wider.yaml: a ticket of two layers grows to four, then gets a part of its cut neurons back."""
    recipe = small_recipe(workplace / "text.txt")
    recipe["grow"] = [
        {"until": 0.25, "layers": 2, "width": "ticket"},
        {"until": 0.5, "layers": 4},
        {"width": {"neuron_ratio": 0.1}},
    ]
    recipe["model"] |= {"num_layers": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    recipe["search"] = {"steps": 4, "snapshot_every": 2}
    recipe["phase1"]["steps"] = 12
    recipe |= {"plan": ["search", "narrow", "phase1"], "widen": {"moments": "copied"}, "keep_checkpoints": 20}
    (workplace / "wider.yaml").write_text(yaml.safe_dump(recipe))
    for stage in (1, 3):
        deepspeed = read_json(DEFAULT_DEEPSPEED) | {"zero_optimization": {"stage": stage}}
        (workplace / f"zero{stage}.json").write_text(json.dumps(deepspeed))
    return workplace


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    status, output = run_training(place, "--config", "wider.yaml", "--run-dir", "wider")
    assert status == 0, output
    return place / "wider"


def test_it_is_reported_and_exported_at_its_last_width(finished: Path) -> None:
    from transformers import BertForPreTraining

    from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertForPreTraining

    assert {line["stage"]: line["step"] for line in metrics(finished)} == STEPS
    ticket = Ticket.load(finished / "ticket.json")
    (wide,) = ticket.wider
    assert sum(map(len, ticket.neurons)) < sum(map(len, wide.neurons)) < 2 * 96
    neurons = [len(wide.neurons[layer % 2]) for layer in range(4)]
    stages = {stage["name"]: stage for stage in read_json(finished / "plan.json")["stages"]}
    assert stages["phase1"]["neurons"] == sum(neurons) and stages["phase1"]["heads"] == 4 * 3
    assert stages["phase1-narrow"]["flops_per_step"] < stages["phase1"]["flops_per_step"]
    assert read_json(finished / "report.json")["network"]["neurons"] == neurons
    page = (finished / "report.md").read_text()
    assert "a searched ticket of it, stacked from 2 to 4 layers and widened, is trained to the end" in page
    ours = EarlyBertForPreTraining.from_pretrained(finished / "export" / "earlybert").eval()
    bert = BertForPreTraining.from_pretrained(finished / "export" / "bert").eval()
    assert list(map(len, ours.config.kept_neurons)) == neurons and ours.config.ticket_sha256 == ticket.sha256
    ids = torch.randint(5, ours.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = ours(ids).prediction_logits, bert(ids).prediction_logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_one_that_is_wider_than_what_it_is_widened_to_is_not_drawn(finished: Path, place: Path) -> None:
    status, output = run_here(place, "ticket", "draw", str(finished), "--neuron_ratio", "0.05", "--out", "low.json")
    assert status == 2 and "widen.to[0].neuron_ratio is 0.1; it must be at least 0 and below 0.05" in output, output
    assert not (place / "low.json").exists()


def test_stopped_at_the_border_it_is_the_same(finished: Path, place: Path) -> None:
    for stage, step in (("phase1", 0), ("phase1", 2)):
        stop = partial(patched_run.stop_once, stage, step)
        status, output = train_here(place, "--config", "wider.yaml", "--run-dir", "stopped", prepare=stop)
        assert status == 0 and f"stopped as asked at step {step} of {stage};" in output, output
    status, output = run_training(place, "--config", "wider.yaml", "--run-dir", "stopped")
    assert status == 0, output
    require_same(place / "stopped", finished)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_train_the_same(finished: Path, place: Path, stage: int) -> None:
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port())
    arguments = ("--config", "wider.yaml", "--run-dir", f"two-{stage}", "--deepspeed", f"zero{stage}.json")
    status, output = run_training(place, *arguments, "--ticket", str(finished / "ticket.json"), launcher=launcher)
    assert status == 0, output
    ours, theirs = (
        [line["loss"] for line in metrics(run) if line["stage"] != "search"]
        for run in (place / f"two-{stage}", finished)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
