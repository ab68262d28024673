"""What the network computes at once: the tokens of several sequences, one after the other, without padding.

Shape suffixes: B sequences, S positions, T tokens of all sequences, M of them that the losses need, N predicted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from earlybert.kernels.packing import Packing


class SlabLayout(NamedTuple):
    """What there is to know of a batch whose tensors lie one after the other in one, its slab."""

    lengths: tuple[int, ...]
    needed_lengths: tuple[int, ...]
    predictions: int
    weight: float = 1.0

    @property
    def sizes(self) -> list[int]:
        """Elements of all tensors in the order of their fields, and of the bounds, which come last."""
        tokens, needed, sequences = sum(self.lengths), sum(self.needed_lengths), len(self.lengths)
        each_token, each_prediction = [tokens] * 3, [self.predictions] * 2
        return [*each_token, needed, sequences, *each_prediction, sequences, sequences + 1]

    @property
    def words(self) -> int:
        """Elements of the slab."""
        return sum(self.sizes)


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
    weight: float

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
            position_ids_T=torch.arange(tokens.tokens) - first_T.repeat_interleave(torch.tensor(tokens.lengths)),
            needed=Packing.of(needed_bounds.diff().tolist()),
            needed_rows_M=needed_rows_M,
            first_rows_B=torch.searchsorted(needed_rows_M, first_T),
            predicted_rows_N=torch.searchsorted(needed_rows_M, predicted_T),
            masked_labels_N=masked_labels_N,
            segment_labels_B=segment_labels_B,
            weight=weight,
        )

    @staticmethod
    def of_padded(
        input_ids_BS: Tensor,
        attended_BS: Tensor | None,
        token_type_ids_BS: Tensor | None,
        predicted_BS: Tensor | None = None,
        labels_BS: Tensor | None = None,
    ) -> "Batch":
        """The inverse of `padded`, where the ids lie: without the padding, on which `attended_BS` is 0.

        `predicted_BS` is True where a last hidden state is needed beside every sequence's first; `labels_BS` has what
        was hidden there.
        """
        # The lengths are needed on the host, so all of it is packed there and copied back at once.
        device, input_ids_BS = input_ids_BS.device, input_ids_BS.cpu()
        attended_BS = torch.ones_like(input_ids_BS) if attended_BS is None else attended_BS.cpu()
        attended_BS = attended_BS.bool()
        none_T = torch.zeros(0, dtype=torch.int64)
        predicted_T = none_T if predicted_BS is None else predicted_BS.cpu()[attended_BS].nonzero().flatten()
        batch = Batch.of(
            attended_BS.sum(1).tolist(),
            input_ids_BS[attended_BS],
            torch.zeros_like(input_ids_BS[attended_BS])
            if token_type_ids_BS is None
            else token_type_ids_BS.cpu()[attended_BS],
            predicted_T,
            none_T if labels_BS is None else labels_BS.cpu()[attended_BS][predicted_T],
            torch.zeros(len(input_ids_BS), dtype=torch.int64),
        )
        return batch.to(device)

    @staticmethod
    def full(sequences: int, length: int, predictions: int, vocab_size: int) -> "Batch":
        """Made-up sequences of equal length, the longest that there are; what is in them means nothing."""
        starts_B1 = length * torch.arange(sequences)[:, None]
        predicted_T = (starts_B1 + torch.arange(1, 1 + min(predictions, length - 1))).flatten()
        ids_T = torch.arange(sequences * length) % vocab_size
        labels_B = torch.zeros(sequences, dtype=torch.int64)
        return Batch.of([length] * sequences, ids_T, ids_T * 0, predicted_T, ids_T[predicted_T], labels_B)

    @property
    def layout(self) -> SlabLayout:
        """Of the slab that `write` makes of it."""
        return SlabLayout(self.tokens.lengths, self.needed.lengths, len(self.masked_labels_N), self.weight)

    def write(self, slab: Tensor) -> None:
        """Puts all tensors into `slab`, int64 [`layout.words`] on the host, one after the other."""
        tensors = (
            self.input_ids_T,
            self.token_type_ids_T,
            self.position_ids_T,
            self.needed_rows_M,
            self.first_rows_B,
            self.predicted_rows_N,
            self.masked_labels_N,
            self.segment_labels_B,
            # Two of int32 together fill that many int64.
            torch.cat((self.tokens.bounds, self.needed.bounds)).view(torch.int64),
        )
        torch.cat(tensors, out=slab)

    @staticmethod
    def read(slab: Tensor, layout: SlabLayout) -> "Batch":
        """What was written into a slab, wherever that lies now; the tensors are parts of it."""
        ids_T, types_T, positions_T, rows_M, firsts_B, predicted_N, labels_N, segments_B, bounds = slab.split(
            layout.sizes
        )
        bounds_B, needed_bounds_B = bounds.view(torch.int32).chunk(2)
        return Batch(
            tokens=Packing(layout.lengths, bounds_B, max(layout.lengths)),
            input_ids_T=ids_T,
            token_type_ids_T=types_T,
            position_ids_T=positions_T,
            needed=Packing(layout.needed_lengths, needed_bounds_B, max(layout.needed_lengths)),
            needed_rows_M=rows_M,
            first_rows_B=firsts_B,
            predicted_rows_N=predicted_N,
            masked_labels_N=labels_N,
            segment_labels_B=segments_B,
            weight=layout.weight,
        )

    def to(self, device: torch.device) -> "Batch":
        """Where it is computed: one copy, which a GPU makes while the host goes on."""
        here = self.input_ids_T.device
        # "cuda" without a number is the GPU that is current, as everywhere in PyTorch, but equals none that has one.
        if device.type == here.type and device.index in (None, here.index):
            return self
        layout = self.layout
        slab = torch.empty(layout.words, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.write(slab)
        return Batch.read(slab.to(device, non_blocking=True), layout)

    def padded(self, pad_token_id: int) -> dict[str, Tensor]:
        """input_ids, attention_mask and token_type_ids, [B, S], as Hugging Face's models take them."""
        device = self.input_ids_T.device
        length_B1 = torch.tensor(self.tokens.lengths, device=device)[:, None]
        attended_BS = torch.arange(max(self.tokens.lengths), device=device)[None] < length_B1
        input_ids_BS = torch.full(attended_BS.shape, pad_token_id, device=device)
        token_type_ids_BS = torch.zeros_like(input_ids_BS)
        input_ids_BS[attended_BS], token_type_ids_BS[attended_BS] = self.input_ids_T, self.token_type_ids_T
        return {"input_ids": input_ids_BS, "attention_mask": attended_BS.long(), "token_type_ids": token_type_ids_BS}
