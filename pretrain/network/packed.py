"""Where the tokens of a packed batch lie.

Shape suffixes: B sequences, S positions, T tokens of all sequences packed, M of them that the heads need, N predicted
positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from earlybert.kernels.packing import Packing


@dataclass(frozen=True)
class PackedPlaces:
    """Where the tokens of a padded batch [B, S] go when its padding is left out, and which of them the heads need.

    `token_rows_T`: places of the tokens in the flattened B*S; `tokens` divides these T rows into sequences.
    `needed_rows_M`: rows of T whose last hidden state is needed, the first of every sequence among them; `needed`
    divides them likewise. `predicted_rows_N` and `first_rows_B`: rows of M that the two heads read. All int64.
    """

    tokens: Packing
    token_rows_T: Tensor
    needed: Packing
    needed_rows_M: Tensor
    predicted_rows_N: Tensor
    first_rows_B: Tensor

    @staticmethod
    def of(attention_mask_BS: Tensor, masked_positions_N: Tensor) -> "PackedPlaces":
        """For sequences of at least one token; positions are indices into the flattened B*S. To be made on the CPU."""
        attended_BS = attention_mask_BS.bool()
        token_rows_T = attended_BS.flatten().nonzero().flatten()
        tokens = Packing.of(attended_BS.sum(1).tolist())
        first_T = tokens.bounds[:-1].long()
        predicted_T = torch.searchsorted(token_rows_T, masked_positions_N)
        needed_rows_M = torch.cat((first_T, predicted_T)).unique()
        needed_bounds = torch.searchsorted(needed_rows_M, tokens.bounds.long())
        return PackedPlaces(
            tokens=tokens,
            token_rows_T=token_rows_T,
            needed=Packing.of(needed_bounds.diff().tolist()),
            needed_rows_M=needed_rows_M,
            predicted_rows_N=torch.searchsorted(needed_rows_M, predicted_T),
            first_rows_B=torch.searchsorted(needed_rows_M, first_T),
        )

    def to(self, device: torch.device) -> "PackedPlaces":
        return PackedPlaces(
            self.tokens.to(device),
            self.token_rows_T.to(device, non_blocking=True),
            self.needed.to(device),
            self.needed_rows_M.to(device, non_blocking=True),
            self.predicted_rows_N.to(device, non_blocking=True),
            self.first_rows_B.to(device, non_blocking=True),
        )
