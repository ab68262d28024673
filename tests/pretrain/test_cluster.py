"""What `earlybert plan --cluster` computes: bytes against autograd and DeepSpeed, times against published runs."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from cost_model import full_batch, published_runs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from earlybert.core import cli
from earlybert.core.errors import UserError
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.pretrain.cost.cluster import (
    Shape,
    activation_bytes,
    checkpoint_bytes,
    exchange_seconds,
    fitting_micro_batch,
    optimizer_seconds,
    parse_cluster,
    peak_bytes,
    state_bytes,
)
from earlybert.pretrain.cost.muon import (
    busiest_rank_flops,
    matrix_elements,
    orthogonalisation_flops,
    orthogonalised_matrices,
)
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED, OptimizerConfig, load_recipe, recipe_path
from earlybert.pretrain.train.engine import build_optimizer

LARGE = NetworkConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
NARROW = {
    "kept_heads": ((0, 1, 2), (0,), (1, 2, 3)),
    "kept_neurons": (tuple(range(700)), tuple(range(64)), tuple(range(400))),
}


def saved_bytes(model: PreTrainingNetwork, batch: Batch) -> int:
    """What autograd keeps between the forward and the backward pass, every storage counted once, weights not."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = model(batch).scores
    assert all(score.loss.requires_grad for score in scores.values())
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in weights)


@pytest.mark.parametrize(("length", "predictions"), [(128, 20), (512, 80)])
@pytest.mark.parametrize("kept", [{}, NARROW], ids=["dense", "narrow"])
def test_activations_are_what_autograd_keeps(kept: dict, length: int, predictions: int) -> None:
    """The difference of five sequences and two, so that what does not depend on the batch drops out."""
    config = NetworkConfig(
        vocab_size=512,
        hidden_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=1024,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **kept,
    )
    model = PreTrainingNetwork(config).train()
    shape = Shape(config, length, predictions, 64)
    five, two = (saved_bytes(model, full_batch(shape, sequences)) for sequences in (5, 2))
    # In fp32 on a CPU, whose attention keeps its scores.
    formula = activation_bytes(shape, 4, keeps_scores=True)
    assert formula == pytest.approx((five - two) / 3, rel=0.01)


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (1, 8), (4, 8)])
def test_state_is_what_deepspeed_estimates(nodes: int, gpus: int) -> None:
    """DeepSpeed's own estimate is for ZeRO-2: its gradients, half and fp32, are shared out; ours are fp32 and whole."""
    parameters = 336_226_108
    _, estimated = estimate_zero2_model_states_mem_needs(parameters, gpus, nodes, False, 1.0)
    difference = 4 * parameters - (2 + 4) * parameters / (nodes * gpus)
    assert state_bytes(parameters, nodes * gpus) == pytest.approx(estimated + difference, abs=4)


@pytest.mark.parametrize("gpus", [1, 6, 512])
@pytest.mark.parametrize(("gpu", "gigabytes"), [("V100-16GB", 17), ("V100-32GB", 34), ("H200-141GB", 150)])
def test_the_fewest_micro_batches_that_fit(gpu: str, gigabytes: int, gpus: int) -> None:
    shape, share = Shape(LARGE, 128, 20, 65_536), math.ceil(65_536 / gpus)
    micro_batch = fitting_micro_batch(shape, parse_cluster(f"1x{gpus} {gpu}", 100))
    accumulation = math.ceil(share / micro_batch)
    assert share <= accumulation * micro_batch < share + accumulation
    assert peak_bytes(shape, micro_batch, gpus) <= 0.9e9 * gigabytes
    if accumulation > 1:
        assert peak_bytes(shape, math.ceil(share / (accumulation - 1)), gpus) > 0.9e9 * gigabytes


def test_a_network_that_does_not_fit() -> None:
    huge = NetworkConfig(hidden_size=8192, num_hidden_layers=48, num_attention_heads=64, intermediate_size=32_768)
    with pytest.raises(UserError, match=r"one sequence of 512 tokens takes .* V100-16GB has 15.3 GB to use"):
        fitting_micro_batch(Shape(huge, 512, 80, 64), parse_cluster("1x8 V100-16GB", 100))


# Shared out, its states fit eight V100, but no one of them.
LARGER = "--model.hidden_size=2304 --model.num_heads=24 --model.intermediate_size=9216 --model.num_layers=36"


def scaling_rows(printed: str) -> list[list[str]]:
    """The cells of the last table, from its first row on."""
    lines = printed.partition("\nscaling with")[2].splitlines()[2:]
    return [re.split(r" {2,}", line.strip()) for line in lines]


def test_numbers_of_gpus_that_the_plan_does_not_fit_are_rows_that_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "--config=bert_large", "--cluster=4x8 V100-32GB", *LARGER.split()])
    one, eight, sixteen, *others = scaling_rows(capsys.readouterr().out)
    assert one == ["1", "1", "does not fit", "does not fit", "-", "-", "65,536.0"]
    assert eight[0] == "8" and eight[-2] == "100.0%" and len(others) == 6
    assert 95 < float(sixteen[-2].rstrip("%")) < 100


def test_a_ticket_may_fit_where_the_dense_network_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = ["--config=bert_large", *LARGER.split(), "--draw.head_ratio=0.9", "--draw.neuron_ratio=0.9"]
    cli.main(["ticket", "random", *cut, f"--out={tmp_path / 'ticket.json'}"])
    capsys.readouterr()
    given = ["--plan=[narrow, phase2]", f"--ticket={tmp_path / 'ticket.json'}"]
    cli.main(["plan", *cut, *given, "--cluster=1x1 V100-32GB"])
    printed = capsys.readouterr().out
    assert "dense:       does not fit: one sequence of 512 tokens takes" in printed and "dense phase2" not in printed
    one, *_ = scaling_rows(printed)
    assert one[2] != "does not fit" and one[3:5] == ["does not fit", "-"]
    assert printed.count("samples a GPU and step, phase2\n") == 1
    # All that a plan's own stages lack room for is refused as before.
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "--config=bert_large", "--cluster=1x1 V100-32GB", *LARGER.split()])
    assert ended.value.code == 2


@pytest.mark.parametrize("run", published_runs(), ids=lambda run: run["name"])
def test_published_runs_are_met_within_a_fifth(run: dict) -> None:
    assert run["predicted"] == pytest.approx(run["published"], rel=0.2)


@pytest.mark.parametrize(
    ("text", "network", "message"),
    [
        ("4 nodes", "100", "--cluster is '4 nodes'; it must be NODES x GPUS-PER-NODE GPU"),
        ("0x8 V100-32GB", "100", "--cluster is '0x8 V100-32GB'"),
        (
            "4x8 V1000",
            "100",
            "--cluster names the GPU 'V1000', which is not known; it must be one of V100-16GB, V100-32GB",
        ),
        ("4x8 V100-32GB", "0", "--network-gbit is 0; it must be a number above 0"),
        ("4x8 V100-32GB", "nan", "--network-gbit is nan; it must be a number above 0"),
        ("100000x8 V100-32GB", "100", "phase1.global_batch"),
    ],
)
def test_bad_clusters_are_refused(
    text: str, network: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["earlybert", "plan", "--cluster", text, "--network-gbit", network])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert message in captured.err and not captured.out and captured.err.count("\n") == 1


def test_the_plan_says_which_micro_batch_auto_takes_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "--config=bert_large", "--plan=[phase1]", "--cluster", "1x8", "V100-32GB"])
    printed = capsys.readouterr().out
    assert load_recipe(recipe_path("bert_large"), []).phase("phase1").micro_batch == "auto"
    micro_batch = fitting_micro_batch(Shape(LARGE, 128, 20, 65_536), parse_cluster("1x8 V100-32GB", 100))
    assert f"--phase1.micro_batch {micro_batch}\n" in printed
    assert "as few equal parts as fit into 90% of the memory; auto takes what is free" in printed
    assert "micro-batch: phase1 auto; the table of the cluster has what auto would be there\n" in printed


def test_without_a_cluster_the_plan_says_when_auto_is_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["plan", "--config=bert_large", "--phase2.micro_batch=16"]
    cli.main(line)
    assert "micro-batch: phase1 auto, phase2 16; auto is decided when a stage begins" in capsys.readouterr().out
    cli.main(["plan", "--config=quickstart", "--phase1.micro_batch=8", "--phase2.micro_batch=4"])
    assert "micro-batch: phase1 8, phase2 4\n" in capsys.readouterr().out
    content = json.loads(DEFAULT_DEEPSPEED.read_text()) | {"train_micro_batch_size_per_gpu": 7}
    (tmp_path / "seven.json").write_text(json.dumps(content))
    cli.main([*line, f"--deepspeed={tmp_path / 'seven.json'}"])
    assert "micro-batch: phase1 7, phase2 7\n" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [{}, NARROW], ids=["dense", "narrow"])
def test_operations_of_muon_are_those_that_pytorch_counts(kept: dict) -> None:
    config = NetworkConfig(
        vocab_size=512,
        hidden_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=1024,
        **kept,
    )
    model = PreTrainingNetwork(config)
    optimizer = build_optimizer(model, "Muon", {}, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == orthogonalisation_flops(config) == busiest_rank_flops(config, 1)
    muons = optimizer.param_groups[0]["params"]
    assert sum(parameter.numel() for parameter in muons) == matrix_elements(config)
    # Of the network, the states that the optimizer really has.
    states = sum(state.numel() * 4 for each in optimizer.state.values() for state in each.values() if state.ndim)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert states == 8 * whole - 4 * matrix_elements(config)


def test_muon_has_one_moment_and_more_to_compute() -> None:
    lamb, muon = (Shape(LARGE, 128, 20, 65_536, muon=muon) for muon in (False, True))
    matrices = len(orthogonalised_matrices(LARGE))
    assert matrices == 24 * 6 + 2
    for gpus in (1, 8):
        saved = peak_bytes(lamb, 8, gpus) - peak_bytes(muon, 8, gpus)
        assert saved == pytest.approx(4 * matrix_elements(LARGE) / gpus)
    assert checkpoint_bytes(lamb) - checkpoint_bytes(muon) == 4 * matrix_elements(LARGE)
    one, many = parse_cluster("1x1 V100-32GB", 100), parse_cluster("32x8 V100-32GB", 100)
    assert exchange_seconds(matrix_elements(LARGE), one) == 0 == exchange_seconds(0, many)
    # However many there are, one of them has a largest matrix: 4,096 x 1,024, 5 (4 m^2 n + 2 m^3) operations.
    largest = 5 * (4 * 1024**2 * 4096 + 2 * 1024**3)
    assert busiest_rank_flops(LARGE, 256) == largest
    for cluster, flops in ((one, orthogonalisation_flops(LARGE)), (many, largest)):
        more = optimizer_seconds(muon, cluster) - optimizer_seconds(lamb, cluster)
        assert more == pytest.approx(flops / (125e12 * 0.6))


def test_plan_says_how_often_the_text_is_seen(
    finished_run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """2,000 steps of 50 sequences in phase 1, 10 of 20 in phase 2, over the samples that `datasets` reads."""
    from datasets import Dataset, concatenate_datasets

    monkeypatch.chdir(workplace)
    corpus = yaml.safe_load((finished_run / "config.yaml").read_text())["data"]
    arguments = ["--config", "small.yaml", "--data", corpus]
    cli.main(["plan", *arguments, "--phase1.steps", "2000"])
    output = capsys.readouterr().out
    for phase, length, drawn in (("phase1", 32, 2000 * 50), ("phase2", 64, 10 * 20)):
        shards = sorted((Path(corpus) / "train" / f"length-{length}").glob("shard-*.arrow"))
        count = len(concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards]))
        samples = f"the {count:,} samples of length {length}"
        often = f"{samples} {drawn / count:,.1f} times" if drawn >= count else f"{drawn} of {samples} once"
        assert f"data: {phase} sees {often}" in output
    assert output.count("learns such a text by heart") == 1
    # As a budget may well propose.
    cli.main(["plan", *arguments, "--cluster", "1x1 V100-16GB", "--hours", "0.01"])
    assert capsys.readouterr().out.count("learns such a text by heart") == 2
    with pytest.raises(SystemExit):
        cli.main(["plan", *arguments, "--phase1.length", "16"])
    assert "has no samples of length 16; it was prepared for 32, 64" in capsys.readouterr().err


def test_with_packed_rows_the_plan_counts_rows(
    packed_corpus: Corpus, small_corpus: Corpus, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of which phase 1 takes 8 a step."""
    line = ["plan", f"--config={recipe_file}", "--packed_rows=true", "--phase1.length=32", "--phase1.steps=100"]
    rows, samples = len(packed_corpus.packed_rows("train", 32)), len(packed_corpus.samples("train", 32))
    assert rows < samples
    cli.main([*line, "--plan=[phase1]", f"--data={packed_corpus.directory}"])
    expected = f"data: phase1 sees the {rows:,} rows of samples of length 32 {100 * 8 / rows:,.1f} times\n"
    assert expected in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main([*line, f"--data={small_corpus.directory}"])
    assert ended.value.code == 2 and "was prepared without packing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ("--optimizer.betas=[0.8,0.9]", {"optimizer": {"type": "Lamb", "params": {"betas": [0.9, 0.95]}}}, "betas is"),
        ("", {"train_batch_size": 4096}, "train_batch_size is 4096, but the recipe's global_batch is 65536"),
        (
            "--cluster=1x8 A100-80GB",
            {"train_micro_batch_size_per_gpu": 64, "gradient_accumulation_steps": 3},
            "gradient_accumulation_steps is 3, but a global batch of 65536 in micro-batches of 64 on 8 ranks takes 128",
        ),
        # On 8 ranks they are right for phase 1, and on 4 for phase 2, whose batch is half as large.
        (
            "",
            {"train_micro_batch_size_per_gpu": 64, "gradient_accumulation_steps": 128},
            "gradient_accumulation_steps is 128, but a global batch of 65536 in micro-batches of 64 on 1 ranks takes",
        ),
        ("--precision=bf16", {"fp16": {"enabled": True}}, "asks for fp16; they must agree"),
        ("--precision=bf16", {"bf16": {"enabled": False}}, "bf16.enabled is false, but precision comes to bf16"),
        ("--precision=fp16", {}, "zero_optimization.stage is 0, which cannot train in fp16"),
        ("--cluster=1x8 V100-32GB", {}, "zero_optimization.stage is 0, which cannot train in fp16"),
        ("--cluster=1x8 A100-80GB", {"bf16": {"enabled": False}}, "precision comes to bf16; give another one"),
        ("--compile=true", {"zero_optimization": {"stage": 3}}, "compile is on, but"),
        ("--cluster=1x8 V100-32GB", {"fp16": {"enabled": False}, "bf16": {"enabled": False}}, "asks for fp32, but"),
        ("--cluster=1x8 V100-32GB --precision=fp32", {}, "precision is fp32, but --cluster is a model of half"),
    ],
)
def test_what_the_plan_cannot_be_is_refused(
    options: str, content: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps(content))
    line = ["plan", "--config=bert_large", f"--deepspeed={file}", *re.split(" (?=--)", options)]
    with pytest.raises(SystemExit) as ended:
        cli.main([part for part in line if part])
    captured = capsys.readouterr()
    assert ended.value.code == 2 and not captured.out
    assert message in captured.err and captured.err.count("\n") == 1


def test_accumulation_steps_are_right_on_some_number_of_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which a plan without a cluster does not know."""
    file = tmp_path / "file.json"
    batches = {"train_micro_batch_size_per_gpu": 64, "gradient_accumulation_steps": 128}
    file.write_text(json.dumps({**batches, "zero_optimization": {"stage": 1}}))
    line = ["plan", "--config=bert_large", "--plan=[phase1]", f"--deepspeed={file}"]
    for cluster in ([], ["--cluster=1x8 V100-32GB"]):
        cli.main([*line, *cluster])
        assert "micro-batch: phase1 64\n" in capsys.readouterr().out


def test_plan_says_what_muon_adds(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(DEFAULT_DEEPSPEED.with_name("muon.json"))
    cli.main(["plan", "--config", "bert_base", "--deepspeed", file, "--cluster", "1x8 V100-32GB"])
    output = capsys.readouterr().out
    assert "Muon trains 74 matrices" in output and "peak rate of 0.003" in output
    cli.main(["plan", "--config", "bert_base"])
    assert "Muon" not in capsys.readouterr().out
