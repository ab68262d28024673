"""What a stored result was measured on."""

import datetime
import importlib.metadata
import platform
from typing import Any


def measured_on(*packages: str) -> dict[str, Any]:
    """Date, device and versions, as every file of `benchmarks/results` begins."""
    # Not above, where it would bring PyTorch into processes whose memory is measured.
    import torch

    from earlybert.core.devices import device_type

    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device_type() == "cuda" else f"CPU, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in ("earlybert", "torch", *packages)},
    }
