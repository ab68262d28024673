"""slurm/pretrain_large.sh with real training over gloo, interrupted; its losses are those of a run left in peace."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import ROOT, RUN, small_recipe, start
from tests.pretrain.run_files import events_of, losses, metrics
from tests.slurm.cluster import Job, boot, crash, slurm

pytestmark = pytest.mark.slurm

LARGE = ROOT / "slurm" / "pretrain_large.sh"


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    """The small recipe with enough steps to hit one, and the same without dropout."""
    recipe = small_recipe(workplace / "text.txt")
    recipe["phase1"]["steps"] = 60
    (workplace / "job.yaml").write_text(yaml.safe_dump(recipe))
    still = copy.deepcopy(recipe)
    still["model"] |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (workplace / "still.yaml").write_text(yaml.safe_dump(still))
    return workplace


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> list[tuple[int, float]]:
    """Losses of the whole run on two nodes."""
    job = Job.submit(LARGE, place, "peace", "--config", "job.yaml")
    job.require("COMPLETED")
    assert (job.run_dir / "DONE").is_file()
    assert job.restarts == 0
    return losses(job.run_dir)


def test_finishes(uninterrupted: list[tuple[int, float]]) -> None:
    assert [step for step, _ in uninterrupted] == list(range(1, 91))
    assert uninterrupted[-1][1] < uninterrupted[0][1]


def test_warned_of_the_time_limit(place: Path, uninterrupted: list[tuple[int, float]]) -> None:
    """Dropout is on; the same layout goes on bit for bit."""
    job = Job.submit(LARGE, place, "warned", "--config", "job.yaml")
    job.wait_for_step(30)
    slurm("scancel", "--batch", "--signal=USR1", job.number)
    job.start_again()
    assert "stopped as asked at step" in job.log
    job.require("COMPLETED")
    assert losses(job.run_dir) == uninterrupted
    assert job.restarts == 1


def test_a_rank_is_killed_and_the_newest_checkpoint_damaged(
    place: Path, uninterrupted: list[tuple[int, float]]
) -> None:
    job = Job.submit(LARGE, place, "killed", "--config", "job.yaml")
    job.wait_for_step(40)
    job.kill_rank(1)
    job.wait_in_queue()
    newest = max((job.run_dir / "checkpoints").glob("step-*/rank-00001.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    job.start_again()
    job.require("COMPLETED")
    assert f"skipping a damaged checkpoint: {newest.relative_to(place)}" in job.log
    assert losses(job.run_dir) == uninterrupted


def test_a_node_crashes_and_fewer_ranks_go_on(place: Path) -> None:
    """Three ranks, then two; without dropout the losses are those of one rank to rounding."""
    job = Job.submit(LARGE, place, "fewer", "--config", "still.yaml", options=("--nodes=1-3",))
    job.wait_for_step(30)
    crash("node3")
    # While Slurm takes its time to notice.
    one_rank = start([sys.executable, str(RUN), "--config", "still.yaml", "--run-dir", "one"], place)
    job.start_again()
    job.require("COMPLETED")
    boot("node3")
    output, _ = one_rank.communicate()
    assert one_rank.returncode == 0, output
    expected, actual = losses(place / "one"), losses(job.run_dir)
    assert [step for step, _ in actual] == [step for step, _ in expected]
    np.testing.assert_allclose([loss for _, loss in actual], [loss for _, loss in expected], rtol=1e-5)
    assert "node[1-3] with 1 ranks each" in job.log and "node[1-2] with 1 ranks each" in job.log
    assert job.runs == ["NODE_FAIL", "COMPLETED"]
    assert [line["ranks"] for line in metrics(job.run_dir, "start")] == [3, 2]
    curve = [(event.step, pytest.approx(event.value)) for event in events_of(job.run_dir).Scalars("loss/train (nats)")]
    assert curve == actual


@pytest.mark.parametrize(
    "launcher",
    [
        "torchrun --nnodes 2 --nproc_per_node 1 --node_rank $SLURM_NODEID --master_addr $HEAD --master_port 29400",
        "deepspeed --no_ssh --hostfile hosts --node_rank $SLURM_NODEID --master_addr $HEAD --master_port 29500",
    ],
    ids=["torchrun", "deepspeed"],
)
def test_other_launchers_on_two_nodes(
    place: Path, uninterrupted: list[tuple[int, float]], request: pytest.FixtureRequest, launcher: str
) -> None:
    name = request.node.callspec.id
    script = place / f"{name}.sh"
    script.write_text(f"""#!/bin/bash
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/ slots=1/' >hosts
srun --ntasks-per-node=1 bash -c '{launcher} {RUN} "$@"' launcher "$@"
""")
    job = Job.submit(script, place, name, "--config", "job.yaml", options=(f"--output={name}-%j.out",))
    job.require("COMPLETED")
    assert losses(job.run_dir) == uninterrupted
