"""Counts what a GPU is asked to do, and how often it is waited for: without a GPU, by shapes alone.

    python benchmarks/launches.py [--before FILE.json] [--out FILE.json]

BERT-Large in bf16, or in fp16 where that is said, on PyTorch's meta device, which takes the way of a GPU with this
project's kernels (their CUDA sources need not be built) and flash attention. Counted are operations that reach
PyTorch's dispatcher and have a tensor on the device among arguments or results, without views and uninitialised memory:
each is a launch at least, multi-tensor ones several. A wait is an operation after which the host needs a number from
the device, or a copy that returns when it is done. `--before` shows the counts of another version, as --out wrote them,
beside these.

optimizer step       Lamb.step as DeepSpeed's BF16_Optimizer calls it on one rank: two flat tensors, decayed and not.
                     With more ranks one collective a decayed group comes on top.
micro-batch          the network's forward and backward pass, 32 sequences of 128 tokens, 20 of them predicted
beside network       what `train_step` does on one rank for every micro-batch of a search beside the network's passes:
                     DeepSpeed's engine, loss, scores
beside all these     what is left of a step. These two are counted on the CPU, with as many tensors as BERT-Large has,
                     but small ones. Waits are numbers read there and whole devices waited for, not copies.
"""

import argparse
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
import torch.distributed
from deepspeed.accelerator import get_accelerator
from provenance import measured_on
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from earlybert.core import distributed
from earlybert.core.files import read_json, write_json
from earlybert.kernels import extension
from earlybert.kernels.lamb import Lamb
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.model import PreTrainingNetwork, meta_network, network_with
from earlybert.pretrain.network.state import TrainingState
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, OptimizerConfig, PhaseConfig, Recipe
from earlybert.pretrain.plan.stages import build_stages
from earlybert.pretrain.train import engine as engine_module
from earlybert.pretrain.train.batches import StepBatches
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import DTYPES, StageEngine, build_optimizer
from earlybert.pretrain.train.step import train_step

BERT_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
SEQUENCES, LENGTH, PREDICTIONS, VOCABULARY = 32, 128, 20, 30_522
UNINITIALISED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
COPIES = ("_to_copy", "copy_")
DEVICE = torch.device("meta")
TIMER_STARTS = 3  # DeepSpeed's timer of its throughput waits for the device from this step on

Counts = dict[str, int]
HalfPrecision = Literal["bf16", "fp16"]


class Launches(TorchDispatchMode):
    """Counts operations on a device and waits for it; on the CPU itself only numbers read are waits."""

    def __init__(self, device: torch.device = DEVICE) -> None:
        super().__init__()
        self.device, self.operations, self.waits = device, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name == "_local_scalar_dense" and given[0].device == self.device:
            self.operations, self.waits = self.operations + 1, self.waits + 1
            return 1.0 if self.device == DEVICE else function(*args, **kwargs)
        result = self._to_host(name, given, kwargs)
        result = function(*args, **kwargs) if result is None else result
        tensors = [*given, *(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))]
        devices = {tensor.device for tensor in tensors}
        returned = [item.alias_info for item in function._schema.returns]
        is_view = bool(returned) and all(alias is not None and not alias.is_write for alias in returned)
        if self.device in devices and name not in UNINITIALISED and not is_view:
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

    @contextlib.contextmanager
    def host_waiting(self) -> Iterator[None]:
        """Counts waits that the dispatcher does not see: for the whole device and, on the CPU, lists of numbers."""

        def counting(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                self.waits += 1
                return function(*arguments)

            return call

        whole = get_accelerator()
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.object(whole, "synchronize", counting(whole.synchronize)))
            if self.device != DEVICE:
                patches.enter_context(mock.patch.object(Tensor, "tolist", counting(Tensor.tolist)))
            yield


def counted(run: Callable[[], Any], device: torch.device = DEVICE) -> Counts:
    """Of one run, after one that fills what is made once."""
    with as_on_a_gpu() if device == DEVICE else contextlib.nullcontext():
        with Launches(device):
            run()
        with Launches(device) as launches, launches.host_waiting():
            run()
    return {"operations": launches.operations, "waits": launches.waits}


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The meta device takes a GPU's way."""
    on_a_gpu = mock.patch.object(extension, "_usable_on", lambda device: device == DEVICE)
    pinned = mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor)
    flash = mock.patch.dict(os.environ, {"EARLYBERT_ATTENTION": "flash"})
    with on_a_gpu, pinned, flash:
        yield


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


def micro_batch(model: PreTrainingNetwork, batch: Batch) -> Callable[[], Any]:
    """Forward and backward pass of a micro-batch."""

    def run() -> None:
        output = model(batch)
        first, *others = (score.loss for score in output.scores.values())
        loss = sum(others, first)
        if output.head_penalty is not None and output.neuron_penalty is not None:
            loss = loss + output.head_penalty + output.neuron_penalty
        loss.backward()
        model.zero_grad()

    return run


def passes(searching: bool) -> Counts:
    return counted(micro_batch(network(searching), Batch.full(SEQUENCES, LENGTH, PREDICTIONS, VOCABULARY).to(DEVICE)))


@contextlib.contextmanager
def fp16_allowed() -> Iterator[None]:
    """DeepSpeed and we refuse fp16 on CPUs, where it is slow; its operations are the same."""
    accelerator = type(get_accelerator())
    dtypes = [torch.float, torch.half, torch.bfloat16]
    with (
        mock.patch.object(accelerator, "is_fp16_supported", lambda self: True),
        mock.patch.object(accelerator, "supported_dtypes", lambda self: dtypes),
        mock.patch.object(engine_module, "device_precision", lambda wanted, device: wanted),
        mock.patch.object(engine_module, "peak_flops", lambda device, dtype: 1e9),
    ):
        yield


@functools.cache
def small_step(micro_batches: int, precision: HalfPrecision) -> tuple[Counts, Counts]:
    """On the CPU, with as many tensors as BERT-Large has: a search's step without Lamb's, and the network's passes."""
    phase = PhaseConfig(
        length=8, max_predictions=2, global_batch=micro_batches, micro_batch=1, steps=9, learning_rate=1e-3, warmup=0.5
    )
    recipe = Recipe(phase1=phase, plan=["search"], precision=precision)
    stage = build_stages(recipe)[0]
    small = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = NetworkConfig(**BERT_LARGE | small, searching=True)
    file, device = DeepSpeedFile.load(Path(DEFAULT_DEEPSPEED)), distributed.start()
    weights = initial_weights(config, seed=0)
    with fp16_allowed():
        engine = StageEngine(config, TrainingState(weights), stage, recipe, file, device)
    batch = Batch.full(1, stage.length, stage.max_predictions, config.vocab_size)
    batches = [batch] * micro_batches
    step = StepBatches(0, Work.total(map(Work.of, batches)), micro_batches, batches)

    def run() -> None:
        train_step(engine, step, stage, recipe, step=1)

    with mock.patch.object(engine.optimizer, "step"):
        for _ in range(TIMER_STARTS):
            run()
        whole = counted(run, device)
    return whole, counted(micro_batch(network_with(config, weights).to(DTYPES[precision]), batch), device)


def beside_network(precision: HalfPrecision) -> Counts:
    (one, network), (two, _) = small_step(1, precision), small_step(2, precision)
    return {name: two[name] - one[name] - network[name] for name in one}


def once_a_step(precision: HalfPrecision) -> Counts:
    one, network = small_step(1, precision)
    return {name: count - network[name] - beside_network(precision)[name] for name, count in one.items()}


CASES: dict[str, Callable[[], Counts]] = {
    "optimizer step": lambda: counted(optimizer_step()),
    "micro-batch, dense": lambda: passes(searching=False),
    "micro-batch, searching": lambda: passes(searching=True),
    "micro-batch, beside network": lambda: beside_network("bf16"),
    "step, beside all these": lambda: once_a_step("bf16"),
    "micro-batch, fp16, beside network": lambda: beside_network("fp16"),
    "step, fp16, beside all these": lambda: once_a_step("fp16"),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    before = read_json(arguments.before)["counts"] if arguments.before else {}
    counts = {name: case() for name, case in CASES.items()}
    print(f"{'':<36}{'operations':>12}{'before':>8}{'waits':>8}{'before':>8}")
    for name, found in counts.items():
        old = before.get(name, {})
        shown = (found["operations"], old.get("operations", ""), found["waits"], old.get("waits", ""))
        print(f"{name:<36}{shown[0]:>12}{shown[1]:>8}{shown[2]:>8}{shown[3]:>8}")
    if arguments.out:
        write_json(arguments.out, measured_on() | {"counts": counts, "before": before})


if __name__ == "__main__":
    main()
