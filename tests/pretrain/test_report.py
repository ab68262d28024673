"""Reports: what metrics.jsonl says about time, worked out by hand, and pages of one run and of several."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt

from earlybert.core import cli
from earlybert.core.errors import UserError
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.checkpoint import list_checkpoints
from earlybert.pretrain.commands.report import report_name
from earlybert.pretrain.report.attention_mass import AttentionMass
from earlybert.pretrain.report.outcome import read_outcome
from earlybert.pretrain.report.page import CURVES, MASKS, PROTOCOL, SPLIT, TICKET, attention_section
from earlybert.pretrain.report.report import write_report
from earlybert.pretrain.report.summary import print_summary
from earlybert.pretrain.report.timeline import accelerator_hours, interruptions, read_lines, running_seconds, sessions
from tests.pretrain.run_files import metrics

DOCS = Path(__file__).parents[2] / "docs"
# A run on four ranks that is killed 100 s after its start, stands still for 900 s and goes on with two ranks from step
# 1: the second and third step are made twice.
INTERRUPTED = [
    {"kind": "start", "global_step": 0, "time": 1000.0, "ranks": 4, "device": "V100"},
    {"kind": "train", "global_step": 1, "time": 1040.0, "seconds": 30.0, "stage": "phase1", "step": 1},
    {
        "kind": "start",
        "global_step": 1,
        "time": 2000.0,
        "ranks": 2,
        "device": "V100",
        "last_alive": 1100.0,
        "lost_steps": 2,
    },
    {"kind": "train", "global_step": 2, "time": 2080.0, "seconds": 60.0, "stage": "phase1", "step": 2},
    {"kind": "train", "global_step": 3, "time": 2140.0, "seconds": 60.0, "stage": "phase1", "step": 3},
]


def test_the_clock_stands_still_between_sessions() -> None:
    assert running_seconds(INTERRUPTED) == [0.0, 40.0, 100.0, 180.0, 240.0]


def test_hours_count_the_ranks_of_each_session() -> None:
    assert accelerator_hours(sessions(INTERRUPTED)) == pytest.approx((100 * 4 + 140 * 2) / 3600)


def test_what_an_interruption_costs() -> None:
    """Two steps at the median of 30, 60, 60 s; the first step after it began 2,020 s, 20 s after the start."""
    assert dataclasses.asdict(interruptions(INTERRUPTED)) == {
        "restarts": 1,
        "lost_steps": 2,
        "lost_seconds": 120.0,
        "starting_seconds": 20.0,
        "down_seconds": 900.0,
    }


def test_a_report_of_one_run_and_of_two(finished_run: Path, tmp_path: Path) -> None:
    write_report([finished_run], tmp_path / "alone")
    name = "my (2) | ö"
    other = shutil.copytree(finished_run, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints", "export"))
    write_report([finished_run, other], tmp_path / "both")
    alone, both = (json.loads((tmp_path / folder / "report.json").read_text()) for folder in ("alone", "both"))
    own = json.loads((finished_run / "report.json").read_text())
    assert alone == both["runs"]["finished"] == own | {"run_dir": str(finished_run)}
    # Without checkpoints there is no network whose attention could be looked at.
    assert both["runs"]["finished"]["attention"] and not both["runs"][name]["attention"]
    last = metrics(finished_run, "validation")[-1]
    for folder, columns in (("alone", 1), ("both", 2)):
        text = (tmp_path / folder / "report.md").read_text()
        losses = " | ".join(columns * [f"{last['masked_loss']:.4f}"])
        assert f"| validation loss of masked tokens, end of phase2 | {losses} |" in text
        assert f"a loss of {last['masked_loss']:.3f} nats, {last['masked_accuracy']:.1%} of them right" in text
        # As CommonMark reads an address: to a space or bracket.
        shown = {unquote(address) for address in re.findall(r"!\[[^]]*\]\(([^() ]+)\)", text)}
        assert shown == {path.name for path in (tmp_path / folder).glob("*.png")} and len(shown) >= 5
        for path in (tmp_path / folder).iterdir():
            assert path.stat().st_size < 150_000, path
    assert ["", "finished", name] in headers(text)


def headers(markdown: str) -> list[list[str]]:
    """The first row of every table, as a reader of Markdown sees it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    found: list[list[str]] = []
    for before, token in pairwise(tokens):
        if before.type == "tr_open" and token.type == "th_open":
            found.append([])
        elif before.type == "th_open":
            found[-1].append(token.content)
    return found


def test_attention_of_networks_of_other_depths_is_one_table() -> None:
    uniform = {"near": 0.5, "cls": 0.125}

    def mass(layers: int, length: int) -> AttentionMass:
        return AttentionMass({keys: [0.25] * layers for keys in uniform}, uniform, samples=2, length=length)

    text = attention_section({"shallow": mass(1, 64), "deep": mass(2, 64)})
    assert "Measured on 2 held-out samples of 64 tokens, mean over" in text
    longer = attention_section({"shallow": mass(1, 64), "deep": mass(2, 128)})
    assert "on 2 held-out samples of 64 tokens (shallow) and 2 held-out samples of 128 tokens (deep), mean" in longer
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {4} and rows[0][2:] == ["layer 1", "spread evenly"]
    evenly = {row[0]: row[2:] for row in rows[2:]}
    assert evenly["shallow, on [CLS]"] == ["-", "0.125"] and evenly["deep, on [CLS]"] == ["0.250", "0.125"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, None),
        ({"ranks": 2}, "the number of ranks changed"),
        ({"device": "Tesla V100"}, "the device changed"),
        ({"precision": "bf16", "compile": True}, "the precision and the compilation changed"),
        ({"zero_stage": 3}, "the ZeRO stage changed"),
    ],
)
def test_times_of_other_layouts_do_not_compare(
    change: dict[str, object], named: str | None, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is interrupted after its search, and resumed on the same machine or on another one."""
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "export"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    start = json.loads(lines[0])
    cut = next(number for number, line in enumerate(lines) if json.loads(line).get("stage") == "phase1")
    alive = json.loads(lines[cut - 1])
    assert start.keys() >= change.keys()
    again = start | change | {"time": alive["time"], "last_alive": alive["time"], "lost_steps": 0}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:cut], json.dumps(again), *lines[cut:]]) + "\n")
    write_report([run], tmp_path / "out")
    content, text = (
        json.loads((tmp_path / "out" / "report.json").read_text()),
        (tmp_path / "out" / "report.md").read_text(),
    )
    assert ("time_saved" in content) is ("step_time_ratio" in content) is (named is None)
    print_summary(read_outcome(run))
    printed = capsys.readouterr().out
    if named is None:
        assert "not measured" not in text + printed
    else:
        assert f"time saved is not measured: {named}, so" in text
        assert f"time saved             not measured: {named}, so" in printed


def test_a_run_that_an_older_version_began_is_timed(finished_run: Path, tmp_path: Path) -> None:
    """That wrote ranks and device alone, where this one resumed it."""
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "export"))
    start, *lines = (run / "metrics.jsonl").read_text().splitlines()
    whole = json.loads(start)
    old = {name: whole[name] for name in ("kind", "global_step", "time", "ranks", "device")}
    again = whole | {"last_alive": whole["time"], "lost_steps": 0}
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(old), json.dumps(again), *lines]) + "\n")
    outcome = read_outcome(run)
    assert outcome.changed_layout == [] and outcome.savings is not None


@pytest.mark.parametrize(("below", "too_soon"), [(0.8, True), (1.0, False)])
def test_a_search_that_ended_at_word_frequencies_is_told_of(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], below: float, too_soon: bool
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "export"))
    frequencies = json.loads((run / "report.json").read_text())["unigram_cross_entropy"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "validation" and line["stage"] == "search":
            line["masked_loss"] = frequencies - below
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report([run], tmp_path / "out")
    assert ("search ended at word frequencies" in (tmp_path / "out" / "report.md").read_text()) is too_soon
    print_summary(read_outcome(run))
    assert ("search                 ended at word frequencies" in capsys.readouterr().out) is too_soon


def test_shares_of_attention_are_shares(finished_run: Path) -> None:
    attention = json.loads((finished_run / "report.json").read_text())["attention"]
    for kind in ("near", "cls"):
        assert len(attention[kind]) == 2 and all(0 < share < 1 for share in attention[kind])
    # Up to five of at most 64 tokens are near; a sequence has one [CLS].
    assert attention["uniform"]["cls"] >= 1 / 64 and attention["uniform"]["near"] < 5 * attention["uniform"]["cls"]


def test_attention_on_another_corpus_than_the_runs_is_left_out(
    finished_run: Path, small_corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that was prepared anew in the same folder: with another vocabulary and other lengths."""
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(recipe | {"data": str(small_corpus.directory)}))
    write_report([run], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["attention"] is None
    said = capsys.readouterr().err
    assert f"leaves out where attention goes: {small_corpus.directory}: is not the corpus that {run} was" in said


def test_a_damaged_newest_checkpoint_is_passed_over(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("export", "DONE"))
    assert read_outcome(run).finished
    newest = list_checkpoints(run / "checkpoints")[-1] / "state.json"
    newest.write_text("")
    write_report([run], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not content["finished"] and content["attention"]
    assert capsys.readouterr().err.count(f"skipping a damaged checkpoint: {newest}") == 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder / "nowhere", "nowhere"),
        (lambda folder: folder, "config.yaml"),
    ],
    ids=["no-folder", "no-run"],
)
def test_what_is_no_run_is_refused(
    prepare: Callable[[Path], Path],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["earlybert", "report", str(prepare(tmp_path)), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", b"", "has no lines in metrics.jsonl"),
        ("metrics.jsonl", b'{"kind": "st\n', "metrics.jsonl:1: is not a line of JSON"),
        ("metrics.jsonl", b"\xff\xfe\n", "metrics.jsonl:1: is not a line of JSON"),
        ("metrics.jsonl", b"5\n", "metrics.jsonl:1: is not what this version writes"),
        ("metrics.jsonl", b'{"kind": "start", "global_step": 0, "time": 1}\n', "is not what this version writes"),
        ("ticket.json", b"[]", "ticket.json: \"format\" is 'list'"),
        ("config.yaml", b"plan: [phase1]\n", "phase1 is missing"),
    ],
)
def test_damaged_and_foreign_files_are_refused(
    file: str, content: bytes, message: str, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("checkpoints", "export"))
    (run / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        write_report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_a_last_line_does_not_count(tmp_path: Path) -> None:
    whole = b'{"kind": "start", "global_step": 0, "time": 1.5, "ranks": 2, "device": "CPU"}\n'
    (tmp_path / "metrics.jsonl").write_bytes(whole + whole[:30])
    assert read_lines(tmp_path) == [json.loads(whole)]


def test_a_report_of_many_runs_has_a_name_that_a_folder_can_have(tmp_path: Path) -> None:
    """The cut is in the middle of a letter of two bytes."""
    name = report_name([tmp_path / (letter * 99) for letter in "äöü"])
    assert name.startswith(f"report-{'ä' * 99}-ö")
    (tmp_path / name).mkdir()
    assert report_name([tmp_path / "a", tmp_path / "b"]) == "report-a-b"


def test_two_runs_of_one_name_are_refused(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / finished_run.name, ignore=shutil.ignore_patterns("checkpoints", "export"))
    with pytest.raises(UserError, match=r"has the same name as .*; runs of one report must have different names"):
        write_report([finished_run, tmp_path / finished_run.name], tmp_path / "out")


# The example reports, and the runs that each is of.
EXAMPLES = {"one-run": ["ticket"], "comparison": ["ticket", "random-ticket", "dense"]}


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_reports_are_as_reports_are_now(example: str, finished_run: Path, tmp_path: Path) -> None:
    """`docs/example_reports.sh` makes them anew. Headings, pictures and the sentences that explain them."""
    ignored = shutil.ignore_patterns("export")
    runs = [shutil.copytree(finished_run, tmp_path / name, ignore=ignored) for name in EXAMPLES[example]]
    write_report(runs, tmp_path / "report")
    now, then = ((folder / "report.md").read_text() for folder in (tmp_path / "report", DOCS / "examples" / example))
    assert headings(then) == headings(now)
    explained = {text for text in (SPLIT, CURVES, MASKS, TICKET, PROTOCOL) if text in now}
    assert len(explained) == 5 and all(text in then for text in explained)
    # Of masked tokens: the example's corpus has no pairs of segments. Dense training has no search and no ticket.
    made = {path.name for path in (tmp_path / "report").glob("*.png")} - {"curves-next_sentence.png"}
    made -= {"mask_distance-dense.png", "ticket-dense.png", "mask_distance-random-ticket.png"}
    committed = {path.name for path in (DOCS / "examples" / example).glob("*.png")}
    assert committed == made


def headings(markdown: str) -> list[str]:
    return [line for line in markdown.splitlines() if line.startswith("#")]
