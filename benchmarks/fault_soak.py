"""Does a run survive everything? Trains one recipe again and again while all kinds of faults are injected.

    python benchmarks/fault_soak.py [--seconds 600] [--seed 0] [--config RECIPE] [--out FILE.json] [--FIELD VALUE ...]

First an undisturbed run on one rank under ZeRO-1. Then rounds: each a fresh run directory, driven to its end through as
many starts of the same command as the faults make necessary. Ranks get SIGKILL, SIGTERM and SIGUSR1, one or two of
them, at random moments, also while a checkpoint is written, the ticket is drawn, the run ends, or one that was stopped
leaves; the disk is full for a while; files of the newest checkpoint rot between two starts. Every other round has other
ranks, launcher, ZeRO stage and micro-batch at every start.

What must hold: a run that was asked to stop ends with status 0 and has a checkpoint of its last step; every step stands
in metrics.jsonl once; metrics, recordings, ticket, weights and exports are the undisturbed run's bit for bit or, where
the layout changed, the losses to 1e-5 and the heads. Exit status 1 where something does not. The seed fixes the
choices, not the moments: those depend on how fast the machine is.
"""

import argparse
import itertools
import random
import re
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provenance import measured_on
from soak.comparison import compare
from soak.faults import (
    DAMAGES,
    DRAWING,
    ENDING,
    FAULTS,
    FULL_DISK,
    LEAVING,
    MOMENTS,
    STARTING,
    TRAINING,
    WRITING,
    Fault,
    Injector,
    Reference,
    Strike,
)
from soak.full_disk import Disk, SizeLimit, SmallDisk, enter_namespace
from soak.incarnation import Incarnation, Layout, checkpoint_steps

from earlybert.core.files import write_json
from earlybert.core.progress import clock
from earlybert.pretrain.checkpoint.metrics import of_kind
from earlybert.pretrain.plan.recipe import Recipe, load_recipe, recipe_path
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.report.timeline import read_lines

# The recipe's own plan, shortened; dropout 0, so that layouts can be compared.
OVERRIDES = {
    "search.steps": 40,
    "search.snapshot_every": 10,
    "narrow.step_factor": 1.0,
    "phase1.steps": 60,
    "phase2.steps": 20,
    "model.hidden_dropout": 0,
    "model.attention_dropout": 0,
    "matmul_precision": "highest",
    "validation.every": 20,
    "validation.samples": 100,
    "checkpoint_every": 5,
    "log_every": 1,
    "export": "[earlybert, bert]",
}
CHANCE_OF_DAMAGE = 0.4
# torchrun has one of its own for whatever ends it.
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?!.*/torchrun\")")


@dataclass
class Round:
    """One run driven to its end. `rotten` has the damaged checkpoints and when they last changed."""

    name: str
    same_layout: bool
    run_dir: Path
    log: Path
    starts: int = 0
    steps_trained: int = 0
    rotten: dict[Path, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    differences: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "same layout" if self.same_layout else "changing layout"

    @property
    def done(self) -> bool:
        return (self.run_dir / "DONE").is_file()

    def intact(self) -> dict[int, Path]:
        """Checkpoints by step but the damaged ones; what was written anew in the place of one is intact."""
        steps = checkpoint_steps(self.run_dir)
        return {step: path for step, path in steps.items() if self.rotten.get(path) != path.stat().st_ctime_ns}

    def outcome(self) -> str:
        if self.problems:
            return "; ".join(self.problems)
        if self.same_layout:
            return "equal, bit for bit"
        worst = ", ".join(f"{stage} {value:.1e}" for stage, value in self.differences["loss_difference"].items())
        return f"equal: losses to {worst}; {self.differences.get('neurons_different', 0)} neurons differ"


def train_reference(recipe: Recipe, training: list[str], work_dir: Path) -> Reference:
    """Trains without faults on one rank under ZeRO-1, and takes the times."""
    names, steps = zip(*((stage.name, stage.steps) for stage in build_stages(recipe)), strict=True)
    ends: dict[str, int] = dict(zip(names, itertools.accumulate(steps), strict=True))
    seconds: dict[str, float] = {}
    began = time.monotonic()
    run = Incarnation(work_dir / "reference", Layout(), training, work_dir / "reference.txt")
    try:
        run.wait_until(lambda: run.step() > 0)
        seconds[STARTING] = time.monotonic() - began
        if "search" in ends:
            run.wait_until(lambda: ends["search"] in checkpoint_steps(run.run_dir))
            drawing = time.monotonic()
            run.wait_until(lambda: run.step() > ends["search"])
            seconds[DRAWING] = time.monotonic() - drawing
        run.wait_until(lambda: max(ends.values()) in checkpoint_steps(run.run_dir))
        ending = time.monotonic()
        run.wait_until((run.run_dir / "DONE").is_file)
        leaving = time.monotonic()
        if run.end():
            sys.exit(f"the undisturbed run failed; its output is in {run.log}")
        seconds |= {ENDING: time.monotonic() - ending, LEAVING: time.monotonic() - leaving}
    finally:
        run.destroy()
    step_seconds = statistics.median(line["seconds"] for line in of_kind(read_lines(run.run_dir), "train"))
    seconds |= {TRAINING: 2 * step_seconds, WRITING: step_seconds}
    print(
        f"undisturbed run: {max(ends.values())} steps in {clock(time.monotonic() - began)}, {seconds[STARTING]:.1f} s "
        f"to the first, {step_seconds:.3f} s each",
        flush=True,
    )
    return Reference(run.run_dir, ends, recipe.checkpoint_every, seconds)


def small_disk(reference: Reference, recipe: Recipe, folder: Path, mountable: bool) -> Disk:
    """The disk of the rounds' run directories: large enough for them, small enough to be filled."""
    folder.mkdir()
    checkpoint = checkpoint_steps(reference.run_dir)[reference.steps]
    largest = max(path.stat().st_size for path in checkpoint.iterdir())
    if not mountable:
        print("full disk: by a limit on the size of files, because no namespace can be entered")
        return SizeLimit(largest // 4)
    # Checkpoints of the full network are the larger ones; besides those kept, one is written and one removed.
    size = 2 * (recipe.keep_checkpoints + 4) * largest + (32 << 20)
    print(f"full disk: a tmpfs of {size >> 20} MiB")
    return SmallDisk(folder, size)


class Soak:
    """Drives the rounds and keeps the books. Everything is written below `work_dir`."""

    def __init__(self, seconds: float, seed: int, training: list[str], work_dir: Path) -> None:
        self.seconds, self.seed, self.training, self.work_dir = seconds, seed, training, work_dir
        self.generator = random.Random(seed)
        self.rounds: list[Round] = []
        self.reference: Reference
        self.injector: Injector
        self.began = 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def tell(self, message: str) -> None:
        print(f"[{clock(self.elapsed)}, {clock(max(0.0, self.seconds - self.elapsed))} left] {message}", flush=True)

    def run(self, recipe: Recipe, mountable: bool) -> None:
        """All rounds; when the time is up the last one is finished without faults."""
        shutil.rmtree(self.work_dir, ignore_errors=True)
        self.work_dir.mkdir(parents=True)
        self.reference = train_reference(recipe, self.training, self.work_dir)
        folder = self.work_dir / "disk"
        disk = small_disk(self.reference, recipe, folder, mountable)
        self.injector = Injector(self.generator, self.reference, disk)
        self.began = time.monotonic()
        for index in itertools.count():
            # However short the time is, there is a round of each kind.
            left = self.seconds if index < 2 else self.seconds - self.elapsed
            if left <= 0:
                break
            name = f"round-{index + 1:02d}"
            round_ = Round(name, index % 2 == 0, folder / name, self.work_dir / f"{name}.txt")
            self.rounds.append(round_)
            self.tell(f"{name}: {round_.kind}")
            self.drive(round_, until=self.elapsed + min(left, self.seconds / 2))
            self.tell(f"{name}: {round_.starts} starts, {round_.steps_trained} steps trained; {round_.outcome()}")
            bulky = () if round_.problems else ("checkpoints", "export", "tensorboard")
            shutil.copytree(round_.run_dir, self.work_dir / name, ignore=shutil.ignore_patterns(*bulky))
            shutil.rmtree(round_.run_dir)

    def drive(self, round_: Round, until: float) -> None:
        """Starts a run until it is done, with faults while there is time, and compares it with the undisturbed one."""
        going_on = True
        while going_on and not round_.done:
            resumed = max(round_.intact(), default=0)
            faults = self.injector.choose(resumed) if self.elapsed < until else []
            going_on = self.start(round_, resumed, faults)
            if faults and not round_.done:
                self.let_rot(round_)
        if round_.done:
            found = compare(self.reference.run_dir, round_.run_dir, same_layout=round_.same_layout)
            round_.problems += found[0]
            round_.differences = found[1]

    def start(self, round_: Round, resumed: int, faults: list[Fault]) -> bool:
        """Starts the run once, with these faults. Returns False when it failed without one, and would fail again."""
        layout = Layout() if round_.same_layout else self.random_layout()
        damaged = [path for step, path in checkpoint_steps(round_.run_dir).items() if step > resumed]
        run = Incarnation(round_.run_dir, layout, self.training, round_.log)
        round_.starts += 1
        strikes: list[Strike] = []
        try:
            for fault in faults:
                if strike := self.injector.inject(run, fault, resumed):
                    strikes.append(strike)
            status = run.end()
            problems = self.check_beginning(run, resumed, damaged) + self.check_end(
                round_, run, resumed, status, strikes
            )
        except TimeoutError as error:
            problems = [str(error)]
        finally:
            run.destroy()
        where = f"start {round_.starts} ({layout}, from step {resumed}; its output is in {run.log.name})"
        for problem in problems:
            self.tell(f"WRONG: {where} {problem}")
            round_.problems.append(f"{where} {problem}")
        return bool(strikes) or not problems

    def let_rot(self, round_: Round) -> None:
        """Now and then damages the newest checkpoint, if an intact older one remains."""
        intact = sorted(round_.intact().items())
        if len(intact) > 1 and self.generator.random() < CHANCE_OF_DAMAGE:
            step, path = intact[-1]
            self.tell(f"{self.injector.damage(path)} of the checkpoint of step {step}")
            round_.rotten[path] = path.stat().st_ctime_ns

    def random_layout(self) -> Layout:
        ranks = self.generator.choice((1, 2))
        launcher = self.generator.choice(
            ("torchrun", "deepspeed") if ranks > 1 else ("python", "torchrun", "deepspeed")
        )
        return Layout(launcher, ranks, self.generator.randrange(4), self.generator.choice((None, 5, 12)))

    def check_beginning(self, run: Incarnation, resumed: int, damaged: list[Path]) -> list[str]:
        """Whether a start that came to train named what is damaged and went on from what is not."""
        if run.step() == 0:
            return []
        output = run.output()
        silent = [path for path in damaged if f"skipping a damaged checkpoint: {path}/" not in output]
        problems = [f"did not say that {path.name} is damaged" for path in silent]
        # Where a stage begins it goes on without a word.
        if resumed not in (0, *self.reference.stage_ends.values()) and f"step-{resumed:08d}: step" not in output:
            problems.append(f"did not go on from step {resumed}, the newest intact checkpoint")
        return problems

    def check_end(self, round_: Round, run: Incarnation, resumed: int, status: int, strikes: list[Strike]) -> list[str]:
        """Tells what came of the strikes, and whether the start ended as it must."""
        reached, newest = max(run.step(), resumed), max(round_.intact(), default=0)
        round_.steps_trained += reached - resumed
        end = "the run is done" if round_.done else f"{reached - newest} steps to repeat"
        for strike in strikes:
            seconds = self.elapsed - strike.at_second
            strike.came_of_it = strike.came_of_it or f"status {status} after {seconds:.1f} s, {end}"
            where = f"{self.reference.stage_at(strike.step)}, global step {strike.step}, {strike.moment}"
            self.tell(f"{strike.kind} to {strike.target} of {strike.layout}; {where}: {strike.came_of_it}")
        if any(strike.killing for strike in strikes):
            return []
        problems = ["printed a traceback"] if TRACEBACK.search(run.output()) else []
        # Without room for the checkpoint that closes a stage a run ends with one sentence, and the next start goes on.
        no_room = any(strike.kind == FULL_DISK for strike in strikes) and "earlybert: error:" in run.output()
        if status and not no_room and not any(strike.target == "the launcher" for strike in strikes):
            problems.append(f"ended with status {status}, not 0")
        if not round_.done and not no_room and (not strikes or newest < reached):
            problems.append(f"ended after step {reached}, and its newest checkpoint is of step {newest}")
        return problems

    def print_table(self) -> None:
        """How many of each fault, and what became of the rounds."""
        counts = Counter((strike.kind, strike.moment) for strike in self.injector.strikes)
        print(f"\n{'injected':<20}" + "".join(f"{moment:>10}" for moment in MOMENTS))
        for kind in dict.fromkeys(fault.kind for fault in FAULTS):
            print(f"{kind:<20}" + "".join(f"{counts[kind, moment]:>10}" for moment in MOMENTS))
        print(", ".join(f"{kind} {self.injector.damages[kind]}" for kind in DAMAGES))
        print(f"\n{'round':<10}{'':<16}{'starts':>8}{'steps trained':>15}{'of a curve of':>15}  comparison")
        for round_ in self.rounds:
            numbers = f"{round_.starts:>8}{round_.steps_trained:>15}{self.reference.steps:>15}"
            print(f"{round_.name:<10}{round_.kind:<16}{numbers}  {round_.outcome()}")

    def report(self) -> dict[str, Any]:
        """Everything, as data."""
        return measured_on("deepspeed") | {
            "seed": self.seed,
            "seconds": self.seconds,
            "training": self.training,
            "steps_of_the_curve": self.reference.steps,
            "rounds": [
                {"kind": round_.kind, "starts": round_.starts, "steps_trained": round_.steps_trained}
                | {"problems": round_.problems, "differences": round_.differences}
                for round_ in self.rounds
            ],
            "strikes": [vars(strike) for strike in self.injector.strikes],
            "damages": dict(self.injector.damages),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/fault-soak"))
    parser.add_argument("--out", type=Path)
    arguments, overrides = parser.parse_known_args()
    # Whoever stops the soak stops its ranks with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    mountable = enter_namespace()
    overrides = [f"--{name}={value}" for name, value in OVERRIDES.items()] + overrides
    recipe = load_recipe(recipe_path(arguments.config), overrides)
    training = ["--config", arguments.config, *overrides]
    soak = Soak(arguments.seconds, arguments.seed, training, arguments.work_dir.resolve())
    soak.run(recipe, mountable)
    soak.print_table()
    if arguments.out:
        write_json(arguments.out, soak.report())
    if any(round_.problems for round_ in soak.rounds):
        sys.exit(1)


if __name__ == "__main__":
    main()
