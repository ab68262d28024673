"""The parts of the loss: what they say of themselves against what the network computes."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM, BertForNextSentencePrediction, BertForPreTraining

from earlybert.core.errors import UserError
from earlybert.pretrain.network.bert_format import bert_class, from_bert, to_bert
from earlybert.pretrain.network.losses.part import LossPart, classification_score
from earlybert.pretrain.network.losses.registry import LOSS_PARTS, corpus_losses, loss_parts
from earlybert.pretrain.network.parameters import parameter_shapes
from earlybert.pretrain.network.work import Work
from earlybert.pretrain.plan.checks import check_recipe
from earlybert.pretrain.plan.recipe import load_recipe, recipe_path
from earlybert.pretrain.train.objective import mean_scores, score_sums
from tests.pretrain.small_models import batch_of, build, random_weights, small_config


def test_a_network_of_zeros_guesses() -> None:
    """All answers have the same score then; every part's loss is what it says that guessing costs."""
    config = small_config()
    zeros = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    network, batch = build(config, zeros, torch.float64), batch_of((17, 9, 13, 10))
    with torch.no_grad():
        means = mean_scores(score_sums(network(batch), network.parts, 1.0), network.parts, Work.of(batch))
    assert means["masked_loss"] == pytest.approx(math.log(101), rel=1e-12)
    assert means["next_sentence_loss"] == pytest.approx(math.log(2), rel=1e-12)
    for part in network.parts:
        assert means[f"{part.name}_loss"] == pytest.approx(part.guessing(config), rel=1e-12)
    assert means["loss"] == pytest.approx(math.log(101) + math.log(2), rel=1e-12)
    assert [part.guessing_by_frequency(config, 3.5) for part in network.parts] == [3.5, math.log(2)]


def test_a_sequences_loss_is_fp32_under_bf16() -> None:
    """Of the rounded scores themselves: no rounding comes after them, and many losses add up."""
    generator = torch.Generator().manual_seed(2)
    logits_BC = (4 * torch.randn(300, 2, generator=generator)).bfloat16()
    labels_B = torch.randint(2, (300,), generator=generator)
    score = classification_score(logits_BC, labels_B)
    expected = nn.functional.cross_entropy(logits_BC.double(), labels_B, reduction="sum")
    assert score.loss.dtype == torch.float32 and float(score.loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("part", LOSS_PARTS, ids=lambda part: part.name)
def test_a_head_has_the_parameters_that_it_says(part: LossPart) -> None:
    """Names, shapes and order of the modules, and no name of another part."""
    config = small_config()
    made = {
        f"{name}.{parameter}": tuple(tensor.shape)
        for name, module in part.modules(config).items()
        for parameter, tensor in module.named_parameters()
    }
    assert list(made.items()) == [(name, facts.shape(config)) for name, facts in part.parameters.items()]
    others = [name for each in LOSS_PARTS if each is not part for name in each.parameters]
    assert not made.keys() & set(others)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (("masked", "next_sentence"), BertForPreTraining),
        (("masked",), BertForMaskedLM),
        (("next_sentence",), BertForNextSentencePrediction),
    ],
    ids=str,
)
def test_every_choice_of_losses_is_a_bert_and_comes_back(losses: tuple[str, ...], expected: type[nn.Module]) -> None:
    config = small_config(losses=losses)
    weights = random_weights(config)
    for name in ("masked_token.bias",) if "masked" in losses else ():
        weights[name][config.vocab_size :] = 0.0
    bert = to_bert(config, weights)
    assert type(bert) is bert_class(config) is expected
    back, tensors = from_bert(bert.config, bert.state_dict())
    assert back.losses == losses and tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)


def test_a_head_without_the_other_trains() -> None:
    """Next sentences alone: no head for the vocabulary, and every parameter has a gradient."""
    config = small_config(losses=("next_sentence",))
    network = build(config, random_weights(config))
    output = network(batch_of((5, 7)))
    assert list(output.scores) == ["next_sentence"]
    output.scores["next_sentence"].loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not any(name.startswith("masked_token") for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    ("names", "objective", "expected"),
    [
        ((), "nsp", ("masked", "next_sentence")),
        ((), "sop", ("masked", "next_sentence")),
        ((), "full-sentences", ("masked",)),
        (("next_sentence", "masked", "masked"), "nsp", ("masked", "next_sentence")),
        (("masked",), "nsp", ("masked",)),
    ],
)
def test_losses_of_a_corpus(names: tuple[str, ...], objective: str, expected: tuple[str, ...]) -> None:
    assert corpus_losses(names, objective) == expected


def test_losses_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"losses has 'maskd', which is no part of the loss; did you mean masked"):
        loss_parts(["maskd"])
    with pytest.raises(UserError, match="losses has 'next_sentence', for which a corpus of the objective 'full-sent"):
        corpus_losses(["masked", "next_sentence"], "full-sentences")
    recipe = dataclasses.replace(load_recipe(recipe_path("quickstart"), []), losses=["nsp"])
    with pytest.raises(UserError, match=r"losses has 'nsp', which is no part of the loss; it must be one of masked"):
        check_recipe(recipe)
