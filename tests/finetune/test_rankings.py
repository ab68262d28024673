"""What a search ranks units by: against a search written out, and over an interruption."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

from earlybert.finetune import methods
from earlybert.finetune.config import Settings, TaskSettings
from earlybert.finetune.pretrained import task_config
from earlybert.finetune.tasks.glue import GLUE
from earlybert.finetune.tasks.registry import TASKS
from earlybert.finetune.tasks.sentences import SentenceData
from earlybert.finetune.training import TimedTrainer
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.search import RankingName, Snapshot, load_snapshot, save_snapshot, snapshot_path
from earlybert.pretrain.ticket.text import ticket_markdown
from earlybert.pretrain.ticket.ticket import FullShape, Ticket, TicketRule
from tests.finetune.reference_search import kept_batches, reference_search


def settings(ranking: RankingName, **changes: Any) -> TaskSettings:
    fields: dict[str, Any] = {
        "ranking": ranking,
        "draw": TicketRule(head_ratio=0.25, neuron_ratio=0.4, width_multiple=1),
        "dropout": 0.0,
        "max_length": 48,
        "batch_size": 16,
        "search_epochs": 1.0,
        "learning_rate": 1e-3,
    }
    return Settings(**(fields | changes)).for_task(TASKS["SST-2"].defaults)


@pytest.fixture(scope="module")
def task(bert: Path, data: Path) -> SentenceData:
    return SentenceData(GLUE["SST-2"], data / "SST-2", open_pretrained(str(bert)).tokenizer, 48)


def searched(bert: Path, task: SentenceData, folder: Path, used: TaskSettings) -> Ticket:
    pretrained = open_pretrained(str(bert))
    config = task_config(pretrained, task.head, used.dropout)
    ticket, _ = methods.search(pretrained, config, task.model_class, task.train(None), used, folder, seed=7)
    return ticket


def recorded(folder: Path, step: int) -> Snapshot:
    return load_snapshot(snapshot_path(folder / "search", step))


@pytest.mark.parametrize("ranking", ["importance", "weights"])
def test_rankings_are_those_of_a_search_written_out(
    bert: Path, task: SentenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranking: RankingName
) -> None:
    batches = kept_batches(monkeypatch)
    # Gradients are clipped, which importance must not see.
    used = settings(ranking, max_grad_norm=1.0)
    ticket = searched(bert, task, tmp_path, used)
    for step, expected in enumerate(reference_search(bert, batches, 18, 1e-3), start=1):
        found, (heads, neurons) = recorded(tmp_path, step), expected[ranking]
        np.testing.assert_allclose(found.heads_LU, heads, rtol=2e-3, atol=1e-5 * heads.max())
        np.testing.assert_allclose(found.neurons_LU, neurons, rtol=2e-3, atol=1e-4 * neurons.max())
    assert step == 6
    # Of 64 neurons in each of 3 layers the 77 smallest of all are cut.
    assert sum(map(len, ticket.neurons)) == 3 * 64 - 77
    smallest = np.sort(neurons.ravel())[76:78].mean()
    assert ticket.neurons == tuple(tuple(np.flatnonzero(row_U > smallest)) for row_U in neurons)


def test_all_rankings_cut_as_much_and_the_ticket_says_by_which(bert: Path, task: SentenceData, tmp_path: Path) -> None:
    names: tuple[RankingName, ...] = ("coefficient", "importance", "weights")
    tickets = {name: searched(bert, task, tmp_path / name, settings(name, search_epochs=0.5)) for name in names}
    assert {(len(ticket.heads[0]), sum(map(len, ticket.neurons))) for ticket in tickets.values()} == {(3, 115)}
    assert len({ticket.neurons for ticket in tickets.values()}) == 3
    for name, ticket in tickets.items():
        ticket.save(tmp_path / "ticket.json")
        # The default is not named, as in the tickets of pre-training.
        assert ticket.source.ranking == (None if name == "coefficient" else name)
        assert Ticket.load(tmp_path / "ticket.json") == ticket
        assert f"drawn by {name} after 3 steps of the finetune" in ticket_markdown(ticket)


def test_a_ticket_without_a_ranking_keeps_its_hash(tmp_path: Path) -> None:
    """Those of pre-training and of chance, and all that were drawn before there was a choice."""
    shape = FullShape(num_layers=2, num_heads=4, head_size=8, intermediate_size=32)
    ticket = random_ticket(shape, TicketRule(width_multiple=8), seed=3)
    expected = {"kind": "random", "stage": None, "step": None, "seed": 3, "coefficients_sha256": None}
    assert ticket.content()["source"] == expected


def test_importance_is_summed_over_an_interruption(
    bert: Path, task: SentenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = settings("importance", save_every=2)
    whole = searched(bert, task, tmp_path / "whole", used)

    class Interruption(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    original = methods.make_trainer

    def interrupted(*arguments: Any) -> TimedTrainer:
        trainer = original(*arguments)
        trainer.add_callback(Interruption())
        return trainer

    monkeypatch.setattr(methods, "make_trainer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        searched(bert, task, tmp_path / "cut", used)
    monkeypatch.setattr(methods, "make_trainer", original)
    # Recordings of an attempt that came further than its checkpoint: those of other weights, on another layout.
    for step in (5, 6):
        save_snapshot(tmp_path / "cut" / "search", dataclasses.replace(recorded(tmp_path / "cut", 1), step=step))
    assert searched(bert, task, tmp_path / "cut", used) == whole
    np.testing.assert_array_equal(recorded(tmp_path / "cut", 6).neurons_LU, recorded(tmp_path / "whole", 6).neurons_LU)
