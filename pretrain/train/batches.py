"""From sample positions to the micro-batches of one optimizer step on one rank.

The position in the data is one integer: how many samples the stage has consumed. Which samples a step takes and how
they are masked depends on it alone; world size and micro-batch size only decide who computes what.

Shape suffixes: B sequences, T tokens of all sequences, N predicted tokens.
"""

import itertools
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from earlybert.core import ranks
from earlybert.data_prep.samples.corpus import Corpus, Sample
from earlybert.data_prep.samples.masking import Masked, mask_sample
from earlybert.data_prep.samples.order import sample_order
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import Recipe
from earlybert.pretrain.plan.stages import Stage


def collate(samples: list[Sample], masked: list[Masked], weight: float = 1.0) -> Batch:
    """Puts the tokens of all samples one after the other."""
    lengths = [len(mask.input_ids) for mask in masked]
    starts = itertools.accumulate(lengths[:-1], initial=0)
    second = [np.arange(n) >= sample.first_length for n, sample in zip(lengths, samples, strict=True)]
    return Batch.of(
        lengths,
        input_ids_T=_concatenated([mask.input_ids for mask in masked]),
        token_type_ids_T=_concatenated(second),
        predicted_T=_concatenated([start + mask.positions for start, mask in zip(starts, masked, strict=True)]),
        masked_labels_N=_concatenated([mask.labels for mask in masked]),
        segment_labels_B=torch.tensor([sample.next_sentence_label for sample in samples]),
        weight=weight,
    )


def _concatenated(arrays: list[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))


@dataclass(frozen=True)
class StepBatches:
    """What one rank computes in one optimizer step.

    `position` is where in the data the step begins, `samples` are the indices in the split of what each micro-batch
    holds, `work` is how much there is to compute; stand-ins have no samples and no work.
    """

    position: int
    batches: list[Batch]
    samples: list[list[int]]
    work: Work


class StepLoader:
    """Hands out whole optimizer steps of one stage to one rank: a pure function of the position.

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

    def _samples_at(self, positions: range) -> list[tuple[int, int]]:
        """(epoch, index of the sample in the stored split) of every sample at some positions."""
        count = len(self.samples if self.packing is None else self.packing)
        found: list[tuple[int, int]] = []
        for epoch in range(positions.start // count, (positions.stop - 1) // count + 1):
            first, last = max(positions.start - epoch * count, 0), min(positions.stop - epoch * count, count)
            indices = np.arange(first, last)
            if self.training:
                indices = sample_order(count, seed=self.recipe.seed, epoch=epoch, first=first, last=last)
            rows = [indices] if self.packing is None else self.packing.rows(indices.tolist())
            found += [(epoch, index) for row in rows for index in row.tolist()]
        return found

    def _positions(self, position: int, turn: int) -> range:
        """Ranks take turns of one micro-batch each; empty where the global batch has run out."""
        first = (turn * self.world_size + self.rank) * self.micro_batch
        return range(position + first, position + min(first + self.micro_batch, self.global_batch))

    def _batch(self, epochs_and_indices: list[tuple[int, int]], weight: float, share: float) -> Batch:
        samples = self.samples.rows([index for _, index in epochs_and_indices])
        masked = [
            mask_sample(
                sample.input_ids,
                self.special,
                self.vocab_size,
                seed=self.recipe.seed,
                epoch=epoch if self.training and self.recipe.masking == "dynamic" else 0,
                index=index,
                probability=share,
                max_predictions=self.stage.max_predictions,
                continues_word=self.continues_word,
            )
            for sample, (epoch, index) in zip(samples, epochs_and_indices, strict=True)
        ]
        return collate(samples, masked, weight)

    def _masked_share(self, position: int) -> float:
        """Share of the tokens to predict in the step at `position`; of the validation split always the same."""
        step = position // self.global_batch
        return self.stage.masks.share_at(step) if self.training else self.recipe.validation.mask_probability

    def load(self, position: int) -> StepBatches:
        """This rank's micro-batches of the step that begins at `position`."""
        batches, samples = [], []
        share = self._masked_share(position)
        for turn in range(self.accumulation):
            positions = self._positions(position, turn)
            found = self._samples_at(positions or range(position, position + 1))
            batches.append(self._batch(found, weight=float(bool(positions)), share=share))
            samples.append([index for _, index in found] if positions else [])
        work = Work.total(Work.of(batch) for batch in batches if batch.weight)
        return StepBatches(position, batches, samples, work)


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


def prefetched_steps(
    loader: StepLoader, position: int, workers: int = 0
) -> Generator[tuple[StepBatches, float], None, None]:
    """Steps from `position` on without end, each prepared while those before it train; with the seconds waited.

    Args:
        loader: What to load.
        position: Position of the first step.
        workers: Processes that prepare steps; with 0 a thread does, which competes with the training for Python.
    """
    positions = itertools.count(position, loader.global_batch)
    if workers == 0:
        yield from _timed(_threaded(loader, positions))
        return
    steps = DataLoader(_Steps(loader), batch_size=None, sampler=positions, num_workers=workers)
    yield from _timed(iter(steps))


class _Steps(Dataset[StepBatches]):
    """What a `DataLoader` asks for items: an item is the step at a position."""

    def __init__(self, loader: StepLoader) -> None:
        self.loader = loader

    def __getitem__(self, position: int) -> StepBatches:
        return self.loader.load(position)


def _threaded(loader: StepLoader, positions: Iterator[int]) -> Iterator[StepBatches]:
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(loader.load, next(positions))
        while True:
            step, upcoming = upcoming, executor.submit(loader.load, next(positions))
            yield step.result()


def _timed(steps: Iterator[StepBatches]) -> Iterator[tuple[StepBatches, float]]:
    while True:
        began = time.perf_counter()
        step = next(steps)
        yield step, time.perf_counter() - began
