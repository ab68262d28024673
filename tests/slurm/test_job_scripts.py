"""The shipped job scripts on a virtual cluster, training replaced by a stub: who ends, who comes back, who does not."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import BIN, ROOT
from tests.slurm.cluster import SMALL, Job, boot, comes_true, crash, slurm

pytestmark = pytest.mark.slurm

SCRIPTS = ("pretrain_large.sh", "pretrain_base.sh", "prepare_data.sh", "finetune.sh")
# Slow enough to be hit in the first attempt, quick afterwards.
ONCE = ("--steps", "40", "--seconds", "0.3", "0.05")


def large(stub: Path, *arguments: str, options: tuple[str, ...] = ()) -> Job:
    return Job.submit(stub / "slurm" / "pretrain_large.sh", stub, "run", *arguments, options=options)


def require_every_step_once(job: Job, steps: int = 40) -> None:
    assert [line["step"] for line in job.steps] == list(range(1, steps + 1)), job.log


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_the_script_as_it_is(script: str) -> None:
    assert "to start at" in slurm("sbatch", "--test-only", str(ROOT / "slurm" / script))


def test_shellcheck_finds_nothing() -> None:
    folders = (ROOT / "slurm", ROOT / "docs", Path(__file__).parent)
    files = [ROOT / ".ci" / "run", *(file for folder in folders for file in folder.glob("*.sh"))]
    slurm("shellcheck", "--external-sources", f"--source-path={ROOT / 'slurm'}", *map(str, files))


def test_a_node_range_takes_all_free_nodes_and_the_ranks_follow_the_gpus(stub: Path) -> None:
    job = large(stub, "--steps", "3", options=("--nodes=1-3", "--gpus-per-node=v100:2"))
    job.require("COMPLETED")
    assert [line["ranks"] for line in job.steps] == [6, 6, 6], job.log


def test_the_ranks_get_the_environment_whatever_sbatch_was_told_to_export(stub: Path) -> None:
    """Many sites submit with NONE, which srun goes by as well."""
    (stub / "slurm" / "site.sh").write_text(f"export PATH={BIN}:$PATH\n")
    job = large(stub, "--steps", "3", options=("--export=NONE",))
    job.require("COMPLETED")
    assert [line["ranks"] for line in job.steps] == [2, 2, 2], job.log


def test_submitted_inside_another_job(stub: Path) -> None:
    """That job's variables come along. CPUs and memory that no node has are dropped; a rank for two GPUs is refused."""
    command = ("sbatch", "--parsable", *SMALL, "--gpus-per-node=v100:2", "slurm/pretrain_large.sh", "--run-dir")
    inherited = {
        "SLURM_CPU_BIND": "bogus",
        "SLURM_MEM_PER_NODE": "99999999",
        "SLURM_CPUS_PER_TASK": "999",
        "SLURM_GPUS_PER_TASK": "7",
        "SLURM_CPUS_PER_GPU": "99",
        "SLURM_NTASKS_PER_GPU": "3",
    }
    bound = Job(slurm(*command, "bound", "--steps", "3", cwd=stub, **inherited), stub, stub / "bound")
    bound.require("COMPLETED")
    assert [line["ranks"] for line in bound.steps] == [4, 4, 4], bound.log
    alone = Job(slurm(*command, "alone", cwd=stub, SLURM_NTASKS_PER_NODE="1"), stub, stub / "alone")
    alone.require("FAILED")
    assert alone.field("ExitCode") == "2:0"
    assert "SLURM_NTASKS_PER_NODE is 1 for 2 GPUs a node" in alone.log


def test_the_real_time_limit(stub: Path) -> None:
    """A minute, and a warning 40 s ahead; Slurm looks every 30 s. The steps would take 55 s, and are quick later."""
    slow = ("--steps", "110", "--seconds", "0.5", "0.05")
    job = large(stub, *slow, options=("--time=1", "--signal=B:USR1@40"))
    job.start_again(seconds=90)
    slurm("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    assert 0 < len(job.steps) < 110
    job.require("COMPLETED")
    require_every_step_once(job, 110)
    assert job.restarts == 1
    assert job.log.count("the time limit is near") == 1


def test_a_warning_during_start_up_is_not_lost(stub: Path) -> None:
    """Ranks that have no handler yet ignore the signal; it comes again."""
    run = stub / "pretrain" / "run.py"
    slow_start = '    print("no handler yet", flush=True)\n    time.sleep(3)\n    asked: list'
    run.write_text(run.read_text().replace("    asked: list", slow_start))
    job = large(stub, "--steps", "400")
    job.wait_until(lambda: job.log.count("no handler yet") == 2)
    slurm("scancel", "--batch", "--signal=USR1", job.number)
    job.start_again()
    assert 0 < len(job.steps) < 399


def test_cancelled_stays_cancelled(stub: Path) -> None:
    job = large(stub, "--steps", "400")
    job.wait_for_step(5)
    slurm("scancel", job.number)
    job.require("CANCELLED")
    time.sleep(3)
    assert (job.state, job.restarts, job.runs) == ("CANCELLED", 0, ["CANCELLED"])
    assert not (job.run_dir / "DONE").exists()


def test_a_killed_rank(stub: Path) -> None:
    job = large(stub, *ONCE)
    job.wait_for_step(15)
    job.kill_rank(1)
    job.start_again()
    job.require("COMPLETED")
    require_every_step_once(job)
    assert job.restarts == 1
    assert "the ranks ended with status 137" in job.log


def test_retries_are_bounded_where_no_checkpoint_comes(stub: Path) -> None:
    """Rank 1 dies at step 15 each time; the first attempt reaches a checkpoint, the second and third do not."""
    job = Job(
        slurm(
            *("sbatch", "--parsable", *SMALL, "--export=ALL,MAX_RETRIES=1", "slurm/pretrain_large.sh"),
            *("--run-dir", "run", *ONCE, "--fail-at", "15"),
            cwd=stub,
        ),
        stub,
        stub / "run",
    )
    job.start_again()
    job.wait_until(lambda: job.log.count("the ranks ended") == 2)
    job.start_again()
    job.require("FAILED")
    assert job.restarts == 2
    assert "giving up: 2 attempts in a row ended without a new checkpoint" in job.log
    assert job.field("ExitCode") == "137:0"


def test_bad_input_is_not_tried_again(stub: Path) -> None:
    job = large(stub, "--config", "wrong")
    job.require("FAILED")
    assert (job.restarts, job.field("ExitCode")) == (0, "2:0")
    assert "the input is wrong" in job.log


def test_exit_status_2_of_a_run_with_a_checkpoint_counts_as_a_failure(stub: Path) -> None:
    (stub / "run" / "checkpoints" / "step-00000010").mkdir(parents=True)
    job = large(stub, "--config", "wrong", options=("--export=ALL,MAX_RETRIES=0",))
    job.require("FAILED")
    assert "giving up: 1 attempts in a row ended without a new checkpoint" in job.log
    assert job.field("ExitCode") == "2:0"


def test_the_batch_node_crashes(stub: Path) -> None:
    job = large(stub, *ONCE, options=("--nodes=1-3",))
    job.wait_for_step(15)
    node = job.field("BatchHost")
    crash(node)
    job.start_again()
    job.require("COMPLETED")
    boot(node)
    require_every_step_once(job)
    assert [job.steps[0]["ranks"], job.steps[-1]["ranks"]] == [3, 2]
    assert job.runs == ["NODE_FAIL", "COMPLETED"]


def test_preemption(stub: Path) -> None:
    """Its nodes are wanted by a job of a better partition, which gives it ten seconds."""
    job = large(stub, *ONCE, options=("--partition=low",))
    job.wait_for_step(12)
    other = slurm("sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive", "--wrap=sleep 1", cwd=stub)
    job.start_again()
    Job(other, stub, stub).require("COMPLETED")
    job.require("COMPLETED")
    require_every_step_once(job)
    assert job.restarts == 1


def test_where_requeueing_is_forbidden_another_job_goes_on(stub: Path) -> None:
    job = large(stub, *ONCE, options=("--no-requeue", "--job-name=odd", "--time=77"))
    job.wait_for_step(5)
    slurm("scancel", "--batch", "--signal=USR1", job.number)
    job.require("COMPLETED")
    assert "job may not be requeued" in job.log
    successor = Job(str(int(job.number) + 1), stub, job.run_dir)
    assert (successor.field("JobName"), successor.field("TimeLimit")) == ("odd", "01:17:00")
    successor.require("COMPLETED")
    require_every_step_once(successor)
    assert {line["ranks"] for line in successor.steps} == {2}


def test_done_ends_the_chain(stub: Path) -> None:
    (stub / "run").mkdir()
    (stub / "run" / "DONE").touch()
    job = large(stub)
    job.require("COMPLETED")
    assert "run is done already" in job.log
    assert not job.steps


def test_a_second_job_leaves_a_run_alone(stub: Path) -> None:
    first = large(stub, "--steps", "400", options=("--nodes=1",))
    first.wait_for_step(3)
    second = large(stub, options=("--nodes=1",))
    second.require("FAILED")
    assert f"job {first.number} has the run in run" in second.log
    assert (first.state, second.field("ExitCode")) == ("RUNNING", "2:0")


def test_the_corpus_is_copied_to_every_node_once(stub: Path) -> None:
    """NODE_LOCAL is one folder for both virtual nodes here, so both copy to the same place at the same time."""
    corpus, local = stub / "corpus", stub / "node-local"
    (corpus / "train-128").mkdir(parents=True)
    (corpus / "manifest.json").write_text("{}")
    (corpus / "train-128" / "shard").write_bytes(os.urandom(1000))
    local.mkdir()
    (stub / "slurm" / "site.sh").write_text(f"export NODE_LOCAL={local}\n")
    for run in ("one", "two"):
        arguments = ("--data", "corpus", "--steps", "2")
        job = Job.submit(stub / "slurm" / "pretrain_base.sh", stub, run, *arguments)
        job.require("COMPLETED")
    (copy,) = local.glob("earlybert-*/corpora/*")
    assert f"data is {copy}" in job.log
    assert subprocess.run(["diff", "-r", corpus, copy]).returncode == 0


def test_parts_are_prepared_side_by_side_and_merged(stub: Path) -> None:
    programs = stub / "bin"
    programs.mkdir()
    (programs / "earlybert").write_text('#!/bin/sh\necho "$*" >>calls\n')
    (programs / "earlybert").chmod(0o755)
    (stub / "slurm" / "site.sh").write_text(f"export PATH={programs}:$PATH\n")
    options = ("--parsable", "--array=1-3", "--cpus-per-task=2")
    number = slurm(
        "sbatch", *options, "slurm/prepare_data.sh", "c.yaml", "corpora/new", "--lowercase", "false", cwd=stub
    )
    assert comes_true(lambda: not slurm("squeue", "-h"))
    calls = (stub / "calls").read_text().splitlines()
    parts = [
        f"prepare --config c.yaml --out corpora/new --part {part}/3 --workers 2 --lowercase false" for part in (1, 2, 3)
    ]
    assert sorted(calls[:3]) == parts
    assert calls[3:] == ["prepare merge corpora/new --workers 2"]
    assert len(list(stub.glob(f"prepare-data-{number}-*.out"))) == 3


@pytest.mark.parametrize(("gpus", "ranks"), [("1", ["none of none"]), ("v100:2", ["0 of 2", "1 of 2"])])
def test_fine_tuning_has_a_rank_for_every_gpu(stub: Path, gpus: str, ranks: list[str]) -> None:
    command = stub / "bin" / "earlybert"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "rank ${RANK:-none} of ${WORLD_SIZE:-none}: $*"\n')
    command.chmod(0o755)
    (stub / "slurm" / "site.sh").write_text(f"PATH={command.parent}:$PATH\n")
    options = ("--nodes=1", f"--gpus-per-node={gpus}")
    job = Job.submit(stub / "slurm" / "finetune.sh", stub, "run", "--task", "SST-2", options=options)
    job.require("COMPLETED")
    said = sorted(line for line in job.log.splitlines() if line.startswith("rank "))
    assert said == [f"rank {rank}: finetune --run-dir run --task SST-2" for rank in ranks], job.log
