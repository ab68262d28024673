"""Every example of docs/extending.md works: one new file and one line of registration, in a copy of the package.

A section is a `## ` heading. Its blocks are fenced: "```python file=PATH" is a new file, "```python line=PATH
after="TEXT"" a line to insert after the one line of PATH that holds TEXT; other blocks are for the reader. A test calls
`extend` with a section's heading and runs what that section promises with `run_extended`.
"""

import gzip
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch

from tests.conftest import ROOT, start
from tests.finetune.made_up import save_tiny_bert, table
from tests.pretrain.run_files import metrics

PAGE = ROOT / "docs" / "extending.md"
FOLDERS = ("core", "data_prep", "kernels", "pretrain", "finetune", "ds_configs")
BLOCK = re.compile(r'^```python (?:file|line)=(\S+)(?: after="([^\n]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A new file (`after` is None) or what to insert after a line of an existing one; `path` is inside the package."""

    path: str
    after: str | None
    text: str

    @property
    def is_import(self) -> bool:
        return self.text.startswith(("import ", "from "))


def blocks_of(heading: str, page: str) -> list[Block]:
    """What a section adds: exactly one new file, one line that registers it, and perhaps the line that imports it."""
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert heading in sections, f"{PAGE.name} has no section {heading!r}, but {', '.join(sections)}"
    found = [Block(path, after or None, text) for path, after, text in BLOCK.findall(sections[heading])]
    lines = [block for block in found if block.after]
    assert len(found) - len(lines) == 1, f"{heading}: {len(found) - len(lines)} new files; it must be one"
    for block in lines:
        assert block.text.count("\n") == 1, f"{heading}: more than one line for {block.path}:\n{block.text}"
    imports = sum(block.is_import for block in lines)
    assert len(lines) - imports == 1, f"{heading}: {len(lines) - imports} lines of registration; it must be one"
    assert imports <= 1, f"{heading}: {imports} lines of imports; the new file's is enough"
    return found


def apply(block: Block, package: Path) -> None:
    path = package / block.path
    if block.after is None:
        assert path.parent.is_dir() and not path.exists(), f"{block.path} must be a new file in a folder that is there"
        path.write_text(block.text)
        return
    assert path.is_file(), f"{block.path}: there is no such file"
    lines = path.read_text().splitlines(keepends=True)
    places = [index for index, line in enumerate(lines) if block.after in line]
    assert len(places) == 1, f"{block.path}: {len(places)} lines hold {block.after!r}; it must be one"
    lines.insert(places[0] + 1, block.text)
    path.write_text("".join(lines))


def extend(heading: str, folder: Path) -> Path:
    """A copy of the package in `folder`, with what a section of the page adds."""
    package = folder / "earlybert"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "package" / "__init__.py", package)
    for block in blocks_of(heading, PAGE.read_text()):
        apply(block, package)
    return folder


def run_extended(folder: Path, *arguments: str) -> str:
    """Runs this interpreter on the copy, from its folder: `-c CODE`, or a script and its arguments.

    Returns its output; the test fails where it does.
    """
    process = start([sys.executable, *arguments], folder, PYTHONPATH=str(folder))
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, output
    return output


def command(folder: Path, *arguments: str) -> str:
    """Runs `earlybert ARGUMENTS` on the copy."""
    return run_extended(folder, "-c", "from earlybert.core.cli import main; main()", *arguments)


PAGE_WITH_A_SECTION = """# Page
## A thing
```python file=core/thing.py
THING = 3
```
```python line=core/text.py after="{anchor}"
from earlybert.core.thing import THING
```
```python line=core/text.py after="def duration"
{line}
```
## Another
"""


def test_blocks_are_applied_and_the_copy_is_what_runs(tmp_path: Path) -> None:
    page = PAGE_WITH_A_SECTION.format(anchor="from collections.abc", line="    seconds *= THING")
    for name in FOLDERS:
        (tmp_path / "earlybert" / name).mkdir(parents=True)
    shutil.copytree(ROOT / "core", tmp_path / "earlybert" / "core", dirs_exist_ok=True)
    shutil.copy(ROOT / "package" / "__init__.py", tmp_path / "earlybert")
    for block in blocks_of("A thing", page):
        apply(block, tmp_path / "earlybert")
    found = run_extended(tmp_path, "-c", "from earlybert.core import text; print(text.__file__, text.duration(5))")
    # The docstring comes after the inserted line, which Python allows.
    assert found.split() == [str(tmp_path / "earlybert" / "core" / "text.py"), "15.0", "s"]


@pytest.mark.parametrize(
    ("anchor", "line", "message"),
    [
        ("from nowhere", "    seconds *= THING", "0 lines hold 'from nowhere'"),
        ("return", "    seconds *= THING", "3 lines hold 'return'"),
        ("from collections.abc", "    seconds *= THING\n    seconds += 1", "more than one line"),
        ("from collections.abc", "from os import path", "0 lines of registration"),
    ],
)
def test_a_section_that_does_not_fit_is_named(tmp_path: Path, anchor: str, line: str, message: str) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "text.py").write_text("from collections.abc import Sequence\nreturn 1\nreturn 2\nreturn 3\n")
    with pytest.raises(AssertionError, match=message):
        for block in blocks_of("A thing", PAGE_WITH_A_SECTION.format(anchor=anchor, line=line)):
            apply(block, tmp_path)


MAIL = """From ada at example.org Mon Jan  1 10:00:00 2024
From: Ada <ada@example.org>
Subject: Message {number}
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

> What did it say?
Message number {number} says gr=C3=BC=C3=9Fe
to all of you.

A second paragraph follows it here.

--{space}
Ada, who signs everything

"""


def test_a_source_is_one_file_and_one_line(tmp_path: Path) -> None:
    """Its messages become a corpus on two workers, packed files too, and help knows it."""
    folder = extend("A source", tmp_path)
    mails = [MAIL.format(number=number, space=" ") for number in range(120)]
    (folder / "first.mbox").write_text("".join(mails[:60]))
    (folder / "second.mbox.gz").write_bytes(gzip.compress("".join(mails[60:]).encode()))
    options = ["--vocab_size", "200", "--lengths", "[32]", "--objective", "full-sentences", "--workers", "2"]
    command(
        folder, "prepare", "--source", "mbox", "--files", "[first.mbox,second.mbox.gz]", *options, "--out", "corpus"
    )
    counts = json.loads((folder / "corpus" / "manifest.json").read_text())["counts"]
    assert sum(split["documents"] for split in counts.values()) == 120
    assert sum(split["sentences"] for split in counts.values()) == 240
    code = (
        "from pathlib import Path; from earlybert.data_prep.samples.corpus import Corpus\n"
        "corpus = Corpus.open(Path('corpus')); samples = corpus.samples('validation', 32)\n"
        "print(corpus.tokenizer.decode(samples.rows([0])[0].input_ids))"
    )
    sentences = r"message number \d+ says grüße to all of you. a second paragraph follows it here. \[SEP\]"
    assert re.search(sentences, run_extended(folder, "-c", code))
    assert "archives of mailing lists" in " ".join(command(folder, "prepare", "--help").split())


def test_a_task_is_one_file_and_one_line(tmp_path: Path) -> None:
    """Two updates on whether two sentences say the same; scored, predicted and tabulated."""
    folder = extend("A task", tmp_path)
    save_tiny_bert(folder / "bert")
    texts = [("the tree is green", "green is the tree"), ("the river is old", "the house is old")]
    pairs = [[str(index), *texts[index % 2], str((index + 1) % 2)] for index in range(16)]
    header = ["id", "sentence1", "sentence2", "label"]
    for split in ("train", "dev", "test"):
        table(folder / "data" / "PAWS" / f"{split}.tsv", header, pairs)
    what = ["--model", "bert", "--data", "data", "--out", "out", "--task", "PAWS", "--method", "dense"]
    printed = command(folder, "finetune", *what, "--epochs=1", "--batch-size=8", "--max-length=32", "--predict=true")
    result = json.loads((folder / "out" / "PAWS" / "dense" / "seed-42" / "result.json").read_text())
    assert result["training"]["steps"] == 2 and result["scores"]["majority"] == 0.5
    assert set(result["scores"]) == {"accuracy", "f1", "majority"}
    submission = folder / "out" / "PAWS" / "dense" / "seed-42" / "predictions" / "PAWS.tsv"
    assert re.fullmatch(r"index\tprediction\n(\d+\t[01]\n){16}", submission.read_text())
    assert f"{100 * result['scores']['accuracy']:.2f}" in printed and "PAWS" in printed


# In the copy: whether each part of phase 1 has dropout, and what settle keeps of where the first part ended.
SETTLED = """
from pathlib import Path
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint
from earlybert.pretrain.plan.plan import run_plan
from earlybert.pretrain.plan.recipe import load_recipe

run = Path("settled")
recipe = load_recipe(run / "config.yaml", [])
plan = run_plan(run, recipe, Corpus.open(Path(recipe.data)))
print("dropout", [planned.network.hidden_dropout_prob for planned in plan.stages])
trained = Checkpoint(run / "checkpoints" / "step-00000030").training_state
begun = recipe.settle.begin(trained, plan.network(1), plan.network(2), lambda _: {})
same = all((begun.weights[name] == tensor).all() for name, tensor in trained.weights.items())
print("same", bool(same), sorted(begun.moments), begun.optimizer_step)
"""


def training_losses(run: Path) -> list[tuple[str, float]]:
    return [(line["stage"], line["masked_loss"]) for line in metrics(run)]


@pytest.fixture(scope="module")
def settled(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps of search, 10 with dropout, 10 without and 10 of phase 2 in a copy that knows `settle`."""
    folder = extend("A border", tmp_path_factory.mktemp("settle"))
    shutil.copy(workplace / "small.yaml", folder)
    run_extended(folder, *SETTLING)
    return folder


SETTLING = [
    *("earlybert/pretrain/run.py", "--config", "small.yaml", "--run_dir", "settled", "--keep_checkpoints", "20"),
    *("--plan", "[search, narrow, phase1, settle, phase1, phase2]", "--settle.until", "[0.5]"),
]


def test_a_border_changes_the_network(settled: Path) -> None:
    run = settled / "settled"
    plan = json.loads((run / "plan.json").read_text())["stages"]
    facts = ("name", "begin", "heads", "steps", "schedule_start")
    assert [tuple(stage[fact] for fact in facts) for stage in plan] == [
        ("search", "initial", 8, 20, 0),
        ("phase1-before-settle", "narrow", 6, 10, 0),
        ("phase1", "settle", 6, 10, 10),
        ("phase2", "lengthen", 6, 10, 0),
    ]
    found = run_extended(settled, "-c", SETTLED)
    assert "dropout [0.1, 0.1, 0.0, 0.0]" in found and "same True ['exp_avg', 'exp_avg_sq'] 10" in found


def test_a_settled_run_resumes_and_is_reported_and_exported(settled: Path) -> None:
    run = settled / "settled"
    whole = training_losses(run)
    (run / "DONE").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name > "step-00000037":  # the seventh step without dropout
            shutil.rmtree(checkpoint)
    output = run_extended(settled, *SETTLING)
    assert "step-00000037: step 7" in output and training_losses(run) == whole
    page = (run / "report.md").read_text()
    assert "a searched ticket of it, settled, is trained to the end" in page
    assert "| settle | train on without dropout |" in page and "| stack |" not in page
    assert json.loads((run / "export" / "earlybert" / "config.json").read_text())["hidden_dropout_prob"] == 0.0


def test_a_border_in_a_senseless_place_is_refused(settled: Path) -> None:
    for plan, dropout, message in (
        ("[phase1, settle, phase1]", "0.0", "settle needs dropout"),
        ("[search, settle, phase1]", "0.1", "after search must come narrow or nothing, not settle"),
        ("[phase1, phase1]", "0.1", "phase 1 is one stage until the network is stacked or settled or widened"),
        ("[phase1, settle, phase2]", "0.1", "without dropout is there to be trained, so after settle must"),
        ("[phase1, setle, phase1]", "0.1", 'did you mean "settle"?'),
    ):
        arguments = ["plan", "--config", "small.yaml", "--settle.until", "[0.5]", "--plan", plan]
        arguments += ["--model.hidden_dropout", dropout, "--model.attention_dropout", dropout]
        entry = [sys.executable, "-c", "from earlybert.core.cli import main; main()"]
        process = start([*entry, *arguments], settled, PYTHONPATH=str(settled))
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2 and message in output, output


# In the copy: what the trained network says of two texts, and its exports, in our form and in plain BERT's.
EXPORTED_ORDER = """
import torch
from transformers import BertForMaskedLM
from pathlib import Path
from earlybert.pretrain.checkpoint.trained import newest
from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertForMaskedLM

ours = EarlyBertForMaskedLM.from_pretrained("ordered/export/earlybert").eval()
bert = BertForMaskedLM.from_pretrained("ordered/export/bert").eval()
ids = torch.randint(5, ours.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = newest(Path("ordered")).network().eval().padded_logits(ids)
    for model in (ours, bert):
        found = model(ids).logits
        print("largest difference", float((logits["masked"][..., : found.shape[-1]] - found).abs().max()))
print({name: list(scores.shape) for name, scores in logits.items() if name != "masked"})
"""


PLANNED = """
import json, sys
from pathlib import Path
from earlybert.pretrain.plan.plan import Plan, full_network
from earlybert.pretrain.plan.recipe import load_recipe

recipe = load_recipe(Path("small.yaml"), ["--plan", "[phase1]", "--losses", sys.argv[1]])
print(json.dumps(Plan(recipe, full_network(recipe, 300, "sop")).content()["stages"][0]))
"""


@pytest.fixture(scope="module")
def ordered(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy that knows `sentence_order`, with a run of 20 steps, and what that run said."""
    folder = extend("A loss part", tmp_path_factory.mktemp("sentence-order"))
    shutil.copy(workplace / "small.yaml", folder)
    run = ["--run_dir", "ordered", "--plan", "[phase1]", "--export", "[earlybert, bert]"]
    return folder, run_extended(folder, "earlybert/pretrain/run.py", *ORDERED, *run)


ORDERED = ["--config", "small.yaml", "--corpus.objective", "sop", "--losses", "[masked, sentence_order]"]


def test_a_loss_part_is_trained_and_saved(ordered: tuple[Path, str]) -> None:
    run = ordered[0] / "ordered"
    steps = metrics(run)
    assert len(steps) == 20 and all(abs(line["sentence_order_loss"] - math.log(2)) < 0.15 for line in steps)
    assert abs(steps[0]["sentence_order_loss"] - math.log(2)) < 0.01
    assert not any("next_sentence_loss" in line for line in steps)
    for line in [*steps, *metrics(run, "validation")]:
        assert line["loss"] == pytest.approx(line["masked_loss"] + line["sentence_order_loss"], rel=1e-12)
        assert 0 <= line["sentence_order_accuracy"] <= 1
    newest = sorted((run / "checkpoints").iterdir())[-1]
    manifest = json.loads((newest / "manifest.json").read_text())["tensors"]
    heads = {name.split("/")[1] for name in manifest if not name.split("/")[1].startswith(("layers.", "embeddings."))}
    assert {name.split(".")[0] for name in heads} == {"masked_token", "sentence_order"}
    state = safetensors.torch.load_file(newest / "rank-00000.safetensors")
    assert state["exp_avg_sq/sentence_order.weight"].shape == (2, 64)
    assert float(state["exp_avg_sq/sentence_order.weight"].min()) > 0, "every weight has had a gradient"


def test_a_loss_part_is_in_plan_and_report(ordered: tuple[Path, str]) -> None:
    """Width 64, so a linear layer of 2 x 64 + 2 parameters; two operations a weight, thrice for a step."""
    folder, said = ordered
    losses = ("[masked]", "[masked, sentence_order]")
    without, with_it = (json.loads(run_extended(folder, "-c", PLANNED, each).splitlines()[-1]) for each in losses)
    assert with_it["parameters"] - without["parameters"] == 2 * 64 + 2
    assert with_it["flops_per_step"] - without["flops_per_step"] == 3 * 2 * 2 * 64 * with_it["global_batch"]
    page = (folder / "ordered" / "report.md").read_text()
    last = metrics(folder / "ordered", "validation")[-1]
    assert f"| validation loss of sentence order, end of phase1 | {last['sentence_order_loss']:.4f} |" in page
    assert "it told whether two segments of unseen text are swapped with a loss of" in page
    assert "curves-sentence_order.png" in page and (folder / "ordered" / "curves-sentence_order.png").is_file()
    assert f"sentence order: loss {last['sentence_order_loss']:.3f} nats (guessing by frequency 0.693)" in said


def test_a_loss_part_is_exported(ordered: tuple[Path, str]) -> None:
    folder, said = ordered
    for form in ("earlybert", "bert"):
        assert f"the {form} export leaves out the head for sentence order" in said
    found = run_extended(folder, "-c", EXPORTED_ORDER)
    differences = re.findall(r"largest difference (\S+)", found)
    assert len(differences) == 2 and max(map(float, differences)) < 1e-5
    assert "{'sentence_order': [2, 2]}" in found


def test_a_loss_part_without_labels_is_refused(ordered: tuple[Path, str]) -> None:
    for arguments, message in (
        (
            ("--corpus.objective", "nsp"),
            "losses has 'sentence_order', for which a corpus of the objective 'nsp' has",
        ),
        (("--losses", "[masked, order]"), "losses has 'order', which is no part of the loss"),
    ):
        entry = [sys.executable, "-c", "from earlybert.core.cli import main; main()"]
        process = start([*entry, "plan", *ORDERED, *arguments], ordered[0], PYTHONPATH=str(ordered[0]))
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2 and message in output and "Traceback" not in output, output
