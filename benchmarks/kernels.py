"""Each kernel against PyTorch eager and torch.compile: time, bytes that must move, share of the copy bandwidth.

    python benchmarks/kernels.py [--device cpu|cuda] [--tokens 8192] [--hidden 1024] [--widths 4096 2880 2867]
                                 [--dtypes float16] [--parameters 30000000] [--clock wall|cpu] [--without compile]
                                 [--out FILE.json]

All implementations of an operation, and a copy of 256 MB, take turns in one process; medians. Bytes are what a perfect
kernel would move: each tensor that lives on read or written once; "of copy" is bytes / time over the copy's.

gelu            gelu(hidden + bias), forward and backward, bias gradient included
layer norm      LayerNorm(residual + dropout(hidden + bias)), forward and backward, all gradients
lamb            one optimizer step: reads weight, gradient, two moments; writes weight, two moments (28 B a parameter;
                our kernels store the update in between: 40)

"cuda" rows are this project's kernels. Without a GPU they are missing, and the CPU's numbers say nothing about a GPU.
apex and DeepSpeed take part where they are installed and have a GPU.
"""

import argparse
import functools
import importlib
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from provenance import measured_on
from torch import Tensor

from earlybert.kernels import extension
from earlybert.kernels.dropout import dropout
from earlybert.kernels.gelu import bias_gelu, bias_gelu_reference
from earlybert.kernels.lamb import Lamb
from earlybert.kernels.layer_norm import (
    dropout_residual_layer_norm,
    dropout_residual_layer_norm_reference,
)

DROPOUT, EPS = 0.1, 1e-12
COPIED_BYTES = 256 * 2**20
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
IMPLEMENTATIONS = ("eager", "compile", "cuda", "apex", "deepspeed")

Run = Callable[[], Any]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(runs: dict[str, Run], device: torch.device, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each, interleaved, after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            wait(device)
            start = clock()
            run()
            wait(device)
            if number >= 2:
                times[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def copy_run(device: torch.device) -> Run:
    """A plain copy, which reads COPIED_BYTES and writes as many."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def forward_and_backward(function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> Run:
    return lambda: torch.autograd.grad(function(*inputs), inputs, upstream)


def gelu_runs(options: argparse.Namespace, width: int, dtype: torch.dtype, wanted: list[str]) -> dict[str, Run]:
    hidden, upstream = torch.randn(2, options.tokens, width, device=options.device, dtype=dtype)
    inputs = [hidden.requires_grad_(), torch.randn(width, device=options.device, dtype=dtype).requires_grad_()]
    functions: dict[str, Callable[..., Tensor]] = {"eager": bias_gelu_reference}
    if "compile" in wanted:
        functions["compile"] = torch.compile(bias_gelu_reference, dynamic=False)
    if "cuda" in wanted:
        functions["cuda"] = bias_gelu
    return {name: forward_and_backward(function, inputs, upstream) for name, function in functions.items()}


def apex_layer_norm(hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The reference with apex's fused LayerNorm in it."""
    normalise = importlib.import_module("apex.normalization.fused_layer_norm").fused_layer_norm_affine
    return normalise(residual + dropout(hidden, DROPOUT), weight, bias, weight.shape, EPS)


def norm_runs(options: argparse.Namespace, dtype: torch.dtype, wanted: list[str]) -> dict[str, Run]:
    shape = (options.tokens, options.hidden)
    hidden, residual, upstream = torch.randn(3, *shape, device=options.device, dtype=dtype)
    weight, bias = torch.randn(2, options.hidden, device=options.device, dtype=dtype)
    inputs = [tensor.detach().requires_grad_() for tensor in (hidden, residual, weight, bias)]
    reference = functools.partial(dropout_residual_layer_norm_reference, dropout=DROPOUT, eps=EPS)
    functions: dict[str, Callable[..., Tensor]] = {"eager": reference}
    if "compile" in wanted:
        functions["compile"] = torch.compile(reference, dynamic=False)
    if "cuda" in wanted:
        functions["cuda"] = functools.partial(dropout_residual_layer_norm, dropout=DROPOUT, eps=EPS)
    if "apex" in wanted:
        functions["apex"] = apex_layer_norm
    return {name: forward_and_backward(function, inputs, upstream) for name, function in functions.items()}


def lamb_runs(options: argparse.Namespace, wanted: list[str]) -> dict[str, Run]:
    """Steps on as many parameters as asked for, in matrices of hidden x hidden."""

    def parameters() -> list[torch.nn.Parameter]:
        count = max(1, options.parameters // options.hidden**2)
        made = [torch.nn.Parameter(torch.randn(options.hidden, options.hidden)) for _ in range(count)]
        made = [torch.nn.Parameter(parameter.to(options.device)) for parameter in made]
        for parameter in made:
            parameter.grad = torch.randn_like(parameter)
        return made

    def eager() -> None:
        with mock.patch.object(extension, "operators_for", lambda tensor: False):
            without_kernels.step()

    without_kernels = Lamb(parameters(), lr=1e-3)
    runs: dict[str, Run] = {"eager": eager}
    if "cuda" in wanted:
        runs["cuda"] = Lamb(parameters(), lr=1e-3).step
    if "apex" in wanted:
        runs["apex"] = importlib.import_module("apex.optimizers").FusedLAMB(parameters(), lr=1e-3).step
    if "deepspeed" in wanted:
        runs["deepspeed"] = importlib.import_module("deepspeed.ops.lamb").FusedLamb(parameters(), lr=1e-3).step
    return runs


def available(options: argparse.Namespace) -> list[str]:
    """The implementations that can run here; says of the others why not."""
    found = []
    for name in IMPLEMENTATIONS:
        if name in options.without:
            continue
        if name in ("cuda", "apex", "deepspeed") and options.device.type != "cuda":
            reason: str | None = "needs a GPU"
        elif name == "cuda" and not extension.operators_for(torch.empty(1, device=options.device)):
            reason = "the extension could not be built, see above"
        elif name in ("apex", "deepspeed") and importlib.util.find_spec(name) is None:
            reason = "is not installed"
        else:
            reason = None
            found.append(name)
        if reason:
            print(f"left out: {name} ({reason})")
    return found


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a positive integer")
    return int(text)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=positive, default=8192)
    parser.add_argument("--hidden", type=positive, default=1024)
    parser.add_argument("--widths", type=positive, nargs="+", default=[4096, 2880, 2867])
    parser.add_argument("--dtypes", choices=("float16", "bfloat16", "float32"), nargs="+")
    parser.add_argument("--parameters", type=positive, default=30_000_000)
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of the process, on a shared machine")
    parser.add_argument("--without", choices=IMPLEMENTATIONS[1:], nargs="+", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but PyTorch sees no GPU; it must be cpu")
    options.device = torch.device(options.device)
    # fp16 has no fast path on CPUs.
    options.dtypes = options.dtypes or (["float16", "bfloat16"] if options.device.type == "cuda" else ["float32"])
    return options


def main(argv: list[str]) -> None:
    options = parse(argv)
    torch.manual_seed(0)
    wanted = available(options)
    copy = copy_run(options.device)
    name = torch.cuda.get_device_name() if options.device.type == "cuda" else f"CPU, {platform.machine()}"
    threads = torch.get_num_threads()
    print(f"{name}, {threads} CPU threads, {options.clock} clock, torch {torch.__version__}")
    print(f"{'operation':<34}{'implementation':<16}{'ms':>9}{'MB':>9}{'GB/s':>9}{'of copy':>9}{'vs eager':>10}")
    rows = []

    def report(operation: str, runs: dict[str, Run], moved: float) -> None:
        seconds = medians({"copy": copy, **runs}, options.device, options.rounds, CLOCKS[options.clock])
        copied = 2 * COPIED_BYTES / seconds.pop("copy")
        for implementation, taken in seconds.items():
            row = {
                "operation": operation,
                "implementation": implementation,
                "ms": taken * 1e3,
                "bytes": moved,
                "of_copy": moved / taken / copied,
                "speed_up": seconds["eager"] / taken,
            }
            rows.append(row)
            print(
                f"{operation:<34}{implementation:<16}{row['ms']:>9.3f}{moved / 1e6:>9.1f}{moved / taken / 1e9:>9.1f}"
                f"{row['of_copy']:>9.0%}{row['speed_up']:>9.2f}x",
                flush=True,
            )

    for dtype_name in options.dtypes:
        dtype = getattr(torch, dtype_name)
        for width in options.widths:
            moved = 5 * options.tokens * width * dtype.itemsize
            runs = gelu_runs(options, width, dtype, wanted)
            report(f"gelu {options.tokens}x{width} {dtype_name}", runs, moved)
        moved = 8 * options.tokens * options.hidden * dtype.itemsize
        report(f"layer norm {options.tokens}x{options.hidden} {dtype_name}", norm_runs(options, dtype, wanted), moved)
    count = max(1, options.parameters // options.hidden**2) * options.hidden**2
    report(f"lamb {count / 1e6:.1f} M float32", lamb_runs(options, wanted), 28 * count)
    if options.out:
        # On a machine with a GPU, too, `name` is what was measured.
        facts = measured_on() | {"device": name, "threads": threads, "clock": options.clock}
        options.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
