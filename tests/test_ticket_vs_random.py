"""benchmarks/ticket_vs_random.py: which tickets its arms train."""

import json
import sys
from pathlib import Path

import pytest
import ticket_vs_random

from earlybert.pretrain.plan.recipe import load_recipe, recipe_path
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import FullShape, Ticket, TicketRule

SHAPE = FullShape(num_layers=2, num_heads=4, head_size=8, intermediate_size=64)


@pytest.mark.parametrize("name", ["run", "rate-0.5"])
def test_every_seed_has_a_ticket_of_its_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the run is called: of a name with a dot, one may take the part behind it for the kind of a file."""
    run = tmp_path / name
    run.mkdir()
    random_ticket(SHAPE, TicketRule(width_multiple=8), seed=5).save(run / "ticket.json")
    load_recipe(recipe_path("bert_base"), []).save(run / "config.yaml")
    (run / "plan.json").write_text(json.dumps({"stages": [{"name": "phase1", "narrow": True}]}))
    (run / "DONE").touch()
    trained: dict[str, Ticket] = {}

    def train(run_dir: Path, arm: Path, *options: str) -> None:
        assert options[0] == "--ticket"
        trained[arm.name] = Ticket.load(Path(options[1]))

    monkeypatch.setattr(ticket_vs_random, "train", train)
    monkeypatch.setattr(ticket_vs_random, "final_losses", lambda arm: {"phase1": 5.0})
    monkeypatch.setattr(sys, "argv", ["ticket_vs_random.py", str(run), "--seeds", "1", "2"])
    ticket_vs_random.main()
    assert [ticket.source.seed for ticket in trained.values()] == [1, 2]
    first, second = (trained[f"{name}-random-{seed}"] for seed in (1, 2))
    assert first.neurons != second.neurons


def test_a_run_that_is_none_or_not_done_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ticket_vs_random.py", str(tmp_path)])

    def refusal() -> str:
        with pytest.raises(SystemExit) as ended:
            ticket_vs_random.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "is not a run directory" in refusal()
    load_recipe(recipe_path("bert_base"), []).save(tmp_path / "config.yaml")
    assert "ticket.json" in refusal()
    random_ticket(SHAPE, TicketRule(width_multiple=8), seed=5).save(tmp_path / "ticket.json")
    assert "has not been trained to its end" in refusal()
