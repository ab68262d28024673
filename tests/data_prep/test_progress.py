"""Progress of `earlybert prepare` inside a unit: one large packed file is one unit."""

import gzip
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from earlybert.core import progress
from earlybert.data_prep import workers
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.job_progress import portion, tell
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.steps.reading import work_units
from earlybert.data_prep.workers import Workers

TEXT = "the quick brown fox jumps over a lazy dog while seven wizards quietly mix jugs of strong blue paint"


class Shown:
    """What would be shown: each thing's total, and its steps."""

    def __init__(self, seen: Callable[[], None] = lambda: None) -> None:
        self.totals: dict[str, int] = {}
        self.steps: dict[str, list[int]] = {}
        self._seen = seen

    @contextmanager
    def progress(self, description: str, total: int, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
        self.totals[description], self.steps[description] = total, []

        def advance(amount: int) -> None:
            if amount:
                self.steps[description].append(amount)
                self._seen()

        yield advance


def two_halves(waits_for: Path | None) -> str:
    """A job that tells when half of it is done; with a file it then waits until that is there."""
    tell(0.25)
    with portion(0.5, 1.0):
        tell(0.0)
        deadline = time.monotonic() + 60
        while waits_for and not waits_for.exists():
            assert time.monotonic() < deadline, "nobody saw the half"
            time.sleep(0.05)
        tell(0.5)
    return "done"


def test_a_job_in_this_process_is_shown_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown()
    monkeypatch.setattr(workers, "progress", shown.progress)
    with Workers(1) as pool:
        assert pool.run(two_halves, [(None,), (None,)], "work", [100, 40]) == ["done", "done"]
    assert shown.steps["work"] == [25, 25, 25, 25, 10, 10, 10, 10]


def test_a_job_in_another_process_is_shown_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends only when its first half was seen."""
    shown = Shown(seen=lambda: (tmp_path / "seen").touch())
    monkeypatch.setattr(workers, "progress", shown.progress)
    with Workers(2) as pool:
        assert pool.run(two_halves, [(tmp_path / "seen",)], "work", [1000]) == ["done"]
        assert pool.run(two_halves, [(None,)] * 3, "more", [10, 20, 30]) == ["done"] * 3
    assert len(shown.steps["work"]) > 1 and sum(shown.steps["work"]) == 1000
    assert sum(shown.steps["more"]) == 60


@pytest.mark.parametrize("limit", [None, 0.05])
def test_one_packed_file_is_shown_document_by_document(
    limit: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `max_megabytes` ends it early."""
    words = TEXT.split()
    documents = [" ".join((words[turn % 7 :] + words)[:18]) + f", said number {turn}.\n" for turn in range(2000)]
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress("\n".join(documents).encode()))
    config = CorpusConfig(
        source="text", files=[str(tmp_path / "text.txt.gz")], max_megabytes=limit, vocab_size=300, lengths=[32]
    )
    (unit,) = work_units(config)
    shown = Shown()
    monkeypatch.setattr(workers, "progress", shown.progress)
    prepare(config, tmp_path / "corpus")
    read = "Reading text for the vocabulary"
    assert shown.totals[read] == unit.bytes_to_read <= (limit or 1) * 1e6
    for description, steps in shown.steps.items():
        assert sum(steps) == shown.totals[description]
    # Nor does it leap at the end: the size of the unpacked text is known nearly enough.
    assert len(shown.steps[read]) > 100 and max(shown.steps[read]) < 0.2 * shown.totals[read]


def test_a_line_says_how_much_is_done_and_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    now = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress._lines("Reading", 50_000_000, True) as advance:
        advance(10_000_000)
        advance(10_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "Reading",
        "Reading: 20%, 10 of 50 MB, 4 minutes left",
        "Reading: 40%, 20 of 50 MB, 3 minutes left",
    ]
