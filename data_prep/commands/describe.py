"""What a corpus holds, in tables and as a picture, and whether it is whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earlybert.core.errors import UserError
from earlybert.core.files import whole_file
from earlybert.core.progress import progress
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.samples.manifest import damaged_files

if TYPE_CHECKING:
    from rich.table import Table

BINS = 32


def verify(directory: Path) -> None:
    """Check every file of a corpus and say that it is whole.

    Raises:
        UserError: Files are missing or damaged; the message names all that are damaged.
    """
    corpus = Corpus.open(directory)
    files = corpus.manifest["files"]
    with progress("Verifying", sum(file["bytes"] for file in files.values())) as advance:
        damaged = []
        for name, is_damaged in damaged_files(corpus.directory, corpus.manifest):
            damaged += [name] * is_damaged
            advance(files[name]["bytes"])
    if damaged:
        raise UserError(
            f"{directory}: the SHA-256 of {', '.join(damaged)} is not the manifest's; the other "
            f"{len(files) - len(damaged)} files are intact; prepare the corpus again."
        )
    for split, counts in corpus.manifest["counts"].items():
        for length in corpus.lengths:
            expected, there = counts["samples"][str(length)], corpus.stored_samples(split, length)
            if there != expected:
                raise UserError(f"{directory} has {there} {split} samples of length {length}, not {expected}.")
    print(f"{directory}: all {len(files)} files are intact.")


def print_summary(corpus: Corpus) -> None:
    """Print the counts of a corpus."""
    from rich.console import Console

    # Without markup: names and texts may have brackets.
    console, vocabulary = Console(markup=False), corpus.manifest["vocabulary"]
    console.print(_count_table(corpus))
    console.print(f"vocabulary: {corpus.vocab_size:,} tokens, on the validation text", end=" ")
    console.print(f"{vocabulary['pieces_per_word']:.3f} a word, {vocabulary['unknown_share']:.3%} unknown", end="")
    characters = vocabulary.get("unknown_character_share")
    console.print("" if characters is None else f" ({characters:.3%} of the characters)")
    cross_entropy, entropy = corpus.manifest["unigram_cross_entropy"], corpus.manifest["unigram_entropy"]
    console.print(f"unigram cross-entropy of the validation text: {cross_entropy:.3f} nats a token")
    console.print(f"(its own unigram entropy: {entropy:.3f})")
    console.print(f"corpus: {corpus.directory}", soft_wrap=True)


def _count_table(corpus: Corpus) -> "Table":
    from rich.table import Table

    splits = corpus.manifest["counts"]
    table = Table("", *splits)
    for name in ("documents", "sentences", "tokens"):
        table.add_row(name, *(f"{counts[name]:,}" for counts in splits.values()))
    for length in map(str, corpus.lengths):
        table.add_row(f"samples of length {length}", *(f"{counts['samples'][length]:,}" for counts in splits.values()))
    return table


def show_statistics(corpus: Corpus, png: Path | None) -> None:
    """Print what a corpus holds, and draw it.

    Args:
        corpus: The corpus.
        png: Where the picture goes; `stats.png` in the corpus directory if None.
    """
    from rich.console import Console

    png = png or corpus.directory / "stats.png"
    console = Console(markup=False)
    histograms = {
        (split, length): length_histogram(corpus, split, length)
        for split in corpus.manifest["counts"]
        for length in corpus.lengths
    }
    with whole_file(png) as temporary:
        draw(corpus, histograms, temporary)
    print_summary(corpus)
    console.print(_usage_table(corpus, histograms))
    console.print(_source_table(corpus))
    if corpus.manifest["dropped"]:
        console.print(_rule_table(corpus))
    console.print(f"picture: {png}", soft_wrap=True)


def length_histogram(corpus: Corpus, split: str, length: int) -> np.ndarray:
    """How many samples have how many tokens: int64 [length + 1], read from the shards."""
    counts = np.zeros(length + 1, dtype=np.int64)
    for sizes in corpus.samples(split, length).sizes():
        counts += np.bincount(sizes, minlength=length + 1)
    return counts


def _usage_table(corpus: Corpus, histograms: dict[tuple[str, int], np.ndarray]) -> "Table":
    from rich.table import Table

    splits = corpus.manifest["counts"]
    table = Table("samples", *(f"{split} {length}" for split, length in histograms))
    usages = [splits[split]["usage"][str(length)] for split, length in histograms]
    table.add_row("tokens in order", *(f"{usage['tokens_in_order']:,}" for usage in usages))
    table.add_row("tokens random", *(f"{usage['tokens_random']:,}" for usage in usages))
    table.add_row("tokens dropped", *(f"{usage['tokens_dropped']:,}" for usage in usages))
    samples = [splits[split]["samples"][str(length)] for split, length in histograms]
    shares = [usage["labels"] / count for usage, count in zip(usages, samples, strict=True)]
    table.add_row("label 1", *(f"{share:.1%}" for share in shares))
    for quarter in range(4):
        cells = []
        for (_, length), histogram in histograms.items():
            first, last = quarter * length // 4 + 1, (quarter + 1) * length // 4
            cells.append(f"{histogram[first : last + 1].sum() / histogram.sum():.1%}")
        table.add_row(f"{quarter * 25} to {quarter * 25 + 25} % full", *cells)
    table.add_row("padding", *(f"{1 - usage['fill']:.1%}" for usage in usages))
    if corpus.manifest["config"]["packing"]:
        table.add_row("padding, packed", *(f"{1 - usage['packed_fill']:.1%}" for usage in usages))
    return table


def _source_table(corpus: Corpus) -> "Table":
    from rich.table import Table

    splits = corpus.manifest["counts"]
    table = Table("source", "split", "documents", "tokens", "share of a pass")
    for split, counts in splits.items():
        for name, entered in counts["sources"].items():
            share = f"{entered['tokens_with_copies'] / counts['tokens_with_copies']:.1%}"
            table.add_row(name, split, f"{entered['documents']:,}", f"{entered['tokens']:,}", share)
    return table


def _rule_table(corpus: Corpus) -> "Table":
    from rich.table import Table

    table = Table("dropped", "pieces", "characters", "for example")
    for name, rule in corpus.manifest["dropped"].items():
        example = rule["examples"][0] if rule["examples"] else ""
        table.add_row(name, f"{rule['dropped']:,}", f"{rule['characters']:,}", example)
    return table


def draw(corpus: Corpus, histograms: dict[tuple[str, int], np.ndarray], png: Path) -> None:
    """Draw the lengths of the training samples, the padding and the sources."""
    from matplotlib.figure import Figure

    splits = corpus.manifest["counts"]
    figure = Figure(figsize=(4.2 * (len(corpus.lengths) + 1), 3.6), layout="constrained")
    axes: Any = figure.subplots(1, len(corpus.lengths) + 1)
    for axis, length in zip(axes[:-1], corpus.lengths, strict=True):
        counts = histograms["train", length]
        axis.hist(np.arange(length + 1), bins=min(BINS, length + 1), weights=counts, color="tab:blue")
        fill = splits["train"]["usage"][str(length)]["fill"]
        axis.set(title=f"length {length}: {1 - fill:.1%} padding", xlabel="tokens of a sample", yscale="log")
        axis.set_ylabel("training samples")
    names = list(splits["train"]["sources"])
    whole = splits["train"]["tokens_with_copies"]
    shares = [splits["train"]["sources"][name]["tokens_with_copies"] / whole for name in names]
    axes[-1].barh(names, shares, color="tab:orange")
    axes[-1].set(title="sources", xlabel="share of a pass over the training text", xlim=(0, 1))
    figure.savefig(png, format="png", dpi=120)
