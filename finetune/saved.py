"""Trained networks on disk: narrow as they are, or zero-padded into plain Hugging Face BERT."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from earlybert.finetune.model import EarlyBertForQuestionAnswering
from earlybert.pretrain.checkpoint.export import Form
from earlybert.pretrain.network.bert_format import fill_bert
from earlybert.pretrain.network.model import EarlyBertConfig
from earlybert.pretrain.network.surgery import widen_weights
from earlybert.pretrain.network.work import dense_config


class Kept(NamedTuple):
    """The units of each layer that a narrow network holds."""

    heads: list[list[int]]
    neurons: list[list[int]]


def plain_bert(model: PreTrainedModel) -> PreTrainedModel:
    """The same function as `BertForSequenceClassification` or `BertForQuestionAnswering`."""
    config: EarlyBertConfig = model.config  # type: ignore[assignment]
    weights = model.state_dict()
    if config.kept_heads is not None and config.kept_neurons is not None:
        weights = widen_weights(dense_config(config), weights, Kept(config.kept_heads, config.kept_neurons))
    answers = isinstance(model, EarlyBertForQuestionAnswering)
    return fill_bert(BertForQuestionAnswering if answers else BertForSequenceClassification, config, weights)


def save_trained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, forms: Sequence[Form]
) -> None:
    """Writes each form and the tokenizer to a folder of its own; complete or absent."""
    for form in forms:
        out, temporary = folder / form, folder / f".{form}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        (plain_bert(model) if form == "bert" else model).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
