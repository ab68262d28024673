"""The networks with a task's head: Hugging Face's BERT when full, and the same everywhere when narrow."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    pipeline,
)

from earlybert.core.errors import UserError
from earlybert.finetune.methods import drop_layers, layers_to_drop
from earlybert.finetune.model import (
    TaskModel,
    TrainedForMaskedTokens,
    TrainedForQuestionAnswering,
    TrainedForSequenceClassification,
    TrainedForTokenClassification,
)
from earlybert.finetune.network import TrainedModel
from earlybert.finetune.pretrained import starting_weights, task_config
from earlybert.finetune.saved import hugging_face_model, save_trained
from earlybert.finetune.tasks.glue import GLUE
from earlybert.finetune.tasks.sentences import SentenceData
from earlybert.pretrain.checkpoint.pretrained import Pretrained, open_pretrained
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.ticket.drawing import random_ticket
from earlybert.pretrain.ticket.ticket import TicketRule, full_shape, narrow_config
from tests.finetune.made_up import tiny_bert, tiny_tokenizer

THREE = {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
HEADS: list[tuple[TaskModel, dict[str, Any]]] = [
    (TrainedForSequenceClassification, THREE),
    (TrainedForTokenClassification, THREE),
    (TrainedForQuestionAnswering, {}),
]

AUTO: dict[TaskModel, tuple[Any, type[PreTrainedModel]]] = {
    TrainedForSequenceClassification: (AutoModelForSequenceClassification, BertForSequenceClassification),
    TrainedForTokenClassification: (AutoModelForTokenClassification, BertForTokenClassification),
    TrainedForQuestionAnswering: (AutoModelForQuestionAnswering, BertForQuestionAnswering),
}


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(13)[None] < torch.tensor([[13], [9], [5]])).long()
    ids = torch.randint(5, 60, (3, 13), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(13)[None] > 4).long() * mask}


def labels(model: object) -> dict[str, Tensor]:
    if isinstance(model, (TrainedForQuestionAnswering, BertForQuestionAnswering)):
        return {"start_positions": torch.tensor([1, 2, 0]), "end_positions": torch.tensor([4, 2, 0])}
    if isinstance(model, (TrainedForTokenClassification, BertForTokenClassification)):
        every_third = torch.arange(13) % 3 == 1
        return {"labels": torch.where(batch()["attention_mask"].bool() & every_third, batch()["input_ids"] % 3, -100)}
    return {"labels": torch.tensor([2, 0, 1])}


def logits(model: PreTrainedModel) -> Tensor:
    """All scores of a batch, those of padding left out, which Hugging Face's BERT gives, too."""
    with torch.no_grad():
        output = model.eval()(**batch())
    if "logits" in output:
        return output.logits if output.logits.dim() == 2 else output.logits[batch()["attention_mask"].bool()]
    return torch.stack((output.start_logits, output.end_logits), -1)[batch()["attention_mask"].bool()]


def loss_over_own_tokens(theirs: PreTrainedModel) -> Tensor:
    """Hugging Face's loss; of answers, each row without its padding, which is where theirs would look, too."""
    if not isinstance(theirs, BertForQuestionAnswering):
        return theirs(**batch(), **labels(theirs)).loss
    losses = []
    for row, length in enumerate(batch()["attention_mask"].sum(1).tolist()):
        tokens = {name: value[row, None, :length] for name, value in batch().items()}
        targets = {name: value[row, None] for name, value in labels(theirs).items()}
        losses.append(theirs(**tokens, **targets).loss)
    return torch.stack(losses).mean()


def full(pretrained: Pretrained, model_class: TaskModel, head: dict[str, Any]) -> TrainedModel:
    config = task_config(pretrained, head, 0.0)
    model = model_class(config)
    model.load_state_dict(starting_weights(model_class, config, pretrained.weights, seed=3))
    return model


def narrow(pretrained: Pretrained, model_class: TaskModel, head: dict[str, Any]) -> TrainedModel:
    config = task_config(pretrained, head, 0.0)
    ticket = random_ticket(full_shape(config.network), TicketRule(neuron_ratio=0.4, width_multiple=1), seed=1)
    assert len({len(kept) for kept in ticket.neurons}) == 3  # a width of its own in every layer
    weights = starting_weights(model_class, config, pretrained.weights, seed=3)
    model = model_class(config.with_network(narrow_config(config.network, ticket)))
    model.load_state_dict(narrow_weights(config.network, weights, ticket))
    return model


@pytest.mark.parametrize(("model_class", "head"), HEADS)
def test_full_network_is_hugging_faces(bert: Path, model_class: TaskModel, head: dict[str, Any]) -> None:
    """The same scores, loss and gradients; the encoder and pooler are the checkpoint's own."""
    pretrained = open_pretrained(str(bert))
    ours = full(pretrained, model_class, head)
    theirs = hugging_face_model(ours, "bert")
    theirs_of_layer_1 = theirs.get_parameter("bert.encoder.layer.1.output.dense.weight")
    assert theirs_of_layer_1.equal(tiny_bert().get_parameter("bert.encoder.layer.1.output.dense.weight"))
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-6)
    losses = [ours(**batch(), **labels(ours)).loss, loss_over_own_tokens(theirs)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(
        ours.get_parameter("layers.1.feed_forward.output.weight").grad,
        theirs_of_layer_1.grad,
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize(("model_class", "head"), HEADS)
def test_neither_padding_nor_states_that_the_head_does_not_read_are_computed(
    bert: Path, model_class: TaskModel, head: dict[str, Any]
) -> None:
    model = full(open_pretrained(str(bert)), model_class, head)
    rows: list[int] = []
    for layer in model.network.encoder_layers:
        layer.feed_forward.register_forward_hook(lambda _, inputs, output: rows.append(len(inputs[0])))
    model(**batch())
    assert rows == [27, 27, 3 if model_class is TrainedForSequenceClassification else 27]
    if model_class is TrainedForTokenClassification:
        rows.clear()
        model(**batch(), **labels(model))
        assert rows == [27, 27, 3 + 9]  # every text's first token, too, though nothing reads it


def test_padding_comes_back_as_it_was() -> None:
    packed = Batch.of_padded(*(batch()[name] for name in ("input_ids", "attention_mask", "token_type_ids")))
    for name, values in packed.padded(0).items():
        assert torch.equal(values, batch()[name]), name


@pytest.mark.parametrize(("model_class", "head"), HEADS)
def test_narrow_network_exports_to_the_same_plain_bert(
    bert: Path, model_class: TaskModel, head: dict[str, Any]
) -> None:
    ours = narrow(open_pretrained(str(bert)), model_class, head)
    torch.testing.assert_close(logits(hugging_face_model(ours, "bert")), logits(ours), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(logits(ours), logits(full(open_pretrained(str(bert)), model_class, head)), atol=1e-4)


@pytest.mark.parametrize(("model_class", "head"), HEADS)
def test_a_narrow_network_is_reloaded_by_the_auto_classes(
    bert: Path,
    tmp_path: Path,
    model_class: TaskModel,
    head: dict[str, Any],
) -> None:
    ours = narrow(open_pretrained(str(bert)), model_class, head)
    save_trained(ours, tiny_tokenizer(), tmp_path, ["earlybert", "bert"])
    auto, plain = AUTO[model_class]
    torch.testing.assert_close(logits(auto.from_pretrained(tmp_path / "earlybert")), logits(ours), rtol=1e-4, atol=1e-6)
    both = plain.from_pretrained(tmp_path / "bert", output_loading_info=True)
    loaded, report = cast("tuple[PreTrainedModel, dict[str, Any]]", both)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(logits(loaded), logits(ours), rtol=1e-4, atol=1e-6)
    if head:
        assert loaded.config.id2label == {0: "x", 1: "y", 2: "z"}


FRESH = """
import sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

def scores(folder):
    rows = AutoTokenizer.from_pretrained(folder)(["the old tree", "sad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()(**rows).logits.flatten().tolist()

plain = scores(sys.argv[1] + "/bert")
assert "earlybert" not in sys.modules  # the plain form needs nothing of ours
import earlybert
print([plain, scores(sys.argv[1] + "/earlybert")])
"""


def test_a_fresh_process_predicts_the_same(bert: Path, tmp_path: Path) -> None:
    ours = narrow(open_pretrained(str(bert)), TrainedForSequenceClassification, THREE)
    save_trained(ours, tiny_tokenizer(), tmp_path, ["earlybert", "bert"])
    rows = tiny_tokenizer()(["the old tree", "sad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = ours.eval()(**rows).logits.flatten().tolist()
    # Not where a folder called earlybert would be found in the package's place.
    folder = tmp_path / "bert"
    done = subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["STS-B", "RTE", "MNLI"])
def test_a_pipeline_gives_the_tasks_own_value(bert: Path, all_glue: Path, tmp_path: Path, name: str) -> None:
    """A score as it is, classes with their probabilities. Before, STS-B's were sigmoids: 0.822 for 1.529."""
    pretrained = open_pretrained(str(bert))
    data = SentenceData(GLUE[name], all_glue / name, pretrained.tokenizer, 48)
    ours = full(pretrained, data.model_class, data.head)
    ours.get_parameter("classifier.bias").data += 1.5
    save_trained(ours, pretrained.tokenizer, tmp_path, ["earlybert", "bert"])
    texts = {"text": "the old tree", "text_pair": "sad river"}
    with torch.no_grad():
        output = ours.eval()(**pretrained.tokenizer(**texts, return_tensors="pt")).logits[0]
    expected = output if name == "STS-B" else output.softmax(0)
    for form in ("earlybert", "bert"):
        answers = pipeline("text-classification", str(tmp_path / form), device="cpu")(texts, top_k=None)
        found = {answer["label"]: answer["score"] for answer in answers}
        labels = GLUE[name].classes or ("score",)
        assert [found[label] for label in labels] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    # Hugging Face's own class, trained on, takes the labels for what they are.
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert").eval()
    row = pretrained.tokenizer(**texts, return_tensors="pt")
    target = torch.tensor([2.5]) if name == "STS-B" else torch.tensor([1])
    torch.testing.assert_close(theirs(**row, labels=target).loss, ours(**row, labels=target).loss)


def test_the_head_of_the_search_is_the_head_of_the_training(bert: Path) -> None:
    pretrained = open_pretrained(str(bert))
    config = task_config(pretrained, THREE, 0.0)
    training = starting_weights(TrainedForSequenceClassification, config, pretrained.weights, seed=5)
    config = config.with_network(dataclasses.replace(config.network, searching=True))
    search = starting_weights(TrainedForSequenceClassification, config, pretrained.weights, seed=5)
    other = starting_weights(TrainedForSequenceClassification, config, pretrained.weights, seed=6)
    assert search["classifier.weight"].equal(training["classifier.weight"])
    assert not other["classifier.weight"].equal(training["classifier.weight"])
    added = set(search) - set(training)
    assert len(added) == 2 * 3 and all(search[name].eq(1).all() for name in added)


def test_masked_token_loss_is_hugging_faces(bert: Path) -> None:
    pretrained = open_pretrained(str(bert))
    config = task_config(pretrained, {}, 0.0)
    config = config.with_network(dataclasses.replace(config.network, losses=("masked",)))
    ours = TrainedForMaskedTokens(config)
    ours.load_state_dict(starting_weights(TrainedForMaskedTokens, config, pretrained.weights, seed=0))
    theirs = BertForMaskedLM.from_pretrained(bert)
    wanted = torch.full((3, 13), -100)
    wanted[0, 3], wanted[1, 8], wanted[2, 1] = 17, 5, 40
    expected = theirs.eval()(**batch(), labels=wanted).loss
    torch.testing.assert_close(ours.eval()(**batch(), labels=wanted).loss, expected, rtol=1e-5, atol=1e-6)
    nothing = torch.full((3, 13), -100)
    assert ours(**batch(), labels=nothing).loss == ours(**batch(), labels=nothing, num_items_in_batch=0).loss == 0
    torch.testing.assert_close(
        ours(**batch(), labels=wanted, num_items_in_batch=12).loss, expected / 4, rtol=1e-5, atol=1e-6
    )


def test_what_the_classifiers_dropout_keeps_is_scaled_up(bert: Path) -> None:
    """The encoder is left in evaluation; each logit is one unit of the pooled state."""
    pretrained = open_pretrained(str(bert))
    config = task_config(pretrained, THREE, 0.25)
    model = TrainedForSequenceClassification(config)
    model.load_state_dict(starting_weights(TrainedForSequenceClassification, config, pretrained.weights, seed=3))
    torch.nn.init.zeros_(model.classifier.bias)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.eye(3, config.network.hidden_size))
    still = logits(model)
    model.training = True
    torch.manual_seed(0)
    with torch.no_grad():
        ratio = torch.cat([model(**batch()).logits / still for _ in range(300)]).flatten()
    kept = ratio[ratio.abs() > 1e-3]
    torch.testing.assert_close(kept, torch.full_like(kept, 4 / 3), rtol=1e-3, atol=0)
    assert abs(1 - kept.numel() / ratio.numel() - 0.25) < 5 * (0.25 * 0.75 / ratio.numel()) ** 0.5


def test_layerdrop_leaves_out_every_third_layer(bert: Path) -> None:
    assert layers_to_drop(12) == [0, 3, 6, 9] and layers_to_drop(24) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert layers_to_drop(4) == [0] and layers_to_drop(6) == [0, 3] and layers_to_drop(1) == []
    pretrained = open_pretrained(str(bert))
    config = task_config(pretrained, THREE, 0.0)
    weights = starting_weights(TrainedForSequenceClassification, config, pretrained.weights, seed=3)
    shorter, kept = drop_layers(config.network, weights, [0])
    ours = TrainedForSequenceClassification(config.with_network(shorter))
    ours.load_state_dict(kept)
    theirs = hugging_face_model(full(pretrained, TrainedForSequenceClassification, THREE), "bert")
    layers = theirs.get_submodule("bert.encoder.layer")
    assert isinstance(layers, torch.nn.ModuleList)
    del layers[0]
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("other", [BertForSequenceClassification, BertForMaskedLM])
def test_a_bert_without_some_heads_is_opened_too(tmp_path: Path, other: type) -> None:
    """What is missing starts afresh from the seed, not from whatever the loader filled in."""
    model = other(tiny_bert().config)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    pretrained = open_pretrained(str(tmp_path))
    assert ("pooler.weight" in pretrained.weights) == (other is BertForSequenceClassification)
    assert ("masked_token.bias" in pretrained.weights) == (other is BertForMaskedLM)
    query = pretrained.weights["layers.2.attention.qkv.weight"][:32]
    assert query.equal(model.bert.encoder.layer[2].attention.self.query.weight)


def test_a_fine_tuned_network_is_fine_tuned_again(bert: Path, tmp_path: Path) -> None:
    """Those for tags and answers have no pooler; like every head that is not there, it starts from the seed."""
    for name, (model_class, head) in zip(("classes", "tags", "answers"), HEADS, strict=True):
        ours = narrow(open_pretrained(str(bert)), model_class, head)
        save_trained(ours, tiny_tokenizer(), tmp_path / name, ["earlybert"])
        again = open_pretrained(str(tmp_path / name / "earlybert"))
        assert {key for key in ours.state_dict() if "qa_outputs" not in key and "classifier" not in key} == set(
            again.weights
        )
        assert all(ours.state_dict()[key].equal(value) for key, value in again.weights.items())


@pytest.mark.parametrize(
    ("changes", "lost", "expected"),
    [
        ({"hidden_act": "relu"}, None, "its hidden_act is 'relu'; it must be 'gelu'"),
        ({"intermediate_size": 80}, None, r"intermediate.dense.bias has the shape \[64\]; .* must be \[80\]"),
        ({"num_attention_heads": 5}, None, "its weights cannot be loaded .*multiple of the number of attention heads"),
        ({"hidden_size": "large"}, None, "its config.json cannot be loaded .*hidden_size"),
        ({}, "bert.encoder.layer.1.output.dense.weight", "is not a complete BERT; it lacks bert.encoder.layer.1"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict, lost: str | None, expected: str, bert: Path
) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=expected):
        open_pretrained(str(folder))


def test_our_own_network_that_lacks_a_layer_is_refused(bert: Path, tmp_path: Path) -> None:
    ours = narrow(open_pretrained(str(bert)), TrainedForSequenceClassification, THREE)
    save_trained(ours, tiny_tokenizer(), tmp_path, ["earlybert"])
    file = tmp_path / "earlybert" / "model.safetensors"
    weights = load_file(file)
    del weights["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks bert.encoder.layer.1.attention.self.query.weight"):
        open_pretrained(str(tmp_path / "earlybert"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="its weights cannot be loaded"):
        open_pretrained(str(tmp_path / "earlybert"))
