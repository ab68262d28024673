"""Imports run one way: from room to room as the house has it, and between the files of a room without a cycle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = "earlybert"
FOLDERS = ["core", "data_prep", "kernels", "pretrain", "finetune"]

# Rooms, and files that stand beside them, from the lowest up: each may import the ones before it, and itself.
ROOMS = {
    "data_prep": "dask_engine job_progress workers cleaning sources config tokens samples steps prepare commands",
    "pretrain": "network ticket plan cost checkpoint train report commands run",
}
DATA_PREP, PRETRAIN = ([f"{folder}.{room}" for room in rooms.split()] for folder, rooms in ROOMS.items())
ALLOWED = {"core": {"core"}, "kernels": {"core", "kernels"}}
ALLOWED |= {room: {"core", *DATA_PREP[: level + 1]} for level, room in enumerate(DATA_PREP)}
ALLOWED |= {room: {"core", "kernels", *DATA_PREP, *PRETRAIN[: level + 1]} for level, room in enumerate(PRETRAIN)}
ALLOWED["finetune"] = {"finetune", *ALLOWED["pretrain.report"]}
# Importing a package itself imports nothing of its rooms but the errors.
ALLOWED |= {folder: {"core"} for folder in ROOMS}


def files() -> dict[str, Path]:
    """Every module of the package by its name below it, as `pretrain.plan.recipe`."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = files()


def room(module: str) -> str:
    top, *rest = module.split(".")
    return f"{top}.{rest[0]}" if top in ROOMS and rest else top


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports below a node, those inside functions too, but not those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for otherwise in child.orelse:
                yield from statements(otherwise)
        else:
            yield from statements(child)


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports: `from a import b` is a.b where that is a module, else a."""
    found: set[str] = set()
    for statement in statements(ast.parse(MODULES[module].read_text())):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            assert not statement.level, f"{module} has a relative import in line {statement.lineno}"
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
        for name in names:
            if name.startswith(f"{PACKAGE}."):
                below = name.removeprefix(f"{PACKAGE}.")
                found.add(below if below in MODULES else below.rpartition(".")[0])
    return found


IMPORTS = {module: imported(module) for module in MODULES}

# What takes seconds to import. A plan, a ticket and the list of checkpoints are shown without any of it.
HEAVY = {"torch", "transformers", "deepspeed", "datasets", "matplotlib"}
# Files of those rooms that compute with tensors or draw.
COMPUTING = {
    *(f"pretrain.network.{name}" for name in ("bert_format", "exported.modeling_earlybert", "initial", "layers")),
    *(f"pretrain.network.{name}" for name in ("model", "batch", "surgery")),
    *("pretrain.ticket.figures", *(f"pretrain.checkpoint.{name}" for name in ("writer", "export", "trained"))),
    *(f"pretrain.checkpoint.{name}" for name in ("model_folder", "initial", "pretrained")),
}


def test_every_import_is_of_a_module_that_exists() -> None:
    assert not {(module, name) for module, names in IMPORTS.items() for name in names if name not in MODULES}
    assert len(MODULES) > 100 and sum(map(len, IMPORTS.values())) > 300


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(module) for module in MODULES} == set(ALLOWED)


def test_rooms_import_only_the_rooms_below_them() -> None:
    against = {
        (module, name) for module, names in IMPORTS.items() for name in names if room(name) not in ALLOWED[room(module)]
    }
    assert not against


def test_what_plans_and_lists_is_light_to_import() -> None:
    """Each in its turn in a fresh process, which says the first that brings something heavy."""
    rooms = (*DATA_PREP, "pretrain.network", "pretrain.ticket", "pretrain.plan", "pretrain.checkpoint")
    light = [module for module in MODULES if room(module) in rooms and module not in COMPUTING]
    assert len(light) > 15
    script = (
        "import importlib, sys\n"
        "for module in sys.argv[2:]:\n"
        "    importlib.import_module('earlybert.' + module)\n"
        "    heavy = set(sys.argv[1].split(',')) & sys.modules.keys()\n"
        "    assert not heavy, (module, heavy)\n"
    )
    command = [sys.executable, "-c", script, ",".join(HEAVY), *light]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        # graphlib names each after one that it needs, the first one again at the end.
        raise AssertionError(" <- ".join(error.args[1])) from None
