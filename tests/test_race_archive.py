"""A race packed on one machine and unpacked on another: what travels, and where its recipes then look."""

import tarfile
from pathlib import Path

import pytest
import yaml
from race import archive
from race.arms import MUON, REPOSITORY


def write(folder: Path, names: list[str], content: str = "text") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """One arm is done, two are not; one of these has a large checkpoint."""
    here = tmp_path / "first" / "race"
    write(here, ["recipe.yaml", "step_seconds.json", "results.json", "results.png", "random-ticket-seed0.ticket.json"])
    run = ["metrics.jsonl", "plan.json", ".in-use", "search/coefficients", "checkpoints/step-00000003/weights"]
    for name in ("dense", "earlybert", "stacking"):
        write(here / f"{name}-seed0", run)
        recipe = {"data": str(tmp_path / "first" / "corpus"), "seed": 0, "ticket": None}
        recipe |= MUON | {"ticket": str(here / "random-ticket-seed0.ticket.json")} if name == "dense" else {}
        write(here / f"{name}-seed0", ["config.yaml"], yaml.safe_dump(recipe))
    write(here / "dense-seed0", ["DONE", "curves.png", "export/bert/model.safetensors"])
    write(here / "stacking-seed0", ["checkpoints/step-00000003/moments"], "x" * (archive.LARGEST_CHECKPOINTS + 1))
    return here


def test_what_a_resume_needs_travels_where_it_is_small(work_dir: Path, tmp_path: Path) -> None:
    archive.pack(work_dir, tmp_path / "first" / "corpus", tmp_path / "race.tar.xz")
    with tarfile.open(tmp_path / "race.tar.xz") as packed:
        names = packed.getnames()
    top = ["places.json", "random-ticket-seed0.ticket.json", "recipe.yaml", "results.json", "step_seconds.json"]
    done = ["DONE", "config.yaml", "metrics.jsonl", "plan.json"]
    begun = ["checkpoints/step-00000003/weights", *done[1:], "search/coefficients"]
    expected = [*(f"dense-seed0/{name}" for name in done), *(f"earlybert-seed0/{name}" for name in begun), *top]
    assert sorted(names) == sorted(expected)


def test_recipes_name_what_is_there(work_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another corpus, another work folder, and a repository whose path begins like the first one's."""
    archive.pack(work_dir, tmp_path / "first" / "corpus", tmp_path / "race.tar.xz")
    there, corpus = tmp_path / "second" / "race", tmp_path / "second" / "prepared"
    write(there, ["left/over"])
    monkeypatch.setattr(archive, "REPOSITORY", Path(f"{REPOSITORY}-2"))
    archive.unpack(tmp_path / "race.tar.xz", there, corpus)
    assert not (there / "left").exists()
    dense, other = (
        yaml.safe_load((there / f"{name}-seed0/config.yaml").read_text()) for name in ("dense", "earlybert")
    )
    assert dense == {
        "data": str(corpus),
        "seed": 0,
        "deepspeed": f"{REPOSITORY}-2/ds_configs/muon.json",
        "ticket": str(there / "random-ticket-seed0.ticket.json"),
    }
    assert other == {"data": str(corpus), "seed": 0, "ticket": None}
    assert (there / "earlybert-seed0/checkpoints/step-00000003/weights").read_text() == "text"
