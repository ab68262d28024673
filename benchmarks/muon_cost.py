"""What share of a step is Muon? Operations at BERT's shapes, counted, and times on one core of this machine.

    python benchmarks/muon_cost.py [--rounds 5] [--out FILE.json]

Counted: the products of Newton-Schulz for all matrices, of all ranks together, as a share of the operations of
training a step, which no number of ranks changes. Measured: processor time of a training pass over 512 tokens (the
first four layers and the heads of each size, fp32, one thread), of LAMB's step on these parameters and of Muon's,
taken in turn, medians; what Muon takes more, and how many tokens a step must have for that to be 10 % and 1 % of it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cost_model import full_batch
from provenance import measured_on
from rich.progress import track

from earlybert.core.files import write_json
from earlybert.pretrain.cost.cluster import Shape
from earlybert.pretrain.cost.muon import orthogonalisation_flops
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.work import flops_per_sequence
from earlybert.pretrain.plan.recipe import OptimizerConfig
from earlybert.pretrain.train.engine import build_optimizer

SIZES: dict[str, dict[str, Any]] = {
    "2 x 128": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512},
    "BERT-Base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "BERT-Large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
BATCHES = (32, 256, 4_096, 65_536)
LENGTH, PREDICTIONS, SEQUENCES, MEASURED_LAYERS = 128, 20, 4, 4


def counted(config: NetworkConfig) -> dict[str, Any]:
    """Operations of one step's Newton-Schulz, and their share of training for each global batch."""
    muon = orthogonalisation_flops(config)
    training = flops_per_sequence(config, LENGTH, PREDICTIONS)
    return {"flops": muon, "shares": {str(batch): muon / (muon + batch * training) for batch in BATCHES}}


def measured(sizes: dict[str, Any], rounds: int) -> dict[str, float]:
    """Seconds of a training pass over one token, of LAMB's step and of Muon's."""
    layers = min(MEASURED_LAYERS, sizes["num_hidden_layers"])
    config = NetworkConfig(**sizes | {"num_hidden_layers": layers, "vocab_size": 4096})
    model = PreTrainingNetwork(config).train()
    batch = full_batch(Shape(config, LENGTH, PREDICTIONS, SEQUENCES), SEQUENCES)

    def train() -> None:
        torch.stack([score.loss for score in model(batch).scores.values()]).sum().backward()

    train()  # gradients for the optimizers
    lamb, muon = (build_optimizer(model, kind, {}, OptimizerConfig()) for kind in ("Lamb", "Muon"))
    works: dict[str, Callable[[], Any]] = {"pass": train, "lamb": lamb.step, "muon": muon.step}
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if turn:  # the first one warms up
                times[name].append(time.process_time() - began)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    token = seconds["pass"] / (SEQUENCES * LENGTH)
    more = seconds["muon"] - seconds["lamb"]
    flops = orthogonalisation_flops(config)
    return {
        "layers": layers,
        "seconds_per_token": token,
        "lamb_seconds": seconds["lamb"],
        "muon_seconds": seconds["muon"],
        "gflops_per_second": flops / more / 1e9,
        "tokens_for_10_percent": 9 * more / token,
        "tokens_for_1_percent": 99 * more / token,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts = {name: counted(NetworkConfig(**sizes)) for name, sizes in SIZES.items()}
    print("share of a step's operations, by sequences of 128 tokens a step")
    print(f"{'':<12}{'operations':>12}" + "".join(f"{batch:>10,}" for batch in BATCHES))
    for name, found in counts.items():
        print(f"{name:<12}{found['flops']:>12.2e}" + "".join(f"{share:>10.3%}" for share in found["shares"].values()))
    times = {}
    for name in track(SIZES, "timing", transient=True):
        times[name] = measured(SIZES[name], arguments.rounds)
    print("\none core, fp32; tokens a step at which Muon takes 10 % and 1 % of it")
    titles = {"layers": 8, "ms/1,000 tokens": 17, "LAMB ms": 10, "Muon ms": 10, "GFLOP/s": 9, "10 %": 10, "1 %": 12}
    print(" " * 12 + "".join(f"{title:>{width}}" for title, width in titles.items()))
    for name, row in times.items():
        print(
            f"{name:<12}{row['layers']:>8}{1e6 * row['seconds_per_token']:>17,.0f}{1e3 * row['lamb_seconds']:>10,.1f}"
            f"{1e3 * row['muon_seconds']:>10,.1f}{row['gflops_per_second']:>9,.0f}"
            f"{row['tokens_for_10_percent']:>10,.0f}{row['tokens_for_1_percent']:>12,.0f}"
        )
    if arguments.out:
        write_json(arguments.out, measured_on() | {"counted": counts, "measured": times})


if __name__ == "__main__":
    main()
