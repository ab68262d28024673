"""The network to fine-tune: a run of ours, an export, or any Hugging Face BERT, all in the form of `pretrain`."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from earlybert.core.errors import UserError
from earlybert.finetune.model import EarlyBertForMaskedTokens, TaskModel
from earlybert.finetune.network import TrainedConfig
from earlybert.pretrain.checkpoint.export import newest
from earlybert.pretrain.network.bert_format import from_bert
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertConfig, EarlyBertForPreTraining
from earlybert.pretrain.network.initial import initial_tensor
from earlybert.pretrain.network.losses.registry import LOSS_PARTS
from earlybert.pretrain.network.state import Weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# What a BERT may have otherwise than the networks here.
FIXED_FIELDS = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
# What a checkpoint may lack: our names, and Hugging Face's.
HEADS = {
    f"{ours.split('.')[0]}.": ".".join(theirs.split(".")[:2]) + "."
    for part in LOSS_PARTS
    for ours, theirs in part.bert_names.items()
}


@dataclass(frozen=True)
class Pretrained:
    """A network's configuration, its fp32 weights (heads of pre-training included where it has them), its tokenizer."""

    name: str
    config: NetworkConfig
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
    config, tokenizer = _config(name), _tokenizer(name)
    if max(tokenizer.get_vocab().values()) >= config.vocab_size:
        raise UserError(
            f"{name}: its tokenizer has {max(tokenizer.get_vocab().values()) + 1} tokens, "
            f"but the model's embedding table only {config.vocab_size} rows; they must belong together"
        )
    return Pretrained(name, *_network(name, config), tokenizer)


def _loaded(what: str, load: Callable[[], Any]) -> Any:
    """What the library loads; raises UserError where it cannot, for it raises whatever it comes upon."""
    try:
        return load()
    except Exception as error:
        raise UserError(f"{what} cannot be loaded ({' '.join(str(error).split())})") from None


def _config(name: str) -> BertConfig:
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise UserError(f"{name}: has neither config.yaml, as a run has, nor config.json, as a model has")
    no_folder = f"--model is {name!r}, which is no run and no folder; as a model of the hub it"
    config = _loaded(
        f"{name}: its config.json" if Path(name).exists() else no_folder, lambda: AutoConfig.from_pretrained(name)
    )
    if not isinstance(config, BertConfig):
        raise UserError(f"{name}: its model_type is {config.model_type!r}; it must be bert or earlybert")
    for field, expected in FIXED_FIELDS.items():
        if (found := getattr(config, field, expected)) != expected:
            raise UserError(f"{name}: its {field} is {found!r}; it must be {expected!r}")
    return config


def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        # A bare vocabulary would be taken for an uncased one, whatever it is (the released code fell for this).
        found = "only vocab.txt, which does not say whether it is cased" if (folder / "vocab.txt").is_file() else "none"
        raise UserError(f"{name}: the model needs its tokenizer, {' or '.join(TOKENIZER_FILES)}; it has {found}")
    tokenizer = _loaded(f"{name}: its tokenizer", lambda: AutoTokenizer.from_pretrained(name))
    tokens = ("cls_token", "sep_token", "pad_token", "mask_token")
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or None in (getattr(tokenizer, token) for token in tokens):
        raise UserError(f"{name}: its tokenizer must be a fast one with [CLS], [SEP], [PAD] and [MASK], as BERT's is")
    return tokenizer


def _network(name: str, config: BertConfig) -> tuple[NetworkConfig, Weights]:
    """Any BERT, ours or Hugging Face's; heads that its checkpoint lacks are left out and will start afresh."""
    model_class = EarlyBertForPreTraining if isinstance(config, EarlyBertConfig) else BertForPreTraining
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "output_loading_info": True,
        # Reported instead, so that the first one can be named.
        "ignore_mismatched_sizes": True,
    }
    model, loading = _loaded(f"{name}: its weights", lambda: model_class.from_pretrained(name, **options))
    if mismatched := sorted(loading["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise UserError(f"{name}: {key} has the shape {list(found)}; by its config.json it must be {list(expected)}")
    missing = sorted(loading["missing_keys"])
    if lost := [key for key in missing if not key.startswith(tuple(HEADS.values()))]:
        raise UserError(f"{name}: is not a complete BERT; it lacks {lost[0]} and {len(lost) - 1} more")
    network, weights = from_bert(model.config, model.state_dict())
    fresh = tuple(head for head, prefix in HEADS.items() if any(key.startswith(prefix) for key in missing))
    return network, {key: value for key, value in weights.items() if not key.startswith(fresh)}


def task_config(pretrained: Pretrained, head: dict[str, object], dropout: float) -> TrainedConfig:
    """The network's configuration for a task, whose labels are `head`."""
    network = dataclasses.replace(pretrained.config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return TrainedConfig(network, **head)


def starting_weights(
    model_class: TaskModel | type[EarlyBertForMaskedTokens], config: TrainedConfig, pretrained: Weights, seed: int
) -> dict[str, Tensor]:
    """Pre-trained values, and for the rest (task head, coefficients) initial ones.

    Those are a pure function of (seed, name, shape), so EarlyBERT's search and its training have the same task head.
    """
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in model_class(config).named_parameters()}
    return {
        name: pretrained[name].clone() if name in pretrained else initial_tensor(config.network, seed, name, shape)
        for name, shape in shapes.items()
    }
