"""Sample shards on disk: Arrow files that `datasets` reads memory-mapped."""

from pathlib import Path

import numpy as np

from earlybert.data_prep.samples import with_special_tokens
from earlybert.data_prep.tokenizer import SpecialTokens, TokenisedText

SAMPLES_PER_SHARD = 1 << 16


def shard_folder(directory: Path, split: str, length: int) -> Path:
    """Where the shards of one split and length lie."""
    return directory / split / f"length-{length}"


def write_shards(folder: Path, text: TokenisedText, plan: np.ndarray, special: SpecialTokens) -> None:
    """Write samples in the order of the plan.

    Columns: `input_ids` (list of uint16 or uint32, special tokens included), `first_length` (int32, tokens of
    `[CLS] A [SEP]`) and `next_sentence_label` (int8; 1: the second segment is random; 0 also when there is none).

    Args:
        folder: New folder for `shard-00000.arrow` and so on.
        text: The tokenised documents.
        plan: int64 [samples, 5] of `plan_samples`.
        special: Ids of the special tokens.
    """
    import pyarrow
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features(
        {
            "input_ids": List(Value(text.tokens.dtype.name)),
            "first_length": Value("int32"),
            "next_sentence_label": Value("int8"),
        }
    )
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(plan), SAMPLES_PER_SHARD)):
        part = plan[start : start + SAMPLES_PER_SHARD]
        tokens, bounds, first_length = with_special_tokens(text, part, cls=special.cls, sep=special.sep)
        columns = [
            pyarrow.ListArray.from_arrays(bounds.astype(np.int32), tokens),
            pyarrow.array(first_length),
            pyarrow.array(part[:, 4].astype(np.int8)),
        ]
        with ArrowWriter(path=str(folder / f"shard-{number:05d}.arrow"), features=features) as writer:
            # One record batch a shard: finding a row costs a search over the batches.
            writer.write_table(pyarrow.table(columns, names=list(features)), writer_batch_size=len(part))
            writer.finalize()
