"""Which faults there are, when each is due, and how they are injected."""

import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from soak.full_disk import Disk
from soak.incarnation import Incarnation, checkpoint_steps, newest_step, send

SIGNALS = (("SIGKILL",), ("SIGTERM",), ("SIGUSR1",), ("SIGUSR1", "SIGTERM"), ("SIGTERM", "SIGKILL"))
MOMENTS = ("starting", "training", "writing", "drawing", "ending", "leaving")
STARTING, TRAINING, WRITING, DRAWING, ENDING, LEAVING = MOMENTS
FULL_DISK = "full disk"
DAMAGES = ("flipped bit", "truncated file", "removed file")
REFUSED = re.compile(r"checkpoint (at step .*)?could not be written")


@dataclass(frozen=True)
class Fault:
    """One or two signals to a rank at a moment; without signals the disk is full for a while."""

    signals: tuple[str, ...]
    moment: str

    @property
    def kind(self) -> str:
        return ", ".join(self.signals) or FULL_DISK


FAULTS = [Fault(signals, moment) for signals in SIGNALS for moment in (TRAINING, WRITING, DRAWING, ENDING)]
FAULTS += [Fault(("SIGKILL",), STARTING), Fault((), TRAINING)]
# To a run that a SIGTERM has stopped, between its word and its end.
FAULTS += [Fault(signals, LEAVING) for signals in SIGNALS if "SIGKILL" not in signals]


@dataclass
class Strike:
    """A fault that was injected: where, at which global step, after how many seconds of the soak; what came of it."""

    kind: str
    moment: str
    layout: str
    target: str
    step: int
    at_second: float
    came_of_it: str = ""

    @property
    def killing(self) -> bool:
        return "SIGKILL" in self.kind


@dataclass
class Reference:
    """The undisturbed run: the global step at which each stage ends, and how many seconds each of the moments lasts."""

    run_dir: Path
    stage_ends: dict[str, int]
    checkpoint_every: int
    seconds: dict[str, float]

    @property
    def steps(self) -> int:
        return max(self.stage_ends.values())

    @property
    def search_end(self) -> int:
        return self.stage_ends.get("search", 0)

    def stage_at(self, step: int) -> str:
        return next(name for name, end in self.stage_ends.items() if step <= end)


class Injector:
    """Chooses faults, those that were rarest so far, waits for their moments, and strikes."""

    def __init__(self, generator: random.Random, reference: Reference, disk: Disk) -> None:
        self._generator, self._reference, self._disk = generator, reference, disk
        self.strikes: list[Strike] = []
        self.damages: Counter[str] = Counter()
        self._began = time.monotonic()

    def choose(self, resumed: int) -> list[Fault]:
        """What happens to a start that goes on from a step; a full disk is followed by signals."""
        moments = {STARTING, TRAINING, WRITING, LEAVING}
        if self._reference.search_end / 2 <= resumed < self._reference.search_end:
            moments.add(DRAWING)
        if self._reference.steps - 15 <= resumed < self._reference.steps:
            moments.add(ENDING)
        possible = [fault for fault in FAULTS if fault.moment in moments]
        counts = Counter((strike.kind, strike.moment) for strike in self.strikes)
        kinds = Counter(strike.kind for strike in self.strikes)

        def rarity(fault: Fault) -> tuple[int, bool, int, float]:
            # A full disk comes first, so that the shortest soak has one.
            kind = fault.kind
            return kinds[kind], kind != FULL_DISK, counts[kind, fault.moment], self._generator.random()

        chosen = min(possible, key=rarity)
        if chosen.signals:
            return [chosen]
        return [chosen, min((fault for fault in possible if fault.signals and fault.moment != STARTING), key=rarity)]

    def inject(self, run: Incarnation, fault: Fault, resumed: int) -> Strike | None:
        """Waits for the fault's moment and a random part of it, then strikes; None when the run ended before."""
        if not self._await(run, fault.moment, resumed):
            return None
        time.sleep(self._generator.uniform(0, self._reference.seconds[fault.moment]))
        if not run.running:
            return None
        at_second = time.monotonic() - self._began
        strike = Strike(fault.kind, fault.moment, str(run.layout), "the disk", max(resumed, run.step()), at_second)
        self.strikes.append(strike)
        if fault.moment == LEAVING:
            self._ask_to_stop(run)
        if fault.signals:
            strike.target = self._send(run, fault)
        else:
            strike.came_of_it = self._fill_disk(run)
        return strike

    def _await(self, run: Incarnation, moment: str, resumed: int) -> bool:
        """Whether the moment came; training and writing are random ones of the next steps."""
        aim = resumed + self._generator.randint(1, 2 * self._reference.checkpoint_every)
        checkpoints = run.run_dir / "checkpoints"

        def complete(step: int) -> bool:
            # One that rots there since an earlier start does not count.
            return run.step() >= step and step in checkpoint_steps(run.run_dir)

        reached = {
            STARTING: lambda: len(run.ranks()) == run.layout.ranks,
            TRAINING: lambda: run.step() >= aim,
            LEAVING: lambda: run.step() >= aim,
            # What a killed start left unfinished is gone once this one trains.
            WRITING: lambda: run.step() > 0 and any(int(path.name[6:14]) >= aim for path in checkpoints.glob(".*.tmp")),
            DRAWING: lambda: complete(self._reference.search_end),
            ENDING: lambda: complete(self._reference.steps),
        }
        return run.wait_until(reached[moment])

    def _ask_to_stop(self, run: Incarnation) -> None:
        """Until the run has said that it does, and a random part of the time in which it leaves."""
        send("SIGTERM", self._generator.choice(run.ranks() or [run.process]))
        run.wait_until(lambda: "stopped as asked" in run.output())
        time.sleep(self._generator.uniform(0, self._reference.seconds[LEAVING]))

    def _send(self, run: Incarnation, fault: Fault) -> str:
        """Sends each signal to a random rank; a SIGTERM alone now and then to torchrun, which passes it on."""
        ranks = run.ranks() or [run.process]
        if fault.signals == ("SIGTERM",) and run.layout.launcher == "torchrun" and self._generator.random() < 0.3:
            send("SIGTERM", run.process)
            return "the launcher"
        targets = []
        for index, name in enumerate(fault.signals):
            if index:
                time.sleep(self._generator.uniform(0, self._reference.seconds[TRAINING]))
            targets.append(self._generator.randrange(len(ranks)))
            send(name, ranks[targets[-1]])
        return "rank " + ", ".join(map(str, targets))

    def _fill_disk(self, run: Incarnation) -> str:
        """Keeps the disk full until a checkpoint is said to be lost, then waits for the next one."""
        ranks = run.ranks()

        def refused() -> bool:
            self._disk.fill(ranks)
            return REFUSED.search(run.output()) is not None

        try:
            was_refused = run.wait_until(refused)
        finally:
            self._disk.free(ranks)
        newest, freed = newest_step(run.run_dir), time.monotonic()
        if not was_refused:
            return "ended before it lost a checkpoint"
        if not run.wait_until(lambda: newest_step(run.run_dir) > newest):
            return "ended for want of the checkpoint that closes a stage"
        return f"one checkpoint lost; the next complete {time.monotonic() - freed:.1f} s after there was room"

    def damage(self, checkpoint: Path) -> str:
        """Damages one file of a checkpoint, in the way that was rarest so far; returns how."""
        kind = min(DAMAGES, key=lambda kind: (self.damages[kind], self._generator.random()))
        self.damages[kind] += 1
        path = self._generator.choice(sorted(checkpoint.iterdir()))
        size = path.stat().st_size
        place = self._generator.randrange(size)
        if kind == "removed file":
            path.unlink()
            return f"{kind} {path.name}"
        if kind == "truncated file":
            os.truncate(path, place)
            return f"{kind} {path.name}, {place} of {size} bytes left"
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << self._generator.randrange(8)]))
        return f"{kind} in {path.name}, byte {place} of {size}"
