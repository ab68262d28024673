"""The paper's tables at smoke scale on made-up data: every row is there, with the paper's numbers and the settings."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import finetuning
import numpy as np
import paper_tables as paper_tables_script
import pytest
from matplotlib.container import ErrorbarContainer
from paper.experiments import BIG_FOUR, FIGURES, TABLES, Experiment
from paper.pictures import score_figure
from paper_tables import Measurement, differences, distances, relative_change

from earlybert.finetune.results import Result
from earlybert.finetune.training import STOP, ProgressLines
from tests.conftest import ROOT
from tests.finetune.made_up import write_all_glue, write_squad

SMALL = ["--max-length", "48", "--doc-stride", "16", "--max-query-length", "8", "--draw.width_multiple", "8"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of every task."""
    folder = tmp_path_factory.mktemp("everything")
    write_all_glue(folder)
    write_squad(folder, 6, 3)
    return folder


def test_the_papers_numbers_are_transcribed() -> None:
    """Against what the paper's text and other tables say about them."""
    assert set(TABLES) == set(range(1, 10)) and set(FIGURES) == {1, 2, 3, 4}
    rows = {arm.name: arm.paper for arm in TABLES[2].arms}
    # Section 4.4: EarlyBERT loses 1.37 points on SQuAD. Section 4.2: 42.97 % are saved on QQP with the same setting.
    assert float(rows["BERT"]["SQuAD"]) - float(rows["EarlyBERT"]["SQuAD"]) == pytest.approx(1.37)
    headline = next(arm for arm in TABLES[5].arms if arm.paper.get("saved") == 42.97)
    assert headline.settings == {"draw.head_ratio": 0.333333, "draw.neuron_ratio": 0.4}
    assert sum(float(rows["BERT"][task]) for task in BIG_FOUR) / 4 == pytest.approx(88.95, abs=0.005)
    assert len(TABLES[5].arms) == 13 and len(TABLES[3].arms) == 12


def test_differences_are_of_the_same_seeds() -> None:
    def result(seed: int, accuracy: float) -> dict[str, object]:
        return {"seed": seed, "scores": {"accuracy": accuracy}}

    searched, random = [result(1, 0.5), result(2, 0.75), result(4, 0.1)], [result(2, 0.5), result(1, 0.25)]
    assert finetuning.differences("SST-2", searched, random) == [25.0, 25.0]


def test_a_folder_without_results_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["finetuning.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        finetuning.main()
    assert ended.value.code == 2 and f"{tmp_path} has no results" in capsys.readouterr().err


def paper_tables(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "paper_tables.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=where, timeout=580)


@pytest.mark.slow
@pytest.mark.parametrize("table", [1, 2, 4, 5, 7])
def test_tables_at_smoke_scale(table: int, bert: Path, everything: Path, tmp_path: Path) -> None:
    """On two tasks each, those that the tables have in common left to one of them."""
    tasks = {1: ["CoLA", "MRPC"], 2: ["SST-2", "SQuAD"], 4: ["RTE", "SQuAD"], 5: ["QQP"], 7: ["MNLI", "QNLI"]}[table]
    names = ["BERT", "EarlyBERT"] if table == 4 else ["BERT"]
    arguments = [f"--table={table}", "--models", *(f"{name}={bert}" for name in names), "--tasks", *tasks]
    arguments += ["--data", str(everything), "--out", str(tmp_path / "out"), *SMALL]
    done = paper_tables(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    for arm in TABLES[table].arms:
        numbers = [f"/ {number}" for column, number in arm.paper.items() if column in (*tasks, "saved")]
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"│ {arm.name} ")]
        assert len(rows) == (arm.model in names)
        assert all(number in row for row in rows for number in numbers)
    assert "scale smoke: --max-train-examples 200" in done.stdout and "majority class" in done.stdout
    assert ("neurons kept in multiples of 8" in done.stdout) == (table != 4)
    assert "other numbers than the paper's: --max-length 48" in done.stdout
    assert ("not measured, no network was given: BERT large" in done.stdout) == (table in (2, 4))
    if table == 7:
        again = paper_tables(tmp_path, *arguments)
        assert again.stdout == done.stdout and "training" not in again.stderr  # everything was there already


def test_dense_training_is_not_repeated_for_each_table() -> None:
    """Its score depends on no setting of the ticket."""
    for experiment in TABLES.values():
        assert all(not arm.settings for arm in experiment.arms if arm.method == "dense")


def measurement(out: Path, experiment: Experiment) -> Measurement:
    return Measurement(experiment, "smoke", {"BERT": "bert"}, None, out, ())


def test_mask_distances_are_those_of_the_figures_task(tmp_path: Path) -> None:
    """Table 6 has the same setting and so the same folder, with other tasks in it."""
    table, figure = measurement(tmp_path, TABLES[6]), measurement(tmp_path, FIGURES[1])
    for number, task in enumerate(BIG_FOUR):
        folder = table.folder(table.arms[1]) / task / "earlybert" / "seed-1" / "search"
        folder.mkdir(parents=True)
        (folder / "mask_distance.json").write_text(json.dumps({"steps": [number]}))
    assert distances(figure) == {"steps": [BIG_FOUR.index("QNLI")]}


def test_a_network_is_described_as_it_was_given(bert: Path, tmp_path: Path) -> None:
    """Table 3 has no dense row, and every row of it has another part of the network's 4 heads and 64 neurons."""
    table = Measurement(TABLES[3], "smoke", {"BERT": str(bert)}, None, tmp_path, ())
    folder = table.folder(table.arms[0])
    for task in BIG_FOUR:
        cut = {"task": task, "method": "earlybert", "seed": 1, "examples": 1000, "layers": 3}
        (cell := folder / task / "earlybert" / "seed-1").mkdir(parents=True)
        (cell / "result.json").write_text(json.dumps(cut | {"heads": [2] * 3, "neurons": [40] * 3}))
    (folder / "config.json").write_text(json.dumps({"draw": {"width_multiple": 8}}))
    (line,) = (line for line in differences(table) if line.startswith(f"BERT: {bert}, "))
    assert "3 layers of 4 heads and 64 neurons at most; rows to train on: MNLI 1,000, QNLI 1,000" in line


def test_changes_are_of_tasks_with_a_score_to_compare_with() -> None:
    def scores(cola: float, sst2: float) -> dict[str, list[Result]]:
        return {"CoLA": [{"scores": {"matthews": cola}}], "SST-2": [{"scores": {"accuracy": sst2}}]}

    assert relative_change(scores(0.1, 0.6), scores(0.0, 0.8)) == pytest.approx(-25)
    assert relative_change({"CoLA": scores(0.1, 0.6)["CoLA"]}, {"CoLA": scores(0.0, 0.8)["CoLA"]}) is None


def test_asked_to_stop_it_computes_no_more(
    bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first update of the first of two rows; the second one is not begun, and there is no table."""
    update = ProgressLines.on_step_end

    def interrupting(self: ProgressLines, args: Any, state: Any, control: Any, **others: Any) -> None:
        update(self, args, state, control, **others)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ProgressLines, "on_step_end", interrupting)
    # Forgotten again afterwards: the tests that follow in this process are not asked to stop.
    monkeypatch.setattr(STOP, "signal", None)
    arguments = ["--table=6", "--tasks", "SST-2", f"--models=BERT={bert}", "--data", str(data), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", *arguments, *SMALL])
    paper_tables_script.main()
    printed = capsys.readouterr()
    assert "stopped as asked at step 1 of" in printed.err and "no table: asked to stop" in printed.err
    assert not printed.out
    assert [path.name for path in (tmp_path / "smoke" / "BERT").iterdir()] == ["default"]


def test_a_figure_shows_means_and_spreads() -> None:
    lines = {"slow": [(1.0, [80.0, 84.0]), (3.0, [90.0, 90.0])], "fast": [(1.0, [70.0])]}
    (axes,) = score_figure("title", "epochs", "score", lines).axes
    first, second = (container.lines for container in axes.containers if isinstance(container, ErrorbarContainer))
    np.testing.assert_allclose(np.array(first[0].get_xydata()), [[1, 82], [3, 90]])
    spread = np.sqrt(8)
    np.testing.assert_allclose(first[2][0].get_segments(), [[[1, 82 - spread], [1, 82 + spread]], [[3, 90], [3, 90]]])
    np.testing.assert_allclose(np.array(second[0].get_xydata()), [[1, 70]])
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["slow", "fast"]


@pytest.mark.slow
def test_figure_of_mask_distances(bert: Path, everything: Path, tmp_path: Path) -> None:
    arguments = ["--figure=1", f"--models=BERT={bert}", "--data", str(everything), "--out", "out", *SMALL]
    done = paper_tables(tmp_path, *arguments, "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[3:6]] == ["1", "2", "3"]
    assert (tmp_path / "out" / "figure-1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_figure_of_scores(bert: Path, everything: Path, tmp_path: Path) -> None:
    arguments = ["--figure=4", "--models", f"EarlyBERT 100={bert}", f"EarlyBERT 80={bert}", "--tasks", "RTE", "CoLA"]
    done = paper_tables(tmp_path, *arguments, "--data", str(everything), "--out", "out", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "EarlyBERT 80 %" in done.stdout and "not measured, no network was given: EarlyBERT 60 %" in done.stdout
    assert (tmp_path / "out" / "figure-4.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--table=2", "--models", "Bert=x"], "--models is Bert=x; it must give one of BERT, BERT large as NAME=MODEL"),
        (["--table=2", "--models", "BERT=x", "--tasks", "CoLA"], "--tasks is CoLA; it must be of MNLI"),
    ],
)
@pytest.mark.slow
def test_bad_input(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = paper_tables(tmp_path, *arguments, "--out", "out")
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr
