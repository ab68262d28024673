"""LAMB of others, to compare ours with: apex's and DeepSpeed's, by name in the DeepSpeed file.

    "optimizer": {"type": "apex.FusedLAMB"}          "optimizer": {"type": "deepspeed.FusedLamb"}

Both are CUDA only and know no partitions, so ZeRO has to be off. They take query, key and value for one tensor;
DeepSpeed's also gives tensors without decay a trust ratio, and keeps all ratios between 0.01 and 10.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from earlybert.core.errors import UserError
from earlybert.kernels import extension, packed_attention
from earlybert.kernels.partition import step_count

# Module, class, and what makes it compute the same as ours as far as it can: DeepSpeed has clipped already.
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "apex.FusedLAMB": ("apex.optimizers", "FusedLAMB", {"max_grad_norm": float("inf")}),
    "deepspeed.FusedLamb": ("deepspeed.ops.lamb", "FusedLamb", {}),
}


def build_peer(kind: str, groups: list[dict[str, Any]], numbers: Mapping[str, Any]) -> torch.optim.Optimizer:
    """One of PEERS; raises UserError where it is not installed, or cannot be built for this machine."""
    module, name, own = PEERS[kind]
    try:
        make = getattr(importlib.import_module(module), name)
        optimizer: torch.optim.Optimizer = make(groups, lr=0.0, **numbers, **own)
    except Exception as error:  # whatever importing, compiling and loading CUDA code may raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f'optimizer.type is "{kind}", which does not work here ({reason}); "Lamb" does') from None
    optimizer.register_step_pre_hook(_tell_step)
    optimizer.register_step_post_hook(_note_step)
    return optimizer


def check_implementations(optimizer: str, device: torch.device) -> None:
    """Raises UserError where an implementation was asked for by name, here or in the environment, that cannot work."""
    if optimizer in PEERS and device.type != "cuda":
        raise UserError(f'optimizer.type is "{optimizer}", which needs a GPU; on a CPU it must be "Lamb" or "AdamW"')
    try:
        extension.chosen()
        packed_attention.chosen()
    except ValueError as error:
        raise UserError(str(error)) from None


def _tell_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """The steps taken, from where checkpoints keep them to where apex (group) and DeepSpeed (state, an int) look."""
    steps = step_count(optimizer)
    for place in (*optimizer.param_groups, *optimizer.state.values()):
        place["step"] = steps


def _note_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """The reverse; only one of the two places has been counted on."""
    steps = max(int(place.get("step", 0)) for place in (*optimizer.param_groups, *optimizer.state.values()))
    for state in optimizer.state.values():
        state["step"] = torch.tensor(float(steps))
