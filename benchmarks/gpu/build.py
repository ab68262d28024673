"""Stage: the CUDA kernels are compiled for the device, and load."""

import sys
import time
from pathlib import Path

import torch

from earlybert.core.devices import device_type
from earlybert.core.files import write_json
from earlybert.kernels import extension


def main() -> None:
    device = torch.device(device_type())
    began = time.perf_counter()
    loaded = extension.operators_for(torch.empty(1, device=device))
    write_json(Path(sys.argv[1]), {"loaded": loaded, "seconds": time.perf_counter() - began})


if __name__ == "__main__":
    main()
