"""Each kernel against PyTorch eager and torch.compile: time, bytes that must move, share of the copy bandwidth.

    python benchmarks/kernels.py [--tokens 8192] [--hidden 1024] [--widths 4096 2880 2867]
                                 [--dtypes float16] [--parameters 30000000] [--clock wall|cpu] [--without compile]
                                 [--out FILE.json]
    python benchmarks/kernels.py --rehearse      what a GPU would run, on a CPU, in tiny sizes: no measurement

All implementations of an operation, and a copy of 256 MB, take turns in one process; medians. Bytes are what a perfect
kernel would move: each tensor that lives on read or written once; "of copy" is bytes / time over the copy's.

gelu            gelu(hidden + bias), forward and backward, bias gradient included
layer norm      LayerNorm(residual + dropout(hidden)), forward and backward, all gradients
lamb            one optimizer step: reads weight, gradient, two moments; writes weight, two moments (28 B a parameter;
                our kernels store the update in between: 40)

A GPU's time is that between two events, over --calls calls that were all issued while the GPU was still held up, so
that no launch is waited for; their inputs take turns and are together larger than its cache. "cuda" rows are this
project's kernels, each with the least share of the copy bandwidth that is expected of it; the exit status is 1 where
one misses it. Without a GPU, or with DS_ACCELERATOR=cpu, they are missing, and the CPU's numbers say nothing about one.

apex and DeepSpeed take part where they are installed and have a GPU. What has to be compiled first is compiled by a
process of its own, which has --build-limit seconds; an implementation that takes longer, or fails there, is left out.
"""

import argparse
import functools
import importlib
import importlib.util
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from provenance import measured_on
from torch import Tensor

from earlybert.core.devices import device_type
from earlybert.core.files import write_json
from earlybert.kernels import extension
from earlybert.kernels.dropout import dropout
from earlybert.kernels.gelu import bias_gelu, bias_gelu_reference
from earlybert.kernels.lamb import Lamb
from earlybert.kernels.layer_norm import dropout_residual_layer_norm, dropout_residual_layer_norm_reference

DROPOUT, EPS = 0.1, 1e-12
COPIED_BYTES = 256 * 2**20
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
IMPLEMENTATIONS = ("eager", "compile", "cuda", "apex", "deepspeed")
# Those of a GPU alone, and those that something is compiled for.
ON_GPUS, BUILT = ("cuda", "apex", "deepspeed"), IMPLEMENTATIONS[1:]
# Predicted shares of the copy bandwidth, none measured yet. Rows that are no multiple of 16 bytes are read and written
# one element at a time; LAMB's kernels move 40 bytes where 28 are counted.
LEAST_GELU, LEAST_ODD_GELU, LEAST_NORM, LEAST_LAMB = 0.8, 0.3, 0.75, 0.56
# How long the GPU is held up before a measurement, about 20 ms: longer than it takes to issue the calls.
HELD_UP_CYCLES = 40_000_000
TINY = ["--tokens", "16", "--hidden", "32", "--widths", "40", "33", "--parameters", "2048", "--rounds", "1"]

Run = Callable[[], Any]


@dataclass(frozen=True)
class Operation:
    """What is measured: for each implementation one run for each set of inputs, which take turns."""

    name: str
    runs: dict[str, list[Run]]
    moved: float
    least: float


def seconds_of_a_call(runs: list[Run], options: argparse.Namespace) -> float:
    """Mean over `--calls` calls one after the other."""
    calls = [runs[number % len(runs)] for number in range(options.calls)]
    if options.device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(HELD_UP_CYCLES)
        start.record()
        for run in calls:
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / len(calls)
    clock = CLOCKS[options.clock]
    before = clock()
    for run in calls:
        run()
    return (clock() - before) / len(calls)


def medians(runs: dict[str, list[Run]], options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a call of each, interleaved, after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 2):
        for name, sets in runs.items():
            taken = seconds_of_a_call(sets, options)
            if number >= 2:
                times[name].append(taken)
    return {name: statistics.median(found) for name, found in times.items()}


def copy_run(device: torch.device) -> Run:
    """A plain copy, which reads COPIED_BYTES and writes as many."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def number_of_sets(options: argparse.Namespace, set_bytes: float) -> int:
    """How many sets of inputs are together twice as large as the GPU's cache."""
    if options.device.type != "cuda":
        return 2 if options.rehearse else 1
    cache = torch.cuda.get_device_properties(options.device).L2_cache_size
    return max(2, min(options.calls, -(-2 * cache // int(set_bytes))))


def compiled(function: Callable[..., Tensor], options: argparse.Namespace) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False, backend="aot_eager" if options.rehearse else "inductor")


def forward_and_backward(function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> Run:
    return lambda: torch.autograd.grad(function(*inputs), inputs, upstream)


def gelu(options: argparse.Namespace, width: int, dtype: torch.dtype, wanted: list[str]) -> Operation:
    functions: dict[str, Callable[..., Tensor]] = {"eager": bias_gelu_reference}
    if "compile" in wanted:
        functions["compile"] = compiled(bias_gelu_reference, options)
    if "cuda" in wanted:
        functions["cuda"] = bias_gelu
    matrix_bytes = options.tokens * width * dtype.itemsize
    runs: dict[str, list[Run]] = {name: [] for name in functions}
    for _ in range(number_of_sets(options, 2 * matrix_bytes)):
        hidden, upstream = torch.randn(2, options.tokens, width, device=options.device, dtype=dtype)
        inputs = [hidden.requires_grad_(), torch.randn(width, device=options.device, dtype=dtype).requires_grad_()]
        for name, function in functions.items():
            runs[name].append(forward_and_backward(function, inputs, upstream))
    odd = width * dtype.itemsize % 16 != 0
    name = f"gelu {options.tokens}x{width} {str(dtype).removeprefix('torch.')}"
    return Operation(name, runs, 5 * matrix_bytes, LEAST_ODD_GELU if odd else LEAST_GELU)


def apex_layer_norm(hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The reference with apex's fused LayerNorm in it."""
    normalise = importlib.import_module("apex.normalization.fused_layer_norm").fused_layer_norm_affine
    return normalise(residual + dropout(hidden, DROPOUT), weight, bias, weight.shape, EPS)


def layer_norm(options: argparse.Namespace, dtype: torch.dtype, wanted: list[str]) -> Operation:
    reference = functools.partial(dropout_residual_layer_norm_reference, dropout=DROPOUT, eps=EPS)
    functions: dict[str, Callable[..., Tensor]] = {"eager": reference}
    if "compile" in wanted:
        functions["compile"] = compiled(reference, options)
    if "cuda" in wanted:
        functions["cuda"] = functools.partial(dropout_residual_layer_norm, dropout=DROPOUT, eps=EPS)
    if "apex" in wanted:
        functions["apex"] = apex_layer_norm
    shape = (options.tokens, options.hidden)
    matrix_bytes = options.tokens * options.hidden * dtype.itemsize
    runs: dict[str, list[Run]] = {name: [] for name in functions}
    for _ in range(number_of_sets(options, 3 * matrix_bytes)):
        hidden, residual, upstream = torch.randn(3, *shape, device=options.device, dtype=dtype)
        weight, bias = torch.randn(2, options.hidden, device=options.device, dtype=dtype)
        inputs = [tensor.detach().requires_grad_() for tensor in (hidden, residual, weight, bias)]
        for name, function in functions.items():
            runs[name].append(forward_and_backward(function, inputs, upstream))
    name = f"layer norm {options.tokens}x{options.hidden} {str(dtype).removeprefix('torch.')}"
    return Operation(name, runs, 8 * matrix_bytes, LEAST_NORM)


def lamb(options: argparse.Namespace, wanted: list[str]) -> Operation:
    """Steps on as many parameters as asked for, in matrices of hidden x hidden; far larger than any cache."""
    count = max(1, options.parameters // options.hidden**2)

    def parameters() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.randn(options.hidden, options.hidden)) for _ in range(count)]
        made = [torch.nn.Parameter(parameter.to(options.device)) for parameter in made]
        for parameter in made:
            parameter.grad = torch.randn_like(parameter)
        return made

    def eager() -> None:
        with mock.patch.object(extension, "operators_for", lambda tensor: False):
            without_kernels.step()

    without_kernels = Lamb(parameters(), lr=1e-3)
    runs: dict[str, list[Run]] = {"eager": [eager]}
    if "cuda" in wanted:
        runs["cuda"] = [Lamb(parameters(), lr=1e-3).step]
    if "apex" in wanted:
        runs["apex"] = [importlib.import_module("apex.optimizers").FusedLAMB(parameters(), lr=1e-3).step]
    if "deepspeed" in wanted:
        runs["deepspeed"] = [importlib.import_module("deepspeed.ops.lamb").FusedLamb(parameters(), lr=1e-3).step]
    elements = count * options.hidden**2
    return Operation(f"lamb {elements / 1e6:.1f} M float32", runs, 28 * elements, LEAST_LAMB)


def operations(options: argparse.Namespace, wanted: list[str]) -> list[Callable[[], Operation]]:
    """Everything that is measured, each made when its turn comes: the inputs of all would not fit beside each other."""
    made: list[Callable[[], Operation]] = []
    for dtype in (getattr(torch, name) for name in options.dtypes):
        made += [functools.partial(gelu, options, width, dtype, wanted) for width in options.widths]
        made.append(functools.partial(layer_norm, options, dtype, wanted))
    return [*made, functools.partial(lamb, options, wanted)]


def available(options: argparse.Namespace, argv: list[str]) -> list[str]:
    """The implementations that can run here; says of the others why not."""
    found = []
    for name in IMPLEMENTATIONS:
        if name in options.without:
            continue
        if name in ON_GPUS and options.device.type != "cuda" and not (options.rehearse and name == "cuda"):
            reason: str | None = "needs a GPU"
        elif name in ("apex", "deepspeed") and importlib.util.find_spec(name) is None:
            reason = "is not installed"
        else:
            reason = why_not_built(name, argv, options.build_limit) if name in BUILT else None
        if reason:
            print(f"left out: {name} ({reason})")
        else:
            found.append(name)
    return found


def why_not_built(name: str, argv: list[str], limit: float) -> str | None:
    """Has another process call the implementation once, which leaves in PyTorch's caches what it compiled for that."""
    command = [sys.executable, __file__, *argv, "--build", name]
    # A group of its own, with all the compilers that it starts.
    building = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, complaints = building.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(building.pid, signal.SIGKILL)
        building.communicate()
        return f"was not built within {limit:g} s"
    lines = complaints.strip().splitlines() or [f"exit status {building.returncode}"]
    return f"could not be built: {lines[-1]}" if building.returncode else None


def build(options: argparse.Namespace) -> None:
    """Calls one implementation once on everything that is measured."""
    if options.build == "cuda" and not options.rehearse:
        os.environ["EARLYBERT_KERNELS"] = "require"
    for make in operations(options, [options.build]):
        for run in make().runs.get(options.build, [])[:1]:
            run()


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a positive integer")
    return int(text)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=positive, default=8192)
    parser.add_argument("--hidden", type=positive, default=1024)
    parser.add_argument("--widths", type=positive, nargs="+", default=[4096, 2880, 2867])
    parser.add_argument("--dtypes", choices=("float16", "bfloat16", "float32"), nargs="+")
    parser.add_argument("--parameters", type=positive, default=30_000_000)
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--calls", type=positive, help="in a row, for one time; 20 on a GPU, 1 on a CPU")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of the process, on a shared machine")
    parser.add_argument("--without", choices=IMPLEMENTATIONS[1:], nargs="+", default=[])
    parser.add_argument("--build-limit", type=positive, default=120)
    parser.add_argument("--build", choices=BUILT, help=argparse.SUPPRESS)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if options.rehearse:
        options = parser.parse_args([*argv, *TINY, "--calls", "2"])
    options.device = torch.device("cpu" if options.rehearse else device_type())
    on_gpu = options.device.type == "cuda"
    options.calls = options.calls or (20 if on_gpu else 1)
    # fp16 has no fast path on CPUs.
    options.dtypes = options.dtypes or (["float16", "bfloat16"] if on_gpu or options.rehearse else ["float32"])
    return options


def measure(operation: Operation, copy: Run, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each implementation."""
    seconds = medians({"copy": [copy], **operation.runs}, options)
    copied = 2 * COPIED_BYTES / seconds.pop("copy")
    return [
        {
            "operation": operation.name,
            "implementation": implementation,
            "ms": taken * 1e3,
            "bytes": operation.moved,
            "of_copy": operation.moved / taken / copied,
            "least_of_copy": operation.least if implementation == "cuda" else None,
            "speed_up": seconds["eager"] / taken,
        }
        for implementation, taken in seconds.items()
    ]


def misses(row: dict[str, Any]) -> bool:
    """Whether a kernel of ours is slower than is expected of it."""
    return row["least_of_copy"] is not None and row["of_copy"] < row["least_of_copy"]


def print_row(row: dict[str, Any]) -> None:
    least = "" if row["least_of_copy"] is None else f"{row['least_of_copy']:.0%}{' MISSED' if misses(row) else ''}"
    print(
        f"{row['operation']:<30}{row['implementation']:<15}{row['ms']:>9.3f}{row['bytes'] / 1e6:>9.1f}"
        f"{row['bytes'] / row['ms'] / 1e6:>8.1f}{row['of_copy']:>9.0%}{row['speed_up']:>9.2f}x  {least}",
        flush=True,
    )


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.manual_seed(0)
    if options.build:
        build(options)
        return 0
    wanted = available(options, argv)
    copy = copy_run(options.device)
    name = torch.cuda.get_device_name() if options.device.type == "cuda" else f"CPU, {platform.machine()}"
    threads = torch.get_num_threads()
    print(f"{name}, {threads} CPU threads, {options.clock} clock, {options.calls} calls, torch {torch.__version__}")
    print(f"{'operation':<30}{'implementation':<15}{'ms':>9}{'MB':>9}{'GB/s':>8}{'of copy':>9}{'vs eager':>10}  least")
    rows = []
    for make in operations(options, wanted):
        for row in measure(make(), copy, options):
            print_row(row)
            rows.append(row)
    if options.out:
        # On a machine with a GPU, too, `name` is what was measured.
        facts = measured_on() | {"device": name, "threads": threads, "clock": options.clock, "calls": options.calls}
        write_json(options.out, facts | {"rehearsal": options.rehearse, "rows": rows})
    return int(not options.rehearse and any(misses(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
