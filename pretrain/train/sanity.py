"""What must hold of the weights at fixed points of the training loop: when a stage begins, before every checkpoint.

All ranks must call every check. A failed one raises UserError on all of them, before anything wrong is saved.
"""

import torch
from torch import nn

from earlybert.core import distributed
from earlybert.core.errors import UserError
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.parameters import facts_of, is_coefficient
from earlybert.pretrain.train.engine import StageEngine


def check_state(engine: StageEngine) -> None:
    """All checks of weights and coefficients."""
    require_same_weights(engine.engine.module)
    require_tied_embeddings(engine.engine.module)
    require_zero_vocabulary_padding(engine)
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


def require_zero_vocabulary_padding(engine: StageEngine) -> None:
    """Rows that pad the vocabulary are exactly zero: decay and trust ratio would see anything else."""
    vocab_size = engine.config.vocab_size
    for name, values in engine.masters(lambda name: facts_of(name).pads_vocabulary):
        padding = values[vocab_size:]
        if torch.count_nonzero(padding):
            row = vocab_size + int(padding.reshape(len(padding), -1).any(dim=1).nonzero()[0])
            raise UserError(f"{name}: row {row} pads the vocabulary and is not zero")


def require_finite_coefficients(engine: StageEngine) -> None:
    """A ticket is drawn from these."""
    for name, values in engine.masters(is_coefficient):
        if not values.isfinite().all():
            raise UserError(f"{name}: coefficient {int((~values.isfinite()).nonzero()[0])} is not finite")
