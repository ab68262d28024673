"""Counts what a GPU is asked to do, and how often it is waited for: without a GPU, by shapes alone.

    python benchmarks/launches.py [--before FILE.json] [--out FILE.json]

BERT-Large in bf16 on PyTorch's meta device, which takes the way of a GPU with this project's kernels (their CUDA
sources need not be built) and flash attention. Counted are operations that reach PyTorch's dispatcher and have a tensor
on the device among arguments or results, without views and uninitialised memory: each is a launch at least,
multi-tensor ones several. A wait is an operation after which the host needs a number from the device, or a copy that
returns when it is done. `--before` shows the counts of another version, as --out wrote them, beside these.

optimizer step     Lamb.step as DeepSpeed's BF16_Optimizer calls it on one rank: two flat tensors, decayed and not. With
                   more ranks one collective a decayed group comes on top.
micro-batch        the network's forward and backward pass, 32 sequences of 128 tokens, 20 of them predicted;
                   DeepSpeed's share of a micro-batch is not in it

Shape suffixes: B sequences, S positions, N predicted positions.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed
from provenance import measured_on
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from earlybert.core.files import read_json, write_json
from earlybert.kernels import extension
from earlybert.kernels.lamb import Lamb
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork, meta_network
from earlybert.pretrain.plan.recipe import OptimizerConfig
from earlybert.pretrain.train.engine import build_optimizer

BERT_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
SEQUENCES, LENGTH, PREDICTIONS = 32, 128, 20
UNINITIALISED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
COPIES = ("_to_copy", "copy_")
DEVICE = torch.device("meta")


class Launches(TorchDispatchMode):
    """Counts operations on the device and waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name == "_local_scalar_dense" and given[0].device == DEVICE:
            self.operations, self.waits = self.operations + 1, self.waits + 1
            return 1.0
        result = self._to_host(name, given, kwargs)
        result = function(*args, **kwargs) if result is None else result
        tensors = [*given, *(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))]
        devices = {tensor.device for tensor in tensors}
        returned = [item.alias_info for item in function._schema.returns]
        is_view = bool(returned) and all(alias is not None and not alias.is_write for alias in returned)
        if DEVICE in devices and name not in UNINITIALISED and not is_view:
            self.operations += 1
            # A single number on the host beside tensors on the device is an argument of the launch.
            crosses = len({tensor.device for tensor in tensors if tensor.ndim or name == "_to_copy"}) > 1
            waits_not = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
            self.waits += name in COPIES and crosses and not waits_not
        return result

    def _to_host(self, name: str, given: list[Tensor], kwargs: dict[str, Any]) -> Tensor | None:
        """Numbers in place of those that a copy from the meta device does not have."""
        if name == "_to_copy" and given[0].device == DEVICE and str(kwargs.get("device")) == "cpu":
            return torch.ones(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        return None


def counted(run: Callable[[], Any]) -> dict[str, int]:
    """Of one run, after one that fills what is made once."""
    on_a_gpu = mock.patch.object(extension, "_usable_on", lambda device: device == DEVICE)
    pinned = mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor)
    flash = mock.patch.dict(os.environ, {"EARLYBERT_ATTENTION": "flash"})
    with on_a_gpu, pinned, flash:
        with Launches():
            run()
        with Launches() as launches:
            run()
    return {"operations": launches.operations, "waits": launches.waits}


def network(searching: bool) -> PreTrainingNetwork:
    return meta_network(NetworkConfig(**BERT_LARGE, searching=searching)).bfloat16()


class BF16_Optimizer:
    """The flat tensors of DeepSpeed's class of this name, on one rank."""

    def __init__(self, groups: list[list[Tensor]]) -> None:
        self.bf16_groups = groups
        sizes = [sum(parameter.numel() for parameter in group) for group in groups]
        self.fp32_groups_flat_partition = [torch.empty(size, device=DEVICE, requires_grad=True) for size in sizes]
        self.real_dp_process_group = [torch.distributed.group.WORLD] * len(groups)


def optimizer_step() -> Callable[[], Any]:
    """Lamb's step on all parameters of BERT-Large."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    model = network(searching=False)
    optimizer = build_optimizer(model, "Lamb", {}, OptimizerConfig())
    wrapper = BF16_Optimizer([group["params"] for group in optimizer.param_groups])
    for group, flat in zip(optimizer.param_groups, wrapper.fp32_groups_flat_partition, strict=True):
        group["params"], flat.grad = [flat], torch.empty_like(flat, requires_grad=False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert isinstance(optimizer, Lamb)
    optimizer.bind(SimpleNamespace(param_names=names, optimizer=wrapper, basic_optimizer=optimizer))
    return optimizer.step


def micro_batch(searching: bool) -> Callable[[], Any]:
    """Forward and backward pass of a micro-batch."""
    model = network(searching)
    starts_B1 = LENGTH * torch.arange(SEQUENCES)[:, None]
    predicted_T = (starts_B1 + torch.arange(1, 1 + PREDICTIONS)).flatten()
    ids_T, labels_B = torch.zeros(SEQUENCES * LENGTH, dtype=torch.int64), torch.zeros(SEQUENCES, dtype=torch.int64)
    batch = Batch.of([LENGTH] * SEQUENCES, ids_T, ids_T, predicted_T, predicted_T, labels_B).to(DEVICE)

    def run() -> None:
        output = model(batch)
        first, *others = (score.loss for score in output.scores.values())
        loss = sum(others, first)
        if searching:
            loss = loss + output.head_penalty + output.neuron_penalty
        loss.backward()

    return run


CASES: dict[str, Callable[[], Callable[[], Any]]] = {
    "optimizer step": optimizer_step,
    "micro-batch, dense": lambda: micro_batch(searching=False),
    "micro-batch, searching": lambda: micro_batch(searching=True),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    before = read_json(arguments.before)["counts"] if arguments.before else {}
    counts = {name: counted(case()) for name, case in CASES.items()}
    print(f"{'':<26}{'operations':>12}{'before':>8}{'waits':>8}{'before':>8}")
    for name, found in counts.items():
        old = before.get(name, {})
        shown = (found["operations"], old.get("operations", ""), found["waits"], old.get("waits", ""))
        print(f"{name:<26}{shown[0]:>12}{shown[1]:>8}{shown[2]:>8}{shown[3]:>8}")
    if arguments.out:
        write_json(arguments.out, measured_on() | {"counts": counts, "before": before})


if __name__ == "__main__":
    main()
