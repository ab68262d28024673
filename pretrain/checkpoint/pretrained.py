"""A network that is trained already: a run of ours, an export, or any Hugging Face BERT, all in our own form."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from earlybert.core.errors import UserError, one_line
from earlybert.core.paths import did_you_mean, what_is_there
from earlybert.pretrain.checkpoint.trained import Trained, newest
from earlybert.pretrain.network.bert_format import TIED, bert_network, from_bert
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertConfig, EarlyBertForPreTraining
from earlybert.pretrain.network.losses.registry import LOSS_PARTS
from earlybert.pretrain.network.state import Weights

TOKENIZER_FILES = (("tokenizer.json",), ("tokenizer_config.json", "vocab.txt"))
# What a BERT may have otherwise than the networks here.
FIXED_FIELDS = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
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


def open_pretrained(name: str, field: str = "--model") -> Pretrained:
    """Opens a run directory, an exported folder, or a BERT by path or hub name, which the user gave as `field`.

    Raises UserError.
    """
    disable_progress_bar()  # bars for files of one shard
    set_verbosity_error()  # what lacks is said here, and in fewer words
    if _is_run(name):
        trained = _trained(name)
        return Pretrained(name, trained.config, trained.weights, trained.corpus.tokenizer)
    config, tokenizer = _config(name, field), _tokenizer(name)
    if max(tokenizer.get_vocab().values()) >= config.vocab_size:
        raise UserError(
            f"{name}: its tokenizer has {max(tokenizer.get_vocab().values()) + 1} tokens, "
            f"but the model's embedding table only {config.vocab_size} rows; they must belong together"
        )
    return Pretrained(name, *_network(name, config), tokenizer)


def pretrained_network(name: str, field: str) -> NetworkConfig:
    """The configuration alone of what `open_pretrained` opens; raises UserError for weights that are never opened."""
    if _is_run(name):
        return _trained(name).config
    config = _config(name, field)
    _require_safe(Path(name))
    return bert_network(config)


def _is_run(name: str) -> bool:
    return (Path(name) / "config.yaml").is_file()


def _trained(name: str) -> Trained:
    trained = newest(Path(name))
    if trained is None:
        raise UserError(f"{Path(name) / 'checkpoints'}: holds no intact checkpoint to begin with")
    return trained


def _loaded(what: str, load: Callable[[], Any]) -> Any:
    """What the library loads; raises UserError where it cannot, for it raises whatever it comes upon."""
    try:
        return load()
    except Exception as error:
        raise UserError(f"{what} cannot be loaded ({one_line(error)})") from None


def _config(name: str, field: str) -> BertConfig:
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"{name}: has neither config.yaml, as a run has, nor config.json, as a model has; "
            f"{what_is_there(Path(name))}"
        )
    near = did_you_mean(Path(name))
    no_folder = f"{field} is {name!r}, which is no run and no folder{near}; as a model of the hub it"
    config = _loaded(
        f"{name}: its config.json" if Path(name).exists() else no_folder, lambda: AutoConfig.from_pretrained(name)
    )
    if not isinstance(config, BertConfig):
        raise UserError(f"{name}: its model_type is {config.model_type!r}; it must be bert or earlybert")
    for key, expected in FIXED_FIELDS.items():
        if (found := getattr(config, key, expected)) != expected:
            raise UserError(f"{name}: its {key} is {found!r}; it must be {expected!r}")
    return config


def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    folder = Path(name)
    # Without its words the library would take a tokenizer's settings for a tokenizer that knows none.
    if folder.is_dir() and not any(all((folder / file).is_file() for file in files) for files in TOKENIZER_FILES):
        # A bare vocabulary would be taken for an uncased one, whatever it is (the released code fell for this).
        found = "only vocab.txt, which does not say whether it is cased" if (folder / "vocab.txt").is_file() else "none"
        needed = "tokenizer.json or tokenizer_config.json with vocab.txt"
        raise UserError(f"{name}: the model needs its tokenizer, {needed}; it has {found}")
    tokenizer = _loaded(f"{name}: its tokenizer", lambda: AutoTokenizer.from_pretrained(name))
    tokens = ("cls_token", "sep_token", "pad_token", "mask_token")
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or None in (getattr(tokenizer, token) for token in tokens):
        raise UserError(f"{name}: its tokenizer must be a fast one with [CLS], [SEP], [PAD] and [MASK], as BERT's is")
    return tokenizer


def _require_safe(folder: Path) -> None:
    """Raises UserError for a model's folder whose weights are no safetensors: nothing is ever unpickled."""
    if not folder.is_dir() or any((folder / file).is_file() for file in WEIGHT_FILES):
        return
    pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if pickled:
        raise UserError(
            f"{folder / pickled[0]}: is a pickled file, which may run code when it is opened; convert it on a machine "
            "where you trust it, with from_pretrained and save_pretrained, which writes model.safetensors"
        )
    raise UserError(f"{folder}: holds no weights; a model needs {' or '.join(WEIGHT_FILES)}")


def _network(name: str, config: BertConfig) -> tuple[NetworkConfig, Weights]:
    """Any BERT, ours or Hugging Face's; heads that it lacks or that do not fit are left out, and will start afresh."""
    _require_safe(Path(name))
    model_class = EarlyBertForPreTraining if isinstance(config, EarlyBertConfig) else BertForPreTraining
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "output_loading_info": True,
        "use_safetensors": True,
        # Reported instead, so that the first one can be named.
        "ignore_mismatched_sizes": True,
    }
    what = f"{name}: its weights"
    if not Path(name).is_dir():
        # On the hub nobody has looked at its files before.
        what += ", which must be safetensors (convert pickled ones on a machine where you trust them, with "
        what += "from_pretrained and save_pretrained),"
    model, loading = _loaded(what, lambda: model_class.from_pretrained(name, **options))
    if mismatched := sorted(loading["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise UserError(f"{name}: {key} has the shape {list(found)}; by its config.json it must be {list(expected)}")
    missing = sorted(loading["missing_keys"])
    if lost := [key for key in missing if not key.startswith(tuple(HEADS.values()))]:
        raise UserError(f"{name}: is not a complete BERT; it lacks {lost[0]} and {len(lost) - 1} more")
    state = model.state_dict()
    network, weights = from_bert(model.config, state)
    # A decoder of its own has no place here; what was trained for it is of no use to the embedding table.
    untied = [second for second, first in TIED.items() if not torch.equal(state[second], state[first])]
    fresh = tuple(head for head, prefix in HEADS.items() if any(key.startswith(prefix) for key in [*missing, *untied]))
    return network, {key: value for key, value in weights.items() if not key.startswith(fresh)}
