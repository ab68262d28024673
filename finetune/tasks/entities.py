"""Scores of tagged words: accuracy of the words, F1 of whole entities as CoNLL-2000's evaluation and `seqeval` have it.

Tags are `O` or a prefix and a type, as `B-PER`. B and S begin an entity; so does a tag after O, after E or S, or after
another type. A tag without prefix, as `PER` or `3`, counts as `I-PER` and `I-3`.
"""

from collections.abc import Sequence

Tags = Sequence[str]

# As tags of their own they have no type.
PREFIXES = ("B", "I", "O", "E", "S")


def _parts(tag: str) -> tuple[str, str]:
    """Prefix and type."""
    return (tag[0], tag[2:]) if tag[1:2] == "-" or tag in PREFIXES else ("I", tag)


def entities(tags: Tags) -> set[tuple[str, int, int]]:
    """Type, first word and the word after the last, of each entity."""
    found, first = set(), 0
    before, type_before = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, kind = _parts(tag)
        begins = prefix in "BS" or before in "OES" or kind != type_before
        if before != "O" and (begins or prefix == "O"):
            found.add((type_before, first, place))
        if begins:
            first = place
        before, type_before = prefix, kind
    return found


def entity_scores(predicted: Sequence[Tags], truth: Sequence[Tags]) -> dict[str, float]:
    """Over all sentences together, fractions; F1 is 0 where no entity is right."""
    right = words = correct = of_predicted = of_truth = 0
    for own, true in zip(predicted, truth, strict=True):
        found, wanted = entities(own), entities(true)
        right, of_predicted, of_truth = right + len(found & wanted), of_predicted + len(found), of_truth + len(wanted)
        correct += sum(one == other for one, other in zip(own, true, strict=True))
        words += len(true)
    return {
        "f1": 2 * right / max(1, of_predicted + of_truth),
        "precision": right / max(1, of_predicted),
        "recall": right / max(1, of_truth),
        "accuracy": correct / max(1, words),
    }
