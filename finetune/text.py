"""Texts to BERT's input: `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`. Nothing is cached on disk."""

import sys
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, PreTrainedTokenizerFast

from earlybert.data_prep.samples.masking import Masking
from earlybert.data_prep.tokens.tokenizer import special_tokens, vocabulary_size
from earlybert.finetune.model import IGNORED

# [CLS] and [SEP], and one more [SEP] with a second text.
SPECIAL_TOKENS = {1: 2, 2: 3}


class Features(TypedDict, total=False):
    """One input row, and what is to be learnt of it."""

    input_ids: list[int]
    token_type_ids: list[int]
    labels: int | float | list[int]
    start_positions: int
    end_positions: int


# What becomes of a row when it is trained on: of (row, epoch, index).
Masker = Callable[[Features, int, int], Features]
# What is to be learnt; a row has either labels or two positions.
TARGETS = ("labels", "start_positions", "end_positions")


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of each text without special tokens."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def truncate(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Takes tokens from the end of the longer text until both fit (as BERT does); of equal ones the second loses."""
    over = max(0, len(first) + len(second) - room)
    # Down to equal lengths only the longer one pays, then both in turn.
    alone = min(over, abs(len(first) - len(second)))
    shared = over - alone
    from_first = (alone if len(first) > len(second) else 0) + shared // 2
    return first[: len(first) - from_first], second[: len(second) - (over - from_first)]


def assemble(tokenizer: PreTrainedTokenizerFast, first: list[int], second: list[int] | None) -> Features:
    """One row; the second text is segment 1."""
    ids = [tokenizer.cls_token_id, *first, tokenizer.sep_token_id]
    types = [0] * len(ids)
    if second is not None:
        ids += [*second, tokenizer.sep_token_id]
        types += [1] * (len(second) + 1)
    return Features(input_ids=ids, token_type_ids=types)


def length(row: Features) -> int:
    return len(row["input_ids"])


def learnt(row: Features) -> int:
    """How many items the loss of a row sums over: one, or its masked tokens."""
    (target, *_) = (row[name] for name in TARGETS if name in row)  # type: ignore[literal-required]
    return int(np.count_nonzero(np.ravel(target) != IGNORED))


def with_nothing_to_learn(row: Features) -> Features:
    """The same tokens, every target ignored."""
    ignored: Any = {name: np.full_like(value, IGNORED).tolist() for name, value in row.items() if name in TARGETS}
    return Features(**(row | ignored))


def collator(
    tokenizer: PreTrainedTokenizerFast, rows: list[Features]
) -> DataCollatorWithPadding | DataCollatorForTokenClassification:
    """What pads rows like these to a batch; labels of tokens are padded with them."""
    of_tokens = isinstance(rows[0].get("labels"), list)
    return DataCollatorForTokenClassification(tokenizer) if of_tokens else DataCollatorWithPadding(tokenizer)


def masker(tokenizer: PreTrainedTokenizerFast, seed: int) -> Masker:
    """What puts masked tokens to be predicted in place of a row's own targets: a pure function of its arguments."""
    # To count a vocabulary takes as long as hundreds of rows.
    masking = Masking(special_tokens(tokenizer), vocabulary_size(tokenizer), seed, max_predictions=sys.maxsize)

    def masked(row: Features, epoch: int, index: int) -> Features:
        ids = np.array(row["input_ids"])
        sample = masking.mask(ids, np.array([0, len(ids)]), [(epoch, index)])
        labels = np.full(len(ids), IGNORED)
        labels[sample.positions_N] = sample.labels_N
        return Features(
            input_ids=sample.input_ids_T.tolist(), token_type_ids=row["token_type_ids"], labels=labels.tolist()
        )

    return masked
