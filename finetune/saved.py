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
from earlybert.pretrain.network.config import KeptIndices, dense_config
from earlybert.pretrain.network.hugging_face import EarlyBertConfig
from earlybert.pretrain.network.surgery import widen_weights


class Kept(NamedTuple):
    """The units of each layer that a narrow network holds."""

    heads: KeptIndices
    neurons: KeptIndices


def plain_bert(model: PreTrainedModel) -> PreTrainedModel:
    """The same function as `BertForSequenceClassification` or `BertForQuestionAnswering`."""
    config: EarlyBertConfig = model.config  # type: ignore[assignment]
    network, weights = config.network, model.state_dict()
    if network.kept_heads is not None and network.kept_neurons is not None:
        weights = widen_weights(dense_config(network), weights, Kept(network.kept_heads, network.kept_neurons))
    answers = isinstance(model, EarlyBertForQuestionAnswering)
    bert_class = BertForQuestionAnswering if answers else BertForSequenceClassification
    labels = {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")}
    return fill_bert(bert_class, network, weights, **labels)


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
