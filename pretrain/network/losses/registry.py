"""The parts that there are, and which of them a network has."""

from collections.abc import Sequence

from earlybert.core.arguments import alternatives
from earlybert.core.errors import UserError
from earlybert.pretrain.network.losses.masked import MaskedTokens
from earlybert.pretrain.network.losses.next_sentence import NextSentence
from earlybert.pretrain.network.losses.part import LossPart

LOSS_PARTS: tuple[LossPart, ...] = (
    MaskedTokens(),
    NextSentence(),
)


def loss_parts(names: Sequence[str]) -> tuple[LossPart, ...]:
    """The parts of these names; raises UserError where one is not known."""
    known = {part.name: part for part in LOSS_PARTS}
    for name in names:
        if name not in known:
            raise UserError(f"losses has {name!r}, which is no part of the loss{alternatives(name, list(known))}")
    return tuple(known[name] for name in names)


def corpus_losses(names: Sequence[str], objective: str) -> tuple[str, ...]:
    """The losses that a network is trained with on a corpus: these, or where none is named the standard ones.

    Raises UserError where the samples of such a corpus have no labels for one of them.
    """
    for part in loss_parts(names):
        if objective not in part.objectives:
            raise UserError(
                f"losses has {part.name!r}, for which a corpus of the objective {objective!r} has no labels; "
                f"the objective must be {' or '.join(part.objectives)}"
            )
    if not names:
        return tuple(part.name for part in LOSS_PARTS if part.standard and objective in part.objectives)
    return tuple(part.name for part in LOSS_PARTS if part.name in names)
