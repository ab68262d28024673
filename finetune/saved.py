"""Trained networks on disk: narrow as they are, or zero-padded into plain Hugging Face BERT."""

from collections.abc import Sequence
from pathlib import Path

from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertPreTrainedModel,
    PreTrainedTokenizerFast,
)

from earlybert.finetune.model import (
    TrainedForQuestionAnswering,
    TrainedForSequenceClassification,
    TrainedForTokenClassification,
)
from earlybert.finetune.network import TrainedModel
from earlybert.pretrain.checkpoint.card import Form, header, how_to_load, shape
from earlybert.pretrain.checkpoint.model_folder import write_model_folder
from earlybert.pretrain.network.bert_format import fill_bert, narrow_class
from earlybert.pretrain.network.config import dense_config
from earlybert.pretrain.network.surgery import widen_weights

# What transformers calls each model, and what it is for.
HEADS: dict[type[TrainedModel], tuple[type[BertPreTrainedModel], str]] = {
    TrainedForSequenceClassification: (BertForSequenceClassification, "text-classification"),
    TrainedForTokenClassification: (BertForTokenClassification, "token-classification"),
    TrainedForQuestionAnswering: (BertForQuestionAnswering, "question-answering"),
}


def hugging_face_model(model: TrainedModel, form: Form) -> BertPreTrainedModel:
    """The same function as Hugging Face's BERT with this head, or as the narrow one."""
    config, network, weights = model.config, model.config.network, model.state_dict()
    model_class, _ = HEADS[type(model)]
    if form == "earlybert":
        model_class = narrow_class(model_class)
    elif kept := network.kept_units:
        weights = widen_weights(dense_config(network), weights, kept)
    labels = {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")}
    return fill_bert(model_class, network, weights, **labels)


def save_trained(model: TrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, forms: Sequence[Form]) -> None:
    """Writes each form with tokenizer and model card to a folder of its own; complete or absent."""
    for form in forms:
        saved = hugging_face_model(model, form)
        write_model_folder(saved, tokenizer, _card(model, form, type(saved).__name__), folder / form)


def _card(model: TrainedModel, form: Form, class_name: str) -> str:
    """What the network is; what it was fine-tuned on is beside it, in result.json."""
    _, kind = HEADS[type(model)]
    load = f"## Load it\n\n{how_to_load(form, class_name)}"
    return f"{header(kind)}# Fine-tuned for {kind.replace('-', ' ')}\n\n{shape(model.config.network, form)}\n{load}"
