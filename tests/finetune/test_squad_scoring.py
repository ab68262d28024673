"""SQuAD's exact match and F1 against cases worked out by hand, and a reference written in another way."""

import random

import pytest

from earlybert.finetune.tasks.squad_scoring import exact_match, f1, score

CASES = [
    # prediction, reference, exact match, F1 (worked out from the official definition)
    ("The Broncos", "broncos", 1, 1.0),
    ("an apple a day", "apple day", 1, 1.0),
    ("a", "the", 1, 0.0),  # both empty once normalised: equal, yet without a common word
    ("", "", 1, 0.0),
    ("", "Denver", 0, 0.0),
    ("Denver", "", 0, 0.0),
    ("theater", "ater", 0, 0.0),  # an article inside a word is none
    ("U.S.A.", "usa", 1, 1.0),
    ("well-known", "wellknown", 1, 1.0),  # punctuation goes without leaving a space
    ("well-known", "well known", 0, 0.0),
    ("24\u201310", "2410", 0, 0.0),  # an en dash is no ASCII punctuation
    ("24-10", "2410", 1, 1.0),
    ("\u201cquoted\u201d", "quoted", 0, 0.0),
    ("caf\u00e9", "cafe", 0, 0.0),
    ("CAF\u00c9", "caf\u00e9", 1, 1.0),
    ("\u0130stanbul", "i\u0307stanbul", 1, 1.0),  # as Python lowers it
    ("10\u00a0000  people\t", "10 000 people", 1, 1.0),  # any white space
    ("to be or not to be", "to be", 0, 2 * (2 / 6) * 1 / (2 / 6 + 1)),  # repeated words count as often as in both
    ("to be", "to be to be", 0, 2 * 1 * 0.5 / 1.5),
    ("gold medal winner", "the gold medal", 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ("a-the", "athe", 1, 1.0),  # punctuation goes first, so no article is left
    ("the-end", "theend", 1, 1.0),
    ("end (the)", "end", 1, 1.0),
]


@pytest.mark.parametrize(("prediction", "reference", "exact", "overlap"), CASES)
def test_adversarial_answers(prediction: str, reference: str, exact: int, overlap: float) -> None:
    assert exact_match(prediction, reference) == exact
    assert f1(prediction, reference) == pytest.approx(overlap)


def words_of(answer: str) -> list[str]:
    """The official normalisation character by character."""
    kept = "".join(c for c in answer.lower() if c not in r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~""")
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def reference_f1(prediction: str, reference: str) -> float:
    predicted, true = words_of(prediction), words_of(reference)
    left, common = list(true), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    return 0.0 if not common else 2 * common / (len(predicted) + len(true))


@pytest.mark.parametrize("seed", range(20))
def test_random_answers_score_as_the_reference_does(seed: int) -> None:
    generator = random.Random(seed)
    pieces = [
        "the",
        "The ",
        "a",
        "an ",
        " ",
        "-",
        ".",
        "'s",
        "Denver",
        "denver ",
        "24",
        " \u2013 ",
        "\u00e9",
        "x",
        ", ",
    ]

    def text() -> str:
        return "".join(generator.choices(pieces, k=generator.randint(0, 7)))

    for _ in range(50):
        prediction, truth = text(), text()
        assert f1(prediction, truth) == pytest.approx(reference_f1(prediction, truth)), (prediction, truth)
        assert exact_match(prediction, truth) == (words_of(prediction) == words_of(truth)), (prediction, truth)


def test_the_best_reference_counts_and_a_missing_prediction_is_zero() -> None:
    references = {"q1": ["Denver Broncos", "Broncos", "the Broncos"], "q2": ["gold"], "q3": ["1966"]}
    found = score({"q1": "Broncos", "q2": "gold medal", "other": "ignored"}, references)
    assert found["exact_match"] == pytest.approx(100 / 3)
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)
