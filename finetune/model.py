"""The network of pre-training, full or narrow, with a head for a task on it, as it is trained.

With all units kept these are `transformers.BertForSequenceClassification`, `BertForTokenClassification` and
`BertForQuestionAnswering`, weight for weight; `finetune/saved.py` writes them as such.

They take padded batches, as Hugging Face's do, and compute without the padding, and no last hidden state that the head
does not read.

Shape suffixes: B sequences, S positions, T tokens of all sequences, N of them that the head reads,
H hidden size, C classes, 2 = start, end.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from earlybert.finetune.network import TrainedConfig, TrainedModel
from earlybert.kernels.dropout import dropout
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.losses.masked import MaskedTokens
from earlybert.pretrain.network.model import Encoder, PreTrainingNetwork

# The label of what is not to be learnt: tokens that are not masked, rows that only fill up a batch.
IGNORED = -100
MASKED_TOKENS = MaskedTokens()


@dataclass
class TaskOutput(ModelOutput):
    """What every model here gives: its loss where there were labels, as an fp32 scalar.

    That is the sum over what there is to learn, divided by `num_items_in_batch` where the caller counted it over more
    than this batch (the Trainer does, over an update and all ranks), else by the batch's own count: the mean.

    `head_penalty`, `neuron_penalty`: L1 norms of all coefficients, fp32 scalars; None unless searching.
    """

    loss: Tensor | None = None
    head_penalty: Tensor | None = None
    neuron_penalty: Tensor | None = None


@dataclass
class ClassifierOutput(TaskOutput):
    """`logits`: [B, C], or [B, S, C] where every token has a class."""

    logits: Tensor | None = None


@dataclass
class AnswerOutput(TaskOutput):
    """`start_logits`, `end_logits`: [B, S], minus infinity on padding."""

    start_logits: Tensor | None = None
    end_logits: Tensor | None = None


def _mean(sum_of_losses: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    if num_items_in_batch is None:
        num_items_in_batch = (labels != IGNORED).sum()
    # A batch of very short texts may have no masked token.
    return sum_of_losses / torch.as_tensor(num_items_in_batch, device=sum_of_losses.device).clamp(min=1)


def _cross_entropy(logits_NC: Tensor, label_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NC.float(), label_N, ignore_index=IGNORED, reduction="sum")


def _in_place(logits_NC: Tensor, read_BS: Tensor, elsewhere: float) -> Tensor:
    """[B, S, C]: the scores of the tokens that were read, in their places in the padded batch."""
    logits_BSC = logits_NC.new_full((*read_BS.shape, logits_NC.shape[1]), elsewhere)
    logits_BSC[read_BS] = logits_NC
    return logits_BSC


class TrainedForSequenceClassification(TrainedModel):
    """Pooler, dropout and a linear layer on the first token's state; with one label it is a regression."""

    def __init__(self, config: TrainedConfig) -> None:
        super().__init__(config, Encoder(config.network))
        self.pooler = nn.Linear(config.network.hidden_size, config.network.hidden_size)
        self.classifier = nn.Linear(config.network.hidden_size, config.num_labels or 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ClassifierOutput:
        """Token ids are [B, S]; `labels`, [B], are classes, or numbers for a regression (squared error)."""
        batch = Batch.of_padded(input_ids, attention_mask, token_type_ids)
        first_BH = self.network.encode(batch)[batch.first_rows_B]
        pooled_BH = torch.tanh(self.pooler(first_BH))
        pooled_BH = dropout(pooled_BH, self.network.config.hidden_dropout_prob if self.training else 0.0)
        logits_BC = self.classifier(pooled_BH)
        loss = None
        if labels is not None and self.config.num_labels == 1:
            given_B = labels != IGNORED
            squares = F.mse_loss(logits_BC.float().squeeze(1)[given_B], labels.float()[given_B], reduction="sum")
            loss = _mean(squares, labels, num_items_in_batch)
        elif labels is not None:
            loss = _mean(_cross_entropy(logits_BC, labels), labels, num_items_in_batch)
        return ClassifierOutput(loss=loss, logits=logits_BC, **self.network.penalties())


class TrainedForTokenClassification(TrainedModel):
    """Dropout and a linear layer on every token's state."""

    def __init__(self, config: TrainedConfig) -> None:
        super().__init__(config, Encoder(config.network))
        self.classifier = nn.Linear(config.network.hidden_size, config.num_labels or 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ClassifierOutput:
        """Token ids are [B, S], and so are `labels`, -100 where there is nothing to learn.

        The scores are those of the tokens with labels, without labels those of all tokens; else 0.
        """
        attended_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        read_BS = attended_BS.bool() if labels is None else labels != IGNORED
        batch = Batch.of_padded(input_ids, attended_BS, token_type_ids, predicted_BS=read_BS)
        state_NH = self.network.encode(batch)[batch.predicted_rows_N]
        state_NH = dropout(state_NH, self.network.config.hidden_dropout_prob if self.training else 0.0)
        logits_NC = self.classifier(state_NH)
        output = ClassifierOutput(logits=_in_place(logits_NC, read_BS, elsewhere=0.0), **self.network.penalties())
        if labels is not None:
            output.loss = _mean(_cross_entropy(logits_NC, labels[read_BS]), labels, num_items_in_batch)
        return output


class TrainedForQuestionAnswering(TrainedModel):
    """A linear layer that scores every token as the first and as the last of the answer."""

    def __init__(self, config: TrainedConfig) -> None:
        super().__init__(config, Encoder(config.network))
        self.qa_outputs = nn.Linear(config.network.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> AnswerOutput:
        """Token ids are [B, S], positions [B]; the loss is the mean of the two cross-entropies over a row's own tokens.

        (Over padding, too, as in Hugging Face's BERT, it would depend on the longest row in the batch.)
        """
        attended_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        batch = Batch.of_padded(input_ids, attended_BS, token_type_ids, predicted_BS=attended_BS.bool())
        logits_T2 = self.qa_outputs(self.network.encode(batch))
        start_BS, end_BS = _in_place(logits_T2, attended_BS.bool(), elsewhere=-torch.inf).unbind(-1)
        output = AnswerOutput(start_logits=start_BS, end_logits=end_BS, **self.network.penalties())
        if start_positions is not None and end_positions is not None:
            loss = (_cross_entropy(start_BS, start_positions) + _cross_entropy(end_BS, end_positions)) / 2
            output.loss = _mean(loss, start_positions, num_items_in_batch)
        return output


class TrainedForMaskedTokens(TrainedModel):
    """The masked-token objective on a task's text, for a search that looks at no label (EarlyBERT, Appendix B)."""

    network: PreTrainingNetwork

    def __init__(self, config: TrainedConfig) -> None:
        super().__init__(config, PreTrainingNetwork(config.network))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> TaskOutput:
        """`labels`, [B, S], are -100 where nothing is to be predicted."""
        assert labels is not None, "the masked tokens' own ids are what there is to learn"
        batch = Batch.of_padded(input_ids, attention_mask, token_type_ids, labels != IGNORED, labels)
        score = MASKED_TOKENS.score(self.network, self.network.encode(batch), batch)
        loss = _mean(score.loss, labels, num_items_in_batch)
        return TaskOutput(loss=loss, **self.network.penalties())


TaskModel = (
    type[TrainedForSequenceClassification] | type[TrainedForTokenClassification] | type[TrainedForQuestionAnswering]
)
