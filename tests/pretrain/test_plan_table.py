"""The table that `earlybert plan` prints: as the documentation quotes it, and how a network grows in it."""

import re

import pytest

from earlybert.core import cli
from tests.conftest import ROOT


def printed(capsys: pytest.CaptureFixture[str], name: str) -> str:
    cli.main(["plan", "--config", name])
    return capsys.readouterr().out


def test_the_page_quotes_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    command = "$ earlybert plan --config bert_large\n"
    (quoted,) = re.findall(rf"^{re.escape(command)}(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found = printed(capsys, "bert_large")
    assert found == quoted
    assert all(len(row) <= 120 for row in found.partition("plan:")[0].splitlines())


def test_a_growing_network_is_seen_to_grow(capsys: pytest.CaptureFixture[str]) -> None:
    """Masked Structural Growth: a quarter of the neurons first, then all; 3, 6 and 12 layers of 8, then 12 heads."""
    header, *rows = printed(capsys, "msg_base").partition("plan:")[0].splitlines()
    columns = [header.split().index(name) for name in ("layers", "heads", "neurons")]
    # From the end, since cells of the first columns have blanks.
    found = [[row.split()[column - len(header.split())] for column in columns] for row in rows]
    assert found == [
        ["3", "36", "9,216"],
        ["3", "24", "2,304"],
        ["3", "24", "9,216"],
        ["6", "48", "18,432"],
        ["6", "72", "18,432"],
        ["12", "144", "36,864"],
        ["12", "144", "36,864"],
    ]
