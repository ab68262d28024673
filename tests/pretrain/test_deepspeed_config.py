"""DeepSpeed files: the shipped ones, what "auto" becomes, and one clear sentence for everything that is wrong."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils.config import get_timers_config
from torch import nn

from earlybert.core.errors import UserError
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, MicroBatch, OptimizerConfig, load_recipe, recipe_path
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from earlybert.pretrain.train.engine import build_optimizer, check_chosen_kernels, resolve_precision
from tests.pretrain.small_models import small_config

SHIPPED = sorted(path.name for path in DEFAULT_DEEPSPEED.parent.glob("*.json"))


def load(tmp_path: Path, content: Any) -> DeepSpeedFile:
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return DeepSpeedFile.load(path)


def refusal(tmp_path: Path, content: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, content)
    text = str(caught.value)
    assert "\n" not in text and "ds.json" in text
    return text


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_sound(name: str) -> None:
    file = DeepSpeedFile.load(DEFAULT_DEEPSPEED.parent / name)
    assert file.optimizer in ("Lamb", "Muon", "AdamW") and file.optimizer_numbers == {}
    assert file.zero_stage == 1
    assert file.batches(64, 8, 2) == (8, 4)
    assert "auto" not in json.dumps(file.resolve(OptimizerConfig(), "fp16", 8, 4, 2))


def test_default_file_is_lamb() -> None:
    assert DEFAULT_DEEPSPEED.name == "lamb.json" and "lamb.json" in SHIPPED
    assert DeepSpeedFile.load(DEFAULT_DEEPSPEED).optimizer == "Lamb"


def test_optimizer_section_is_taken_out(tmp_path: Path) -> None:
    params = {"lr": "auto", "betas": [0.8, 0.99], "eps": "auto", "weight_decay": 0.1}
    file = load(tmp_path, {"optimizer": {"type": "AdamW", "params": params}, "zero_optimization": {"stage": 2}})
    assert file.optimizer == "AdamW"
    assert file.optimizer_numbers == {"betas": [0.8, 0.99], "weight_decay": 0.1}
    assert file.zero_stage == 2 and "optimizer" not in file.resolve(OptimizerConfig(), "fp32", 1, 1, 1)


def test_groups_of_muon(tmp_path: Path) -> None:
    """Matrices between hidden states, with numbers of their own; the rest is LAMB's, or AdamW's."""
    params = {"momentum": 0.9, "muon_weight_decay": "auto", "trust_ratio": False, "weight_decay": 0.02}
    file = load(tmp_path, {"optimizer": {"type": "Muon", "params": params}})
    model = PreTrainingNetwork(small_config(searching=True))
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, file.optimizer, file.optimizer_numbers, OptimizerConfig())
    muon, decayed, plain = optimizer.param_groups
    assert (muon["orthogonalize"], muon["momentum"], muon["weight_decay"]) == (True, 0.9, 0.1)
    assert [(group["trust_ratio"], group["weight_decay"]) for group in (decayed, plain)] == [(False, 0.02), (False, 0)]
    assert not any(group["orthogonalize"] for group in (decayed, plain))
    found = [{names[parameter] for parameter in group["params"]} for group in optimizer.param_groups]
    assert {re.sub(r"layers\.\d+\.", "", name) for name in found[0]} == {
        "attention.qkv.weight",
        "attention.output.weight",
        "feed_forward.intermediate.weight",
        "feed_forward.output.weight",
        "masked_token.dense.weight",
        "pooler.weight",
    }
    embeddings = {f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    assert found[1] == {*embeddings, "next_sentence.weight"}
    assert set.union(*found) == set(names.values()) and sum(map(len, found)) == len(names)
    assert file.identity(OptimizerConfig())["momentum"] == 0.9


def test_other_optimizers_are_what_they_were_before_muon() -> None:
    """What checkpoints of before say of them."""
    for name in ("lamb", "adamw"):
        file = DeepSpeedFile.load(DEFAULT_DEEPSPEED.parent / f"{name}.json")
        assert set(file.identity(OptimizerConfig())) == {"type", "betas", "eps", "weight_decay", "gradient_clipping"}


LAMB_OPTIONS = {"nvlamb": True, "max_trust_ratio": 5, "trust_ratio": False, "bias_correction": False}


@pytest.mark.parametrize("name", LAMB_OPTIONS)
def test_options_of_lamb_reach_every_group(tmp_path: Path, name: str) -> None:
    """And change what a run is, so that it cannot go on with another value."""
    given = load(tmp_path, {"optimizer": {"type": "Lamb", "params": {name: LAMB_OPTIONS[name]}}})
    left = load(tmp_path, {"optimizer": {"type": "Lamb", "params": {name: "auto"}}})
    model, numbers = nn.Linear(3, 2), OptimizerConfig()
    groups, defaults = (
        build_optimizer(model, file.optimizer, file.optimizer_numbers, numbers).param_groups for file in (given, left)
    )
    assert len(groups) == 2 and all(group[name] == LAMB_OPTIONS[name] for group in groups)
    assert all(group[name] != LAMB_OPTIONS[name] for group in defaults)
    assert given.identity(numbers) == left.identity(numbers) | {name: LAMB_OPTIONS[name]} != left.identity(numbers)


def test_trust_ratio_may_be_unlimited(tmp_path: Path) -> None:
    file = load(tmp_path, {"optimizer": {"type": "Lamb", "params": {"max_trust_ratio": None}}})
    assert file.optimizer_numbers == {"max_trust_ratio": None}


def test_file_without_anything_is_lamb_without_zero(tmp_path: Path) -> None:
    file = load(tmp_path, {})
    assert (file.optimizer, file.zero_stage) == ("Lamb", 0)


@pytest.mark.parametrize(
    ("precision", "enabled"),
    [("fp32", (False, False)), ("fp16", (True, False)), ("bf16", (False, True))],
)
def test_auto_is_resolved(tmp_path: Path, precision: str, enabled: tuple[bool, bool]) -> None:
    auto = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "fp16": {"enabled": "auto", "initial_scale_power": 12},
        "bf16": {"enabled": "auto"},
    }
    resolved = load(tmp_path, auto).resolve(OptimizerConfig(max_grad_norm=0.7), precision, 4, 3, 2)
    assert resolved["train_micro_batch_size_per_gpu"] == 4
    assert resolved["gradient_accumulation_steps"] == 3
    assert resolved["train_batch_size"] == 24
    assert resolved["gradient_clipping"] == 0.7
    assert (resolved["fp16"]["enabled"], resolved["bf16"]["enabled"]) == enabled
    assert resolved["fp16"]["initial_scale_power"] == 12
    assert resolved["zero_allow_untested_optimizer"] is True
    assert "auto" not in json.dumps(resolved)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_summed_in_fp32_in_half_precision(tmp_path: Path, precision: str, stage: int) -> None:
    file = load(tmp_path, {"zero_optimization": {"stage": stage}})
    resolved = file.resolve(OptimizerConfig(), precision, 1, 1, 1)
    assert resolved["data_types"]["grad_accum_dtype"] == "fp32"
    assert resolved.get("communication_data_type") == ("fp32" if (precision, stage) == ("bf16", 1) else None)


def test_without_zero_bf16_takes_the_sums_that_deepspeed_has(tmp_path: Path) -> None:
    """DeepSpeed refuses fp32 sums there (NotImplementedError in its engine), so none are asked for."""
    assert "data_types" not in load(tmp_path, {}).resolve(OptimizerConfig(), "bf16", 1, 1, 1)


def test_precision_of_file_and_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path("quickstart"), ["--precision", "bf16"])
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    silent = load(tmp_path, {"zero_optimization": {"stage": 1}})
    assert resolve_precision(recipe, silent, cpu) == "bf16"
    assert resolve_precision(dataclasses.replace(recipe, precision="auto"), silent, cpu) == "fp32"
    neither = load(tmp_path, {"fp16": {"enabled": False}, "bf16": {"enabled": False}})
    assert resolve_precision(dataclasses.replace(recipe, precision="auto"), neither, cuda) == "fp32"
    with pytest.raises(UserError, match=r"bf16\.enabled is false, but precision comes to bf16; give another one"):
        resolve_precision(recipe, load(tmp_path, {"bf16": {"enabled": False}}), cpu)
    with pytest.raises(UserError, match=r"precision is bf16, but .* asks for fp16"):
        resolve_precision(recipe, load(tmp_path, {"fp16": {"enabled": True}}), cuda)
    with pytest.raises(UserError, match="stage is 0, which cannot train in fp16"):
        resolve_precision(dataclasses.replace(recipe, precision="fp16"), load(tmp_path, {}), cuda)


def test_own_numbers_of_the_file_win(tmp_path: Path) -> None:
    file = load(tmp_path, {"gradient_clipping": 0.3, "train_micro_batch_size_per_gpu": 16})
    assert file.resolve(OptimizerConfig(), "fp32", 1, 1, 1)["gradient_clipping"] == 0.3
    assert file.batches(64, 8, 2) == (16, 2)


@pytest.mark.parametrize(("given", "enabled"), [({}, False), ({"throughput": {"enabled": True}}, True)])
def test_deepspeeds_timer_waits_for_the_device_only_where_the_file_asks_for_it(
    tmp_path: Path, given: dict[str, Any], enabled: bool
) -> None:
    resolved = load(tmp_path, {"timers": given}).resolve(OptimizerConfig(), "bf16", 1, 1, 1)
    assert get_timers_config(resolved).enabled is enabled


def test_resolving_leaves_the_file_alone(tmp_path: Path) -> None:
    file = load(tmp_path, {"fp16": {"enabled": "auto"}})
    file.resolve(OptimizerConfig(), "fp16", 1, 1, 1)
    assert file.content == {"fp16": {"enabled": "auto"}}


@pytest.mark.parametrize(
    ("content", "precision"),
    [
        ({}, None),
        ({"fp16": {"enabled": "auto"}}, None),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, "bf16"),
    ],
)
def test_precision_that_the_file_asks_for(tmp_path: Path, content: dict[str, Any], precision: str | None) -> None:
    assert load(tmp_path, content).precision() == precision


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world_size"), [(64, 8, 2), (10, 4, 2), (3, 8, 2), (7, 3, 1), (65_536, 64, 24)]
)
def test_micro_batches_cover_the_global_batch(
    tmp_path: Path, global_batch: int, micro_batch: int, world_size: int
) -> None:
    micro, accumulation = load(tmp_path, {}).batches(global_batch, micro_batch, world_size)
    assert micro <= micro_batch
    assert micro * accumulation * world_size >= global_batch > micro * (accumulation - 1) * world_size


@pytest.mark.parametrize(
    ("content", "micro_batch", "settled"),
    [
        ({}, 8, 8),
        ({}, "auto", None),
        ({"train_batch_size": 50}, "auto", None),
        ({"train_micro_batch_size_per_gpu": 4}, "auto", 4),
        ({"train_micro_batch_size_per_gpu": 4}, 8, 4),
        ({"gradient_accumulation_steps": 3}, 8, 8),
        ({"gradient_accumulation_steps": 3}, "auto", 9),
    ],
)
def test_who_settles_the_micro_batch(
    tmp_path: Path, content: dict[str, Any], micro_batch: MicroBatch, settled: int | None
) -> None:
    """50 sequences on two ranks."""
    assert load(tmp_path, content).settled_micro_batch(50, micro_batch, world_size=2) == settled


BAD: dict[str, tuple[Any, list[str]]] = {
    "empty": ("", [":1:", "JSON"]),
    "broken on line 3": ('{\n "fp16": {},\n "bf16": \n}', [":4:", "JSON"]),
    "a list": ([], ["list", "object"]),
    "unknown key": (
        {"gradient_acumulation_steps": 1},
        ['"gradient_acumulation_steps"', '"gradient_accumulation_steps"?'],
    ),
    "unknown nested key": (
        {"zero_optimization": {"stge": 1}},
        ['"zero_optimization.stge"', '"zero_optimization.stage"?'],
    ),
    "unknown key of fp16": (
        {"fp16": {"loss_scale_windw": 1}},
        ['"fp16.loss_scale_windw"', '"fp16.loss_scale_window"?'],
    ),
    "unknown optimizer key": (
        {"optimizer": {"type": "Lamb", "parms": {}}},
        ['"optimizer.parms"', '"optimizer.params"?'],
    ),
    "unknown parameter": ({"optimizer": {"type": "Lamb", "params": {"beta": 1}}}, ["optimizer.params.beta", "betas"]),
    "unknown timer": ({"timers": {"thruput": {}}}, ['"timers.thruput"', '"timers.throughput"?']),
    "timer a switch": ({"timers": {"throughput": False}}, ["timers.throughput is False", "object"]),
    "timer enabled by a text": (
        {"timers": {"throughput": {"enabled": "often"}}},
        ["timers.throughput.enabled", "often"],
    ),
    "unknown key of a timer": ({"timers": {"throughput": {"enable": True}}}, ["timers.throughput.enable is True"]),
    "key unlike any": ({"zzz": 1}, ['"zzz"', "zero_optimization"]),
    "section a number": ({"fp16": 1}, ["fp16 is 1", "object"]),
    "numeric learning rate": (
        {"optimizer": {"type": "Lamb", "params": {"lr": 0.006}}},
        ["optimizer.params.lr is 0.006", '"auto"', "recipe"],
    ),
    "unknown optimizer": (
        {"optimizer": {"type": "OneBitLamb"}},
        ["optimizer.type is 'OneBitLamb'", "must be one of Lamb, Muon, AdamW"],
    ),
    "Muon's numbers for Lamb": (
        {"optimizer": {"type": "Lamb", "params": {"muon_weight_decay": 0.1}}},
        ["optimizer.params.muon_weight_decay"],
    ),
    "Muon's momentum a text": (
        {"optimizer": {"type": "Muon", "params": {"momentum": "high"}}},
        ["optimizer.params.momentum is 'high'", "a number"],
    ),
    "Muon's momentum for ever": (
        {"optimizer": {"type": "Muon", "params": {"momentum": 1.0}}},
        ["optimizer.params.momentum is 1.0", "below 1"],
    ),
    "Lamb's options for AdamW": (
        {"optimizer": {"type": "AdamW", "params": {"nvlamb": True}}},
        ["optimizer.params.nvlamb", "known keys are"],
    ),
    "type a list": (
        {"optimizer": {"type": ["Lamb"]}},
        ["optimizer.type is ['Lamb']", "must be one of Lamb, Muon, AdamW"],
    ),
    "decay without bound": (
        {"optimizer": {"type": "Lamb", "params": {"weight_decay": float("inf")}}},
        ["optimizer.params.weight_decay is inf"],
    ),
    "optimizer without type": ({"optimizer": {"params": {}}}, ["optimizer.type is None"]),
    "parameters a list": ({"optimizer": {"type": "Lamb", "params": ["lr"]}}, ["optimizer.params"]),
    "parameters null": ({"optimizer": {"type": "Lamb", "params": None}}, ["optimizer.params"]),
    "betas a number": ({"optimizer": {"type": "Lamb", "params": {"betas": 0.9}}}, ["optimizer.params.betas is 0.9"]),
    "betas for ever": (
        {"optimizer": {"type": "Lamb", "params": {"betas": [0.9, 1.0]}}},
        ["optimizer.params.betas is [0.9, 1.0]", "below 1"],
    ),
    "eps a text": ({"optimizer": {"type": "Lamb", "params": {"eps": "tiny"}}}, ["optimizer.params.eps"]),
    "eps nothing": ({"optimizer": {"type": "Lamb", "params": {"eps": 0}}}, ["optimizer.params.eps is 0", "above 0"]),
    "offloading by its old name": ({"zero_optimization": {"cpu_offload": True}}, ["zero_optimization.cpu_offload is"]),
    "no gradient norm": ({"zero_optimization": {"compute_grad_norm": False}}, ["compute_grad_norm is false", "true"]),
    "no look at overflows": ({"bf16": {"check_grad_overflow": False}}, ["bf16.check_grad_overflow is false", "true"]),
    "nvlamb a number": (
        {"optimizer": {"type": "Lamb", "params": {"nvlamb": 1}}},
        ["optimizer.params.nvlamb is 1", "true, false"],
    ),
    "bias correction null": (
        {"optimizer": {"type": "Lamb", "params": {"bias_correction": None}}},
        ["optimizer.params.bias_correction is None", "true, false"],
    ),
    "trust ratio a number": (
        {"optimizer": {"type": "Lamb", "params": {"trust_ratio": 1.0}}},
        ["optimizer.params.trust_ratio is 1.0", "true, false"],
    ),
    "trust ratio limited to nothing": (
        {"optimizer": {"type": "Lamb", "params": {"max_trust_ratio": 0}}},
        ["optimizer.params.max_trust_ratio is 0", "above 0"],
    ),
    "largest trust ratio a truth value": (
        {"optimizer": {"type": "Lamb", "params": {"max_trust_ratio": True}}},
        ["optimizer.params.max_trust_ratio is True", "number"],
    ),
    "largest trust ratio a text": (
        {"optimizer": {"type": "Lamb", "params": {"max_trust_ratio": "10"}}},
        ["optimizer.params.max_trust_ratio is '10'", "number"],
    ),
    **{
        f"{name} for AdamW": (
            {"optimizer": {"type": "AdamW", "params": {name: value}}},
            [f'"optimizer.params.{name}"', "known keys are betas, eps, lr, weight_decay"],
        )
        for name, value in LAMB_OPTIONS.items()
    },
    "scheduler": ({"scheduler": {"type": "WarmupLR"}}, ["scheduler", "recipe"]),
    "stage 4": ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage is 4", "0, 1, 2 or 3"]),
    "stage a text": ({"zero_optimization": {"stage": "auto"}}, ["zero_optimization.stage is 'auto'"]),
    "bucket a text": ({"zero_optimization": {"reduce_bucket_size": "big"}}, ["zero_optimization.reduce_bucket_size"]),
    "clipping a text": ({"gradient_clipping": "some"}, ["gradient_clipping"]),
    "both precisions": ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, ["fp16", "bf16"]),
    "enabled a text": ({"fp16": {"enabled": "yes"}}, ["fp16.enabled"]),
    "batch of none": ({"train_batch_size": 0}, ["train_batch_size is 0", "positive"]),
    "batch a text": ({"train_micro_batch_size_per_gpu": "8"}, ["train_micro_batch_size_per_gpu is '8'", "positive"]),
    "batch a fraction": ({"gradient_accumulation_steps": 2.0}, ["gradient_accumulation_steps is 2.0"]),
    "three numbers that contradict each other": (
        {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 4},
        ["train_batch_size 64", "train_micro_batch_size_per_gpu 3", "gradient_accumulation_steps 4", '"auto"'],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path: Path, name: str) -> None:
    content, expected = BAD[name]
    message = refusal(tmp_path, content)
    assert all(part in message for part in expected), message


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read \(No such file or directory\)"):
        DeepSpeedFile.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("numbers", "world_size", "expected"),
    [
        ({"train_batch_size": 32}, 1, ["train_batch_size is 32", "global_batch is 64"]),
        ({"gradient_accumulation_steps": 3}, 2, ["gradient_accumulation_steps is 3", "takes 4", '"auto"']),
        (
            {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 16},
            2,
            ["gradient_accumulation_steps is 16", "2 ranks takes 8"],
        ),
    ],
)
def test_numbers_that_contradict_the_recipe_are_refused(
    tmp_path: Path, numbers: dict[str, int], world_size: int, expected: list[str]
) -> None:
    file = load(tmp_path, numbers)
    with pytest.raises(UserError) as caught:
        file.batches(64, 8, world_size)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in expected), message


def test_numbers_that_agree_are_accepted(tmp_path: Path) -> None:
    numbers = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 8}
    assert load(tmp_path, numbers).batches(64, 16, 2) == (4, 8)


@pytest.mark.parametrize("variable", ["EARLYBERT_KERNELS", "EARLYBERT_ATTENTION"])
def test_names_in_the_environment_are_checked(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_chosen_kernels()
    monkeypatch.setenv(variable, "fastest")
    with pytest.raises(UserError, match=f"^{variable} is 'fastest'; it must be one of "):
        check_chosen_kernels()
