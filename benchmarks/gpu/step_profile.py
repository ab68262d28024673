"""Stage: two steps of dense BERT-Large under PyTorch's profiler: launches, idle share, waits, copies, longest kernels.

Takes the options of step_speed.py after its own first one, the file for the result.
"""

import sys
from pathlib import Path
from typing import Any

OUT = Path(sys.argv.pop(1))

import step_speed  # noqa: E402
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from earlybert.core import distributed  # noqa: E402
from earlybert.core.devices import synchronize  # noqa: E402
from earlybert.core.files import write_json  # noqa: E402
from earlybert.pretrain.plan.plan import full_network  # noqa: E402

STEPS = 2
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def busy_microseconds(kernels: list[Any]) -> float:
    """Of the time from the first kernel to the last, when at least one was running."""
    total, end = 0.0, float("-inf")
    for first, last in sorted((event.time_range.start, event.time_range.end) for event in kernels):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def main() -> None:
    distributed.start()
    recipe = step_speed.make_recipe()
    batches = step_speed.real_batches(recipe, OUT.parent / "profile")
    step = step_speed.ours(recipe, full_network(recipe, step_speed.VOCABULARY, "nsp"), step_speed.HALF)
    for batch in batches:
        step(batch)
    synchronize(step_speed.DEVICE)
    on_gpu = step_speed.DEVICE.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for batch in batches[:STEPS]:
            step(batch)
        synchronize(step_speed.DEVICE)
    events: Any = profiler.events()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    span = max((event.time_range.end for event in kernels), default=0) - min(
        (event.time_range.start for event in kernels), default=0
    )
    names = [event.name for event in events]
    longest = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)[:20]
    found = {
        "launches": sum(name in LAUNCHES for name in names) / STEPS,
        "idle": 1 - busy_microseconds(kernels) / span if span else None,
        "waits": sum(name in WAITS for name in names) / STEPS,
        "pageable_copies": sum("Pageable" in name for name in names) / STEPS,
        "longest": [[row.key[:80], row.self_device_time_total / STEPS, row.count / STEPS] for row in longest],
    }
    write_json(OUT, found)


if __name__ == "__main__":
    main()
