"""The ticket: which heads and neurons of every layer stay, and where that came from.

Shape suffixes: L layers, U units (heads or neurons) in a layer of the full network.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from earlybert.core.errors import UserError
from earlybert.core.files import content_hash, read_json, write_json
from earlybert.pretrain.network.config import KeptIndices, NarrowUnits, NetworkConfig

FORMAT = "earlybert-ticket/1"

Scope = Literal["layer", "global"]
Mask = NDArray[np.bool_]
# Shares of the heads and of the neurons that are pruned.
Ratios = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class FullShape:
    """Shape of the network that the ticket was drawn from."""

    num_layers: int
    num_heads: int
    head_size: int
    intermediate_size: int


def full_shape(config: NetworkConfig) -> FullShape:
    """The shape that a ticket for this network must have been drawn from."""
    return FullShape(
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        head_size=config.head_size,
        intermediate_size=config.intermediate_size,
    )


@dataclass(frozen=True, kw_only=True)
class TicketRule:
    """How much is pruned and where.

    Args:
        head_ratio: share of the heads that is pruned, 0 <= ratio < 1.
        head_scope: prune this share of every layer ("layer") or of the whole network ("global").
        neuron_ratio: share of the FFN neurons that is pruned, 0 <= ratio < 1.
        neuron_scope: as head_scope.
        width_multiple: every layer keeps a multiple of this many neurons; 1 is the paper's rule.
    """

    head_ratio: float = 1 / 3
    head_scope: Scope = "layer"
    neuron_ratio: float = 0.3
    neuron_scope: Scope = "global"
    width_multiple: int = 64

    def check(self, intermediate_size: int) -> None:
        for field in ("head_ratio", "neuron_ratio"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                raise UserError(f"draw.{field} is {value:g}; it must be at least 0 and below 1")
        for field in ("head_scope", "neuron_scope"):
            if getattr(self, field) not in ("layer", "global"):
                raise UserError(f'draw.{field} is {getattr(self, field)!r}; it must be "layer" or "global"')
        if self.width_multiple < 1 or intermediate_size % self.width_multiple:
            raise UserError(
                f"draw.width_multiple is {self.width_multiple}; it must be a positive divisor of "
                f"model.intermediate_size, which is {intermediate_size}"
            )


@dataclass(frozen=True, kw_only=True)
class TicketSource:
    """Where a ticket came from: a search (stage, step, hash of what it recorded), chance (seed), or nothing cut.

    `ranking`: what the search ranked the units by; None is the magnitude of the coefficient.
    """

    kind: Literal["search", "random", "all"]
    stage: str | None = None
    step: int | None = None
    seed: int | None = None
    coefficients_sha256: str | None = None
    ranking: str | None = None

    def content(self) -> dict[str, Any]:
        """As JSON; a ticket without a ranking is as it was before there were several."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name != "ranking" or value is not None}


@dataclass(frozen=True, kw_only=True)
class WiderTicket:
    """What a ticket is widened to later: it holds all of the ticket's units, and more by the same order of units.

    The ratios are the shares that stay pruned.
    """

    head_ratio: float
    neuron_ratio: float
    heads: KeptIndices
    neurons: KeptIndices

    @property
    def ratios(self) -> Ratios:
        return self.head_ratio, self.neuron_ratio


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Sorted kept indices per layer, the rule that chose them, and pruned counts that were asked for and made.

    `wider` is what it is widened to later, each holding the one before.
    """

    model: FullShape
    heads: KeptIndices
    neurons: KeptIndices
    rule: TicketRule
    source: TicketSource
    wider: tuple[WiderTicket, ...] = ()

    @property
    def requested(self) -> dict[str, int]:
        """Units to prune by the ratios alone."""
        model, rule = self.model, self.rule
        return {
            "heads": requested_count(model.num_layers, model.num_heads, rule.head_ratio, rule.head_scope),
            "neurons": requested_count(model.num_layers, model.intermediate_size, rule.neuron_ratio, rule.neuron_scope),
        }

    @property
    def realised(self) -> dict[str, int]:
        """Units really pruned, after minimums and the width multiple."""
        layers = self.model.num_layers
        return {
            "heads": layers * self.model.num_heads - sum(map(len, self.heads)),
            "neurons": layers * self.model.intermediate_size - sum(map(len, self.neurons)),
        }

    def content(self) -> dict[str, Any]:
        """The JSON content without its hash; a ticket that is not widened is as it was before there was a choice."""
        wider = {"wider": [dataclasses.asdict(each) for each in self.wider]} if self.wider else {}
        return wider | {
            "format": FORMAT,
            "model": dataclasses.asdict(self.model),
            "heads": [list(kept) for kept in self.heads],
            "neurons": [list(kept) for kept in self.neurons],
            "rule": dataclasses.asdict(self.rule) | {"minimum_heads": 1, "minimum_neurons": self.rule.width_multiple},
            "requested": self.requested,
            "realised": self.realised,
            "source": self.source.content(),
        }

    @property
    def sha256(self) -> str:
        return content_hash(self.content())

    def save(self, path: Path) -> None:
        write_json(path, self.content() | {"sha256": self.sha256})

    @classmethod
    def load(cls, path: Path) -> "Ticket":
        """Reads a ticket, or the one of a run directory, and verifies its hash and indices; raises UserError."""
        file = path / "ticket.json" if path.is_dir() else path
        return cls.from_content(read_json(file), str(file))

    @classmethod
    def from_content(cls, content: Any, name: str) -> "Ticket":
        """A ticket from its JSON content; `name` says in errors where that came from."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            other = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise UserError(f'{name}: "format" is {other!r}; a ticket has {FORMAT!r}')
        stated = content.get("sha256")
        actual = content_hash({key: value for key, value in content.items() if key != "sha256"})
        if stated != actual:
            raise UserError(f"{name}: sha256 is {stated} but the content has {actual}; the ticket was changed")
        try:
            rule = {key: value for key, value in content["rule"].items() if not key.startswith("minimum_")}
            ticket = cls(
                model=FullShape(**content["model"]),
                heads=_read_kept(content["heads"]),
                neurons=_read_kept(content["neurons"]),
                rule=TicketRule(**rule),
                source=TicketSource(**content["source"]),
                wider=tuple(
                    WiderTicket(**each | {units: _read_kept(each[units]) for units in ("heads", "neurons")})
                    for each in content.get("wider", [])
                ),
            )
            ticket._check_indices(name)
            ticket.rule.check(ticket.model.intermediate_size)
            if ticket.source.kind not in ("search", "random", "all"):
                raise UserError(f"{name}: source.kind is {ticket.source.kind!r}; it must be search, random or all")
            if ticket.sha256 != stated:
                raise UserError(f"{name}: its counts or other fields do not fit its indices and rule")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{name}: is not a complete ticket ({error})") from None
        return ticket

    def _check_indices(self, name: str) -> None:
        widths: list[Ticket | WiderTicket] = [self, *self.wider]
        for kept_units in widths:
            self._check_units(name, kept_units)
        for before, after in pairwise(widths):
            for units in ("heads", "neurons"):
                for index, pair in enumerate(zip(getattr(before, units), getattr(after, units), strict=True)):
                    if missing := sorted(set(pair[0]) - set(pair[1])):
                        raise UserError(
                            f'{name}: "wider" lacks {units} {missing} of layer {index}, which are there before it; '
                            "widening only gives units back"
                        )

    def _check_units(self, name: str, kept_units: "Ticket | WiderTicket") -> None:
        sizes = {"heads": self.model.num_heads, "neurons": self.model.intermediate_size}
        for units, size in sizes.items():
            layers = getattr(kept_units, units)
            if len(layers) != self.model.num_layers:
                raise UserError(f'{name}: "{units}" has {len(layers)} layers; the model has {self.model.num_layers}')
            for index, kept in enumerate(layers):
                whole = all(type(unit) is int for unit in kept)
                if not kept or not whole or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= size:
                    raise UserError(
                        f'{name}: "{units}" of layer {index} must be sorted distinct indices below {size}, at least one'
                    )

    def require_model(self, model: FullShape, name: str) -> None:
        """Raises UserError unless the ticket belongs to this model."""
        for field in dataclasses.fields(FullShape):
            mine, theirs = getattr(self.model, field.name), getattr(model, field.name)
            if mine != theirs:
                raise UserError(f"{name}: is a ticket for a model with {field.name} {mine}; here it must be {theirs}")


def _read_kept(layers: Sequence[Sequence[int]]) -> KeptIndices:
    return tuple(tuple(kept) for kept in layers)


def prune_count(ratio: float, units: int) -> int:
    """Exact count: `ratio * units` rounded half up."""
    return math.floor(ratio * units + 0.5)


def requested_count(layers: int, units: int, ratio: float, scope: Scope) -> int:
    """Units that the ratio asks to prune in the whole network."""
    return layers * prune_count(ratio, units) if scope == "layer" else prune_count(ratio, layers * units)


def narrow_config(config: NetworkConfig, ticket: Ticket) -> NetworkConfig:
    """The narrow network's configuration: kept units per layer, no coefficients. Raises UserError for another shape."""
    ticket.require_model(full_shape(config), "the ticket")
    return dataclasses.replace(
        config,
        kept_heads=ticket.heads,
        kept_neurons=ticket.neurons,
        wider=tuple(NarrowUnits(each.heads, each.neurons) for each in ticket.wider),
        ticket_sha256=ticket.sha256,
        searching=False,
    )


def masks(ticket: Ticket) -> dict[str, Mask]:
    """Boolean masks [L, U] of heads and neurons."""
    sizes = {"heads": ticket.model.num_heads, "neurons": ticket.model.intermediate_size}
    result = {}
    for units, size in sizes.items():
        result[units] = np.zeros((ticket.model.num_layers, size), dtype=bool)
        for row_U, kept in zip(result[units], getattr(ticket, units), strict=True):
            row_U[list(kept)] = True
    return result
