"""Masked tokens: each hidden token is told from the vocabulary (Devlin et al. 2019).

Shape suffixes: M needed rows, N predicted tokens, V vocabulary rows, H hidden size.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, cast

from earlybert.kernels.sizes import GPU_CHUNK_BYTES
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.facts import ParameterFacts, layer_norm_facts, linear_facts
from earlybert.pretrain.network.losses.part import LossPart, Score

if TYPE_CHECKING:
    from torch import Tensor, nn

    from earlybert.pretrain.network.batch import Batch
    from earlybert.pretrain.network.layers import MaskedTokenTransform
    from earlybert.pretrain.network.model import PreTrainingNetwork

# A chunk of logits is there in half precision, in fp32, as its softmax and as its gradient.
LOGITS_COPIES = 4


class MaskedTokens(LossPart):
    """A transform, then a product with the word embeddings themselves."""

    name = "masked"
    title = "masked tokens"
    task = "predicted hidden tokens of unseen text"
    counted = "predictions"
    objectives = ("nsp", "sop", "full-sentences")
    standard = True
    parameters: ClassVar[Mapping[str, ParameterFacts]] = {
        "masked_token.bias": ParameterFacts("bias", ("vocabulary",)),
        **linear_facts("masked_token.dense", "hidden", "hidden"),
        **layer_norm_facts("masked_token.LayerNorm"),
    }
    bert_names: ClassVar[Mapping[str, str]] = {
        "masked_token.dense.": "cls.predictions.transform.dense.",
        "masked_token.LayerNorm.": "cls.predictions.transform.LayerNorm.",
        "masked_token.bias": "cls.predictions.bias",
    }

    def guessing(self, config: NetworkConfig) -> float:
        return math.log(config.vocab_size)

    def guessing_by_frequency(self, config: NetworkConfig, unigram_cross_entropy: float) -> float:
        return unigram_cross_entropy

    def flops(self, config: NetworkConfig) -> float:
        return 2.0 * config.hidden_size**2 + 2.0 * config.hidden_size * config.vocab_size

    def kept_values(self, config: NetworkConfig) -> int:
        return 5 * config.hidden_size

    def passing_bytes(self, config: NetworkConfig, count: float, number: int) -> float:
        """A chunk of logits at most, and the vocabulary's gradient, once more in fp32."""
        vocabulary = config.padded_vocab_size
        logits = min(4.0 * count * vocabulary, GPU_CHUNK_BYTES)
        return LOGITS_COPIES * logits + (4 + number) * vocabulary * config.hidden_size

    def modules(self, config: NetworkConfig) -> dict[str, "nn.Module"]:
        from earlybert.pretrain.network.layers import MaskedTokenTransform

        return {"masked_token": MaskedTokenTransform(config)}

    def score(self, network: "PreTrainingNetwork", hidden_MH: "Tensor", batch: "Batch") -> Score:
        return self.loss(network, hidden_MH[batch.predicted_rows_N], batch.masked_labels_N)

    def loss(self, network: "PreTrainingNetwork", hidden_NH: "Tensor", labels_N: "Tensor") -> Score:
        """Of the predicted rows alone; the logits never exist whole."""
        from earlybert.kernels.cross_entropy import linear_cross_entropy

        transformed_NH, bias_V = self._transformed(network, hidden_NH)
        return Score(*linear_cross_entropy(transformed_NH, network.decoder_weight, bias_V, labels_N))

    def logits(self, network: "PreTrainingNetwork", hidden_xH: "Tensor") -> "Tensor":
        """Rows of the padded vocabulary are minus infinity."""
        import torch.nn.functional as F

        transformed_xH, bias_V = self._transformed(network, hidden_xH)
        return F.linear(transformed_xH, network.decoder_weight, bias_V)

    def _transformed(self, network: "PreTrainingNetwork", hidden_xH: "Tensor") -> "tuple[Tensor, Tensor]":
        transform = cast("MaskedTokenTransform", network.get_submodule("masked_token"))
        return cast("tuple[Tensor, Tensor]", transform(hidden_xH))
