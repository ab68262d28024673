"""`micro_batch: auto`: what it takes, what happens where that does not fit, and that the losses stay the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from earlybert.core import distributed, ranks
from earlybert.pretrain.cost import hardware
from earlybert.pretrain.cost.cluster import USABLE_SHARE, Shape, peak_bytes
from earlybert.pretrain.plan.recipe import load_recipe, recipe_path
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.train import micro_batch
from tests.conftest import BIN, ROOT, free_port, start
from tests.in_process import train_here
from tests.pretrain import patched_run
from tests.pretrain.patched_run import memory_for, stop_once
from tests.pretrain.run_files import metrics, require_same
from tests.pretrain.small_models import small_config

STEPS = 3
SHORT = ("--config=small.yaml", "--plan=[search]", f"--search.steps={STEPS}", "--validation.every=3", "--export=[]")
STILL = ("--model.hidden_dropout=0", "--model.attention_dropout=0")
GIGABYTE = 1e9


def steps_of(run: Path) -> list[dict[str, Any]]:
    return metrics(run, "train")


@pytest.fixture(scope="module")
def whole_batch(workplace: Path) -> list[dict[str, Any]]:
    """Steps whose 50 sequences are one micro-batch because the recipe says so."""
    status, output = train_here(workplace, *SHORT, *STILL, "--run-dir=whole", "--phase1.micro_batch=50")
    assert status == 0, output
    return steps_of(workplace / "whole")


def assert_same_to_rounding(steps: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(steps) == len(expected) == STEPS
    for ours, theirs in zip(steps, expected, strict=True):
        for name in ("loss", "l1", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (ours["step"], name)


def test_trying_it_out_leaves_nothing_behind(workplace: Path, whole_batch: list[dict[str, Any]]) -> None:
    """Bit for bit the run that names the number which auto takes: all 50 sequences, 1,600 tokens."""
    status, output = train_here(workplace, *SHORT, *STILL, "--run-dir=auto", "--phase1.micro_batch=auto")
    assert status == 0, output
    assert "micro-batches of 50" in output
    for ours, theirs in zip(steps_of(workplace / "auto"), whole_batch, strict=True):
        assert {name: ours[name] for name in ("loss", "gradient_norm", "micro_batch")} == {
            name: theirs[name] for name in ("loss", "gradient_norm", "micro_batch")
        }


def test_without_memory_it_is_halved(workplace: Path, whole_batch: list[dict[str, Any]]) -> None:
    arguments = (*SHORT, *STILL, "--run-dir=halved", "--phase1.micro_batch=auto")
    status, output = train_here(workplace, *arguments, prepare=lambda: memory_for(13))
    assert status == 0, output
    for size, half in ((50, 25), (25, 13)):
        assert (
            output.count(f"search: a micro-batch of {size} does not fit into the memory of every rank; trying {half}")
            == 1
        )
    steps = steps_of(workplace / "halved")
    assert {step["micro_batch"] for step in steps} == {13}
    assert_same_to_rounding(steps, whole_batch)


def test_what_it_came_to_is_taken_again(workplace: Path) -> None:
    """Dropout is on, and depends on it; the run is resumed when there is more memory."""
    options = (*SHORT, "--phase1.micro_batch=auto")

    def stopped_when_short() -> None:
        memory_for(13)
        stop_once("search", 2)

    once = train_here(workplace, *options, "--run-dir=once", prepare=lambda: memory_for(13))
    stopped = train_here(workplace, *options, "--run-dir=twice", prepare=stopped_when_short)
    resumed = train_here(workplace, *options, "--run-dir=twice")
    assert once[0] == stopped[0] == resumed[0] == 0, resumed[1]
    assert "stopped as asked" in stopped[1] and "micro-batches of 13" in resumed[1]
    require_same(workplace / "twice", workplace / "once")


def test_a_rank_without_memory_halves_it_for_all(workplace: Path, whole_batch: list[dict[str, Any]]) -> None:
    launcher = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port()]
    arguments = (*SHORT, *STILL, "--run-dir=halved-2", "--phase1.micro_batch=auto")
    process = start([*launcher, patched_run.__file__, "memory_for_4_on_rank_1", *arguments], workplace)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for size, half in ((25, 13), (13, 7), (7, 4)):
        assert output.count(f"a micro-batch of {size} does not fit into the memory of every rank; trying {half}") == 1
    steps = steps_of(workplace / "halved-2")
    assert {step["micro_batch"] for step in steps} == {4}
    assert_same_to_rounding(steps, whole_batch)


def test_where_nothing_fits_the_run_ends_with_one_sentence(workplace: Path) -> None:
    arguments = (*SHORT, "--run-dir=nothing", "--phase1.micro_batch=auto", "--phase1.global_batch=2")
    status, output = train_here(workplace, *arguments, prepare=lambda: memory_for(0))
    assert status == 2
    assert "one sequence of 32 tokens does not fit into the memory of CPU; use a device with more memory" in output
    assert "trying 1" in output and "Traceback" not in output


def test_a_number_that_does_not_fit_is_named(workplace: Path) -> None:
    arguments = (*SHORT, "--run-dir=named", "--phase1.micro_batch=16")
    status, output = train_here(workplace, *arguments, prepare=lambda: memory_for(8))
    assert status == 2
    assert (
        "search: CPU ran out of memory with a micro-batch of 16; set phase1.micro_batch to a smaller number" in output
    )
    assert "Traceback" not in output and "trying" not in output


def test_the_number_of_a_deepspeed_file_is_taken(workplace: Path) -> None:
    content = json.loads((ROOT / "ds_configs" / "lamb.json").read_text()) | {"train_micro_batch_size_per_gpu": 7}
    (workplace / "seven.json").write_text(json.dumps(content))
    arguments = (*SHORT, "--run-dir=seven", "--phase1.micro_batch=auto", "--deepspeed=seven.json")
    status, output = train_here(workplace, *arguments)
    assert status == 0, output
    assert {step["micro_batch"] for step in steps_of(workplace / "seven")} == {7}


@pytest.mark.parametrize(
    ("groups", "limits", "least"),
    [
        ("0::/job/step/task", {"memory.max": "900\n", "job/memory.max": "300", "job/step/memory.max": "max"}, 300),
        ("0::/job/step", {"memory.max": "max", "job/memory.max": "300", "job/step/memory.max": "200"}, 200),
        ("0::/", {"memory.max": "700", "job/memory.max": "300"}, 700),
        ("0::/seen/from/outside", {"memory.max": "500"}, 500),
        (
            "5:cpu:/\n4:memory:/job/step\n0::/",
            {
                "memory/memory.limit_in_bytes": str(2**63 - 4096),
                "memory/job/memory.limit_in_bytes": "400",
                "memory/job/step/memory.limit_in_bytes": "600",
            },
            400,
        ),
        ("0::/job", {"memory.max": "max"}, None),
    ],
    ids=["around", "own", "root", "container", "version 1", "none"],
)
def test_limits_of_all_control_groups_count(
    groups: str, limits: dict[str, str], least: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 2's memory.max, or version 1's, of the process's group and of those around it; none of a child."""
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(limit)
    (tmp_path / "own").write_text(groups + "\n")
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    monkeypatch.setattr(hardware, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(ranks, "local_world_size", lambda: 2)
    found = hardware.free_memory(torch.device("cpu"))
    assert found > 1000 if least is None else found == least / 2


@pytest.mark.parametrize("gigabytes", [2.0, 2.2, 3.0, 900.0])
@pytest.mark.parametrize("others", [[], [2]])
def test_the_largest_that_every_rank_has_memory_for(
    gigabytes: float, others: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_path("quickstart"), ["--phase1.length=128", "--phase1.global_batch=999"])
    (stage, *_), config = build_stages(recipe), small_config(hidden_size=512, max_position_embeddings=128)
    monkeypatch.setattr(micro_batch, "free_memory", lambda device: gigabytes * GIGABYTE)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, *others])
    shape = Shape.of(config, stage)
    taken = micro_batch.modelled_micro_batch(shape, "fp32", torch.device("cpu"))
    fitting = [
        size
        for size in range(1, 1000)
        if peak_bytes(shape, size, 1, 4, keeps_scores=True) <= USABLE_SHARE * gigabytes * GIGABYTE
    ]
    largest = min(max(fitting, default=1), micro_batch.CPU_TOKENS // 128, *others)
    parts = -(-999 // largest)
    assert taken <= largest and -(-999 // taken) == parts and (taken - 1) * parts < 999
