"""What TensorBoard's charts are called: a group, what is shown, and its unit.

TensorBoard sorts groups by name and opens on the first ones, so the one of the losses must come first.
"""

# By the run's name of the series, `kind/name` in metrics.jsonl.
CHARTS = {
    "train/loss": "loss/train (nats)",
    "train/l1": "loss/train, L1 term of the search (nats)",
    "validation/loss": "loss/validation (nats)",
    "validation/masked_nats_below_frequencies": "loss/validation, masked, below guessing by frequency (nats)",
    "train/learning_rate": "optimizer/learning rate (factor)",
    "train/gradient_norm": "optimizer/gradient norm (nats)",
    "train/loss_scale": "optimizer/loss scale (factor)",
    "train/tokens_per_second": "speed/tokens (1 per second)",
    "train/utilisation": "speed/utilisation (share of the peak)",
    "train/dense_equivalent_utilisation": "speed/utilisation, dense equivalent (share of the peak)",
    "train/seconds": "speed/step (seconds)",
    "train/data_seconds": "speed/waiting for data (seconds)",
    "mask_distance/heads": "search/mask distance of heads (share of the units)",
    "mask_distance/neurons": "search/mask distance of neurons (share of the units)",
}


def chart(series: str) -> str:
    """The chart of a series; also of the parts of the loss, of the parts of a step's time and of LAMB's ratios."""
    kind, _, name = series.partition("/")
    if series in CHARTS:
        return CHARTS[series]
    if kind in ("train", "validation") and name.endswith("_loss"):
        return f"loss/{kind}, {_words(name.removesuffix('_loss'))} (nats)"
    if kind in ("train", "validation") and name.endswith("_accuracy"):
        return f"predictions/{kind}, {_words(name.removesuffix('_accuracy'))} (share that is right)"
    if kind == "time":
        return f"time/{_words(name)} (seconds a step)"
    return f"{series} (ratio)" if kind == "trust_ratio" else series


def histogram_chart(series: str) -> str:
    """What a search ranks units by, `title/units`."""
    title, _, units = series.partition("/")
    return f"search/{title} of {units} (values)"


def _words(name: str) -> str:
    return name.replace("_", " ")
