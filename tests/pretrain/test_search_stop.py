"""The automatic stop of a search that waits until the network is past word frequencies, in whole runs."""

import json
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import yaml

from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.pretrain.ticket.ticket import Ticket
from earlybert.pretrain.train import loop
from tests.conftest import small_recipe
from tests.in_process import train_here
from tests.pretrain import patched_run
from tests.pretrain.run_files import metrics, require_same

STEPS, EVERY = 16, 4
# Masks agree at any distance, so from the second recording on: those after the updates 8, 12 and 16.
AGREEING = ("--search.stop_window", "1", "--search.stop_threshold", "1.0")


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    """A recipe of a search, and a corpus that says of itself that words are harder to guess than they are.

    So a network that has hardly learnt anything is past guessing by frequency.
    """
    recipe = small_recipe(workplace / "text.txt")
    corpus = prepare(CorpusConfig(**recipe["corpus"], lengths=[32]), workplace / "corpus")
    content = json.loads((corpus.directory / "manifest.json").read_text())
    content["unigram_cross_entropy"] += 2
    (corpus.directory / "manifest.json").write_text(json.dumps(content))
    recipe["phase1"]["global_batch"] = 16
    recipe |= {"plan": ["search"], "data": "corpus", "export": [], "search": {"steps": STEPS, "snapshot_every": EVERY}}
    (workplace / "search.yaml").write_text(yaml.safe_dump(recipe))
    return workplace


def searched(place: Path, name: str, *arguments: str) -> Path:
    status, output = train_here(place, "--config", "search.yaml", "--run-dir", name, *arguments)
    assert status == 0, output
    return place / name


@pytest.fixture(scope="module")
def nats(place: Path) -> dict[int, float]:
    """Nats below guessing by frequency after each recording, of a search that nothing stops."""
    run = searched(place, "whole", "--validation.every", str(EVERY))
    guessing = json.loads((place / "corpus" / "manifest.json").read_text())["unigram_cross_entropy"]
    found = {line["step"]: guessing - line["masked_loss"] for line in metrics(run, "validation")}
    assert list(found) == [4, 8, 12, 16] and 0 < found[8] < found[12] < found[16]
    return found


def test_it_stops_where_the_loss_has_come_down(place: Path, nats: dict[int, float]) -> None:
    """Not at the first agreement, 8, but at the next; also when it is stopped and resumed between the two."""
    options = (*AGREEING, "--search.stop_nats", str((nats[8] + nats[12]) / 2))
    with mock.patch.object(loop, "validate", wraps=loop.validate) as validated:
        run = searched(place, "waits", *options)
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))
    # Once at each agreement, though the last one is the search's end, too; and at step 10, as the recipe asks.
    assert validated.call_count == 3 and [line["step"] for line in metrics(run, "validation")] == [8, 10, 12]
    assert Ticket.load(run / "ticket.json").source.step == 12
    arguments = ("--config", "search.yaml", "--run-dir", "stopped", *options)
    status, output = train_here(place, *arguments, prepare=partial(patched_run.stop_once, "search", 10))
    assert status == 0 and "stopped as asked at step 10 of search;" in output, output
    require_same(searched(place, "stopped", *options), run)


def test_it_goes_on_where_the_loss_stays_above(place: Path, nats: dict[int, float]) -> None:
    run = searched(place, "never", *AGREEING, "--search.stop_nats", str(nats[16] + 0.01))
    assert metrics(run)[-1]["step"] == STEPS
