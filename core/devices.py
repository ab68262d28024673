"""The device that a process computes on."""

import torch


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
