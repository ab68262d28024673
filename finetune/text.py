"""Texts to BERT's input: `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`. Nothing is cached on disk."""

from typing import TypedDict

from transformers import PreTrainedTokenizerFast

# [CLS] and [SEP], and one more [SEP] with a second text.
SPECIAL_TOKENS = {1: 2, 2: 3}


class Features(TypedDict, total=False):
    """One input row, and what is to be learnt of it."""

    input_ids: list[int]
    token_type_ids: list[int]
    labels: int | float
    start_positions: int
    end_positions: int


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
