"""What may change when a run goes on, and what may not."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from earlybert.pretrain.plan.recipe import Recipe, load_recipe
from earlybert.pretrain.plan.same_run import LAYOUT_FIELDS, require_same_run
from tests.pretrain.test_recipe import refusal

OTHER_LAYOUT: dict[str, Any] = {
    "initial": "a-bert",
    "data": "elsewhere",
    "deepspeed": "other.json",
    "precision": "fp32",
    "matmul_precision": "highest",
    "deterministic": True,
    "compile": "auto",
    "loader_workers": 2,
    "max_skipped_updates": 3,
    "checkpoint_every": 7,
    "keep_checkpoints": 9,
    "log_every": 3,
    "trackers": "[]",
    "phase1.micro_batch": 2,
    "phase2.micro_batch": 1,
}


def test_layout_may_change_from_call_to_call(recipe_file: Path) -> None:
    assert set(OTHER_LAYOUT) == set(LAYOUT_FIELDS)
    stored = load_recipe(recipe_file, [])
    for name, value in OTHER_LAYOUT.items():
        wanted = load_recipe(recipe_file, [f"--{name}", str(value)])
        assert wanted != stored
        require_same_run(stored, wanted, recipe_file)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("phase1.steps", "11", "phase1.steps is 11, but this run began with 10"),
        ("phase2.learning_rate", "0.1", "phase2.learning_rate is 0.1, but this run began with 0.005"),
        ("seed", "1", "seed is 1, but this run began with 42"),
        ("phase1.global_batch", "16", "phase1.global_batch is 16, but this run began with 8"),
        ("plan", "[phase1]", "plan is ['phase1'], but this run began with ['search'"),
        ("draw.head_ratio", "0.5", "draw.head_ratio is 0.5"),
        ("optimizer.betas", "[0.8, 0.9]", "optimizer.betas is [0.8, 0.9]"),
        ("search.lambda_heads", "0", "search.lambda_heads is 0"),
        (
            "mask_probability",
            "{from: 0.3, to: 0.15}",
            "mask_probability is {'from': 0.3, 'to': 0.15}, but this run began with 0.15",
        ),
    ],
)
def test_what_is_computed_may_not_change(recipe_file: Path, option: str, value: str, expected: str) -> None:
    stored, wanted = load_recipe(recipe_file, []), load_recipe(recipe_file, [f"--{option}", value])
    message = refusal(lambda: require_same_run(stored, wanted, recipe_file))
    assert expected in message and "--run-dir" in message and str(recipe_file) in message


def test_every_other_field_is_guarded(recipe_file: Path) -> None:
    """Whatever field is added: unless it is named as layout, a run cannot go on with another value."""
    stored = load_recipe(recipe_file, [])

    def fields(part: Any, prefix: str = "") -> Iterator[str]:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                yield from fields(value, f"{prefix}{field.name}.")
            else:
                yield prefix + field.name

    def changed(part: Any, path: list[str]) -> Any:
        if not path:
            return ["something else", part]
        return dataclasses.replace(part, **{path[0]: changed(getattr(part, path[0]), path[1:])})

    guarded = [name for name in fields(stored) if not name.startswith("corpus.") and name not in LAYOUT_FIELDS]
    assert len(guarded) > 40
    for name in guarded:
        wanted: Recipe = changed(stored, name.split("."))
        assert refusal(partial(require_same_run, stored, wanted, recipe_file)).startswith(f"{name} is ")
