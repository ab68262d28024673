"""A run that begins with a published BERT: imported exactly, cut, resumed and exported like any other."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForPreTraining, BertModel, BertPreTrainedModel

from earlybert.core.errors import UserError
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from earlybert.pretrain.network.bert_format import from_bert
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertForPreTraining
from earlybert.pretrain.network.initial import initial_weights
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.ticket.ticket import Ticket
from tests.conftest import BIN, ROOT, free_port, run_training, small_recipe
from tests.pretrain.run_files import losses

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-6,
}


def save_bert(folder: Path, corpus: Corpus, model_class: type[BertPreTrainedModel], **changes: Any) -> Path:
    """A BERT with every parameter random, and the corpus's tokenizer."""
    torch.manual_seed(5)
    model = model_class(BertConfig(vocab_size=corpus.vocab_size, **(SHAPE | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    corpus.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, workplace: Path) -> Path:
    """A recipe that says nothing of the model's shape, a corpus, a BERT with all heads and one with none."""
    folder = tmp_path_factory.mktemp("initial")
    recipe = small_recipe(workplace / "text.txt")
    del recipe["model"]
    recipe |= {"data": "corpus", "keep_checkpoints": 9}
    recipe["search"]["steps"] = 6
    recipe["search"]["snapshot_every"] = 3
    recipe["phase1"] |= {"steps": 8, "global_batch": 16}
    recipe["phase2"] |= {"steps": 2, "global_batch": 8}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    corpus = prepare(CorpusConfig(**recipe["corpus"], lengths=[32, 64]), folder / "corpus")
    save_bert(folder / "bert", corpus, BertForPreTraining)
    save_bert(folder / "headless", corpus, BertModel)
    return folder


@pytest.fixture(scope="module")
def domain_run(place: Path) -> Path:
    """The whole method from the BERT with all heads."""
    status, output = train(place, "whole")
    assert status == 0, output
    return place / "whole"


def train(
    place: Path, run_dir: str, *arguments: str, initial: str = "bert", launcher: tuple[str, ...] | None = None
) -> tuple[int, str]:
    everybody = ("--config", "recipe.yaml", "--run-dir", run_dir, "--initial", initial)
    return run_training(place, *everybody, *arguments, launcher=launcher)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Of a BERT with all heads, in our own form."""
    bert = BertForPreTraining.from_pretrained(folder)
    return from_bert(bert.config, bert.state_dict())[1]


def logits_of(folder: Path) -> tuple[Tensor, Tensor]:
    """In plain transformers."""
    bert = BertForPreTraining.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = bert(torch.randint(5, bert.config.vocab_size, (3, 20), generator=generator))
    return found.prediction_logits, found.seq_relationship_logits


def test_import_and_export_are_inverse(place: Path) -> None:
    """A run whose rate is next to nothing exports the logits of what it began with: a BERT, a run, an export."""
    still = ("--plan", "[phase1]", "--phase1.learning_rate", "1e-20", "--phase1.steps", "1")
    for number, initial in enumerate(("bert", "still0", "still0/export/earlybert")):
        status, output = train(place, f"still{number}", *still, initial=initial)
        assert status == 0, output
        for expected, found in zip(
            logits_of(place / "bert"), logits_of(place / f"still{number}/export/bert"), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_ticket_is_cut_from_the_published_weights(place: Path, domain_run: Path) -> None:
    """Rewound, the narrow network of the first step is a slice of the BERT; with the rate at nothing it stays so."""
    ticket = Ticket.load(domain_run / "ticket.json")
    status, output = train(
        place, "cut", "--ticket", str(domain_run / "ticket.json"), "--phase1.learning_rate", "1e-20",
        "--plan", "[narrow, phase1]", "--phase1.steps", "1",
    )  # fmt: skip
    assert status == 0, output
    cut = Checkpoint(list_checkpoints(place / "cut" / "checkpoints")[-1]).weights
    bert = BertForPreTraining.from_pretrained(place / "bert")
    full, weights = from_bert(bert.config, bert.state_dict())
    assert sum(map(len, ticket.heads)) < 2 * 4
    for name, expected in narrow_weights(full, weights, ticket).items():
        torch.testing.assert_close(cut[name], expected, rtol=0, atol=1e-7)


def test_narrow_export_gives_the_narrow_networks_logits(domain_run: Path) -> None:
    narrow = EarlyBertForPreTraining.from_pretrained(domain_run / "export" / "earlybert").eval()
    assert narrow.config.layer_norm_eps == SHAPE["layer_norm_eps"]
    ids = torch.randint(5, narrow.config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = narrow(ids)
    predictions, relations = logits_of(domain_run / "export" / "bert")
    vocabulary = narrow.config.vocab_size
    torch.testing.assert_close(predictions, ours.prediction_logits[..., :vocabulary], rtol=0, atol=1e-5)
    torch.testing.assert_close(relations, ours.seq_relationship_logits, rtol=0, atol=1e-5)


def cut_back(place: Path, run: Path, name: str, step: int) -> None:
    """The run as it was when it had written the checkpoint of this step, which lasted."""
    shutil.copytree(run, place / name)
    (place / name / "DONE").unlink()
    for checkpoint in list_checkpoints(place / name / "checkpoints"):
        if checkpoint.name > f"step-{step:08d}":
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize("step", [6, pytest.param(13, marks=pytest.mark.slow)], ids=["before the cut", "after the cut"])
def test_resumes_bit_for_bit(place: Path, domain_run: Path, step: int) -> None:
    """Dropout is on; the network may lie elsewhere by now, as the corpus may."""
    cut_back(place, domain_run, f"resumed-{step}", step)
    shutil.copytree(place / "bert", place / f"moved-{step}")
    status, output = train(place, f"resumed-{step}", initial=f"moved-{step}")
    assert status == 0, output
    assert losses(place / f"resumed-{step}") == losses(domain_run)
    one, two = (Checkpoint(list_checkpoints(place / name / "checkpoints")[-1]) for name in (f"resumed-{step}", "whole"))
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in two.weights)


def test_another_network_is_refused_on_resuming(place: Path, domain_run: Path) -> None:
    cut_back(place, domain_run, "other", 13)
    shutil.copytree(place / "bert", place / "changed")
    weights = load_file(place / "bert" / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][7, 3] += 1e-3
    save_file(weights, place / "changed" / "model.safetensors", metadata={"format": "pt"})
    refused(train(place, "other", initial="changed"), "step-00000013 began with other weights")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_begin_with_the_same_weights(place: Path, domain_run: Path, stage: int) -> None:
    """Losses of a ticket on two ranks under ZeRO, without dropout, are those of one process to rounding."""
    deepspeed = json.loads((ROOT / "ds_configs" / "lamb.json").read_text())
    (place / f"zero{stage}.json").write_text(json.dumps(deepspeed | {"zero_optimization": {"stage": stage}}))
    arguments = (
        *("--ticket", str(domain_run / "ticket.json"), "--plan", "[narrow, phase1]", "--export", "[]"),
        *("--model.hidden_dropout", "0", "--model.attention_dropout", "0", "--deepspeed", f"zero{stage}.json"),
    )
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port())
    for name, launched in ((f"alone-{stage}", None), (f"ranks-{stage}", launcher)):
        status, output = train(place, name, *arguments, launcher=launched)
        assert status == 0, output
    alone, ranks = losses(place / f"alone-{stage}"), losses(place / f"ranks-{stage}")
    assert len(alone) == 8
    assert [loss for _, loss in ranks] == pytest.approx([loss for _, loss in alone], rel=1e-5)


def test_heads_that_lack_begin_fresh_and_are_named(place: Path) -> None:
    status, output = train(place, "fresh", "--plan", "[phase1]", "--phase1.learning_rate", "1e-20", initial="headless")
    assert status == 0, output
    assert "has no complete head for masked tokens and next sentence" in output
    found = Checkpoint(list_checkpoints(place / "fresh" / "checkpoints")[-1]).weights
    corpus = Corpus.open(place / "corpus")
    expected = initial_weights(NetworkConfig(vocab_size=corpus.vocab_size, **SHAPE), seed=42)
    published = BertModel.from_pretrained(place / "headless").state_dict()
    for name in ("masked_token.dense.weight", "next_sentence.weight"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-7)
    torch.testing.assert_close(found["pooler.weight"], published["pooler.dense.weight"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False], ids=["though it says tied", "it says so"])
def test_a_head_with_a_decoder_of_its_own_begins_fresh(place: Path, tmp_path: Path, tied: bool) -> None:
    """The network's decoder is its embedding table: what was trained for another one would be wrong in silence."""
    corpus = Corpus.open(place / "corpus")
    folder = save_bert(tmp_path / "untied", corpus, BertForPreTraining, tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    found, expected = open_pretrained(str(folder)).weights, weights_of(folder)
    assert expected.keys() - found.keys() == {name for name in expected if name.startswith("masked_token.")}
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.slow
def test_growth_begins_with_the_lower_layers(place: Path) -> None:
    """One published layer, then another with copies of it: a stack of weights that are given."""
    status, output = train(
        place, "grown", "--plan", "[phase1]", "--grow", "[{until: 0.5, layers: 1}, {layers: 2}]",
        "--phase1.learning_rate", "1e-20",
    )  # fmt: skip
    assert status == 0, output
    found, published = (
        Checkpoint(list_checkpoints(place / "grown" / "checkpoints")[-1]).weights,
        weights_of(place / "bert"),
    )
    for name in ("attention.qkv.weight", "feed_forward.output.bias"):
        for layer in (0, 1):
            torch.testing.assert_close(
                found[f"layers.{layer}.{name}"], published[f"layers.0.{name}"], rtol=0, atol=1e-7
            )


def test_added_tokens_begin_as_the_mean_of_their_pieces(place: Path) -> None:
    """The masked-token head's bias, too; all other rows are the published ones."""
    published = Corpus.open(place / "corpus").tokenizer
    words = ["Abcdefg", "ponmlk", "another"]  # the last one stands in the texts that tokenizers are compared by
    (place / "words.txt").write_text("\n".join(words) + "\n")
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    config = CorpusConfig(
        **recipe["corpus"], lengths=[32], tokenizer=str(place / "bert"), add_tokens=str(place / "words.txt")
    )
    prepare(config, place / "more")
    status, output = train(
        place, "added", "--data", "more", "--plan", "[phase1]", "--phase1.steps", "1", "--phase1.learning_rate", "1e-20"
    )
    assert status == 0, output
    bert = BertForPreTraining.from_pretrained(place / "bert")
    grown = BertForPreTraining.from_pretrained(place / "added" / "export" / "bert")
    for name in ("cls.predictions.bias", "bert.embeddings.word_embeddings.weight"):
        before, after = bert.state_dict()[name], grown.state_dict()[name]
        torch.testing.assert_close(after[: len(before)], before, rtol=0, atol=1e-7)
        assert len(after) == len(before) + len(words)
        for word, row in zip(words, after[len(before) :], strict=True):
            pieces = published(word, add_special_tokens=False)["input_ids"]
            expected = torch.stack([before[piece].double() for piece in pieces]).mean(0)
            torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        ({"hidden_act": "relu"}, (), "its hidden_act is 'relu'; it must be 'gelu'"),
        ({"position_embedding_type": "relative_key"}, (), "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, (), "its is_decoder is True"),
        ({"add_cross_attention": True}, (), "its add_cross_attention is True"),
        ({"model_type": "distilbert"}, (), "its model_type is 'distilbert'; it must be bert or earlybert"),
        ({}, ("--model.num_layers", "4"), "model.num_layers is 4, but .* has 2; leave the model's shape out"),
        (
            {},
            ("--phase2.length", "128"),
            "phase2.length is 128; it must be .* at most model.max_position_embeddings, 64",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    place: Path, tmp_path: Path, change: dict, arguments: tuple[str, ...], expected: str
) -> None:
    shutil.copytree(place / "bert", tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | change))
    refused(train(place, str(tmp_path / "run"), *arguments, initial=str(tmp_path / "bert")), expected)
    assert not (tmp_path / "run").exists()


def lose(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def swap_two_tokens(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lose("config.json"), "has neither config.yaml, as a run has, nor config.json"),
        (lose("model.safetensors"), "holds no weights; a model needs model.safetensors"),
        (lose("tokenizer.json"), "the model needs its tokenizer, tokenizer.json or .*; it has none"),
        (pickle, "pytorch_model.bin: is a pickled file, .* save_pretrained, which writes model.safetensors"),
        (swap_two_tokens, "corpus: was prepared with another vocabulary than that of .*; prepare it with --tokenizer"),
        (shutil.rmtree, "no run and no folder"),
    ],
)
def test_a_damaged_network_is_refused(
    place: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str
) -> None:
    shutil.copytree(place / "bert", tmp_path / "bert")
    damage(tmp_path / "bert")
    refused(train(place, str(tmp_path / "run"), initial=str(tmp_path / "bert")), expected)
    assert not (tmp_path / "run").exists()


def test_pickled_weights_are_refused_before_a_corpus_is_made(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "bert", tmp_path / "bert")
    pickle(tmp_path / "bert")
    refused(train(place, "without-data", "--data", "null", initial=str(tmp_path / "bert")), "is a pickled file")
    assert not (place / "corpora").exists()


def test_pickled_weights_on_the_hub_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what transformers raises there, and what to do."""
    config, tokenizer = (library.from_pretrained(place / "bert") for library in (AutoConfig, AutoTokenizer))
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name: config)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: tokenizer)

    def refuse(name: str, **options: Any) -> None:
        assert options["use_safetensors"]
        raise OSError(
            f"{name} does not appear to have a file named model.safetensors or model.safetensors.index.json "
            "and thus cannot be loaded with `safetensors`. Please do not set `use_safetensors=True`."
        )

    monkeypatch.setattr(BertForPreTraining, "from_pretrained", refuse)
    with pytest.raises(UserError) as raised:
        open_pretrained("someone/bert")
    assert str(raised.value).startswith("someone/bert: its weights, which must be safetensors (convert pickled ones")
    assert "save_pretrained), cannot be loaded (someone/bert does not appear" in str(raised.value)


def test_a_narrow_network_is_refused(place: Path, domain_run: Path) -> None:
    for initial in (domain_run, domain_run / "export" / "earlybert"):
        refused(train(place, "twice", initial=str(initial)), "which is narrow already; it must be a full network")


def refused(ended: tuple[int, str], expected: str) -> None:
    """One sentence and exit status 2."""
    status, output = ended
    assert status == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("earlybert: error: ")]
    assert re.search(expected, line), line
    assert "Traceback" not in output
