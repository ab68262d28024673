"""Stands in for pretrain/run.py where a test is about the job scripts: keeps its contract and trains nothing.

The contract: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell the ranks apart and where they meet; SIGUSR1 or SIGTERM
on any of them ends in a checkpoint and exit status 0; DONE comes last; bad input is status 2; called again, it goes on
from the newest checkpoint. history.jsonl gets one line per step, with the number of ranks that made it.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Ranks:
    """A star of connections to rank 0; any failure of a rank breaks it for all."""

    def __init__(self) -> None:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self.peers: list[socket.socket] = []
        if RANK == 0:
            with socket.create_server(address, backlog=WORLD_SIZE) as server:
                server.settimeout(120)
                self.peers = [server.accept()[0] for _ in range(WORLD_SIZE - 1)]
            return
        deadline = time.monotonic() + 120
        while not self.peers:
            try:
                self.peers = [socket.create_connection(address)]
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank, on all ranks."""
        if RANK == 0:
            flag = any([flag, *(receive(peer) for peer in self.peers)])
        for peer in self.peers:
            peer.sendall(bytes([flag]))
        return flag if RANK == 0 else receive(self.peers[0])


def receive(peer: socket.socket) -> bool:
    answer = peer.recv(1)
    if not answer:
        raise ConnectionError("a rank is gone")
    return bool(answer[0])


def newest_step(run_dir: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in run_dir.glob("checkpoints/step-*")), default=0)


def save(run_dir: Path, step: int) -> None:
    if RANK == 0:
        (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.1], help="of a step: in the first attempt, ...")
    parser.add_argument("--checkpoint-every", type=int, default=10)
    parser.add_argument("--fail-at", type=int, help="rank 1 dies after this step")
    options = parser.parse_args()
    run_dir, history = options.run_dir, options.run_dir / "history.jsonl"
    if options.config == "wrong":
        sys.exit(2)
    seconds = options.seconds[min(int(os.environ.get("SLURM_RESTART_COUNT", 0)), len(options.seconds) - 1)]
    asked: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    ranks = Ranks()
    step = newest_step(run_dir)
    if RANK == 0:
        lines = history.read_text().splitlines(keepends=True) if history.exists() else []
        history.write_text("".join(lines[:step]))
        print(f"data is {options.data}", flush=True)
    while step < options.steps:
        if ranks.any(bool(asked)):
            save(run_dir, step)
            return
        time.sleep(seconds)
        step += 1
        if RANK == 0:
            with history.open("a") as file:
                file.write(json.dumps({"step": step, "ranks": WORLD_SIZE}) + "\n")
        if RANK == 1 and step == options.fail_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % options.checkpoint_every == 0:
            save(run_dir, step)
    ranks.any(False)
    if RANK == 0:
        (run_dir / "DONE").touch()


if __name__ == "__main__":
    main()
