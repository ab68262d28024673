"""Which samples a step takes, whoever computes what."""

import dataclasses
from collections import Counter
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.samples.order import sample_order
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import PhaseConfig, Recipe
from earlybert.pretrain.plan.stages import Stage, build_stages
from earlybert.pretrain.train.batches import StepBatches, StepLoader
from tests.data_prep.one_by_one import mask_sample

LENGTH, PREDICTIONS, GLOBAL_BATCH, SEED = 32, 4, 11, 5
PHASE = PhaseConfig(
    length=LENGTH,
    max_predictions=PREDICTIONS,
    global_batch=GLOBAL_BATCH,
    micro_batch=4,
    steps=50,
    learning_rate=0.01,
    warmup=0.2,
)
RECIPE = Recipe(phase1=PHASE, phase2=PHASE, plan=["phase1"], seed=SEED)
STAGE: Stage = build_stages(RECIPE)[0]
# (world size, micro-batch): even, uneven, one each, more room than samples, ranks without any.
LAYOUTS = [(1, 11), (1, 4), (1, 1), (2, 4), (2, 3), (3, 2), (4, 3), (2, 64), (8, 2), (11, 1)]
Row = tuple[tuple[int, ...], ...]


def loaders(
    corpus: Corpus, world_size: int = 1, micro_batch: int = 4, split: str = "train", **changes: Any
) -> list[StepLoader]:
    recipe = dataclasses.replace(RECIPE, **changes)
    options: dict[str, Any] = {"global_batch": GLOBAL_BATCH, "micro_batch": micro_batch, "world_size": world_size}
    stage = build_stages(recipe)[0]
    return [StepLoader(corpus, split, stage, recipe, rank=rank, **options) for rank in range(world_size)]


def rows(batch: Batch) -> list[Row]:
    """Every sequence of a batch: tokens, segments, predicted positions and their labels, label of the segments."""
    predicted_T = batch.needed_rows_M[batch.predicted_rows_N].tolist()
    predicted = dict(zip(predicted_T, batch.masked_labels_N.tolist(), strict=True))
    found: list[Row] = []
    for index, (start, end) in enumerate(pairwise(batch.tokens.bounds.tolist())):
        positions = [row for row in range(start, end) if row in predicted]
        found.append(
            (
                tuple(batch.input_ids_T[start:end].tolist()),
                tuple(batch.token_type_ids_T[start:end].tolist()),
                tuple(row - start for row in positions),
                tuple(predicted[row] for row in positions),
                (int(batch.segment_labels_B[index]),),
            )
        )
    return found


def step_rows(steps: list[StepBatches]) -> Counter[Row]:
    return Counter(row for step in steps for batch in step.batches if batch.weight for row in rows(batch))


def expected_rows(corpus: Corpus, position: int) -> Counter[Row]:
    """The samples of the step at `position`, one by one, by the contract: order and masks of (seed, epoch, index)."""
    samples = corpus.samples("train", LENGTH)
    expected = []
    for place in range(position, position + GLOBAL_BATCH):
        epoch = place // len(samples)
        index = int(sample_order(len(samples), seed=SEED, epoch=epoch)[place % len(samples)])
        (sample,) = samples.rows([index])
        masked = mask_sample(
            sample.input_ids,
            corpus.special_tokens,
            corpus.vocab_size,
            seed=SEED,
            epoch=epoch,
            index=index,
            max_predictions=PREDICTIONS,
        )
        segments = [int(i >= sample.first_length) for i in range(len(sample.input_ids))]
        expected.append(
            (
                tuple(masked.input_ids_T.tolist()),
                tuple(segments),
                tuple(masked.positions_N.tolist()),
                tuple(masked.labels_N.tolist()),
                (sample.next_sentence_label,),
            )
        )
    return Counter(expected)


@pytest.mark.parametrize(("world_size", "micro_batch"), LAYOUTS)
def test_layout_decides_only_who_computes_what(small_corpus: Corpus, world_size: int, micro_batch: int) -> None:
    count = len(small_corpus.samples("train", LENGTH))
    for position in (0, GLOBAL_BATCH, count - 4, 3 * count + 1):
        steps = [loader.load(position).kept() for loader in loaders(small_corpus, world_size, micro_batch)]
        assert step_rows(steps) == expected_rows(small_corpus, position)
        assert sum(step.work.sequences for step in steps) == GLOBAL_BATCH
        assert len({step.micro_batches for step in steps}) == 1
        assert all(len(list(step.batches)) == step.micro_batches for step in steps)
        assert all(len(batch.tokens.lengths) <= micro_batch for step in steps for batch in step.batches)


def test_counts_are_those_of_the_rows(small_corpus: Corpus) -> None:
    for step in (loader.load(22).kept() for loader in loaders(small_corpus, 4, 3)):
        found = [row for batch in step.batches if batch.weight for row in rows(batch)]
        assert step.work.sequences == len(found)
        assert step.work.predictions == sum(len(row[2]) for row in found)
        assert step.work.tokens == sum(len(row[0]) for row in found)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("probability", [0.15, 0.6, 1.0])
def test_work_is_known_before_anything_is_masked(
    packed_corpus: Corpus, packed: bool, whole_words: bool, probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layout, over the end of an epoch, counted in pieces."""
    monkeypatch.setattr("earlybert.pretrain.train.batches.SAMPLES_PER_COUNT", 5)
    recipe = dataclasses.replace(RECIPE, mask_probability=probability)
    for world_size, micro_batch in [(1, 4), (3, 2), (8, 2)]:
        options: dict[str, Any] = {
            "global_batch": GLOBAL_BATCH,
            "micro_batch": micro_batch,
            "world_size": world_size,
            "whole_words": whole_words,
            "packed": packed,
        }
        parts = [StepLoader(packed_corpus, "train", STAGE, recipe, rank=rank, **options) for rank in range(world_size)]
        count = len(parts[0].packing or parts[0].samples)
        for position in (0, count - 4):
            for step in (loader.load(position).kept() for loader in parts):
                assert step.work == Work.total(Work.of(batch) for batch in step.batches if batch.weight)


def test_position_alone_decides(small_corpus: Corpus) -> None:
    """Neither what was loaded before nor the loader's own history matters, and one step follows on the other."""
    (used,) = loaders(small_corpus)
    for position in (500, 0, 77):
        used.load(position).kept()
    (fresh,) = loaders(small_corpus)
    assert step_rows([used.load(33)]) == step_rows([fresh.load(33)])


def unmasked(row: Row) -> tuple[int, ...]:
    """What the tokens were before masking."""
    tokens = list(row[0])
    for position, label in zip(row[2], row[3], strict=True):
        tokens[position] = label
    return tuple(tokens)


def epoch_rows(corpus: Corpus, epoch: int, **changes: Any) -> list[Row]:
    """All rows of an epoch in order, sample by sample."""
    recipe = dataclasses.replace(RECIPE, **changes)
    loader = StepLoader(corpus, "train", STAGE, recipe, global_batch=1, micro_batch=1, rank=0, world_size=1)
    count = len(corpus.samples("train", LENGTH))
    return [rows(loader.batch(position, 0))[0] for position in range(epoch * count, (epoch + 1) * count)]


def test_every_epoch_shows_every_sample_once_in_its_own_order(small_corpus: Corpus) -> None:
    samples = small_corpus.samples("train", LENGTH)
    stored = [tuple(sample.input_ids.tolist()) for sample in samples.rows(range(len(samples)))]
    first, second = ([unmasked(row) for row in epoch_rows(small_corpus, epoch)] for epoch in (0, 1))
    assert Counter(first) == Counter(second) == Counter(stored)
    assert first != second and first != stored and second != stored


def rows_by_sample(corpus: Corpus, epoch: int, **changes: Any) -> dict[tuple[int, ...], Row]:
    return {unmasked(row): row for row in epoch_rows(corpus, epoch, **changes)}


def test_dynamic_masks_differ_between_epochs(small_corpus: Corpus) -> None:
    first, second = (rows_by_sample(small_corpus, epoch) for epoch in (0, 1))
    assert sum(first[tokens] != second[tokens] for tokens in first) > 0.9 * len(first)


def test_static_masks_stay(small_corpus: Corpus) -> None:
    first, second = (rows_by_sample(small_corpus, epoch, masking="static") for epoch in (0, 1))
    assert len(first) > 20 and first == second


def test_another_seed_gives_another_order_and_other_masks(small_corpus: Corpus) -> None:
    first, second = (loaders(small_corpus, seed=seed)[0].load(0) for seed in (1, 2))
    assert step_rows([first]) != step_rows([second])


def test_validation_is_always_the_same(small_corpus: Corpus) -> None:
    """The stored order, the same masks in every stage, whatever the masking of training."""
    samples = small_corpus.samples("validation", LENGTH)
    (loader,) = loaders(small_corpus, split="validation")
    step = loader.load(0).kept()
    originals = [unmasked(row) for batch in step.batches for row in rows(batch)]
    assert originals == [tuple(sample.input_ids.tolist()) for sample in samples.rows(range(GLOBAL_BATCH))]
    for changes in ({"masking": "static"}, {"micro_batch": 2, "world_size": 3}):
        others = loaders(small_corpus, split="validation", **changes)
        assert step_rows([other.load(0) for other in others]) == step_rows([step])


def test_masked_share_is_that_of_the_step(small_corpus: Corpus) -> None:
    """From a half in the first to a tenth in the 50th and last, whoever loads which step first, in every layout."""
    phase = PhaseConfig(**(vars(PHASE) | {"max_predictions": None}))
    recipe = dataclasses.replace(RECIPE, phase1=phase, phase2=phase, mask_probability={"from": 0.5, "to": 0.1})
    stage = build_stages(recipe)[0]

    def predictions(split: str, step: int, world_size: int = 1, micro_batch: int = 11) -> list[tuple[int, int]]:
        options: dict[str, Any] = {"global_batch": 11, "micro_batch": micro_batch, "world_size": world_size}
        every = [StepLoader(small_corpus, split, stage, recipe, rank=rank, **options) for rank in range(world_size)]
        loaded = [rows(batch) for loader in every for batch in loader.load(11 * step).batches if batch.weight]
        return sorted((len(row[0]), len(row[2])) for row in chain.from_iterable(loaded))

    for step in (49, 0, 30):
        share = 0.5 - 0.4 * step / 49
        found = predictions("train", step)
        assert len(found) == 11 and all(count == max(1, int(share * size + 0.5)) for size, count in found)
        assert found == predictions("train", step, 2, 3) == predictions("train", step, 3, 2)
    assert all(count == max(1, int(0.15 * size + 0.5)) for size, count in predictions("validation", 0))


@pytest.mark.parametrize(
    ("mask_probability", "max_predictions", "own"), [(0.05, None, 0.15), (0.15, 2, 0.15), (0.15, None, 0.3)]
)
def test_validation_has_its_own_share_in_full(
    small_corpus: Corpus, mask_probability: float, max_predictions: int | None, own: float
) -> None:
    """Whatever limits training: else losses of two runs did not compare."""
    phase = PhaseConfig(**(vars(PHASE) | {"max_predictions": max_predictions}))
    validation = dataclasses.replace(RECIPE.validation, mask_probability=own)
    recipe = dataclasses.replace(
        RECIPE, phase1=phase, phase2=phase, mask_probability=mask_probability, validation=validation
    )
    options: dict[str, Any] = {"global_batch": 11, "micro_batch": 11, "rank": 0, "world_size": 1}
    loader = StepLoader(small_corpus, "validation", build_stages(recipe)[0], recipe, **options)
    found = [(len(row[0]), len(row[2])) for batch in loader.load(0).batches for row in rows(batch)]
    assert len(found) == 11 and all(count == max(1, int(own * size + 0.5)) for size, count in found)


def test_whole_words_are_masked_whole(small_corpus: Corpus) -> None:
    """Every word has all its tokens predicted or none, but for words that are too long for any sample's share."""
    goes_on = small_corpus.continues_word
    options: dict[str, Any] = {"global_batch": 60, "micro_batch": 60, "rank": 0, "world_size": 1}
    shares = []
    for whole_words in (True, False):
        loader = StepLoader(small_corpus, "train", STAGE, RECIPE, whole_words=whole_words, **options)
        broken = total = 0
        for row in (row for batch in loader.load(0).batches for row in rows(batch)):
            tokens, predicted = unmasked(row), set(row[2])
            inside = [
                i
                for i in range(1, len(tokens))
                if goes_on[tokens[i]] and tokens[i - 1] not in small_corpus.special_tokens.ids
            ]
            total += len(predicted) > 1
            broken += len(predicted) > 1 and any((i in predicted) != (i - 1 in predicted) for i in inside)
        shares.append(broken / total)
    assert shares[0] == 0 and shares[1] > 0.5


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 11), (1, 4), (3, 2), (8, 2)])
def test_packed_rows_stay_together_and_every_sample_comes_once_an_epoch(
    packed_corpus: Corpus, world_size: int, micro_batch: int
) -> None:
    options: dict[str, Any] = {
        "global_batch": GLOBAL_BATCH,
        "micro_batch": micro_batch,
        "world_size": world_size,
        "packed": True,
    }
    parts = [StepLoader(packed_corpus, "train", STAGE, RECIPE, rank=rank, **options) for rank in range(world_size)]
    packing = packed_corpus.packed_rows("train", LENGTH)
    row_of = {int(sample): row for row, samples in enumerate(packing.rows(range(len(packing)))) for sample in samples}
    seen: list[int] = []
    positions = range(0, len(packing) - GLOBAL_BATCH, GLOBAL_BATCH)
    for position in positions:
        for loader in parts:
            for found in [loader.sample_indices(position, turn) for turn in range(loader.accumulation)]:
                assert len({row_of[sample] for sample in found}) <= micro_batch
                seen += found
    assert len(set(seen)) == len(seen)
    assert len({row_of[sample] for sample in seen}) == len(positions) * GLOBAL_BATCH, "rows are complete"
    assert len(seen) == sum(len(row) for row in packing.rows(sorted({row_of[sample] for sample in seen})))


def test_packed_batches_hold_whole_sequences_with_their_cumulative_lengths(packed_corpus: Corpus) -> None:
    options: dict[str, Any] = {"global_batch": 30, "micro_batch": 30, "rank": 0, "world_size": 1, "packed": True}
    loader = StepLoader(packed_corpus, "train", STAGE, RECIPE, **options)
    step = loader.load(0)
    (batch,) = step.batches
    samples = packed_corpus.samples("train", LENGTH).rows(loader.sample_indices(0, 0))
    assert [unmasked(row) for row in rows(batch)] == [tuple(sample.input_ids.tolist()) for sample in samples]
    bounds = batch.tokens.bounds
    assert bounds.dtype == torch.int32
    assert bounds.tolist() == np.cumsum([0, *(len(sample.input_ids) for sample in samples)]).tolist()
    assert step.work.tokens == bounds[-1] <= 30 * LENGTH and step.work.sequences == len(samples) > 30


def test_the_recipe_says_how_many_tokens_are_predicted(small_corpus: Corpus) -> None:
    """Halves are rounded up, and no sample has more than the stage allows; the defaults would give other numbers."""
    (loader,) = loaders(small_corpus, 1, GLOBAL_BATCH, mask_probability=0.05)
    (batch,) = loader.load(0).batches
    found = [len(row[2]) for row in rows(batch)]
    assert found == [min(PREDICTIONS, max(1, int(0.05 * length + 0.5))) for length in batch.tokens.lengths]
    assert max(found) < PREDICTIONS


# --- one batch -------------------------------------------------------------------------------------------------------


def test_tokens_and_segments_are_what_they_should_be(small_corpus: Corpus) -> None:
    special = small_corpus.special_tokens
    (loader,) = loaders(small_corpus, 1, GLOBAL_BATCH)
    (batch,) = loader.load(0).batches
    assert len(batch.tokens.lengths) == GLOBAL_BATCH and len(set(batch.tokens.lengths)) > 1
    for tokens, segments, positions in zip(
        batch.input_ids_T.split(batch.tokens.lengths),
        batch.token_type_ids_T.split(batch.tokens.lengths),
        batch.position_ids_T.split(batch.tokens.lengths),
        strict=True,
    ):
        width = len(tokens)
        separators = (tokens == special.sep).nonzero().flatten().tolist()
        assert tokens[0] == special.cls and len(separators) == 2 and separators[1] == width - 1
        assert special.pad not in tokens.tolist()
        first = separators[0] + 1
        assert segments.tolist() == [0] * first + [1] * (width - first)
        assert positions.tolist() == list(range(width))
    assert batch.needed_rows_M[batch.first_rows_B].tolist() == batch.tokens.bounds[:-1].tolist()
    assert all(tensor.dtype == torch.int64 for tensor in vars(batch).values() if torch.is_tensor(tensor))
    assert not set(batch.masked_labels_N.tolist()) & {special.pad, special.cls, special.sep, special.mask}


def test_single_segments_have_no_second_one(single_segment_corpus: Corpus) -> None:
    (loader,) = loaders(single_segment_corpus)
    for batch in loader.load(0).batches:
        assert not batch.token_type_ids_T.any() and not batch.segment_labels_B.any()


def test_stand_ins_keep_ranks_in_step(small_corpus: Corpus) -> None:
    """Eleven sequences, 8 ranks, two at a time: ranks 0 to 4 have two, rank 5 has one, ranks 6 and 7 none."""
    steps = [loader.load(0).kept() for loader in loaders(small_corpus, 8, 2)]
    assert [[batch.weight for batch in step.batches] for step in steps] == [[1.0]] * 6 + [[0.0]] * 2
    assert [step.work.sequences for step in steps] == [2, 2, 2, 2, 2, 1, 0, 0]
    assert [(step.work.predictions, step.work.tokens) for step in steps[6:]] == [(0, 0)] * 2
    assert all(len(batch.tokens.lengths) == 1 for step in steps[6:] for batch in step.batches)
