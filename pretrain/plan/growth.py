"""How phase 1 grows, as one list: which depth and width the network has up to which share of the phase.

The list is a way to write a plan. It becomes the plan's words and the numbers of its borders, which do all the rest but
phase 1's learning rates (`grown_schedule`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from earlybert.core.arguments import alternatives
from earlybert.core.errors import UserError, require
from earlybert.pretrain.plan.borders.widen import Width
from earlybert.pretrain.plan.schedule import Schedule

if TYPE_CHECKING:
    from earlybert.pretrain.plan.recipe import Recipe

GrownWidth = Literal["ticket"] | Width | dict[str, float]
WIDTHS: tuple[str, ...] = ("ticket", *get_args(Width))
# Widths that give units back and take others.
EXCHANGES = (("all_heads", "all_neurons"), ("all_neurons", "all_heads"))
# What a plan says beside the list: whether there are a search, a ticket and a second phase.
FRAME = ("search", "narrow", "phase1", "phase2")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A part of phase 1. What is left out stays as it was; the first part has all layers then, and the plan's width.

    Args:
        until: share of phase 1's steps at which the part ends; the last one ends at 1.
        layers: depth, which must divide the next one.
        width: units of each layer, "ticket" for those of the ticket, "all_heads" or "all_neurons" for all of one kind
            and the ticket's of the other, or "full"; a wider ticket's as in `Widen.to`.
        learning_rate: at the part's end, straight lines between; all parts have one, or none has.
    """

    until: float = 1.0
    layers: int | None = None
    width: GrownWidth | None = None
    learning_rate: float | None = None


def read_growth(entry: Mapping[str, Any], name: str) -> Growth:
    """An entry of a recipe's list, called `name` in errors; raises UserError."""
    fields = [field.name for field in dataclasses.fields(Growth)]
    for key, value in entry.items():
        if key not in fields:
            raise UserError(f"{name}.{key} is no field of a part{alternatives(str(key), fields)}")
        if key == "width":
            expected = f"one of {', '.join(WIDTHS)}, or {{neuron_ratio: 0.1}}"
            require(value in WIDTHS or _are_shares(value), f"{name}.{key}", value, expected)
        elif key == "layers":
            require(type(value) is int and value >= 1, f"{name}.{key}", value, "a whole number, at least 1")
        else:
            number = type(value) in (int, float) and 0 < value < math.inf
            require(number, f"{name}.{key}", value, "a finite number above 0")
    return Growth(**entry)


def _are_shares(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(type(share) in (int, float) for share in value.values())


@dataclass(frozen=True)
class _Part:
    """A part of phase 1 with nothing left out."""

    name: str
    until: float
    layers: int
    width: GrownWidth


def with_growth(recipe: "Recipe") -> "Recipe":
    """The recipe whose plan and borders say what its list `grow` says; unchanged without one. Raises UserError."""
    if not recipe.grow:
        return recipe
    growths = [read_growth(entry, f"grow[{number}]") for number, entry in enumerate(recipe.grow)]
    parts = _complete(recipe, growths)
    between = [(before, after, _words_between(before, after)) for before, after in pairwise(parts)]

    def at(word: str) -> list[tuple[_Part, _Part]]:
        return [(before, after) for before, after, words in between if word in words]

    rates = _learning_rates(growths)
    stack = dataclasses.replace(
        recipe.stack,
        layers=[before.layers for before, _ in at("stack")],
        until=[before.until for before, _ in at("stack")],
        learning_rates=rates or recipe.stack.learning_rates,
    )
    widen = dataclasses.replace(
        recipe.widen,
        until=[before.until for before, _ in at("widen")],
        to=[after.width for _, after in at("widen") if after.width != "ticket"],
    )
    coefficients = dataclasses.replace(recipe.coefficients, until=[before.until for before, _ in at("coefficients")])
    for section, made in (("stack", stack), ("widen", widen), ("coefficients", coefficients)):
        _require_same_numbers(recipe, section, made)
    if rates:  # which phase 1 has from the list
        stack = dataclasses.replace(stack, learning_rates=[])
    words = _plan(recipe, parts)
    return dataclasses.replace(recipe, plan=words, stack=stack, widen=widen, coefficients=coefficients)


def grown_schedule(recipe: "Recipe", schedule: Schedule) -> Schedule:
    """Phase 1's learning rates, through those at the ends of the list's parts, if they have any; raises UserError."""
    growths = [Growth(**entry) for entry in recipe.grow]
    if not (rates := _learning_rates(growths)):
        return schedule
    return schedule.through([growth.until for growth in growths], rates, "learning_rate in grow")


def _complete(recipe: "Recipe", growths: Sequence[Growth]) -> list[_Part]:
    """The parts with nothing left out; raises UserError for one that no border can make of the one before."""
    ticket_first = "narrow" in recipe.plan[: recipe.plan.index("phase1")] if "phase1" in recipe.plan else False
    last = _Part("", 0.0, recipe.model.num_layers, "ticket" if ticket_first else "full")
    parts: list[_Part] = []
    for number, growth in enumerate(growths):
        name = f"grow[{number}]"
        part = _Part(name, growth.until, growth.layers or last.layers, growth.width or last.width)
        if part.until == 1 and number + 1 < len(growths):
            raise UserError(f"{name}.until is 1 or missing; of all parts only the last one ends at 1")
        if not last.until < part.until <= 1:
            raise UserError(f"{name}.until is {part.until:g}; it must be above {last.until:g} and at most 1")
        if parts:
            _check_change(last, part, recipe.ticket)
        elif part.width not in ("ticket", "full"):
            raise UserError(f"{name}.width is {part.width}; phase 1 must begin with ticket or full")
        parts.append(part)
        last = part
    if last.until != 1 or last.layers != recipe.model.num_layers:
        raise UserError(
            f"{last.name} ends at {last.until:g} with {last.layers} layers; the last part must end at 1 with "
            f"model.num_layers, {recipe.model.num_layers}"
        )
    return parts


def _check_change(before: _Part, after: _Part, ticket: str | None) -> None:
    deeper = before.layers != after.layers
    if after.layers % before.layers:
        raise UserError(
            f"{after.name}.layers is {after.layers}; stacking makes multiples of the {before.layers} before it"
        )
    if before.width == after.width:
        if not deeper:
            raise UserError(f"{after.name} changes neither layers nor width; leave it out")
        return
    if after.width == "ticket":
        if before.width != "full":
            raise UserError(f"{after.name}.width is ticket after {before.width}; only a full network is cut")
        if ticket:
            raise UserError(
                f"{after.name}.width is ticket after full, but ticket is {ticket!r}; a given ticket is what phase 1 "
                "begins with, so grow[0].width must be ticket"
            )
    elif before.width == "full" or (before.width, after.width) in EXCHANGES:
        raise UserError(f"{after.name}.width is {after.width} after {before.width}; widening only gives units back")
    elif deeper:
        raise UserError(f"{after.name} changes layers and width at once; give each change an entry of its own")


def _words_between(before: _Part, after: _Part) -> list[str]:
    """What happens between two parts, as words of a plan."""
    words = ["stack"] if before.layers != after.layers else []
    if before.width == after.width:
        return words
    if after.width != "ticket":
        return [*words, "widen"]
    # A stack gives the network its coefficients too.
    return [*(words or ["coefficients"]), "search", "narrow"]


def _learning_rates(growths: Sequence[Growth]) -> list[float]:
    """Those at the ends of the parts; empty where there are none."""
    rates = [growth.learning_rate for growth in growths]
    given = [rate for rate in rates if rate is not None]
    if not given:
        return []
    if len(given) < len(rates):
        missing = rates.index(None)
        raise UserError(f"grow[{missing}].learning_rate is missing; all entries must have one, or none")
    return given


def _require_same_numbers(recipe: "Recipe", section: str, made: object) -> None:
    """Raises UserError where the recipe's own section says something else than the list."""
    given = getattr(recipe, section)
    for field in dataclasses.fields(given):
        said, wanted = getattr(given, field.name), getattr(made, field.name)
        if said and said != wanted:
            raise UserError(
                f"{section}.{field.name} is {said}, but grow says {wanted}; leave {section}.{field.name} out"
            )


def _plan(recipe: "Recipe", parts: Sequence[_Part]) -> list[str]:
    """The plan's words: phase 1 in as many parts, with what happens between them."""
    given = recipe.plan
    cut = ["narrow"] if recipe.ticket else ["search", "narrow"]
    words = [*cut, "phase1"] if parts[0].width == "ticket" else ["phase1"]
    for before, after in pairwise(parts):
        words += [*_words_between(before, after), "phase1"]
    words += ["phase2"] * ("phase2" in given)
    if "phase1" not in given or (given != words and not set(given) <= set(FRAME)):
        raise UserError(
            f"plan is {given}, but grow makes it {words}; give grow a plan of the words {', '.join(FRAME)}, or set "
            "--grow '[]'"
        )
    wanted = next((part for part in parts if part.width == "ticket"), None)
    if wanted is not None and not recipe.ticket and "search" not in given:
        raise UserError(f"{wanted.name}.width is ticket, but plan is {given}; it needs search in it, or --ticket FILE")
    if wanted is None and {"search", "narrow"} & set(given):
        raise UserError(f"plan is {given}, but no entry of grow has the width ticket; leave search and narrow out")
    return words
