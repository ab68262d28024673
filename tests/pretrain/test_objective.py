"""A step's loss, L1 term and dropout, whatever the accumulation and the number of ranks."""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.losses.registry import loss_parts
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.recipe import Recipe, SearchConfig, load_recipe, recipe_path
from earlybert.pretrain.plan.stages import Stage, build_stages
from earlybert.pretrain.train.batches import StepBatches
from earlybert.pretrain.train.objective import mean_scores, penalty, score_sums, step_share
from earlybert.pretrain.train.step import compute_step, train_step, validate
from earlybert.pretrain.train.timing import StepTimes
from tests.pretrain.small_models import (
    PlainEngine,
    batch_of,
    build,
    gradients_of_step,
    padded_labels,
    padded_logits,
    random_weights,
    small_config,
)
from tests.pretrain.test_batches import GLOBAL_BATCH, LAYOUTS, expected_rows, loaders

SEARCH = SearchConfig(lambda_heads=3e-4, lambda_neurons=1e-4)


def made_up_batch(seed: int, weight: float = 1.0) -> Batch:
    return dataclasses.replace(batch_of((12, 12, 12), seed), weight=weight)


def gradients(batches: list[Batch], *, with_penalty: bool, work: Work | None = None) -> dict[str, Tensor]:
    """Gradient of one step as the loop forms it; `work` is the global batch's where the batches are one rank's."""
    config = small_config(searching=True)
    model = PreTrainingNetwork(config)
    weights = initial_weights(config, seed=4)
    for name, tensor in weights.items():
        if name.endswith("coefficients"):
            tensor[::3] *= -1.0
    model.load_state_dict(weights)
    return gradients_of_step(model, batches, SEARCH if with_penalty else None, work)


@pytest.mark.parametrize("weights", [(1.0,), (1.0,) * 3, (1.0,) * 8, (1.0, 0.0)], ids=str)
def test_l1_gradient_is_lambda_times_sign(weights: tuple[float, ...]) -> None:
    """A stand-in carries its share, too."""
    batches = [made_up_batch(seed, weight) for seed, weight in enumerate(weights)]
    plain, penalised = gradients(batches, with_penalty=False), gradients(batches, with_penalty=True)
    for name, gradient in penalised.items():
        difference = gradient - plain[name]
        if not name.endswith("coefficients"):
            assert torch.equal(difference, torch.zeros_like(difference)), name
            continue
        strength = SEARCH.lambda_heads if "attention" in name else SEARCH.lambda_neurons
        sign = torch.ones_like(difference)
        sign[::3] = -1.0
        torch.testing.assert_close(difference, strength * sign, rtol=1e-3, atol=0)


def test_a_stand_in_batch_changes_no_gradient() -> None:
    """A rank without samples takes part with weight 0: the others' mean over one share more is the same sum."""
    batches = [made_up_batch(seed) for seed in range(3)]
    alone = gradients(batches, with_penalty=False)
    accompanied = gradients([*batches, made_up_batch(9, weight=0.0)], with_penalty=False)
    for name, gradient in alone.items():
        torch.testing.assert_close(accompanied[name], gradient, rtol=1e-5, atol=1e-7)


class RecordingEngine(PlainEngine):
    """Takes no step; keeps the losses that it was given."""

    def __init__(self, model: PreTrainingNetwork, micro_batches: int) -> None:
        super().__init__(model, micro_batches)
        self.engine, self.times, self.losses = model, StepTimes(self.device), list[float]()

    def backward_and_step(self, loss: Tensor) -> None:
        self.losses.append(float(loss.detach()))
        super().backward_and_step(loss)


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """What all ranks add up is, here, this rank's numbers as often as there are ranks."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(world_size))


def stage_engine(dropout: float = 0.0) -> Any:
    """For what wants the whole of DeepSpeed's engine, but uses only this; two micro-batches a step."""
    config = small_config(searching=True, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return RecordingEngine(build(config, random_weights(config)), 2)


def step_batches(*seeds: int) -> StepBatches:
    batches = [made_up_batch(seed) for seed in seeds]
    return StepBatches(40, Work.total(map(Work.of, batches)), len(batches), batches)


def searching_stage() -> tuple[Stage, Recipe]:
    recipe = dataclasses.replace(load_recipe(recipe_path("quickstart"), []), search=SEARCH)
    stage = build_stages(recipe)[0]
    assert stage.searching
    return stage, recipe


def test_two_ranks_take_the_step_of_one_with_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed averages the ranks' gradients; the L1 term is in the average once."""
    batches = [made_up_batch(seed) for seed in range(4)]
    expected = gradients(batches, with_penalty=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    work = Work.total(map(Work.of, batches))
    ranks = [gradients(own, with_penalty=True, work=work) for own in (batches[:2], batches[2:])]
    for name, gradient in expected.items():
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, gradient, rtol=1e-4, atol=1e-7)


def test_what_is_logged_is_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with the same batches have the means of one, of twice as much work."""
    stage, recipe = searching_stage()
    found = []
    for world_size in (1, 2):
        as_rank(monkeypatch, 0, world_size)
        engine = stage_engine()
        sums, l1, work = compute_step(engine, step_batches(1, 2), stage, recipe)
        trained = mean_scores(sums, loss_parts(engine.config.losses), work)
        found.append((trained, l1, validate(engine, step_batches(1, 2)), work.sequences))
    assert found[1][:3] == found[0][:3] and (found[0][3], found[1][3]) == (6, 12)
    norms = {"attention": 0.0, "feed_forward": 0.0}
    for name, tensor in random_weights(small_config(searching=True)).items():
        if name.endswith("coefficients"):
            norms[name.split(".")[2]] += float(tensor.abs().sum())
    strengths = {"attention": SEARCH.lambda_heads, "feed_forward": SEARCH.lambda_neurons}
    assert found[0][1] == pytest.approx(sum(strengths[part] * norm for part, norm in norms.items()))


def test_micro_batches_and_ranks_have_dropout_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sequences twice in a step, on two ranks, and once more on the first."""
    stage, recipe = searching_stage()
    losses = []
    for rank in (0, 1, 0):
        as_rank(monkeypatch, rank, 2)
        engine = stage_engine(dropout=0.1)
        compute_step(engine, step_batches(1, 1), stage, recipe)
        losses.append(engine.losses)
    assert len({*losses[0], *losses[1]}) == 4 and losses[2] == losses[0]


def test_a_slow_loader_changes_no_step_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two micro-batches that take 2 s each to compute and 30 s each to load, in a step that 5 s were waited for."""
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def taking(seconds: float, items: Iterable[Any]) -> Iterator[Any]:
        nonlocal now
        for item in items:
            now += seconds
            yield item

    class TimedEngine(RecordingEngine):
        micro_batch, peak_flops = 3, 1e9

        def forward(self, batch: Batch) -> Any:
            return next(taking(2, [super().forward(batch)]))

        def set_learning_rate(self, learning_rate: float) -> None: ...

        def gradient_norm(self) -> float:
            return 1.0

        loss_scale = gradient_norm

    as_rank(monkeypatch, 0, 1)
    stage, recipe = searching_stage()
    config = small_config(searching=True)
    engine: Any = TimedEngine(build(config, random_weights(config)), 2)
    (batches,) = engine.times.waiting_for_data(taking(5, [step_batches(1, 2)]))
    work = batches.work
    loaded = dataclasses.replace(batches, batches=taking(30, batches.batches))
    found = train_step(engine, loaded, stage, recipe, step=0)
    assert (found["seconds"], found["data_seconds"]) == (4, 65)
    assert found["tokens_per_second"] == work.tokens / 4


def network(corpus: Corpus, *, searching: bool = False) -> PreTrainingNetwork:
    """float64, no dropout."""
    losses = ("masked", "next_sentence") if corpus.objective == "nsp" else ("masked",)
    config = small_config(vocab_size=corpus.vocab_size, losses=losses, searching=searching)
    return build(config, random_weights(config), torch.float64)


def direct_loss(corpus: Corpus, model: PreTrainingNetwork, position: int) -> tuple[float, float]:
    """(mean over masked tokens, mean over sequences) of cross-entropies, one unpadded sequence at a time."""
    masked, next_sentence = [], []
    for tokens, segments, positions, labels, (label,) in expected_rows(corpus, position).elements():
        inputs = {"input_ids": torch.tensor([tokens]), "token_type_ids": torch.tensor([segments])}
        output = padded_logits(model, **inputs)
        log_probabilities = output.prediction_logits[0, list(positions)].log_softmax(-1)
        masked += [-float(row[token]) for row, token in zip(log_probabilities.detach(), labels, strict=True)]
        if output.seq_relationship_logits is not None:
            logits = output.seq_relationship_logits.detach()
            next_sentence.append(float(F.cross_entropy(logits, torch.tensor([label]))))
    return float(np.mean(masked)), float(np.mean(next_sentence)) if next_sentence else 0.0


@pytest.mark.parametrize("name", ["small_corpus", "single_segment_corpus"])
def test_loss_is_the_mean_over_the_global_batch_in_every_layout(name: str, request: pytest.FixtureRequest) -> None:
    corpus: Corpus = request.getfixturevalue(name)
    model = network(corpus)
    masked, next_sentence = direct_loss(corpus, model, 22)
    for world_size, micro_batch in LAYOUTS:
        steps = [loader.load(22).kept() for loader in loaders(corpus, world_size, micro_batch)]
        work = Work.total(step.work for step in steps)
        outputs = [(model(batch), model.parts, batch.weight) for step in steps for batch in step.batches]
        total = sum(float(step_share(output, parts, work, weight).detach()) for output, parts, weight in outputs)
        assert total == pytest.approx(masked + next_sentence, rel=1e-9)
        sums = torch.stack([score_sums(*each) for each in outputs]).sum(0)
        means = mean_scores(sums, model.parts, work)
        assert means["loss"] == pytest.approx(total, rel=1e-12)
        assert means["masked_loss"] == pytest.approx(masked, rel=1e-9)
        assert means.get("next_sentence_loss", 0.0) == pytest.approx(next_sentence, rel=1e-9)


def test_gradient_is_the_same_in_every_layout(small_corpus: Corpus) -> None:
    gradients = []
    for world_size, micro_batch in [(1, 11), (2, 3), (8, 2)]:
        steps = [loader.load(0).kept() for loader in loaders(small_corpus, world_size, micro_batch)]
        batches = [batch for step in steps for batch in step.batches]
        found = gradients_of_step(network(small_corpus), batches)
        gradients.append(torch.cat([gradient.flatten() for gradient in found.values()]))
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / gradients[0].norm()) < 1e-6


def test_correct_predictions_are_counted(small_corpus: Corpus) -> None:
    """Labels are what the padded network scores highest, or for some of them something else."""
    model = network(small_corpus)
    (batch,) = loaders(small_corpus, 1, GLOBAL_BATCH)[0].load(0).batches
    with torch.no_grad():
        output = padded_logits(model, **batch.padded(small_corpus.special_tokens.pad))
        best = output.prediction_logits[padded_labels(batch)["labels"] != -100].argmax(-1)
        relation = output.seq_relationship_logits.argmax(-1)
        odd = torch.arange(len(best)) % 2
        labels = torch.where(odd == 1, (best + 1) % small_corpus.vocab_size, best)
        segments = torch.where(torch.arange(GLOBAL_BATCH) < 3, relation, 1 - relation)
        found = model(dataclasses.replace(batch, masked_labels_N=labels, segment_labels_B=segments)).scores
    assert int(found["masked"].correct) == (len(labels) + 1) // 2
    assert int(found["next_sentence"].correct) == 3


def test_stand_in_adds_nothing_and_still_has_a_gradient(small_corpus: Corpus) -> None:
    """Its backward pass must reach every parameter, or the other ranks wait for ever in their collectives."""
    model = network(small_corpus)
    stand_in = loaders(small_corpus, 8, 2)[7].batch(0, 0)
    output = model(stand_in)
    assert score_sums(output, model.parts, stand_in.weight).tolist() == [0.0] * 4
    step_share(output, model.parts, Work(predictions=5, sequences=7), stand_in.weight).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_penalty_has_the_gradient_of_its_strengths(small_corpus: Corpus) -> None:
    """lambda * sign(c), nothing more: whatever else is computed with the coefficients is left out here."""
    model = network(small_corpus, searching=True)
    model.get_parameter("layers.0.attention.output.coefficients").data[1] = -0.4
    batch = loaders(small_corpus)[0].batch(0, 0)
    penalty(model(batch), 1e-4, 3e-4).backward()
    for name, parameter in model.named_parameters():
        if name.endswith("coefficients"):
            strength = 1e-4 if "attention" in name else 3e-4
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, strength * parameter.detach().sign(), rtol=1e-6, atol=0)
        else:
            assert parameter.grad is None or not parameter.grad.any()


def test_the_network_takes_a_batch(small_corpus: Corpus) -> None:
    (loader,) = loaders(small_corpus)
    output = network(small_corpus)(loader.batch(0, 0))
    assert list(output.scores) == ["masked", "next_sentence"]
    assert all(value.shape == () for score in output.scores.values() for value in score)
