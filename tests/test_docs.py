"""README.md and docs/: files, links, commands, flags, recipes and modules that they name exist; sentences are short."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from earlybert.core import cli
from earlybert.pretrain.plan.recipe import RECIPES
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What benchmarks and `earlybert report` write is a program's text, not ours.
WRITTEN = [page for page in PAGES if page.name != "report.md"]
SCRIPTS = sorted((ROOT / "docs").glob("*.sh"))

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "package|core|data_prep|kernels|pretrain|finetune|ds_configs|slurm|benchmarks|tests|docs|constraints"
# A path from the repository's root, or the end of one, as tables give it under a heading that names the folder.
ROOTED = re.compile(rf"(?<![\w./~$-])(?:{FOLDERS})/[\w./-]*\w")
SOURCE_FILE = re.compile(r"(?<![\w./~$-])[\w/-]+\.(?:py|sh|md|cu)\b")
# Files that a reader makes.
THEIRS = {"slurm/site.sh"}


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return [path for path in listed.stdout.decode().splitlines() if (ROOT / path).exists()]


def made_by(text: str) -> set[str]:
    """Files that the page's own examples make (docs/extending.md)."""
    return set(re.findall(r"^```\w+ file=(\S+)", text, re.MULTILINE))


def code(text: str) -> list[str]:
    """The contents of fenced blocks and of inline code."""
    return FENCE.findall(text) + INLINE.findall(FENCE.sub("", text))


def commands(text: str) -> list[list[str]]:
    """Words of every line of code that is a command, without prompts, comments and line breaks."""
    found = []
    for block in code(text):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.sub(r"\s#.*|^#.*", "", line.strip().removeprefix("$ ")).split(" && "):
                try:
                    found.append(shlex.split(part))
                except ValueError:  # not a command: an apostrophe in a program's output
                    continue
    return [words for words in found if words]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def words_per_sentence(text: str) -> float:
    """Mean over the sentences of paragraphs and list items; tables, headings, code blocks and pictures are left out."""
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", FENCE.sub("\n\n", text))
    text = re.sub(r"\]\([^)]*\)", "]", text)
    lines = [
        "" if line.startswith(("|", "#")) else re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n", line) for line in text.split("\n")
    ]
    sentences = re.split(r"(?:[.!?][\"')*`\]]*\s+)|\n\s*\n", "\n".join(lines))
    counts = [len(re.findall(r"\S*\w\S*", sentence)) for sentence in sentences]
    counts = [count for count in counts if count]
    return sum(counts) / len(counts)


def test_sentence_counter() -> None:
    prose = "# A heading\n\nOne two `three` four. Five\nsix 7.5!\n\n- an item, see [a link](to/it)\n- eight.\n"
    assert words_per_sentence(prose + "\n```\ncode here\n```\n\n| a | b |\n") == (4 + 3 + 5 + 1) / 4


@pytest.mark.parametrize("page", WRITTEN, ids=page_name)
def test_sentences_are_short(page: Path) -> None:
    assert words_per_sentence(page.read_text()) <= 20


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        found = (page.parent / path) if path else page
        assert found.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(found), f"{target}: no such heading"


@pytest.mark.parametrize("page", WRITTEN + SCRIPTS, ids=page_name)
def test_files_exist(page: Path) -> None:
    text = page.read_text()
    known = files() + sorted(made_by(text)) + sorted(THEIRS)
    for piece in [text] if page.suffix == ".sh" else code(text):
        for path in ROOTED.findall(piece):
            assert any(file == path or file.startswith(f"{path}/") for file in known) or "*" in piece, path
        for path in SOURCE_FILE.findall(piece):
            assert any(f"/{file}".endswith(f"/{path}") for file in known), path


@pytest.mark.parametrize("page", WRITTEN, ids=page_name)
def test_modules_exist(page: Path) -> None:
    made = {path.removesuffix(".py").replace("/", ".") for path in made_by(page.read_text())}
    for name in re.findall(r"\bearlybert(?:\.\w+)+", "\n".join(code(page.read_text()))):
        if name.removeprefix("earlybert.") in made:
            continue
        module, attributes = name, list[str]()
        while _missing(module):
            module, _, attribute = module.rpartition(".")
            attributes.insert(0, attribute)
        assert module != "earlybert", f"{name} does not exist"
        found = importlib.import_module(module)
        for attribute in attributes:
            assert hasattr(found, attribute), f"{module} has no {attribute}"
            found = getattr(found, attribute)


def _missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


@cache
def flags_of(command: str) -> set[str]:
    """Flags of `earlybert COMMAND [WORD]`, which must exist."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert not ended.value.code, f"earlybert {command} --help ends with status {ended.value.code}"
    return normal(re.findall(r"--[\w.-]+", shown.getvalue()))


def normal(flags: Iterable[str]) -> set[str]:
    return {flag.partition("=")[0].replace("-", "_") for flag in flags}


def flags_in(words: list[str]) -> set[str]:
    return normal(word for word in words if re.match(r"--\w", word))


def check_recipe_name(words: list[str]) -> None:
    for option, name in pairwise(words):
        if option == "--config" and re.fullmatch(r"[a-z_]+", name):
            assert (RECIPES / f"{name}.yaml").is_file(), f"no recipe {name}"


def check_training(arguments: list[str]) -> None:
    missing = flags_in(arguments) - flags_of("train")
    assert not missing, f"training has no {missing}"
    check_recipe_name(arguments)


def check_earlybert(arguments: list[str]) -> None:
    if not arguments or not re.match(r"[a-z]", arguments[0]):
        return
    command, rest = arguments[0], arguments[1:]
    assert command in cli.COMMANDS, f"earlybert {command}"
    if command == "train":
        return check_training(rest)
    subcommands = rest[0].split("|") if rest and re.fullmatch(r"[a-z|]+", rest[0]) else [""]
    for subcommand in subcommands:
        known = flags_of(f"{command} {subcommand}") | (flags_of("train") if command in ("plan", "ticket") else set())
        assert flags_in(rest) <= known, f"earlybert {command} {subcommand}: {flags_in(rest) - known}"
    if command != "prepare":
        check_recipe_name(rest)


def check_command(words: list[str], makefile: str) -> None:
    for index, word in enumerate(words):
        arguments = words[index + 1 :]
        if word == "earlybert":
            return check_earlybert(arguments)
        if word in ("pretrain/run.py", "earlybert.pretrain.run") or word.startswith("slurm/pretrain_"):
            return check_training(arguments)
        if word.startswith("benchmarks/") and word.endswith(".py"):
            missing = (
                flags_in(arguments) - normal(re.findall(r'"(--[\w-]+)"', (ROOT / word).read_text())) - flags_of("train")
            )
            if word == "benchmarks/paper_tables.py":
                missing -= flags_of("finetune")
            assert not missing, f"{word} has no {missing}"
            return
    if words[0] == "make":
        for target in words[1:]:
            variable, given, _ = target.partition("=")
            defined = rf"^{variable} \?=" if given else rf"^{re.escape(target)}:"
            assert re.search(defined, makefile, re.MULTILINE), f"make {target}"
    if re.match(r"--\w+\.", words[0]):
        assert flags_in(words[:1]) <= flags_of("train") | flags_of("finetune") | flags_of("prepare"), words[0]


@pytest.mark.parametrize("page", WRITTEN, ids=page_name)
def test_commands_exist(page: Path) -> None:
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    sections = {f"--{Path(file).stem}." for file in made_by(text)}  # a recipe's sections that its examples add
    for words in commands(text):
        known = [word for word in words if not word.startswith(tuple(sections))]
        if known:
            check_command(known, makefile)


def test_architecture_has_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {
        path.parent.relative_to(ROOT)
        for top in ("core", "data_prep", "kernels", "finetune", "pretrain/*")
        for path in ROOT.glob(f"{top}/__init__.py")
    }
    assert len(rooms) >= 11 and not [room for room in rooms if f"| `{room}/` |" not in text]
