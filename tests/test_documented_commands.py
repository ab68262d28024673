"""Commands in the code blocks of README.md and docs/: the real parsers take them, and what they ask for goes together.

`test_docs.py` looks at names and flags, here the commands are carried out up to where they would begin to work.
"""

import argparse
import glob
import json
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from earlybert.core import arguments as arguments_module
from earlybert.core import cli
from earlybert.data_prep.commands import prepare as prepare_command
from earlybert.pretrain.commands import recipe as recipe_command
from earlybert.pretrain.commands import ticket as ticket_command
from earlybert.pretrain.commands import train
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.plan import full_network
from earlybert.pretrain.plan.recipe import load_recipe, recipe_path
from earlybert.pretrain.plan.stages import build_stages
from tests.conftest import ROOT, write_text
from tests.in_process import run_here
from tests.test_docs import FENCE, WRITTEN, commands, page_name

# What stands for something of the reader's own.
STAND_INS = {"RECIPE": "bert_base", "RUN": "runs/quickstart"}
# Its commands name a source and tasks that its own examples add; tests/test_extending.py runs them.
PAGES = [page for page in WRITTEN if page.name != "extending.md"]


class Parsed(Exception):
    """The arguments are right; nothing else is to happen."""


def fenced(page: Path) -> list[list[str]]:
    """Commands of a page's code blocks, without those that stand for more than they say."""
    blocks = "".join(f"```\n{typed(block)}\n```\n" for block in FENCE.findall(page.read_text()))
    return [[STAND_INS.get(word, word) for word in words] for words in commands(blocks) if "..." not in words]


def typed(block: str) -> str:
    """Where a block shows a prompt, the other lines are output."""
    lines = block.splitlines()
    return "\n".join(line for line in lines if line.startswith("$ ") or not block.startswith("$ "))


def ours(words: list[str]) -> tuple[str, list[str]] | None:
    """The subcommand that a line comes to, and its arguments, whatever starts it."""
    for index, word in enumerate(words):
        rest = words[index + 1 :]
        if word == "earlybert" and rest and rest[0] in cli.COMMANDS:
            return rest[0], rest[1:]
        if word in ("pretrain/run.py", "earlybert.pretrain.run") or word.startswith("slurm/pretrain_"):
            return "train", rest
        if word == "slurm/finetune.sh":
            return "finetune", rest
        if word == "slurm/prepare_data.sh":
            return "prepare", ["--config", rest[0], "--out", rest[1]]
    return None


DOCUMENTED = [
    pytest.param(*found, id=f"{page_name(page)}: {shlex.join(words)}")
    for page in PAGES
    for words in fenced(page)
    if (found := ours(words)) is not None
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout, with the configurations that the pages name."""
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    mixes = [
        block for block in FENCE.findall((ROOT / "docs" / "data.md").read_text()) if block.startswith("source: mix")
    ]
    for name in ("mix.yaml", "corpus.yaml"):
        (tmp_path / name).write_text(mixes[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bert_base() -> NetworkConfig:
    return full_network(load_recipe(recipe_path("bert_base"), []), 30522, "nsp")


def stop(*_: object, **__: object) -> None:
    raise Parsed


def test_all_commands_are_found() -> None:
    """By counts of what to expect, so that no change of the pages' form leaves them out."""
    found = [parameter.values[0] for parameter in DOCUMENTED]
    assert len(found) > 60 and {"prepare", "train", "plan", "ticket", "export", "report", "finetune"} <= set(found)
    assert len(BENCHMARKS) > 15


@pytest.mark.parametrize(("command", "arguments"), DOCUMENTED)
def test_command_is_taken(command: str, arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A published network is not at hand, but its shape is known.
    monkeypatch.setattr(recipe_command, "_look_at", lambda _: bert_base())
    if command == "train" and "--help" not in arguments:
        recipe, _, _ = train.parse_arguments(arguments)
        check_recipe(recipe, 1)
        assert build_stages(recipe)
        return
    if command == "prepare":
        for name in ("prepare", "prepare_part", "merge", "verify", "show_statistics"):
            monkeypatch.setattr(prepare_command, name, stop)
        monkeypatch.setattr(prepare_command.Corpus, "open", stop)
    elif command == "finetune":
        monkeypatch.setattr("earlybert.finetune.command.check_environment", stop)
    elif command == "plan":
        monkeypatch.setattr("earlybert.pretrain.commands.plan.given_plan", stop)
    elif command == "ticket":
        for name in ("_show", "_compare", "_draw", "_random", "_all", "tune"):
            monkeypatch.setattr(ticket_command, name, stop)
    else:
        parse_args = arguments_module.ArgumentParser.parse_args

        def parse_and_stop(self: Any, *given: Any) -> None:
            parse_args(self, *given)
            raise Parsed

        monkeypatch.setattr(arguments_module.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises((Parsed, SystemExit)) as ended:
        cli.main([command, *arguments])
    assert not getattr(ended.value, "code", 0), "its help ends with status 0"


BENCHMARKS = [
    pytest.param(words[index], words[index + 1 :], id=f"{page_name(page)}: {shlex.join(words)}")
    for page in PAGES
    for words in fenced(page)
    for index, word in enumerate(words)
    if word.startswith("benchmarks/") and word.endswith(".py") and words[index + 1 :]
]


@pytest.mark.parametrize(("script", "arguments"), BENCHMARKS)
def test_benchmark_is_taken(script: str, arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks, too, up to where they have their arguments; the rest is a recipe's or fine-tuning's."""
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self: Any, *given: Any, **named: Any) -> None:
        _, rest = parse_known_args(self, *given, **named)
        raise Parsed(*rest)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(Parsed) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    rest = [str(word) for word in ended.value.args]
    if rest and script == "benchmarks/paper_tables.py":
        from earlybert.finetune.command import parse_arguments

        assert parse_arguments(["--model", "BERT", "--out", "out", "--task", "SST-2", *rest])
    elif rest:
        assert build_stages(train.parse_arguments(rest)[0])


@pytest.fixture(scope="module")
def models(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """What a name of a model stands for: runs of recipes that cut are narrow, exports for plain BERT are full."""

    def found(name: str) -> Path:
        return finished_run if Path(name).parts[0] == "runs" else finished_run / "export" / "bert"

    yield found


@pytest.mark.parametrize(
    "arguments", [one.values[1] for one in DOCUMENTED if one.values[0] == "finetune"], ids=shlex.join
)
def test_models_that_are_fine_tuned_suit_the_methods(
    arguments: list[str], models: Callable[[str], Path], place: Path
) -> None:
    from earlybert.finetune.command import parse_arguments
    from earlybert.finetune.methods import require_usable
    from earlybert.finetune.tasks.registry import TASKS
    from earlybert.pretrain.checkpoint.pretrained import open_pretrained

    what, settings = parse_arguments([*arguments, "--draw.width_multiple", "8"])
    pretrained = open_pretrained(str(models(what["model"])))
    for task in what["task"]:
        for method in what["method"]:
            require_usable(method, settings.for_task(TASKS[task].defaults), pretrained)


# BERT-Base in all but its size; the corpus's lengths are the page's.
SMALL = {
    "model.hidden_size": 64,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.intermediate_size": 96,
    "search.steps": 4,
    "search.snapshot_every": 2,
    "draw.width_multiple": 8,
    **{f"phase{phase}.{name}": value for phase in (1, 2) for name, value in (("global_batch", 8), ("steps", 5))},
    "phase1.micro_batch": 4,
    "phase2.micro_batch": 4,
    "validation.samples": 8,
}


@pytest.mark.slow
def test_readme_leads_from_text_to_a_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of "Your own text", one after the other, as they stand there, with a small network and few steps."""
    from backports import zstd
    from transformers import BertForPreTraining, BertTokenizer

    (place / "texts").mkdir()
    (place / "more").mkdir()
    write_text(place / "texts" / "a.txt", documents=60, seed=1)
    write_text(place / "texts" / "b.txt", documents=60, seed=2)
    rows = "".join(
        json.dumps({"text": f"Row {number} is a text. It has two sentences."}) + "\n" for number in range(50)
    )
    (place / "more" / "c.jsonl.zst").write_bytes(zstd.compress(rows.encode()))
    section = (ROOT / "README.md").read_text().partition("## Your own text")[2].partition("\n## ")[0]
    lines = [words for words in commands(section) if words[0] == "earlybert" and len(words) > 2]
    assert [words[1] for words in lines] == ["prepare", "plan", "train", "export"]
    small = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    for _, command, *arguments in lines:
        # As a shell does with the patterns.
        given = [path for word in arguments for path in (sorted(glob.glob(word)) or [word])]
        status, output = run_here(place, command, *given, *(small if command in ("plan", "train") else []))
        assert status == 0, output
    assert len(BertForPreTraining.from_pretrained(place / "my-bert").bert.encoder.layer) == 2
    assert BertTokenizer.from_pretrained(place / "my-bert").tokenize("text")
