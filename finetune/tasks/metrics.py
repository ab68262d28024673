"""The scores of GLUE's tasks, as GLUE defines them.

Shape suffixes: N examples.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Values = NDArray[np.float64] | NDArray[np.int64]


def accuracy(predicted_N: Values, label_N: Values) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(label_N, predicted_N))}


def accuracy_and_f1(predicted_N: Values, label_N: Values) -> dict[str, float]:
    """F1 of class 1; 0 when that is neither predicted nor true."""
    return accuracy(predicted_N, label_N) | {"f1": float(f1_score(label_N, predicted_N, zero_division=0))}


def matthews(predicted_N: Values, label_N: Values) -> dict[str, float]:
    """Matthews' correlation; 0 when all predictions are one class. Accuracy beside it, for the majority baseline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn remarks upon a single class
        correlation = float(matthews_corrcoef(label_N, predicted_N))
    return {"matthews": correlation} | accuracy(predicted_N, label_N)


def correlations(predicted_N: Values, label_N: Values) -> dict[str, float]:
    """Pearson's and Spearman's; 0 where they are not defined: all predictions are equal, or there is only one."""
    if len(label_N) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy remarks upon constant input
        pearson, spearman = stats.pearsonr(predicted_N, label_N)[0], stats.spearmanr(predicted_N, label_N)[0]
    return {"pearson": float(np.nan_to_num(pearson)), "spearman": float(np.nan_to_num(spearman))}
