"""Tickets drawn: from coefficients by the exact-count rule, by chance, and the one that cuts nothing.

Shape suffixes: L layers, U units (heads or neurons) in a layer of the full network.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from earlybert.core.errors import UserError
from earlybert.pretrain.network.config import KeptIndices, NarrowUnits
from earlybert.pretrain.ticket.ticket import (
    FullShape,
    Mask,
    Ratios,
    Scope,
    Ticket,
    TicketRule,
    TicketSource,
    WiderTicket,
    prune_count,
)


class NotFinite(UserError):
    """What units are ranked by is of no use."""


def keep_mask(coefficients_LU: NDArray[np.float32], ratio: float, scope: Scope, multiple: int = 1) -> Mask:
    """True where a unit stays.

    Prunes the lowest |c| in fp32, ties by layer and then index, lowest first; `multiple` units, the largest, always
    stay in a layer. With a multiple above 1 each layer's cut then moves to a neighbouring multiple, the layers nearest
    to the next one going up, so that the network keeps its budget to within half a multiple.
    """
    magnitude_LU = np.abs(np.asarray(coefficients_LU, dtype=np.float32))
    if not np.isfinite(magnitude_LU).all():
        raise NotFinite("the coefficients hold a value that is not finite; no ticket can be drawn from them")
    if scope == "layer" and len(magnitude_LU) > 1:
        return np.concatenate([keep_mask(layer_1U, ratio, scope, multiple) for layer_1U in magnitude_LU[:, None]])
    order_LU = np.argsort(magnitude_LU, axis=1, kind="stable")
    protected_LU = np.zeros(magnitude_LU.shape, dtype=bool)
    np.put_along_axis(protected_LU, order_LU[:, -multiple:], True, axis=1)
    # A stable sort of the flattened array breaks ties by layer, then by index.
    by_magnitude = np.argsort(magnitude_LU, axis=None, kind="stable")
    candidates = by_magnitude[~protected_LU.ravel()[by_magnitude]]
    keep_LU = np.ones(magnitude_LU.shape, dtype=bool)
    keep_LU.ravel()[candidates[: prune_count(ratio, magnitude_LU.size)]] = False
    if multiple == 1:
        return keep_LU
    widths_L = round_widths(keep_LU.sum(axis=1), multiple)
    rank_LU = np.argsort(order_LU, axis=1)
    return rank_LU >= magnitude_LU.shape[1] - widths_L[:, None]


def round_widths(widths_L: NDArray[np.int_], multiple: int) -> NDArray[np.int_]:
    """Moves each width (at least one multiple) to a neighbouring multiple, keeping the sum to within half of one."""
    blocks_L, rest_L = np.divmod(widths_L, multiple)
    missing = prune_count(1 / multiple, int(widths_L.sum())) - int(blocks_L.sum())
    blocks_L[np.argsort(-rest_L, kind="stable")[:missing]] += 1
    return blocks_L * multiple


def _kept(mask_LU: Mask) -> KeptIndices:
    return tuple(tuple(int(index) for index in np.flatnonzero(mask_U)) for mask_U in mask_LU)


def draw(
    model: FullShape,
    head_coefficients_LU: NDArray[np.float32],
    neuron_coefficients_LU: NDArray[np.float32],
    rule: TicketRule,
    source: TicketSource,
    wider: Sequence[Ratios] = (),
) -> Ticket:
    """Draws the ticket that `rule` finds in the coefficients (EarlyBERT section 3.2, with exact counts).

    `wider` are the shares that stay pruned at each of its later widenings; smaller ones give more units back.
    """
    rule.check(model.intermediate_size)
    for unit, coefficients, per_layer in (
        ("head", head_coefficients_LU, model.num_heads),
        ("neuron", neuron_coefficients_LU, model.intermediate_size),
    ):
        if coefficients.shape != (model.num_layers, per_layer):
            raise UserError(
                f"the {unit} coefficients have shape {list(coefficients.shape)}; "
                f"this model needs {[model.num_layers, per_layer]}"
            )

    def masks_at(ratios: Ratios) -> tuple[Mask, Mask]:
        return (
            keep_mask(head_coefficients_LU, ratios[0], rule.head_scope),
            keep_mask(neuron_coefficients_LU, ratios[1], rule.neuron_scope, rule.width_multiple),
        )

    heads_LU, neurons_LU = masks_at((rule.head_ratio, rule.neuron_ratio))
    ticket = Ticket(model=model, heads=_kept(heads_LU), neurons=_kept(neurons_LU), rule=rule, source=source)
    widened = []
    for ratios in wider:
        # Rounding to a multiple may have gone up before and down now; nothing is lost by that.
        heads_LU, neurons_LU = (
            before | now for before, now in zip((heads_LU, neurons_LU), masks_at(ratios), strict=True)
        )
        heads, neurons = _kept(heads_LU), _kept(neurons_LU)
        widened.append(WiderTicket(head_ratio=ratios[0], neuron_ratio=ratios[1], heads=heads, neurons=neurons))
    return dataclasses.replace(ticket, wider=tuple(widened))


def random_ticket(model: FullShape, rule: TicketRule, seed: int, wider: Sequence[Ratios] = ()) -> Ticket:
    """The baseline that keeps as much, chosen by chance: uniform scores under the same rule."""
    generator = np.random.default_rng(seed)
    heads_LU = generator.random((model.num_layers, model.num_heads), dtype=np.float32)
    neurons_LU = generator.random((model.num_layers, model.intermediate_size), dtype=np.float32)
    return draw(model, heads_LU, neurons_LU, rule, TicketSource(kind="random", seed=seed), wider)


def random_ticket_like(ticket: Ticket, seed: int) -> Ticket:
    """The baseline with the same width in every layer as `ticket`, units chosen by chance."""
    generator = np.random.default_rng(seed)

    def choose(layers: KeptIndices, units: int) -> KeptIndices:
        return tuple(
            tuple(int(i) for i in np.sort(generator.choice(units, len(kept), replace=False))) for kept in layers
        )

    def more(present: KeptIndices, wanted: KeptIndices, units: int) -> KeptIndices:
        layers = []
        for here, wide in zip(present, wanted, strict=True):
            new = generator.choice(sorted(set(range(units)) - set(here)), len(wide) - len(here), replace=False)
            layers.append(tuple(sorted((*here, *(int(i) for i in new)))))
        return tuple(layers)

    heads = choose(ticket.heads, ticket.model.num_heads)
    neurons = choose(ticket.neurons, ticket.model.intermediate_size)
    source = TicketSource(kind="random", seed=seed)
    widened, before = [], NarrowUnits(heads, neurons)
    for wider in ticket.wider:
        before = NarrowUnits(
            more(before.heads, wider.heads, ticket.model.num_heads),
            more(before.neurons, wider.neurons, ticket.model.intermediate_size),
        )
        widened.append(dataclasses.replace(wider, heads=before.heads, neurons=before.neurons))
    return dataclasses.replace(ticket, heads=heads, neurons=neurons, source=source, wider=tuple(widened))


def all_ticket(model: FullShape) -> Ticket:
    """The ticket that cuts nothing."""
    return Ticket(
        model=model,
        heads=(tuple(range(model.num_heads)),) * model.num_layers,
        neurons=(tuple(range(model.intermediate_size)),) * model.num_layers,
        rule=TicketRule(head_ratio=0.0, neuron_ratio=0.0, width_multiple=1),
        source=TicketSource(kind="all"),
    )


def mask_distance(first_LU: Mask, second_LU: Mask) -> float:
    """Normalised Hamming distance: the share of units on which two masks differ (EarlyBERT section 3.2, Figure 1)."""
    return float(np.mean(first_LU != second_LU))
