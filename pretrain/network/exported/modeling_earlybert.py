"""BERT with a width of its own in every layer. Needs nothing but torch and transformers (4.57 or newer).

Every class is the one of transformers without "Early" in its name, with fewer heads and neurons: tensors have the same
names, and what that class can do this one can.
"""

import sys
from typing import Any

import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
)

# Which class an Auto class loads. As it stands in config.json, where `trust_remote_code=True` finds it.
AUTO_MAP = {
    "AutoConfig": "modeling_earlybert.EarlyBertConfig",
    "AutoModel": "modeling_earlybert.EarlyBertModel",
    "AutoModelForPreTraining": "modeling_earlybert.EarlyBertForPreTraining",
    "AutoModelForMaskedLM": "modeling_earlybert.EarlyBertForMaskedLM",
    "AutoModelForNextSentencePrediction": "modeling_earlybert.EarlyBertForNextSentencePrediction",
    "AutoModelForSequenceClassification": "modeling_earlybert.EarlyBertForSequenceClassification",
    "AutoModelForMultipleChoice": "modeling_earlybert.EarlyBertForMultipleChoice",
    "AutoModelForTokenClassification": "modeling_earlybert.EarlyBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_earlybert.EarlyBertForQuestionAnswering",
}
# Fields of exports whose weights had other names.
EARLIER_FIELDS = ("next_sentence", "searching")


class EarlyBertConfig(BertConfig):
    """BERT's configuration, whose numbers are the full network's, and what each layer holds of it.

    `kept_heads[l]` and `kept_neurons[l]` are the sorted indices of the heads and neurons of layer l; None keeps all.
    `ticket_sha256` is the hash of the ticket that says so.
    """

    model_type = "earlybert"

    def __init__(
        self,
        kept_heads: list[list[int]] | None = None,
        kept_neurons: list[list[int]] | None = None,
        ticket_sha256: str | None = None,
        **bert: Any,
    ) -> None:
        if any(field in bert for field in EARLIER_FIELDS):
            raise ValueError("this is an export of an earlier version of EarlyBERT; export the run again")
        super().__init__(**{"auto_map": dict(AUTO_MAP)} | bert)
        self.kept_heads, self.kept_neurons, self.ticket_sha256 = kept_heads, kept_neurons, ticket_sha256

    @property
    def heads(self) -> list[int]:
        """Number of heads in each layer."""
        if self.kept_heads is None:
            return [self.num_attention_heads] * self.num_hidden_layers
        return [len(kept) for kept in self.kept_heads]

    @property
    def neurons(self) -> list[int]:
        """Number of neurons in each layer."""
        if self.kept_neurons is None:
            return [self.intermediate_size] * self.num_hidden_layers
        return [len(kept) for kept in self.kept_neurons]

    def to_dict(self) -> dict[str, Any]:
        """peft calls this before it looks up, by `model_type`, which modules adapters are for: the same as in BERT."""
        peft = sys.modules.get("peft.utils.constants")
        for name, modules_of in vars(peft).items() if peft else ():
            if name.startswith("TRANSFORMERS_MODELS_TO_") and "bert" in modules_of:
                modules_of.setdefault(self.model_type, modules_of["bert"])
        return super().to_dict()


def set_width(layer: Any, heads: int, neurons: int) -> None:
    """Gives a `BertLayer` new matrices, for so many heads and neurons."""
    attention = layer.attention.self
    hidden, width = attention.query.in_features, heads * attention.attention_head_size
    attention.num_attention_heads, attention.all_head_size = heads, width
    for projection in ("query", "key", "value"):
        setattr(attention, projection, nn.Linear(hidden, width))
    layer.attention.output.dense = nn.Linear(width, hidden)
    layer.intermediate.dense = nn.Linear(hidden, neurons)
    layer.output.dense = nn.Linear(neurons, hidden)


class Narrow(BertPreTrainedModel):
    """What makes a model of transformers narrow; the first of its two bases."""

    config_class = EarlyBertConfig

    def __init__(self, config: EarlyBertConfig, *arguments: Any, **keywords: Any) -> None:
        super().__init__(config, *arguments, **keywords)
        bert: Any = self.base_model
        for layer, heads, neurons in zip(bert.encoder.layer, config.heads, config.neurons, strict=True):
            set_width(layer, heads, neurons)
        # Once more, for the new matrices.
        self.post_init()


class EarlyBertModel(Narrow, BertModel):
    """The encoder, with BERT's pooler."""


class EarlyBertForPreTraining(Narrow, BertForPreTraining):
    """Scores of hidden tokens, and whether the second segment is the next one."""


class EarlyBertForMaskedLM(Narrow, BertForMaskedLM):
    """Scores of hidden tokens."""


class EarlyBertForNextSentencePrediction(Narrow, BertForNextSentencePrediction):
    """Whether the second segment is the next one."""


class EarlyBertForSequenceClassification(Narrow, BertForSequenceClassification):
    """A class or a number for a text or two."""


class EarlyBertForMultipleChoice(Narrow, BertForMultipleChoice):
    """A score for each of several texts."""


class EarlyBertForTokenClassification(Narrow, BertForTokenClassification):
    """A class for every token."""


class EarlyBertForQuestionAnswering(Narrow, BertForQuestionAnswering):
    """Scores of every token as the first and as the last of the answer."""


# With this, `save_pretrained` puts a copy of this file beside the weights.
for auto_class, path in AUTO_MAP.items():
    globals()[path.partition(".")[2]]._auto_class = auto_class


def register() -> None:
    """Makes the classes known to the Auto classes, which then need no `trust_remote_code=True`."""
    for auto_class, path in AUTO_MAP.items():
        known, ours = getattr(transformers, auto_class), globals()[path.partition(".")[2]]
        known.register(EarlyBertConfig.model_type if ours is EarlyBertConfig else EarlyBertConfig, ours)
