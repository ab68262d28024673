"""The narrow export in transformers: known to the Auto classes, and loaded where this package is not installed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)

from earlybert.core.errors import UserError
from earlybert.pretrain.checkpoint.pretrained import open_pretrained
from earlybert.pretrain.network.bert_format import from_bert, to_bert, to_earlybert
from earlybert.pretrain.network.exported import modeling_earlybert
from earlybert.pretrain.network.exported.modeling_earlybert import EarlyBertConfig, EarlyBertForPreTraining
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.ticket.ticket import narrow_config
from tests.pretrain.small_models import (
    build,
    padded_logits,
    random_inputs,
    random_weights,
    small_config,
    unequal_ticket,
)


def narrow_network(losses: tuple[str, ...] = ("masked", "next_sentence")) -> PreTrainingNetwork:
    full = small_config(losses=losses)
    ticket = unequal_ticket(full)
    return build(narrow_config(full, ticket), narrow_weights(full, random_weights(full), ticket))


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, PreTrainingNetwork]:
    network = narrow_network()
    to_earlybert(network.config, network.state_dict()).save_pretrained(tmp_path / "narrow")
    return tmp_path / "narrow", network


def expected_logits(network: PreTrainingNetwork, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        output = padded_logits(network, **inputs)
    assert output.prediction_logits is not None and output.seq_relationship_logits is not None
    return {
        "prediction_logits": output.prediction_logits[..., : network.config.vocab_size],
        "seq_relationship_logits": output.seq_relationship_logits,
    }


def test_auto_classes_reload_unequal_widths(exported: tuple[Path, PreTrainingNetwork]) -> None:
    """The same scores as the network that is trained, which is another code."""
    folder, network = exported
    reloaded = AutoModelForPreTraining.from_pretrained(folder).eval()
    assert isinstance(reloaded, EarlyBertForPreTraining)
    config = AutoConfig.from_pretrained(folder)
    assert config.kept_heads == [[0, 2, 3], [1], [0, 1, 2, 3]] and config.heads == [3, 1, 4]
    assert config.neurons == [5, 47, 20] and config.ticket_sha256 == network.config.ticket_sha256 is not None
    found = reloaded(**random_inputs())
    for name, logits in expected_logits(network, random_inputs()).items():
        torch.testing.assert_close(found[name], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("losses", [("masked", "next_sentence"), ("masked",), ("next_sentence",)], ids=str)
def test_what_was_exported_comes_back(losses: tuple[str, ...]) -> None:
    network = narrow_network(losses)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name in ("masked_token.bias",) if "masked" in losses else ():
        weights[name][network.config.vocab_size :] = 0.0
    model = to_earlybert(network.config, weights)
    config, back = from_bert(model.config, model.state_dict())
    assert config == network.config and back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_a_loss_without_any_head_of_berts_is_exported_as_the_encoder() -> None:
    network = narrow_network(losses=())
    dense = build(small_config(losses=()), random_weights(small_config(losses=())))
    for model, trained in (
        (to_earlybert(network.config, network.state_dict()), network),
        (to_bert(dense.config, dense.state_dict()), dense),
    ):
        assert isinstance(model, BertModel)
        with torch.no_grad():
            hidden = model.eval()(**random_inputs()).last_hidden_state
            torch.testing.assert_close(hidden, trained.encode_padded(**random_inputs()), rtol=1e-4, atol=1e-5)


def test_config_json_is_berts_and_says_what_is_kept(exported: tuple[Path, PreTrainingNetwork]) -> None:
    folder, network = exported
    written = json.loads((folder / "config.json").read_text())
    own = {
        "architectures": ["EarlyBertForPreTraining"],
        "auto_map": modeling_earlybert.AUTO_MAP,
        "kept_heads": [[0, 2, 3], [1], [0, 1, 2, 3]],
        "kept_neurons": [[0, 3, 17, 31, 47], list(range(1, 48)), list(range(0, 40, 2))],
        "model_type": "earlybert",
        "ticket_sha256": network.config.ticket_sha256,
    }
    assert {name: written[name] for name in own} == own
    bert = BertConfig(
        vocab_size=101,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ).to_dict()
    others = {name: value for name, value in written.items() if name not in own and name != "dtype"}
    assert others == {name: bert[name] for name in others}
    assert not {"vocab_size", "num_hidden_layers", "pad_token_id", "layer_norm_eps"} - others.keys()


def test_an_export_of_the_first_version_is_refused(exported: tuple[Path, PreTrainingNetwork]) -> None:
    """Its weights had other names, so the model would begin with random ones."""
    folder, _ = exported
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"next_sentence": True, "searching": False}))
    with pytest.raises(ValueError, match="an export of an earlier version of EarlyBERT; export the run again"):
        AutoConfig.from_pretrained(folder)
    with pytest.raises(UserError, match="an export of an earlier version of EarlyBERT"):
        open_pretrained(str(folder))


def test_the_full_network_is_plain_bert() -> None:
    config = EarlyBertConfig(**narrow_shape(), kept_heads=None, kept_neurons=None)
    ours, theirs = modeling_earlybert.EarlyBertForMaskedLM(config), BertForMaskedLM(BertConfig(**narrow_shape()))
    assert [(name, p.shape) for name, p in ours.named_parameters()] == [
        (name, p.shape) for name, p in theirs.named_parameters()
    ]
    assert config.heads == [4] * 3 and config.neurons == [48] * 3


def narrow_shape() -> dict[str, Any]:
    return {
        "vocab_size": 101,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
    }


def test_new_matrices_are_initialised_as_berts() -> None:
    torch.manual_seed(0)
    kept: dict[str, Any] = {"kept_heads": [[0], [1, 2], [3]], "kept_neurons": [list(range(40))] * 3}
    config = EarlyBertConfig(**narrow_shape(), **kept, initializer_range=0.5)
    model = AutoModel.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.startswith("encoder"):
            assert 0.4 < float(parameter.std()) < 0.6, name
        elif name.startswith("encoder") and name.endswith("bias"):
            assert float(parameter.abs().max()) == 0.0, name


# With `earlybert` out of reach where the first argument says so.
FRESH = """
import sys
way, folder = sys.argv[1:]
if way == "first":
    import earlybert
    assert not {"torch", "transformers"} & sys.modules.keys()
elif way == "trust":
    sys.modules["earlybert"] = None
import torch
from transformers import BertForPreTraining  # imports the Auto classes while BERT is half imported
from transformers import AutoModelForMaskedLM
if way == "last":
    import earlybert
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=way == "trust" or None).eval()
assert ("earlybert.pretrain.network.exported.modeling_earlybert" in sys.modules) == (way != "trust")
with torch.no_grad():
    logits = model(**torch.load(folder + "/inputs.pt")).logits
torch.save(logits, folder + "/logits.pt")
model.save_pretrained(folder + "/again")
"""


@pytest.mark.parametrize("way", ["first", "last", "trust"])
def test_a_fresh_process_loads_it(way: str, exported: tuple[Path, PreTrainingNetwork], tmp_path: Path) -> None:
    """By `import earlybert`, before transformers or after; or with the code that the export carries, without ours."""
    folder, network = exported
    torch.save(random_inputs(), folder / "inputs.pt")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # What transformers saves is loaded the same way; looked at once, for a process takes its time.
    for each in (folder, folder / "again")[: 1 + (way == "trust")]:
        torch.save(random_inputs(), each / "inputs.pt")
        done = subprocess.run(
            [sys.executable, "-c", FRESH, way, str(each)], capture_output=True, text=True, env=os.environ | environment
        )
        assert done.returncode == 0, done.stderr
        expected = expected_logits(network, random_inputs())["prediction_logits"]
        torch.testing.assert_close(torch.load(each / "logits.pt"), expected, rtol=1e-4, atol=1e-5)


def test_the_code_of_an_export_needs_only_torch_and_transformers() -> None:
    tree = ast.parse(Path(modeling_earlybert.__file__).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + str(node.module))
    assert {name.split(".")[0] for name in found} == {"sys", "typing", "torch", "transformers"}


def test_both_forms_of_a_pretraining_model_are_one_class() -> None:
    """So whatever takes BERT by its class takes the narrow one too."""
    assert issubclass(EarlyBertForPreTraining, BertForPreTraining)
