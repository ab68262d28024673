"""Cross-entropy over a large vocabulary, computed in chunks of predictions, so that the logits never exist whole.

Shape suffixes: N predictions, C predictions of one chunk, R of a few rows of it, H hidden size, V vocabulary rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from earlybert.kernels.sizes import CPU_BLOCK, CPU_CHUNK_BYTES, GPU_CHUNK_BYTES


def linear_cross_entropy_reference(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, labels_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(hidden @ weight.T + bias), summed over the predictions, in nats, at least fp32.

    A bias of minus infinity takes its row of the vocabulary out. Also returns how many labels have the highest score.
    """
    logits_NV = F.linear(hidden_NH, weight_VH, bias_V)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return F.cross_entropy(logits_NV, labels_N, reduction="sum"), (logits_NV.argmax(-1) == labels_N).sum()


def _into_gradient(logits_CV: Tensor, labels_C: Tensor, of_bias_V: Tensor) -> tuple[Tensor, Tensor]:
    """Turns logits, in place, into the gradient of their summed loss; returns that loss and the correct predictions.

    Adds the gradient of the bias to `of_bias_V`, whose dtype everything is computed in.
    """
    losses, correct = [], []
    # A few rows at a time on a CPU, so that they stay in the cache for the half a dozen passes over them.
    rows = max(1, CPU_BLOCK // logits_CV.shape[1]) if _on_plain_cpu(logits_CV) else len(logits_CV)
    for logits_RV, labels_R in zip(logits_CV.split(rows), labels_C.split(rows), strict=True):
        labels_R1 = labels_R[:, None]
        exact_RV = logits_RV.to(of_bias_V.dtype)
        label_score_R1, highest_R1 = exact_RV.gather(-1, labels_R1), exact_RV.amax(-1, keepdim=True)
        correct.append(_count_highest(exact_RV, labels_R, label_score_R1 == highest_R1))
        of_logits_RV = exact_RV.softmax(-1)
        # log(sum of exponentials), from the largest probability, which is never too small for a logarithm.
        total_R1 = highest_R1 - of_logits_RV.amax(-1, keepdim=True).log()
        losses.append((total_R1 - label_score_R1).sum())
        of_logits_RV.scatter_add_(-1, labels_R1, -torch.ones_like(labels_R1, dtype=of_bias_V.dtype))
        of_bias_V += of_logits_RV.sum(0)
        logits_RV.copy_(of_logits_RV)
    return torch.stack(losses).sum(), torch.stack(correct).sum()


def _on_plain_cpu(tensor: Tensor) -> bool:
    """Whether to do what only a CPU gains by: sizes that depend on the numbers make a compiler give up."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _count_highest(logits_RV: Tensor, labels_R: Tensor, candidate_R1: Tensor) -> Tensor:
    """How often argmax is the label; only where the label's logit equals the highest (`candidate_R1`) can it be."""
    if _on_plain_cpu(logits_RV):
        # argmax takes longer than the softmax there, and there are few candidates; a GPU would be waited for.
        candidate_R = candidate_R1.flatten()
        logits_RV, labels_R = logits_RV[candidate_R], labels_R[candidate_R]
    return (logits_RV.argmax(-1) == labels_R).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradient of a chunk at once: the logits are computed one single time and turn into their gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, labels_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        # Chunks add up in fp32 at least.
        exact = torch.promote_types(hidden_NH.dtype, torch.float32)
        of_hidden: list[Tensor] = []
        of_weight_VH: Tensor | None = None
        of_bias_V = torch.zeros_like(bias_V, dtype=exact)
        loss, correct = hidden_NH.new_zeros((), dtype=exact), labels_N.new_zeros(())
        for hidden_CH, labels_C in zip(hidden_NH.split(chunk), labels_N.split(chunk), strict=True):
            of_logits_CV = torch.addmm(bias_V, hidden_CH, weight_VH.T)
            chunk_loss, chunk_correct = _into_gradient(of_logits_CV, labels_C, of_bias_V)
            loss += chunk_loss
            correct += chunk_correct
            of_hidden.append(of_logits_CV @ weight_VH)
            of_chunk_VH = of_logits_CV.T @ hidden_CH
            of_weight_VH = of_chunk_VH if of_weight_VH is None else of_weight_VH.to(exact).add_(of_chunk_VH)
        ctx.save_for_backward(torch.cat(of_hidden) if len(of_hidden) > 1 else of_hidden[0], of_weight_VH, of_bias_V)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the vocabulary's gradient is large. A second backward pass through it fails with autograd's error.
        of_hidden_NH, of_weight_VH, of_bias_V = (tensor.mul_(gradients[0]) for tensor in ctx.saved_tensors)
        return of_hidden_NH, of_weight_VH, of_bias_V, None, None


def _chunk_rows(predictions: int, vocabulary: int, device: torch.device) -> int:
    """How many predictions make a chunk: on a GPU as few and as equal chunks as fit."""
    if device.type == "cpu":
        return max(1, CPU_CHUNK_BYTES // (4 * vocabulary))
    most = max(1, GPU_CHUNK_BYTES // (4 * vocabulary))
    if predictions <= most:
        return predictions
    chunks = -(-predictions // most)
    return -(-predictions // chunks)


def linear_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, labels_N: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy_reference`, `chunk` predictions at a time (default: by device, see `sizes`).

    While gradients are wanted, they are computed together with the loss, with three matrix products in all as the plain
    version has. In fp16 the probabilities of a large vocabulary vanish before the loss scale reaches them, so there
    each chunk is computed again in the backward pass.
    """
    if chunk is None:
        chunk = _chunk_rows(len(labels_N), weight_VH.shape[0], hidden_NH.device)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden_NH, weight_VH, bias_V))
    if wanted and hidden_NH.dtype != torch.float16:
        return _LinearCrossEntropy.apply(hidden_NH, weight_VH, bias_V, labels_N, chunk)
    parts = []
    for hidden_CH, labels_C in zip(hidden_NH.split(chunk), labels_N.split(chunk), strict=True):
        arguments = hidden_CH, weight_VH, bias_V, labels_C
        compute = linear_cross_entropy_reference
        parts.append(checkpoint(compute, *arguments, use_reentrant=False) if wanted else compute(*arguments))
    losses, corrects = zip(*parts, strict=True)
    return torch.stack(losses).sum(), torch.stack(corrects).sum()
