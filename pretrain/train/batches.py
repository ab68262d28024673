"""From sample positions to the micro-batches of one optimizer step on one rank.

The position in the data is one integer: how many samples the stage has consumed. Which samples a step takes and how
they are masked depends on it alone; world size and micro-batch size only decide who computes what.

Shape suffixes: B sequences, T tokens of all sequences, N predicted tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from earlybert.core import ranks
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.samples.masking import Masking
from earlybert.data_prep.samples.order import sample_order
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import Stage, predictions

# What a step's work is counted over at a time: few megabytes.
SAMPLES_PER_COUNT = 1 << 12


@dataclass(frozen=True)
class StepBatches:
    """What one rank computes in one optimizer step.

    `position` is where in the data the step begins; `work` is how much there is to compute, stand-ins left out;
    `micro_batches` is the number of the `batches`, the same on every rank. They come one after the other and only once,
    unless they are kept.
    """

    position: int
    work: Work
    micro_batches: int
    batches: Iterable[Batch]

    def kept(self) -> "StepBatches":
        """With all batches in memory, to be gone through more than once."""
        return replace(self, batches=list(self.batches))


class StepLoader:
    """One rank's part of a stage's optimizer steps, micro-batch by micro-batch: a pure function of the position.

    The epoch is `position // number of samples`; each epoch has its own order and, with dynamic masking, its own masks.
    For the validation split the order is the stored one and the masks never change.

    With `packed`, positions, `global_batch` and `micro_batch` count rows of the corpus's packing, each of which holds
    several samples; the samples of a row stay together and each is a sequence of the batch.
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
        whole_words: bool = False,
        packed: bool = False,
    ) -> None:
        self.samples = corpus.samples(split, stage.length)
        self.packing = corpus.packed_rows(split, stage.length) if packed else None
        self.continues_word = corpus.continues_word if whole_words else None
        self.special, self.vocab_size = corpus.special_tokens, corpus.vocab_size
        self.stage, self.recipe, self.training = stage, recipe, split == "train"
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.rank, self.world_size = rank, world_size
        self.accumulation = -(-global_batch // (micro_batch * world_size))

    def load(self, position: int) -> StepBatches:
        """This rank's part of the step that begins at `position`; each micro-batch is made when it is asked for."""
        batches = (self.batch(position, turn) for turn in range(self.accumulation))
        return StepBatches(position, self.work(position), self.accumulation, batches)

    def batch(self, position: int, turn: int) -> Batch:
        """This rank's micro-batch 0, 1, ... of the step at `position`; a stand-in where the samples have run out."""
        positions = self._positions(position, turn)
        epochs, indices = self._samples(*self._rows(positions or range(position, position + 1)))
        samples = self.samples.rows(indices.tolist())
        masked = self.masking(position).mask(samples.input_ids, samples.bounds, self._places(epochs, indices))
        firsts = samples.bounds[:-1] + samples.first_lengths
        in_second = np.arange(samples.bounds[-1]) >= firsts.repeat(samples.lengths)
        return Batch.of(
            samples.lengths.tolist(),
            input_ids_T=torch.from_numpy(masked.input_ids_T.astype(np.int64)),
            token_type_ids_T=torch.from_numpy(in_second.astype(np.int64)),
            predicted_T=torch.from_numpy(masked.positions_N),
            masked_labels_N=torch.from_numpy(masked.labels_N.astype(np.int64)),
            segment_labels_B=torch.from_numpy(samples.next_sentence_labels),
            weight=float(bool(positions)),
        )

    def work(self, position: int) -> Work:
        """That of this rank's part of a step, known before any of it is made, as its counts divide the losses."""
        epochs, rows = self._rows(range(position, position + self.global_batch))
        own = np.arange(self.global_batch) // self.micro_batch % self.world_size == self.rank
        epochs, indices = self._samples(epochs[own], rows[own])
        masking, parts = self.masking(position), []
        for first in range(0, len(indices), SAMPLES_PER_COUNT):
            piece = slice(first, first + SAMPLES_PER_COUNT)
            samples = self.samples.rows(indices[piece].tolist())
            predicted = masking.count(samples.input_ids, samples.bounds, self._places(epochs[piece], indices[piece]))
            # The first token, [CLS], is needed as well.
            needed = predicted + 1
            parts.append(Work.of_lengths(samples.lengths.tolist(), needed.tolist(), int(predicted.sum())))
        return Work.total(parts)

    def sample_indices(self, position: int, turn: int) -> list[int]:
        """Which samples of the split a micro-batch holds; none for a stand-in."""
        positions = self._positions(position, turn)
        return self._samples(*self._rows(positions))[1].tolist() if positions else []

    def masking(self, position: int) -> Masking:
        """How the samples of the step at `position` are masked; those of the validation split always alike."""
        share, most = self.stage.masks.share_at(position // self.global_batch), self.stage.max_predictions
        if not self.training:
            # Its own share in full, whatever limits training: else losses of two runs did not compare.
            share = self.recipe.validation.mask_probability
            most = max(most, predictions(share, self.stage.length))
        return Masking(self.special, self.vocab_size, self.recipe.seed, most, share, self.continues_word)

    def _positions(self, position: int, turn: int) -> range:
        """Ranks take turns of one micro-batch each; empty where the global batch has run out."""
        first = (turn * self.world_size + self.rank) * self.micro_batch
        return range(position + first, position + min(first + self.micro_batch, self.global_batch))

    def _rows(self, positions: range) -> tuple[np.ndarray, np.ndarray]:
        """Of some positions the epochs, and which sample or row of the packing stands there: int64 [positions] each."""
        count = len(self.samples if self.packing is None else self.packing)
        epochs, rows = np.arange(positions.start, positions.stop) // count, []
        for epoch in range(positions.start // count, (positions.stop - 1) // count + 1):
            first, last = max(positions.start - epoch * count, 0), min(positions.stop - epoch * count, count)
            order = sample_order(count, seed=self.recipe.seed, epoch=epoch, first=first, last=last)
            rows.append(order if self.training else np.arange(first, last))
        return epochs, np.concatenate(rows)

    def _samples(self, epochs: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of the samples in these rows: int64 [samples] each."""
        if self.packing is None or not len(rows):
            return epochs, rows
        members = self.packing.rows(rows.tolist())
        return epochs.repeat([len(row) for row in members]), np.concatenate(members)

    def _places(self, epochs: np.ndarray, indices: np.ndarray) -> list[tuple[int, int]]:
        """What the masks of samples depend on."""
        changing = self.training and self.recipe.masking == "dynamic"
        return list(zip((epochs if changing else epochs * 0).tolist(), indices.tolist(), strict=True))


def stage_loader(corpus: Corpus, split: str, stage: Stage, recipe: Recipe, micro_batch: int) -> StepLoader:
    """This rank's steps of a stage; of the validation split one step is all that a validation takes."""
    global_batch = stage.global_batch
    if split == "validation":
        global_batch = min(recipe.validation.samples, len(corpus.samples(split, stage.length)))
    return StepLoader(
        corpus,
        split,
        stage,
        recipe,
        global_batch=global_batch,
        micro_batch=micro_batch,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
        whole_words=recipe.whole_words,
        packed=recipe.packed_rows and split == "train",
    )
