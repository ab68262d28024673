"""A race in one small file, so that its pieces can run on machines that keep nothing and have other paths."""

import shutil
import tarfile
from pathlib import Path

import yaml
from race.arms import REPOSITORY

from earlybert.core.files import read_json, write_json
from earlybert.core.locks import LOCK

# Larger checkpoints stay behind: an arm that was not done then begins again.
LARGEST_CHECKPOINTS = 4 * 2**20
# Where the race was, for the paths in its recipes.
PLACES = "places.json"
# Fields of a recipe with a path.
PATHS = ("data", "deepspeed", "ticket")


def places(work_dir: Path, corpus: Path) -> dict[str, str]:
    """What a path in a recipe may begin with."""
    return {"repository": str(REPOSITORY), "corpus": str(corpus), "work_dir": str(work_dir)}


def pack(work_dir: Path, corpus: Path, archive: Path) -> None:
    """Writes the files of a race: of arms that are done no folders, which only a resume needs, and no pictures.

    Of other arms everything, where their checkpoints are small, or else nothing.
    """
    write_json(work_dir / PLACES, places(work_dir, corpus))
    files = [path for path in work_dir.iterdir() if path.is_file()]
    for run in (path for path in work_dir.glob("*-seed*/") if path.is_dir()):
        inside = [path for path in run.rglob("*") if path.is_file()]
        if (run / "DONE").is_file():
            files += [path for path in inside if path.parent == run]
        elif sum(path.stat().st_size for path in inside) <= LARGEST_CHECKPOINTS:
            files += inside
    unfinished = archive.with_suffix(".part")
    with tarfile.open(unfinished, "w:xz") as packed:
        for path in sorted(files):
            if path.suffix != ".png" and path.name != LOCK:
                packed.add(path, path.relative_to(work_dir))
    unfinished.replace(archive)


def unpack(archive: Path, work_dir: Path, corpus: Path) -> None:
    """Makes the work folder of an archive; the recipes in it then name what is here."""
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    with tarfile.open(archive) as packed:
        packed.extractall(work_dir, filter="data")
    here, before = places(work_dir, corpus), read_json(work_dir / PLACES)
    # Of two paths of which one begins with the other, the longer one is more to the point.
    moved = sorted(((old, here[name]) for name, old in before.items()), reverse=True)
    for path in work_dir.glob("*/config.yaml"):
        recipe = yaml.safe_load(path.read_text())
        for field in (name for name in PATHS if recipe.get(name)):
            given = Path(recipe[field])
            new = (Path(now) / given.relative_to(old) for old, now in moved if given.is_relative_to(old))
            recipe[field] = str(next(new, given))
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
