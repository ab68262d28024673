"""The command from end to end: it learns, goes on, prints its tables, and says in a sentence what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

from earlybert.core import cli
from earlybert.core.errors import UserError
from earlybert.finetune import command
from earlybert.finetune.cell import open_task
from earlybert.finetune.config import Settings
from earlybert.finetune.results import read_results, savings
from earlybert.finetune.tasks.registry import TASKS
from earlybert.finetune.text import Features
from earlybert.finetune.training import ProgressLines
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import FullShape, TicketRule
from tests.conftest import BIN, free_port
from tests.finetune.made_up import save_tiny_bert, table, tiny_bert

SMALL = ["--max-length", "48", "--doc-stride", "16", "--max-query-length", "8", "--draw.width_multiple", "8"]
SHORT = Settings(max_length=64, doc_stride=16, max_query_length=8)
FAST = ["--learning-rate", "3e-3", "--ticket-learning-rate", "3e-3", "--batch-size", "8", "--dropout", "0"]


def finetune(bert: Path, data: Path, out: Path, *more: str) -> None:
    command.main(["--model", str(bert), "--data", str(data), "--out", str(out), *SMALL, *more])


def test_dense_and_early_ticket_learn_what_one_word_gives_away(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task", "SST-2", "--method", "dense", "earlybert", *FAST, "--export", "[]"]
    arguments += ["--epochs", "6", "--ticket-epochs", "5", "--seed", "1", "2"]
    finetune(bert, data, tmp_path, *arguments)
    results = read_results(tmp_path)
    assert set(results) == {("SST-2", "dense"), ("SST-2", "earlybert")}
    for found in results.values():
        assert [result["seed"] for result in found] == [1, 2]
        assert min(result["scores"]["accuracy"] for result in found) > 0.85
    early = results["SST-2", "earlybert"][0]
    assert (early["heads"], sum(early["neurons"])) == ([3, 3, 3], 112)
    assert (early["search"]["steps"], early["training"]["steps"], early["dense_steps"]) == (2, 60, 72)
    saved = savings(results["SST-2", "earlybert"], results["SST-2", "dense"])
    assert saved is not None and saved.paper == pytest.approx(1 - (2 + 60 * saved.ratio) / 72)
    printed = capsys.readouterr().out
    assert "±" in printed and "majority class" in printed and "50.00" in printed

    # The same again computes nothing, one more seed only that.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    finetune(bert, data, tmp_path, *arguments, "3")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(after) == 6 and {path: after[path] for path in before} == before


def test_interrupted_it_keeps_all_updates_and_is_taken_up(
    bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the search, and again in the training: the weights are those of a call that nobody interrupted."""
    arguments = ["--task", "SST-2", "--method", "earlybert", *FAST, "--export", "[bert]", "--search-epochs", "0.5"]
    finetune(bert, data, tmp_path / "whole", *arguments)
    interrupts = [("search", 2), ("training", 5)]
    update = ProgressLines.on_step_end

    def interrupting(self: ProgressLines, args: Any, state: Any, control: Any, **others: Any) -> None:
        update(self, args, state, control, **others)
        if (self.name, state.global_step) in interrupts:
            interrupts.remove((self.name, state.global_step))
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressLines, "on_step_end", interrupting)
    folder = tmp_path / "cut" / "SST-2" / "earlybert" / "seed-42"
    for name, step in list(interrupts):
        finetune(bert, data, tmp_path / "cut", *arguments)
        assert f"stopped as asked at step {step} of" in (said := capsys.readouterr().err), said
        assert (folder / "checkpoints" / name / f"checkpoint-{step}" / "files.json").is_file()
        assert not (folder / "result.json").exists()
    finetune(bert, data, tmp_path / "cut", *arguments)
    whole, cut = (
        (tmp_path / name / "SST-2" / "earlybert" / "seed-42" / "export" / "bert" / "model.safetensors").read_bytes()
        for name in ("whole", "cut")
    )
    assert whole == cut


def test_every_method_runs_on_answers_and_leaves_nothing_half_written(bert: Path, data: Path, tmp_path: Path) -> None:
    methods = ["dense", "shortened", "earlybert", "random", "all", "layerdrop"]
    finetune(bert, data, tmp_path, "--task", "SQuAD", "--method", *methods, "--predict", "true", "--export", "[bert]")
    results = read_results(tmp_path)
    assert [method for _, method in results] and len(results) == 6
    by_method = {method: found[0] for (_, method), found in results.items()}
    assert by_method["layerdrop"]["layers"] == 2 and by_method["all"]["neurons"] == [64] * 3
    assert by_method["random"]["search"] is None and by_method["random"]["ticket_sha256"]
    assert by_method["shortened"]["relative_flops"] == 1 and by_method["earlybert"]["relative_flops"] < 0.75
    for method in methods:
        cell = tmp_path / "SQuAD" / method / "seed-42"
        answers = json.loads((cell / "predictions" / "predictions.json").read_text())
        assert len(answers) == 8 and (cell / "export" / "bert" / "config.json").is_file()
        assert not (cell / "checkpoints").exists()


def test_the_best_learning_rate_is_taken_and_reported(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every method; what follows is trained on all examples, and a try is not repeated."""
    methods = ["dense", "shortened", "layerdrop", "random", "earlybert"]
    arguments = ["--task", "SST-2", "--method", *methods, *FAST[4:], "--export", "[]", "--epochs", "6"]
    arguments += [
        "--ticket-epochs",
        "5",
        "--learning-rate",
        "1e-7",
        "3e-3",
        "--ticket_learning_rate",
        "2e-7",
        "4e-3",
        "--search-epochs",
        "0.5",
    ]
    finetune(bert, data, tmp_path, *arguments)
    for method in methods:
        rates = [2e-7, 4e-3] if method in ("random", "earlybert") else [1e-7, 3e-3]
        (result,) = read_results(tmp_path)["SST-2", method]
        assert [tried["learning_rate"] for tried in result["tried"]] == rates
        assert result["tried"][0]["score"] < result["tried"][1]["score"]
        assert (result["learning_rate"], result["examples"]) == (rates[1], 96)
        folder = tmp_path / "SST-2" / method / "seed-42"
        tries = [json.loads((folder / "tries" / number / "result.json").read_text()) for number in "12"]
        assert [one["examples"] for one in tries] == [86, 86]
        assert [one["scores"]["accuracy"] for one in tries] == [tried["score"] for tried in result["tried"]]
    assert "best on a held-out tenth" in capsys.readouterr().out
    tried = folder / "tries" / "1" / "result.json"
    before = tried.stat().st_mtime_ns
    (folder / "result.json").unlink()
    finetune(bert, data, tmp_path, *arguments)
    assert read_results(tmp_path)["SST-2", "earlybert"] and tried.stat().st_mtime_ns == before


def test_a_rate_that_diverges_is_not_taken(bert: Path, data: Path, tmp_path: Path) -> None:
    """Of several rates it is the worst, also where its score would have been as good; alone it ends in a sentence."""
    arguments = ["--task", "SST-2", "--method", "dense", *FAST[4:], "--export", "[]", "--epochs", "1"]
    arguments += ["--learning-rate"]
    finetune(bert, data, tmp_path / "two", *arguments, "1e30", "1e-7")
    (result,) = read_results(tmp_path / "two")["SST-2", "dense"]
    assert result["learning_rate"] == 1e-7
    assert result["tried"][0] == {"learning_rate": 1e30, "score": None} and result["tried"][1]["score"] > 0
    assert not list((tmp_path / "two").rglob("checkpoints"))  # several times a network's size
    with pytest.raises(UserError, match="learning rate 1e\\+30 is too high"):
        finetune(bert, data, tmp_path / "one", *arguments, "1e30")
    assert not read_results(tmp_path / "one")


def test_a_rate_that_diverges_in_the_search_is_not_taken(bert: Path, data: Path, tmp_path: Path) -> None:
    """What is told of it is the rate with a ticket, as of the others."""
    arguments = ["--task", "SST-2", "--method", "earlybert", *FAST[4:], "--export", "[]", "--ticket-epochs", "1"]
    arguments += ["--search-epochs", "0.5", "--learning-rate", "1e30", "1e-7", "--ticket-learning-rate", "3e-4", "4e-4"]
    finetune(bert, data, tmp_path, *arguments)
    (result,) = read_results(tmp_path)["SST-2", "earlybert"]
    assert result["learning_rate"] == 4e-4
    assert result["tried"][0] == {"learning_rate": 3e-4, "score": None} and result["tried"][1]["score"] > 0


@pytest.mark.parametrize(("task", "held"), [("SST-2", 10), ("SQuAD", 2)])
def test_a_tenth_of_the_training_set_is_held_out(bert: Path, data: Path, task: str, held: int) -> None:
    """Of texts or of contexts; the development set is not looked at."""
    pretrained, (used,) = open_pretrained(str(bert)), SHORT.tries(TASKS[task].defaults)
    whole = open_task(TASKS[task], data, pretrained, used)
    asked: list[Features] = []

    def zeros(rows: list[Features]) -> tuple[Any, ...]:
        asked.extend(rows)
        shape = (len(rows), 64 if task == "SQuAD" else 2)
        return tuple(np.zeros(shape, dtype=np.float32) for _ in range(2 if task == "SQuAD" else 1))

    part = whole.held_out(None)
    part.evaluate(zeros, None)
    all_rows, kept, out = (
        sorted(row["input_ids"] for row in rows) for rows in (whole.train(None), part.train(None), asked)
    )
    assert len(out) == held and sorted([*kept, *out]) == all_rows


def test_our_own_runs_and_exports_are_fine_tuned(finished_run: Path, data: Path, tmp_path: Path) -> None:
    """A run directory and its narrow export are the same network; the narrow one is not cut again."""
    arguments = ["--task", "SST-2", "--method", "dense", "--export", "[]", "--max-train-examples", "32"]
    for name, model in (("run", finished_run), ("export", finished_run / "export" / "earlybert")):
        finetune(model, data, tmp_path / name, *arguments)
    run, export = (read_results(tmp_path / name)["SST-2", "dense"][0] for name in ("run", "export"))
    assert run["scores"] == export["scores"] and run["neurons"] == export["neurons"] != [96, 96]
    with pytest.raises(ValueError, match=r"is narrow already; it must be dense"):
        finetune(finished_run, data, tmp_path / "again", *arguments[:2], "--method", "earlybert")


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the console command, which must refuse; returns its sentence."""
    monkeypatch.setattr(sys, "argv", ["earlybert", "finetune", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    errors = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and errors[-1].startswith("earlybert: error: ") and "Traceback" not in errors
    return errors[-1]


def test_pairs_are_refused_by_a_network_that_tells_no_two_texts_apart(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_bert(tmp_path / "bert", type_vocab_size=1)
    given = ("--model", str(model), "--data", str(data), "--out", str(tmp_path / "out"), *SMALL)
    sentence = refusal(monkeypatch, capsys, *given, "--task", "SQuAD")
    assert "bert: its type_vocab_size is 1, but the task has pairs of texts; it must be 2" in sentence
    assert not (tmp_path / "out").exists()
    open_task(TASKS["SST-2"], data, open_pretrained(str(model)), SHORT.for_task(TASKS["SST-2"].defaults))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--task", "SST2"], "--task is 'SST2', which is not known; did you mean SST-2?"),
        (["--task", "squad2"], "did you mean SQuAD?"),
        (["--method", "earlybrt"], "--method is 'earlybrt', which is not known; did you mean earlybert?"),
        (["--task", "CoLA"], "has no folder CoLA"),
        (["--max-length", "100"], "max_length is 100, but the position table"),
        (["--max-length", "4"], "max_length is 4; it must be at least 5"),
        (["--draw.head_ratio", "1.5"], "draw.head_ratio is 1.5; it must be at least 0 and below 1"),
        (["--draw.width_multiple", "7"], "draw.width_multiple is 7; it must be a positive divisor"),
        (["--search-epochs", "4"], "search_epochs is 4, but the search follows dense training's 3 epochs"),
        (["--search-epochs", "0"], "search_epochs is 0.0; it must be above 0"),
        (["--search-epochs", "many"], "search_epochs is many; it must be a number"),
        (["--epochs", "many"], "epochs is many; it must be a number"),
        (["--learning-rate", "1e-5", "many"], "learning_rate is many; it must be a number"),
        (["--learning-rate", "1e-5", "-1"], "learning_rate is -1.0; it must be above 0"),
        (
            ["--learning-rate", "1e-5", "2e-5", "--ticket-learning-rate", "1e-5"],
            "learning_rate has 2 value(s) and ticket_learning_rate 1",
        ),
        (
            ["--learning-rate", "1e-5", "2e-5", "--max-train-examples", "1"],
            "learning_rate has several values, but the training set is too small to hold a tenth of it out",
        ),
        (["--ranking", "gradient"], "ranking is gradient; it must be one of"),
        (["--seed", "one"], "seed is one; it must be a whole number"),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--epoch", "3"], 'unknown option --epoch; did you mean "epochs"?'),
        (["--batch-size", "8", "--micro-batch", "3"], "micro_batch is 3; it must divide the 8 sequences"),
        (["--dropout", "1"], "dropout is 1.0; it must be at least 0 and below 1"),
        (["--precision", "fp16"], "precision is fp16"),
        (["--data", "nowhere"], "--data is nowhere, which is not a folder with GLUE's folders"),
        (["--model", "nowhere"], "--model is 'nowhere', which is no run and no folder; as a model of the hub"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: list[str],
    expected: str,
    bert: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--model", str(bert), "--data", str(data), "--out", str(tmp_path / "out"), "--task", "SST-2"]
    assert expected in refusal(monkeypatch, capsys, *given, *SMALL, *flags)
    assert not (tmp_path / "out").exists()


def test_bad_files_are_one_sentence(
    bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(model: Path, folder: Path, *flags: str) -> str:
        given = ["--model", str(model), "--data", str(folder), "--out", str(tmp_path / "out"), "--task", "SST-2"]
        sentence = refusal(monkeypatch, capsys, *given, *SMALL, *flags)
        assert not (tmp_path / "out").exists()
        return sentence

    tiny_bert().save_pretrained(tmp_path / "mute")
    assert "the model needs its tokenizer, tokenizer.json or tokenizer_config.json" in refused(tmp_path / "mute", data)
    save_tiny_bert(tmp_path / "mixed", vocab_size=50)
    assert "but the model's embedding table only 50 rows" in refused(tmp_path / "mixed", data)
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    assert "its model_type is 'gpt2'; it must be bert or earlybert" in refused(tmp_path / "gpt", data)
    shape = FullShape(num_layers=12, num_heads=4, head_size=8, intermediate_size=64)
    random_ticket(shape, TicketRule(width_multiple=8), 0).save(tmp_path / "ticket.json")
    sentence = refused(bert, data, "--ticket", str(tmp_path / "ticket.json"))
    assert "is a ticket for a model with num_layers 12; here it must be 3" in sentence
    shutil.copytree(data / "SST-2", tmp_path / "broken" / "SST-2")
    table(tmp_path / "broken" / "SST-2" / "dev.tsv", ["sentence", "label"], [["fine", "2"]])
    assert "dev.tsv:2: label is '2'; it must be one of 0, 1" in refused(bert, tmp_path / "broken")
    shutil.copytree(data / "SST-2", tmp_path / "untested" / "SST-2")
    table(tmp_path / "untested" / "SST-2" / "test.tsv", ["index", "text"], [["0", "fine"]])
    assert "test.tsv:1: has no column 'sentence'" in refused(bert, tmp_path / "untested", "--predict", "true")
    (tmp_path / "out").write_text("")
    given = ["--model", str(bert), "--data", str(data), "--out", str(tmp_path / "out"), "--task", "SST-2", *SMALL]
    assert "/out, which cannot be written to (" in refusal(monkeypatch, capsys, *given)


def test_one_folder_is_for_one_setting(
    bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--task", "SST-2", "--method", "dense", "--max-train-examples", "8", "--export", "[]"]
    finetune(bert, data, tmp_path, *quick)
    given = ["--model", str(bert), "--data", str(data), "--out", str(tmp_path), *SMALL, *quick]
    found = refusal(monkeypatch, capsys, *given, "--epochs", "2")
    assert "epochs is 2.0, but" in found and "choose another --out" in found


class Joining(Exception):
    """A rank is about to join the others."""


def test_ranks_that_compute_on_cpus_join_by_gloo_where_there_are_gpus(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def join(backend: str, **_: Any) -> None:
        raise Joining(backend)

    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (launched | {"DS_ACCELERATOR": "cpu"}).items():
        monkeypatch.setenv(name, value)
    PartialState._reset_state()
    try:
        with pytest.raises(Joining, match="gloo"):
            command.main(["--model", str(bert), "--out", str(tmp_path / "out"), "--task", "SST-2"])
    finally:
        PartialState._reset_state()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "rates"), [("SST-2", ["--learning-rate", "1e-7", "3e-3"]), ("SQuAD", FAST[:4])], ids=["SST-2", "SQuAD"]
)
def test_two_ranks_train_what_one_rank_trains(
    bert: Path, data: Path, tmp_path: Path, task: str, rates: list[str]
) -> None:
    """The same batches, so the same best learning rate, the same ticket and, to rounding, the same network."""
    arguments = ["finetune", "--model", str(bert), "--data", str(data), *SMALL, *FAST[4:], "--task", task, *rates]
    launcher = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port(), "--no-python"]
    for name, before in (("one", []), ("two", launcher)):
        line = [*before, str(BIN / "earlybert"), *arguments, "--method", "earlybert", "--out", str(tmp_path / name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=500)
        assert done.returncode == 0, done.stderr
    first, second = (read_results(tmp_path / name)[task, "earlybert"][0] for name in ("one", "two"))
    for same in ("tried", "learning_rate", "neurons"):
        assert first[same] == second[same]
    assert first["training"]["steps"] == second["training"]["steps"]
    for name, value in first["scores"].items():
        assert second["scores"][name] == pytest.approx(value, abs=0.03), name
