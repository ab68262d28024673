"""Which words a plan may have, and in which order: the stages' own rules and what each border says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from earlybert.core.arguments import nearest
from earlybert.core.errors import UserError
from earlybert.pretrain.plan.borders.border import Border


@dataclass(frozen=True)
class StageWord:
    """A stretch of training: its phase, whether it searches, what but a border may follow it ("" is the plan's end)."""

    phase: str
    searching: bool
    before: tuple[str, ...]
    reason: str


STAGE_WORDS = {
    "search": StageWord("phase1", True, ("",), "a search ends with a ticket"),
    "phase1": StageWord("phase1", False, ("phase2", ""), "phase 1 is one stage until the network is {}"),
    "phase2": StageWord("phase2", False, ("",), "phase 2 is the last stage"),
}

# What dense training consists of.
PHASES = tuple(word for word, stage in STAGE_WORDS.items() if not stage.searching)


def check_words(plan: Sequence[str], borders: Mapping[str, Border]) -> None:
    """Raises UserError for a plan whose words are unknown or stand where they may not; `borders` are by their word."""
    if not plan:
        raise UserError("plan is []; it must name at least one stage, search, phase1 or phase2")
    known = [*STAGE_WORDS, *borders]
    for word in plan:
        if word not in known:
            close = nearest(word, known)
            hint = f'did you mean "{close}"?' if close else f"known are {', '.join(known)}"
            raise UserError(f"plan is {word} in one place, which is no word of a plan; {hint}")
    for before, after in pairwise(["", *plan, ""]):
        allowed, reason = followers(before, borders)
        if after not in allowed:
            names = " or ".join(name or "nothing" for name in allowed)
            where = f"after {before}" if before else "at its beginning"
            elsewhere = f"; {borders[after].place}" if after in borders and borders[after].place else ""
            raise UserError(
                f"plan is {list(plan)}; {reason}, so {where} must come {names}, not {after or 'nothing'}{elsewhere}"
            )
    for word in ("search", *(border.word for border in borders.values() if border.needs_ticket)):
        if plan.count(word) > 1:
            raise UserError(f"plan is {list(plan)}; {word} appears twice, but a run draws one ticket and cuts once")


def followers(word: str, borders: Mapping[str, Border]) -> tuple[list[str], str]:
    """What may follow a word of a plan ("" is its beginning, or its end), and why nothing else."""
    if word in borders:
        return list(borders[word].before), borders[word].reason
    possible = [border for border in borders.values() if word in border.after]
    names = [border.word for border in possible]
    if not word:
        return [*names, *STAGE_WORDS], "a plan begins with training"
    stage = STAGE_WORDS[word]
    return [*names, *stage.before], stage.reason.format(" or ".join(border.done for border in possible))
