"""What every rule of reading and cleaning dropped: how much, and a few examples."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

EXAMPLES = 3
EXAMPLE_CHARACTERS = 160
NO_TEXT = "row: no text"


@dataclass
class Rule:
    """What one rule dropped.

    Attributes:
        dropped: How many documents or paragraphs, as the rule's name says.
        characters: Their length in all.
        examples: The first few, shortened.
    """

    dropped: int = 0
    characters: int = 0
    examples: list[str] = field(default_factory=list)


class Counts:
    """Rules by name, such as `paragraph: few letters` or `document: redirect`."""

    def __init__(self) -> None:
        """Nothing was dropped yet."""
        self.rules: dict[str, Rule] = {}
        # How many rows were looked at, for the share of those without text.
        self.rows = 0

    def drop(self, rule: str, text: str) -> None:
        """Count a piece of text that a rule drops."""
        entry = self.rules.setdefault(rule, Rule())
        entry.dropped += 1
        entry.characters += len(text)
        if text and len(entry.examples) < EXAMPLES:
            entry.examples.append(text[:EXAMPLE_CHARACTERS])

    def skip_row(self, place: Callable[[], str]) -> None:
        """Count a row without text; its example is its place."""
        entry = self.rules.setdefault(NO_TEXT, Rule())
        entry.dropped += 1
        if len(entry.examples) < EXAMPLES:
            entry.examples.append(place())

    def add(self, other: "Counts") -> None:
        """Add what another part counted; parts are to be added in the order of their units."""
        for name, rule in other.rules.items():
            entry = self.rules.setdefault(name, Rule())
            entry.dropped += rule.dropped
            entry.characters += rule.characters
            entry.examples = (entry.examples + rule.examples)[:EXAMPLES]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """For JSON; rules in alphabetic order."""
        return {name: asdict(self.rules[name]) for name in sorted(self.rules)}

    @classmethod
    def from_dict(cls, rules: dict[str, dict[str, Any]]) -> "Counts":
        """The inverse of `as_dict`."""
        counts = cls()
        counts.rules = {name: Rule(**rule) for name, rule in rules.items()}
        return counts
