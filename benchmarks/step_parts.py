"""The parts of our step that save work, each switched off: rows of benchmarks/step_speed.py."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from freed_memory import give_freed_memory_back

from earlybert.core import devices
from earlybert.kernels import cross_entropy, dropout, extension, packed_attention
from earlybert.pretrain.network.batch import Batch


def all_needed(batch: Batch) -> Batch:
    """The same batch, with a last layer that computes every token."""
    return dataclasses.replace(
        batch,
        needed=batch.tokens,
        needed_rows_M=torch.arange(batch.tokens.tokens, device=batch.input_ids_T.device),
        predicted_rows_N=batch.needed_rows_M[batch.predicted_rows_N],
        first_rows_B=batch.needed_rows_M[batch.first_rows_B],
    )


@functools.cache
def padding_computed(batch: Batch) -> Batch:
    """The same sequences, all as long as the longest, whose padding is computed like tokens and in every layer."""
    inputs = batch.padded(pad_token_id=0)
    rows_T = inputs["attention_mask"].flatten().nonzero().flatten()
    sequences, length = inputs["input_ids"].shape
    padded = Batch.of(
        [length] * sequences,
        inputs["input_ids"].flatten().cpu(),
        inputs["token_type_ids"].flatten().cpu(),
        rows_T[batch.needed_rows_M[batch.predicted_rows_N]].cpu(),
        batch.masked_labels_N.cpu(),
        batch.segment_labels_B.cpu(),
    )
    return all_needed(padded.to(batch.input_ids_T.device))


@contextlib.contextmanager
def settings(*, matmul: str = "auto", keep_memory: bool = True, attention: str = "") -> Iterator[None]:
    """Process-wide settings of one row. Without `keep_memory` the C library's limits are those it starts with."""
    if matmul == "auto":
        devices.set_matmul_precision("auto", torch.device(devices.device_type()))
    else:
        torch.set_float32_matmul_precision(matmul)
    if keep_memory:
        devices.keep_freed_memory()
    else:
        give_freed_memory_back()
    with mock.patch.dict(os.environ, {"EARLYBERT_ATTENTION": attention}):
        yield


@contextlib.contextmanager
def patched(*patches: Any) -> Iterator[None]:
    with settings(), contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def plain_loss() -> contextlib.AbstractContextManager[Any]:
    return patched(
        mock.patch.object(cross_entropy, "linear_cross_entropy", cross_entropy.linear_cross_entropy_reference)
    )


def bernoulli_dropout() -> contextlib.AbstractContextManager[Any]:
    def keep_scale(shape: torch.Size, probability: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).bernoulli_(1 - probability).div_(1 - probability)

    return patched(*(mock.patch.object(module, "keep_scale", keep_scale) for module in (dropout, packed_attention)))


def no_kernels() -> contextlib.AbstractContextManager[Any]:
    return patched(mock.patch.object(extension, "operators_for", lambda tensor: False))
