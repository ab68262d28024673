"""The weights that a recipe's `initial` names, for the full network and the corpus of a run.

Shape suffixes: H hidden size, V vocabulary rows.
"""

import hashlib
from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from earlybert.core.errors import UserError
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.tokens.tokenizer import PROBE
from earlybert.pretrain.checkpoint.pretrained import open_pretrained, pretrained_network
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.parameters import facts_of, parameter_shapes
from earlybert.pretrain.network.state import Weights

FIELD = "initial"


def initial_network(name: str) -> NetworkConfig:
    """The network that a recipe's `initial` names, without its weights.

    Raises:
        UserError: There is none, or a run cannot begin with it.
    """
    network = pretrained_network(name, FIELD)
    _require_full(name, network)
    return network


def _require_full(name: str, network: NetworkConfig) -> None:
    if network.kept_units is not None:
        raise UserError(
            f"{FIELD} is {name}, which is narrow already; it must be a full network, such as its bert export, which "
            "has zeros for what was cut"
        )


def open_initial(name: str, full: NetworkConfig, corpus: Corpus) -> dict[str, Tensor]:
    """fp32 weights of the run's full network by name, as far as the named network has them.

    Rows of tokens that the corpus has beyond the network's are means of the rows of their pieces.

    Raises:
        UserError: It cannot be opened, is narrow, or has another vocabulary than the corpus.
    """
    opened = open_pretrained(name, FIELD)
    _require_full(name, opened.config)
    added = _added_tokens(name, opened.tokenizer, corpus)
    pieces = {row: opened.tokenizer(token, add_special_tokens=False)["input_ids"] for token, row in added.items()}
    shapes = parameter_shapes(full)
    return {
        parameter: _rows_of_vocabulary(tensor, shapes[parameter], full.vocab_size, pieces)
        if facts_of(parameter).pads_vocabulary
        else tensor.clone()
        for parameter, tensor in opened.weights.items()
        if parameter in shapes
    }


def _added_tokens(name: str, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> dict[str, int]:
    """Tokens and ids of the corpus's vocabulary that the network's has not; raises UserError where those differ."""
    known, found = tokenizer.get_vocab(), corpus.tokenizer.get_vocab()
    added = {token: row for token, row in found.items() if token not in known}
    same = all(found.get(token) == row for token, row in known.items())
    probed = zip(tokenizer(PROBE)["input_ids"], corpus.tokenizer(PROBE)["input_ids"], strict=True)
    # An added word may stand in a text of the probe.
    if not same or any(theirs != ours for theirs, ours in probed if not {*ours} & {*added.values()}):
        raise UserError(
            f"{corpus.directory}: was prepared with another vocabulary than that of {name} ({FIELD}); prepare it with "
            f"--tokenizer {name}"
        )
    return added


def _rows_of_vocabulary(
    tensor: Tensor, shape: tuple[int, ...], vocab_size: int, pieces: Mapping[int, Sequence[int]]
) -> Tensor:
    """`tensor` [V, H] or [V] for another vocabulary: rows of tokens that it has not are means of those of `pieces`."""
    rows = tensor.new_zeros(shape)
    kept = min(vocab_size, len(tensor))
    rows[:kept] = tensor[:kept]
    for row, parts in pieces.items():
        rows[row] = tensor[parts].mean(dim=0)
    return rows


def fingerprint(weights: Weights) -> str:
    """SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {list(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
