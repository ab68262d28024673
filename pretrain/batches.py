"""From sample positions to the micro-batches of one optimizer step on one rank.

The position in the data is one integer: how many samples the stage has consumed. Which samples a step takes and how
they are masked depends on it alone; world size and micro-batch size only decide who computes what.

Shape suffixes: B sequences, S positions, N predicted positions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earlybert.data_prep.corpus import Corpus, Sample
from earlybert.data_prep.masking import Masked, mask_sample, sample_order
from earlybert.pretrain.config import Recipe
from earlybert.pretrain.plan import Stage


@dataclass(frozen=True)
class Batch:
    """One micro-batch, int64 throughout. `weight` is 0 for a stand-in that only keeps the ranks in step, else 1."""

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    token_type_ids_BS: Tensor
    masked_positions_N: Tensor
    masked_labels_N: Tensor
    next_sentence_labels_B: Tensor
    weight: float = 1.0

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)

    def model_inputs(self) -> dict[str, Tensor]:
        return {
            "input_ids": self.input_ids_BS,
            "attention_mask": self.attention_mask_BS,
            "token_type_ids": self.token_type_ids_BS,
            "masked_positions": self.masked_positions_N,
        }


def collate(samples: list[Sample], masked: list[Masked], pad_token_id: int, weight: float = 1.0) -> Batch:
    """Pads to the longest sample; predicted positions are indices into the flattened [B * S]."""
    length = max(len(mask.input_ids) for mask in masked)
    input_ids_BS = np.full((len(masked), length), pad_token_id, dtype=np.int64)
    token_count_B = np.array([len(mask.input_ids) for mask in masked])
    first_length_B = np.array([sample.first_length for sample in samples])
    for row, mask in enumerate(masked):
        input_ids_BS[row, : len(mask.input_ids)] = mask.input_ids
    position_1S = np.arange(length)[None]
    attended_BS = position_1S < token_count_B[:, None]
    second_BS = attended_BS & (position_1S >= first_length_B[:, None])
    return Batch(
        input_ids_BS=torch.from_numpy(input_ids_BS),
        attention_mask_BS=torch.from_numpy(attended_BS.astype(np.int64)),
        token_type_ids_BS=torch.from_numpy(second_BS.astype(np.int64)),
        masked_positions_N=torch.from_numpy(
            np.concatenate([row * length + mask.positions for row, mask in enumerate(masked)]).astype(np.int64)
        ),
        masked_labels_N=torch.from_numpy(np.concatenate([mask.labels for mask in masked]).astype(np.int64)),
        next_sentence_labels_B=torch.tensor([sample.next_sentence_label for sample in samples]),
        weight=weight,
    )


@dataclass(frozen=True)
class StepBatches:
    """What one rank computes in one optimizer step, and how much of it counts.

    `tokens` are the real ones, padding left out.
    """

    batches: list[Batch]
    predictions: int
    sequences: int
    tokens: int


class StepLoader:
    """Hands out whole optimizer steps of one stage to one rank: a pure function of the position.

    The epoch is `position // number of samples`; each epoch has its own order and, with dynamic masking, its own masks.
    For the validation split the order is the stored one and the masks never change.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        stage: Stage,
        recipe: Recipe,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.samples = corpus.samples(split, stage.length)
        self.special, self.vocab_size = corpus.special_tokens, corpus.vocab_size
        self.stage, self.recipe, self.training = stage, recipe, split == "train"
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.rank, self.world_size = rank, world_size
        self.accumulation = -(-global_batch // (micro_batch * world_size))
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def _sample_index(self, position: int) -> tuple[int, int]:
        """(epoch, index of the sample in the stored split) at a position."""
        epoch, place = divmod(position, len(self.samples))
        if not self.training:
            return epoch, place
        if self._order[0] != epoch:
            self._order = (epoch, sample_order(len(self.samples), seed=self.recipe.seed, epoch=epoch))
        return epoch, int(self._order[1][place])

    def _batch(self, positions: list[int], weight: float = 1.0) -> Batch:
        places = [self._sample_index(position) for position in positions]
        samples = self.samples.rows([index for _, index in places])
        masked = [
            mask_sample(
                sample.input_ids,
                self.special,
                self.vocab_size,
                seed=self.recipe.seed,
                epoch=epoch if self.training and self.recipe.masking == "dynamic" else 0,
                index=index,
                probability=self.recipe.mask_probability,
                max_predictions=self.stage.max_predictions,
            )
            for sample, (epoch, index) in zip(samples, places, strict=True)
        ]
        return collate(samples, masked, self.special.pad, weight)

    def load(self, position: int) -> StepBatches:
        """The micro-batches of the step that begins at `position`; ranks take turns of one micro-batch each."""
        batches = []
        for turn in range(self.accumulation):
            first = (turn * self.world_size + self.rank) * self.micro_batch
            count = min(self.micro_batch, self.global_batch - first)
            if count > 0:
                batches.append(self._batch(list(range(position + first, position + first + count))))
            else:
                batches.append(self._batch([position], weight=0.0))
        real = [batch for batch in batches if batch.weight]
        return StepBatches(
            batches=batches,
            predictions=sum(len(batch.masked_labels_N) for batch in real),
            sequences=sum(len(batch.input_ids_BS) for batch in real),
            tokens=sum(int(batch.attention_mask_BS.sum()) for batch in real),
        )
