"""SQuAD v1.1's exact match and F1, as its official evaluation defines them (Rajpurkar et al. 2016, section 6.1)."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Lower case, without ASCII punctuation, without articles, one space between words, in this order."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    return float(normalised(prediction) == normalised(reference))


def f1(prediction: str, reference: str) -> float:
    """Of the two bags of words; 0 without a common word, even when both are empty."""
    predicted, true = normalised(prediction).split(), normalised(reference).split()
    common = sum((Counter(predicted) & Counter(true)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(true)
    return 2 * precision * recall / (precision + recall)


def score(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Mean over all questions of the best reference's score, in percent; a question without prediction has 0.

    Both mappings are by question id.
    """

    def mean(metric: Callable[[str, str], float]) -> float:
        best = (
            max(metric(predictions[question], answer) for answer in answers) if question in predictions else 0.0
            for question, answers in references.items()
        )
        return 100.0 * sum(best) / len(references)

    return {"exact_match": mean(exact_match), "f1": mean(f1)}
