"""Stage: versions, the bandwidth of a copy, and the best matrix product, which the shares are of."""

import sys
from pathlib import Path

import torch
from provenance import measured_on

import kernels
from earlybert.core.devices import device_type
from earlybert.core.files import write_json
from earlybert.pretrain.cost.hardware import measured_peak


def main() -> None:
    out, rehearse = Path(sys.argv[1]), "--rehearse" in sys.argv
    device = torch.device(device_type())
    if rehearse:
        kernels.COPIED_BYTES = 2**20
    options = kernels.parse(["--rehearse"] if rehearse else [])
    seconds = kernels.medians({"copy": [kernels.copy_run(device)]}, options)["copy"]
    found = measured_on("deepspeed", "transformers") | {
        "copy_bytes_per_second": 2 * kernels.COPIED_BYTES / seconds,
        "matrix_flops": measured_peak(device, torch.float32 if rehearse else torch.bfloat16),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"capability": list(torch.cuda.get_device_capability(device)), "memory": properties.total_memory}
    write_json(out, found)


if __name__ == "__main__":
    main()
