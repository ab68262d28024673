"""What the network computes at once: the tokens of several sequences, one after the other, without padding.

Shape suffixes: B sequences, S positions, T tokens of all sequences, M of them that the losses need, N predicted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from earlybert.kernels.packing import Packing


@dataclass(frozen=True)
class Batch:
    """One micro-batch; all tensors are int64.

    Attributes:
        tokens: how the T tokens divide into sequences.
        input_ids_T: the tokens, hidden ones replaced.
        token_type_ids_T: 1 in the second segment, else 0.
        position_ids_T: where in its sequence a token stands.
        needed: how the M needed tokens divide into sequences.
        needed_rows_M: rows of T whose last hidden state the losses need, the first of every sequence among them.
        first_rows_B: the first token of every sequence, as rows of M.
        predicted_rows_N: the hidden tokens, as rows of M.
        masked_labels_N: what was hidden there.
        segment_labels_B: of the second segment: 1 where it is random or, in a corpus of swapped ones, stands before the
            first.
        weight: 0 for a stand-in that only keeps the ranks in step, else 1.
    """

    tokens: Packing
    input_ids_T: Tensor
    token_type_ids_T: Tensor
    position_ids_T: Tensor
    needed: Packing
    needed_rows_M: Tensor
    first_rows_B: Tensor
    predicted_rows_N: Tensor
    masked_labels_N: Tensor
    segment_labels_B: Tensor
    weight: float = 1.0

    @staticmethod
    def of(
        lengths: Sequence[int],
        input_ids_T: Tensor,
        token_type_ids_T: Tensor,
        predicted_T: Tensor,
        masked_labels_N: Tensor,
        segment_labels_B: Tensor,
        weight: float = 1.0,
    ) -> "Batch":
        """Of sequences of at least one token each. `predicted_T`, [N], are the rows of T with the hidden tokens."""
        tokens = Packing.of(lengths)
        first_T = tokens.bounds[:-1].long()
        needed_rows_M = torch.cat((first_T, predicted_T)).unique()
        needed_bounds = torch.searchsorted(needed_rows_M, tokens.bounds.long())
        return Batch(
            tokens=tokens,
            input_ids_T=input_ids_T,
            token_type_ids_T=token_type_ids_T,
            position_ids_T=torch.cat([torch.arange(length) for length in lengths]),
            needed=Packing.of(needed_bounds.diff().tolist()),
            needed_rows_M=needed_rows_M,
            first_rows_B=torch.searchsorted(needed_rows_M, first_T),
            predicted_rows_N=torch.searchsorted(needed_rows_M, predicted_T),
            masked_labels_N=masked_labels_N,
            segment_labels_B=segment_labels_B,
            weight=weight,
        )

    @staticmethod
    def full(sequences: int, length: int, predictions: int, vocab_size: int) -> "Batch":
        """Made-up sequences of equal length, the longest that there are; what is in them means nothing."""
        starts_B1 = length * torch.arange(sequences)[:, None]
        predicted_T = (starts_B1 + torch.arange(1, 1 + min(predictions, length - 1))).flatten()
        ids_T = torch.arange(sequences * length) % vocab_size
        labels_B = torch.zeros(sequences, dtype=torch.int64)
        return Batch.of([length] * sequences, ids_T, ids_T * 0, predicted_T, ids_T[predicted_T], labels_B)

    def to(self, device: torch.device) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Packing):
                values[name] = value.to(device)
            elif isinstance(value, Tensor):
                values[name] = value.to(device, non_blocking=True)
        return Batch(**values)

    def padded(self, pad_token_id: int) -> dict[str, Tensor]:
        """input_ids, attention_mask and token_type_ids, [B, S], as Hugging Face's models take them."""
        device = self.input_ids_T.device
        length_B1 = torch.tensor(self.tokens.lengths, device=device)[:, None]
        attended_BS = torch.arange(max(self.tokens.lengths), device=device)[None] < length_B1
        input_ids_BS = torch.full(attended_BS.shape, pad_token_id, device=device)
        token_type_ids_BS = torch.zeros_like(input_ids_BS)
        input_ids_BS[attended_BS], token_type_ids_BS[attended_BS] = self.input_ids_T, self.token_type_ids_T
        return {"input_ids": input_ids_BS, "attention_mask": attended_BS.long(), "token_type_ids": token_type_ids_BS}
