"""Where a network is on the way that all masked-token training goes.

At first it learns how frequent words are, and its loss stays for long a little below that of guessing by frequency, the
text's unigram cross-entropy. Then it begins to use the context, and the loss falls fast. `docs/experiments.md` has what
moves that point. The two borders lie in the gap between both in the curves there.
"""

from typing import Literal

Level = Literal["at word frequencies", "breaking through", "past word frequencies"]
# Nats below guessing by frequency at which a network breaks through, and is past it.
BREAKING_NATS, PAST_NATS = 0.9, 1.5

ADVICE = (
    "it has learnt little more than how frequent words are: train longer, or try another peak learning rate, Muon, "
    "larger batches, more masked tokens or, for a narrow network, larger initial weights (docs/experiments.md)"
)


def level(loss: float, guessing_by_frequency: float) -> Level:
    """Of a validation's loss of masked tokens; both in nats."""
    gap = guessing_by_frequency - loss
    if gap < BREAKING_NATS:
        return "at word frequencies"
    return "breaking through" if gap < PAST_NATS else "past word frequencies"
