"""The network to fine-tune: a run of ours, an export, or any Hugging Face BERT, all in the form of `pretrain`."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from earlybert.finetune.model import EarlyBertForMaskedTokens, TaskModel
from earlybert.pretrain.bert_format import from_bert
from earlybert.pretrain.errors import UserError
from earlybert.pretrain.export import newest
from earlybert.pretrain.initial import initial_tensor
from earlybert.pretrain.model import EarlyBertConfig
from earlybert.pretrain.surgery import Weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Pretrained:
    """A network's configuration, its fp32 weights (heads of pre-training included where it has them), its tokenizer."""

    name: str
    config: EarlyBertConfig
    weights: Weights
    tokenizer: PreTrainedTokenizerFast

    def require_full(self, method: str) -> None:
        """Raises UserError for a method that needs the full network."""
        if self.config.kept_heads is not None:
            raise UserError(
                f"--method is {method}, which cuts a full network, but {self.name} is narrow already; it must be dense"
            )

    def require_length(self, max_length: int) -> None:
        positions = self.config.max_position_embeddings
        if max_length > positions:
            raise UserError(
                f"max_length is {max_length}, but the position table of {self.name} has {positions} rows; "
                "it must not be longer"
            )


def open_pretrained(name: str) -> Pretrained:
    """Opens a run directory, an exported folder, or a BERT by path or hub name; raises UserError."""
    disable_progress_bar()  # bars for files of one shard
    folder = Path(name)
    if (folder / "config.yaml").is_file():
        trained = newest(folder)
        if trained is None:
            raise UserError(f"{folder / 'checkpoints'}: holds no intact checkpoint to fine-tune")
        model = trained.network()
        return Pretrained(name, model.config, model.state_dict(), trained.corpus.tokenizer)
    config = _config(name)
    tokenizer = _tokenizer(name)
    if max(tokenizer.get_vocab().values()) >= config.vocab_size:
        raise UserError(
            f"{name}: its tokenizer has {max(tokenizer.get_vocab().values()) + 1} tokens, "
            f"but the model's embedding table only {config.vocab_size} rows; they must belong together"
        )
    if isinstance(config, EarlyBertConfig):
        model = AutoModelForPreTraining.from_pretrained(name, dtype=torch.float32)
        return Pretrained(name, model.config, model.state_dict(), tokenizer)
    return _from_bert(name, tokenizer)


def _config(name: str) -> PreTrainedConfig:
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise UserError(f"{name}: has neither config.yaml, as a run has, nor config.json, as a model has")
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--model is {name!r}, which is no run, no folder and no model of the hub ({reason})") from None
    if not isinstance(config, (EarlyBertConfig, BertConfig)):
        raise UserError(f"{name}: its model_type is {config.model_type!r}; it must be bert or earlybert")
    return config


def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        # A bare vocabulary would be taken for an uncased one, whatever it is (the released code fell for this).
        found = "only vocab.txt, which does not say whether it is cased" if (folder / "vocab.txt").is_file() else "none"
        raise UserError(f"{name}: the model needs its tokenizer, {' or '.join(TOKENIZER_FILES)}; it has {found}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: its tokenizer cannot be loaded ({' '.join(str(error).split())})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.cls_token_id is None:
        raise UserError(f"{name}: its tokenizer must be a fast one with [CLS] and [SEP], as BERT's is")
    return tokenizer


def _from_bert(name: str, tokenizer: PreTrainedTokenizerFast) -> Pretrained:
    """Any BERT; what its checkpoint lacks (a pooler, the pre-training heads) is left out and will start afresh."""
    loaded: Any = BertForPreTraining.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    model, loading = loaded
    missing = [key for key in loading["missing_keys"] if key.startswith("bert.") and ".pooler." not in key]
    if missing:
        raise UserError(f"{name}: is not a complete BERT; it lacks {missing[0]} and {len(missing) - 1} more")
    config, weights = from_bert(model.config, model.state_dict())
    fresh = {"pooler": "bert.pooler.", "masked_token": "cls.predictions.", "next_sentence": "cls.seq_relationship."}
    for ours, theirs in fresh.items():
        if any(key.startswith(theirs) for key in loading["missing_keys"]):
            weights = {key: value for key, value in weights.items() if not key.startswith(ours)}
    return Pretrained(name, config, weights, tokenizer)


def task_config(pretrained: Pretrained, head: dict[str, object], dropout: float) -> EarlyBertConfig:
    """The network's configuration for a task."""
    config = copy.deepcopy(pretrained.config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    for field, value in head.items():
        setattr(config, field, value)
    return config


def starting_weights(
    model_class: TaskModel | type[EarlyBertForMaskedTokens], config: EarlyBertConfig, pretrained: Weights, seed: int
) -> dict[str, Tensor]:
    """Pre-trained values, and for the rest (task head, coefficients) initial ones.

    Those are a pure function of (seed, name, shape), so both stages of EarlyBERT have the same task head.
    """
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in model_class(config).named_parameters()}
    return {
        name: pretrained[name].clone() if name in pretrained else initial_tensor(config, seed, name, shape)
        for name, shape in shapes.items()
    }
