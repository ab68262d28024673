"""A search written out: Hugging Face's BERT in float64 whose activations are scaled, and PyTorch's AdamW.

Shape suffixes: L layers, U units (heads or neurons) in a layer.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from earlybert.finetune.model import TrainedForSequenceClassification
from earlybert.finetune.pretrained import starting_weights, task_config
from earlybert.finetune.training import TimedTrainer
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from tests.finetune.made_up import tiny_bert

LAYERS, HEADS, HEAD_SIZE, NEURONS = 3, 4, 8, 64
# By ranking: of all heads and of all neurons, [L, U] each.
Recorded = dict[str, list[NDArray[np.float64]]]


def kept_batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What every Trainer of ours computes a loss of from now on, in a list that grows."""
    batches: list[dict[str, Tensor]] = []
    original = TimedTrainer.compute_loss

    def keeping(self: TimedTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        batches.append({key: value.clone() for key, value in inputs.items()})
        return original(self, model, inputs, *rest, **more)

    monkeypatch.setattr(TimedTrainer, "compute_loss", keeping)
    return batches


def stacked(rows: list[Tensor]) -> NDArray[np.float64]:
    return torch.stack(rows).detach().clone().numpy()


def weight_norms(layer: Any) -> tuple[Tensor, Tensor]:
    """Of one layer's heads and neurons, one unit after the other."""
    attention = layer.attention
    projections = [getattr(attention.self, name).weight for name in ("query", "key", "value")]
    heads = []
    for head in range(HEADS):
        own = slice(HEAD_SIZE * head, HEAD_SIZE * (head + 1))
        parts = [weight[own] for weight in projections] + [attention.output.dense.weight[:, own]]
        heads.append(torch.cat([part.flatten() for part in parts]).norm())
    neurons = [
        torch.cat((layer.intermediate.dense.weight[unit], layer.output.dense.weight[:, unit])).norm()
        for unit in range(NEURONS)
    ]
    return torch.stack(heads), torch.stack(neurons)


def reference_search(bert: Path, batches: list[dict[str, Tensor]], total: int, learning_rate: float) -> list[Recorded]:
    """What each ranking has after each update of a search on `tiny_bert`, two classes, seed 7."""
    pretrained = open_pretrained(str(bert))
    names = {0: "0", 1: "1"}
    config = task_config(pretrained, {"id2label": names, "label2id": {"0": 0, "1": 1}}, 0.0)
    config = config.with_network(dataclasses.replace(config.network, searching=True))
    start = starting_weights(TrainedForSequenceClassification, config, pretrained.weights, seed=7)
    model = tiny_bert().bert.double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    classifier = torch.nn.Linear(32, 2)
    classifier.load_state_dict({key: start[f"classifier.{key}"] for key in ("weight", "bias")})
    classifier.double()
    heads = [torch.nn.Parameter(torch.ones(HEADS, dtype=torch.float64)) for _ in range(LAYERS)]
    neurons = [torch.nn.Parameter(torch.ones(NEURONS, dtype=torch.float64)) for _ in range(LAYERS)]
    for layer, head, neuron in zip(model.encoder.layer, heads, neurons, strict=True):
        layer.attention.output.dense.register_forward_pre_hook(
            lambda _, inputs, c=head: (inputs[0] * c.repeat_interleave(HEAD_SIZE),)
        )
        layer.output.dense.register_forward_pre_hook(lambda _, inputs, c=neuron: (inputs[0] * c,))
    parameters = [*model.parameters(), *classifier.parameters(), *heads, *neurons]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (total - step) / total)
    importance = [np.zeros((LAYERS, HEADS)), np.zeros((LAYERS, NEURONS))]
    recorded: list[Recorded] = []
    for batch in batches:
        given = {key: value for key, value in batch.items() if key != "labels"}
        task_loss = F.cross_entropy(classifier(model(**given).pooler_output), batch["labels"])
        for index, kind in enumerate((heads, neurons)):
            slopes = torch.autograd.grad(task_loss, kind, retain_graph=True)
            importance[index] = importance[index] + np.abs(stacked(list(slopes)) * stacked(list(kind)))
        (task_loss + 1e-4 * sum(c.abs().sum() for c in [*heads, *neurons])).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        norms = [weight_norms(layer) for layer in model.encoder.layer]
        recorded.append(
            {
                "coefficient": [stacked(list(heads)), stacked(list(neurons))],
                "importance": importance.copy(),
                "weights": [stacked([heads for heads, _ in norms]), stacked([neurons for _, neurons in norms])],
            }
        )
    return recorded
