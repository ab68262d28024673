"""What a run saved, and what its stages did, with numbers worked out by hand."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from earlybert.pretrain.plan.borders.narrow import Narrow
from earlybert.pretrain.plan.borders.stack import Stack
from earlybert.pretrain.plan.borders.widen import Widen, Width
from earlybert.pretrain.plan.plan import Plan, full_network
from earlybert.pretrain.plan.recipe import ModelConfig, PhaseConfig, Recipe
from earlybert.pretrain.report.outcome import Outcome, Validation, savings, stage_outcome
from earlybert.pretrain.report.page import against_dense, how_good, results, what_is_trained
from earlybert.pretrain.report.report import spent_before
from earlybert.pretrain.report.timeline import Interruptions
from earlybert.pretrain.ticket.drawing import all_ticket
from earlybert.pretrain.ticket.search import DrawConfig, SearchConfig

# A step of phase 2 is a step of phase 1 with half the sequences, so half its operations in every network.
PHASE1 = PhaseConfig(
    length=32, max_predictions=5, global_batch=16, micro_batch=16, steps=100, learning_rate=1e-3, warmup=0.1
)
PHASE2 = dataclasses.replace(PHASE1, global_batch=8, steps=40)
WIDTHS: tuple[Width, ...] = ("full", "all_neurons")
EARLYBERT = ["search", "narrow", "phase1", "phase2"]


def planned(plan: list[str], **changes: Any) -> Plan:
    recipe = Recipe(
        phase1=PHASE1,
        phase2=PHASE2,
        plan=plan,
        model=ModelConfig(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64),
        search=SearchConfig(steps=10),
        narrow=Narrow(step_factor=0.8),
        draw=DrawConfig(head_ratio=0.5, neuron_ratio=0.5, width_multiple=8),
    )
    recipe = dataclasses.replace(recipe, **changes)
    return Plan(recipe, full_network(recipe, 1000, "nsp"))


def lines_of(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """metrics.jsonl of stages that logged steps of so many seconds each, the last of which was the stage's last."""
    lines: list[dict[str, Any]] = []
    for stage, each in seconds.items():
        for step, value in enumerate(each, start=1):
            lines.append({"kind": "train", "stage": stage, "step": step, "global_step": len(lines), "seconds": value})
    return lines


def saved(plan: Plan, seconds: dict[str, list[float]], running: float | None = None) -> Any:
    return savings(plan, [stage_outcome(each, lines_of(seconds)) for each in plan.stages], running)


def test_median_seconds_are_of_the_stage_itself() -> None:
    lines = lines_of({"search": [2.0, 2.0, 50.0], "phase1": [1.0, 1.5, 1.6, 1.7], "phase2": []})
    search, phase1, phase2 = (stage_outcome(each, lines) for each in planned(EARLYBERT).stages)
    assert (search.median_seconds, phase1.median_seconds, phase2.median_seconds) == (2.0, pytest.approx(1.55), None)
    assert (search.steps, phase1.steps, phase2.steps) == (3, 4, 0)


def test_a_stage_has_its_own_last_validation_and_the_means_of_its_sampled_steps() -> None:
    """The first sampled step warms up."""
    parts = ("forward_backward", "communication", "optimizer", "data", "checkpoint", "validation")
    lines = [
        {"kind": "time", "stage": "search", "step": step, "global_step": step, **dict.fromkeys(parts, value)}
        for step, value in ((1, 9.0), (2, 1.0), (3, 2.0))
    ]
    lines += [
        {"kind": "validation", "stage": stage, "step": step, "global_step": 0, "masked_loss": loss}
        for stage, step, loss in (("search", 2, 5.0), ("search", 4, 4.0), ("phase1", 3, 3.0))
    ]
    search, phase1, _ = (stage_outcome(each, lines) for each in planned(EARLYBERT).stages)
    assert search.validation is not None and phase1.validation is not None
    assert search.validation.content() == {"stage": "search", "step": 4, "masked_loss": 4.0}
    assert phase1.validation.content() == {"stage": "phase1", "step": 3, "masked_loss": 3.0}
    assert search.time_split == dict.fromkeys(parts, 1.5) and phase1.time_split == {}


def test_time_saved_counts_the_search() -> None:
    """Dense: 100 steps of 2 s. Here: 10 searching ones as long, then 80 at three quarters: 10 + 60 of 100."""
    found = saved(planned(EARLYBERT[:3]), {"search": [2.0] * 10, "phase1": [1.5] * 80}, running=150.0)
    assert (found.dense_stage.stage.name, found.trained_stage.stage.name) == ("search", "phase1")
    assert found.step_time_ratio == pytest.approx(0.75)
    assert found.time_saved == pytest.approx(0.30)
    assert found.dense_seconds == pytest.approx(200.0)
    assert found.by_the_clock == pytest.approx(1 - 150 / 200)


def test_steps_of_phase_2_weigh_what_their_operations_say() -> None:
    """Half a step each: dense 100 + 20, here 10 + (80 + 16) * 0.75 = 82. A search that stopped early costs less."""
    seconds = {"search": [2.0] * 10, "phase1": [1.5] * 80, "phase2": [9.0] * 32}
    found = saved(planned(EARLYBERT), seconds)
    assert found.time_saved == pytest.approx(1 - 82 / 120)
    assert found.dense_seconds == pytest.approx(240.0) and found.by_the_clock is None
    early = saved(planned(EARLYBERT), seconds | {"search": [2.0] * 4})
    assert early.time_saved == pytest.approx(1 - 76 / 120)


def test_steps_of_phase_2_weigh_each_trainings_own_operations() -> None:
    """Without half of its heads a network gains more where sequences are long."""
    long = {"phase2": dataclasses.replace(PHASE2, length=256)}
    own = planned(EARLYBERT, **long, draw=DrawConfig(head_ratio=0.5, neuron_ratio=0.0, width_multiple=8))
    dense = planned(["phase1", "phase2"], **long)
    here, there = (plan.stages[-1].flops_per_step / plan.stages[-2].flops_per_step for plan in (own, dense))
    assert here < 0.99 * there
    found = saved(own, {"search": [2.0] * 10, "phase1": [1.5] * 80, "phase2": [9.0] * 32})
    assert found.time_saved == pytest.approx(1 - (10 + (80 + 32 * here) * 0.75) / (100 + 40 * there))


def test_steps_of_shallow_networks_weigh_their_time() -> None:
    """50 steps of one layer at 0.6 s, then 50 of both at 1 s: 30 + 50 of 100."""
    plan = planned(["phase1", "stack", "phase1"], stack=Stack(layers=[1], until=[0.5]))
    found = saved(plan, {"phase1-1-layers": [0.6] * 50, "phase1": [1.0] * 50})
    assert found.step_time_ratio == 1 and found.time_saved == pytest.approx(0.2)
    assert found.dense_stage is found.trained_stage is plan.stages[1]


@pytest.mark.parametrize(
    ("plan", "seconds"),
    [
        (["phase1"], {"phase1": [1.0]}),  # dense itself
        (["search"], {"search": [1.0]}),  # nothing trained with the ticket
        (["search", "narrow", "phase2"], {"search": [1.0], "phase2": [1.0]}),
        (EARLYBERT, {"search": [1.0]}),  # not so far yet
    ],
)
def test_where_nothing_can_be_compared(plan: list[str], seconds: dict[str, list[float]]) -> None:
    assert saved(planned(plan), seconds) is None


def outcome(plan: Plan, seconds: dict[str, list[float]]) -> Outcome:
    stages = [stage_outcome(each, lines_of(seconds)) for each in plan.stages]
    return Outcome(
        run_dir=Path("run"),
        plan=plan,
        corpus="a",
        stages=stages,
        finished=True,
        last_validation=None,
        unigram_cross_entropy=5.0,
        devices=["CPU"],
        ranks=[1],
        layout={"ranks": 1, "device": "CPU"},
        changed_layout=[],
        seconds=100.0,
        accelerator_hours=0.1,
        interruptions=Interruptions(0, 0, 0.0, 0.0, 0.0),
        savings=savings(plan, stages, 100.0),
    )


def test_operations_saved() -> None:
    """With nothing cut, 10 + 80 steps of 100: a tenth. A plan may also cost more than dense training."""
    nothing = DrawConfig(head_ratio=0.0, neuron_ratio=0.0, width_multiple=1)
    assert outcome(planned(EARLYBERT[:3], draw=nothing), {}).operations_saved == pytest.approx(0.1)
    longer = planned(EARLYBERT[:3], draw=nothing, narrow=Narrow(step_factor=1.0))
    assert outcome(longer, {}).operations_saved == pytest.approx(-0.1)
    assert outcome(planned(["phase1"]), {}).operations_saved == 0
    assert outcome(planned(["search"]), {}).operations_saved is None


def test_the_network_at_the_end_is_that_of_the_last_stage() -> None:
    early = planned(EARLYBERT)
    ticket = all_ticket(early.ticket_shape)
    ticket = dataclasses.replace(ticket, heads=((0, 2), (1,)), neurons=((3, 5, 7), (0,)))
    narrow = outcome(early.with_ticket(ticket, "the ticket"), {})
    assert narrow.network == narrow.narrow and narrow.network.heads == [2, 1] and narrow.network.neurons == [3, 1]
    assert not narrow.ends_wide and what_is_trained(narrow) == "an all-keeping ticket of it is trained to the end"
    grown = planned([*EARLYBERT[:3], "stack", *EARLYBERT[2:]], stack=Stack(layers=[1], until=[0.5]))
    shallow = dataclasses.replace(ticket, model=grown.ticket_shape, heads=((0, 2),), neurons=((3, 5, 7),))
    deep = outcome(grown.with_ticket(shallow, "the ticket"), {})
    assert deep.narrow == deep.network and deep.network.heads == [2, 2] and deep.network.neurons == [3, 3]
    assert what_is_trained(deep) == "an all-keeping ticket of it, stacked from 1 to 2 layers, is trained to the end"
    wide = [*EARLYBERT[:3], "stack", "phase1", "widen", *EARLYBERT[2:]]
    whole, part = (
        outcome(
            planned(wide, stack=Stack(layers=[1], until=[0.2]), widen=Widen(until=[0.5], to=[to])).with_ticket(
                shallow, "the ticket"
            ),
            {},
        )
        for to in WIDTHS
    )
    assert whole.ends_wide and whole.network == whole.plan.full and whole.narrow is not None
    assert whole.narrow.heads == [2, 2] and whole.narrow.neurons == [3, 3]
    assert what_is_trained(whole) == (
        "an all-keeping ticket of it is trained first, then the full network, stacked from 1 to 2 layers"
    )
    assert not part.ends_wide and part.network == part.narrow
    assert part.network.heads == [2, 2] and part.network.neurons == whole.network.neurons
    assert what_is_trained(part) == (
        "an all-keeping ticket of it, stacked from 1 to 2 layers and widened, is trained to the end"
    )
    dense = outcome(planned(["phase1"]), {})
    assert dense.narrow is None and dense.network == dense.plan.full
    assert what_is_trained(dense) == "the full network is trained to the end"
    search = outcome(planned(["search"]).with_ticket(ticket, "the ticket"), {})
    assert search.network.heads == [4, 4] and not search.network.searching
    assert search.narrow is not None and search.narrow.heads == [2, 1]
    assert what_is_trained(search) == "the full network is searched for a ticket"
    assert search.content()["narrow"]["parameters"] == narrow.content()["network"]["parameters"]


def test_running_times_of_unlike_runs_do_not_compare() -> None:
    dense = dataclasses.replace(outcome(planned(["phase1", "phase2"]), {}), seconds=200.0)
    ticket = outcome(planned(EARLYBERT), {})
    unlike = {
        "corpus": dataclasses.replace(ticket, corpus="b"),
        "ranks": dataclasses.replace(ticket, layout={"ranks": 8, "device": "CPU"}),
        "moved": dataclasses.replace(ticket, changed_layout=["the device"]),
        "steps": outcome(planned(EARLYBERT, phase2=dataclasses.replace(PHASE2, steps=41)), {}),
        "phases": outcome(planned(EARLYBERT[:3]), {}),
        "search": outcome(planned(["search"]), {}),
        "on its way": dataclasses.replace(ticket, finished=False),
    }
    said = against_dense({"dense": dense, "ticket": ticket, **unlike})
    assert said == "\nRunning time saved against the measured dense run dense: ticket 50.0%.\n"
    assert against_dense({"dense": dense, **unlike}) == ""
    # The search trains phase 1 alone, as this dense run does, and leaves its ticket to others.
    searched = outcome(planned(["phase1", "search"]), {})
    assert against_dense({"dense": outcome(planned(["phase1"]), {}), "searched": searched}) == ""


def test_a_validation_in_the_middle_of_a_stage_is_not_its_end() -> None:
    """phase1 has 80 steps here, as the other has; the search stopped before its limit of 10."""
    plan, scores = planned(EARLYBERT), {"masked_loss": 4.0, "masked_accuracy": 0.25}
    lines = [
        {"kind": "validation", "stage": stage, "step": step, "global_step": 0, **scores}
        for stage, step in (("search", 5), ("phase1", 80), ("phase2", 32))
    ]

    def read(lines: list[dict[str, Any]], finished: bool) -> Outcome:
        stages = [stage_outcome(each, lines, finished=finished) for each in plan.stages]
        return dataclasses.replace(outcome(plan, {}), stages=stages)

    middle = read([lines[0], lines[1] | {"step": 40}], finished=False)
    ended = read(lines, finished=True)
    assert [stage.over for stage in middle.stages] == [True, False, False]
    assert [stage.over for stage in read(lines[:2], finished=False).stages] == [True, True, False]
    said = results({"one": middle})
    assert "| validation loss of masked tokens, end of search | 4.0000 |" in said
    assert "| validation loss of masked tokens, last in phase1 | 4.0000 (step 40 of 80) |" in said
    assert "tokens, end of phase2 | - |" in said
    said = results({"one": middle, "two": ended})
    assert "| validation accuracy of masked tokens, last in phase1 | 0.2500 (step 40 of 80) | 0.2500 |" in said
    assert "| validation accuracy of masked tokens, end of phase2 | - | 0.2500 |" in said
    # A search that is all of a plan has no stage after it.
    assert stage_outcome(planned(["search"]).stages[0], lines[:1], finished=True).over


def test_what_was_spent_before_a_stage() -> None:
    found = outcome(planned(EARLYBERT), {"search": [1.0] * 4, "phase1": [1.0] * 80})
    assert spent_before(found, {"search": 5.0, "phase1": 3.0, "phase2": 1.0}) == {
        "search": 0.0,
        "phase1": 20.0,
        "phase2": 260.0,
    }


# Losses of published curves whose text has a unigram cross-entropy of 6.66: with LAMB after 500, 1,500, 2,000 and 2,500
# steps, and with a network that is worse than guessing.
@pytest.mark.parametrize(
    ("loss", "reached"),
    [
        (7.4, "at word frequencies"),
        (6.217, "at word frequencies"),
        (5.98, "at word frequencies"),
        (5.402, "breaking through"),
        (4.786, "past word frequencies"),
    ],
)
def test_where_a_network_is(loss: float, reached: str) -> None:
    plan = planned(EARLYBERT)
    searched = dataclasses.replace(
        stage_outcome(plan.stages[0], lines_of({"search": [1.0]})),
        validation=Validation("search", 1, {"masked_loss": loss, "masked_accuracy": 0.1}),
    )
    scores = {name: loss for part in ("masked", "next_sentence") for name in (f"{part}_loss", f"{part}_accuracy")}
    found = dataclasses.replace(
        outcome(plan, {}),
        unigram_cross_entropy=6.66,
        last_validation=Validation("phase1", 9, scores),
        stages=[searched],
    )
    said = how_good(found)
    assert f"So it is {reached}" in said
    assert ("train longer" in said) is ("a ticket says little" in said) is (reached == "at word frequencies")
