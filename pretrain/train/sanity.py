"""What must hold at fixed points of the training loop: when a stage begins, before every checkpoint, after every step.

All ranks must call every check. A failed one raises UserError on all of them, before anything wrong is saved.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from earlybert.core import distributed
from earlybert.core.errors import UserError
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.parameters import facts_of, is_coefficient
from earlybert.pretrain.train.engine import StageEngine

# Guessing uniformly costs ln(vocabulary) nats; who is so much worse is confidently wrong about everything.
EXPLODED = 3.0


def check_state(engine: StageEngine, config: NetworkConfig) -> None:
    """All checks of weights and coefficients."""
    require_same_weights(engine.engine.module)
    require_tied_embeddings(engine.engine.module)
    require_zero_vocabulary_padding(engine, config)
    require_finite_coefficients(engine)


def require_same_weights(model: nn.Module) -> None:
    """The weights that the model computes with are equal, bit for bit, on all data-parallel ranks.

    Under ZeRO-3 only the small ones that every rank holds whole can be compared.
    """
    different = None
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            continue
        bits = parameter.detach().contiguous().view(-1).view(torch.uint8)
        expected = bits.clone()
        torch.distributed.broadcast(expected, src=0)
        if different is None and not torch.equal(bits, expected):
            different = name
    for rank, name in enumerate(distributed.gather_objects(different)):
        if name is not None:
            raise UserError(
                f"{name}: the weights of rank {rank} are not those of rank 0; memory or network changed bits"
            )


def require_tied_embeddings(model: PreTrainingNetwork) -> None:
    """The matrix that scores the vocabulary is the word embedding itself, not a copy that drifts away from it."""
    if model.decoder_weight is not model.embeddings.word_embeddings.weight:
        raise UserError("decoder_weight is not the word embedding; the two must be one parameter")


def require_zero_vocabulary_padding(engine: StageEngine, config: NetworkConfig) -> None:
    """Rows that pad the vocabulary are exactly zero: decay and trust ratio would see anything else."""
    for name, values in engine.gather(lambda name: facts_of(name).pads_vocabulary).items():
        padding = values[config.vocab_size :]
        if torch.count_nonzero(padding):
            row = config.vocab_size + int(padding.reshape(len(padding), -1).any(dim=1).nonzero()[0])
            raise UserError(f"{name}: row {row} pads the vocabulary and is not zero")


def require_finite_coefficients(engine: StageEngine) -> None:
    """A ticket is drawn from these."""
    for name, values in engine.gather(is_coefficient).items():
        if not values.isfinite().all():
            raise UserError(f"{name}: coefficient {int((~values.isfinite()).nonzero()[0])} is not finite")


def symptom(metrics: Mapping[str, Any], config: NetworkConfig) -> str | None:
    """What is wrong with a step's loss or gradient norm, if anything: not finite, or exploded."""
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics[name]):
            return f"the {name.replace('_', ' ')} became {metrics[name]}"
    uniform = math.log(config.vocab_size) + config.next_sentence * math.log(2)
    if metrics["loss"] > EXPLODED * uniform:
        return f"the loss exploded to {metrics['loss']:.1f} (guessing would cost {uniform:.1f})"
    return None
