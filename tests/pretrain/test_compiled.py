"""compile: one graph of forward and backward pass for batches of all lengths, and runs that have it.

A CPU takes a GPU's way with emulated kernels; "aot_eager" makes the graphs as every backend does, and runs them as they
are.
"""

import ctypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from earlybert.core.errors import UserError
from earlybert.kernels import extension
from earlybert.pretrain.checkpoint.checkpoint import Checkpoint, list_checkpoints
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.model import PreTrainingNetwork
from earlybert.pretrain.network.surgery import narrow_weights
from earlybert.pretrain.plan.recipe import DEFAULT_DEEPSPEED
from earlybert.pretrain.ticket.ticket import narrow_config
from earlybert.pretrain.train import engine
from earlybert.pretrain.train.deepspeed_config import DeepSpeedFile
from tests.in_process import train_here
from tests.kernels import emulated, emulated_flash
from tests.pretrain import patched_run
from tests.pretrain.run_files import losses
from tests.pretrain.small_models import batch_of, build, gradients_of_step, random_weights, small_config, unequal_ticket
from tests.pretrain.test_objective import SEARCH
from tests.pretrain.test_sanity import error_line, zero_stage

LENGTHS = ((17, 9, 13, 10), (5, 12, 1, 3, 8, 2), (8, 8, 8), (4, 39, 11))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgotten_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlashAttention for CPU tensors."""
    monkeypatch.setenv("EARLYBERT_ATTENTION", "flash")
    registered = emulated_flash.register()
    yield
    registered._destroy()


@pytest.fixture
def on_a_gpus_way(flash: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The project's own kernels for CPU tensors, too."""
    if emulated.MISSING:
        pytest.skip(emulated.MISSING)
    registered = emulated.register(ctypes.CDLL(str(emulated.library_path())))
    monkeypatch.setattr(extension, "_usable_on", torch.compiler.assume_constant_result(lambda device: True))
    yield
    registered._destroy()


def network(shape: str, dropout: float) -> PreTrainingNetwork:
    """With another width in every layer, or with coefficients."""
    chances = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    full = small_config(searching=shape == "searching", **chances)
    if shape == "searching":
        return build(full, random_weights(full)).train()
    ticket = unequal_ticket(full)
    return build(narrow_config(full, ticket), narrow_weights(full, random_weights(full), ticket)).train()


class Graphs:
    """A backend that counts what another one is given."""

    def __init__(self, backend: str) -> None:
        self.made, self._backend = 0, torch._dynamo.lookup_backend(backend)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.made += 1
        return self._backend(graph, inputs)


def compiled(model: PreTrainingNetwork) -> Graphs:
    graphs = Graphs("aot_eager")
    model.compile(backend=graphs, dynamic=True, fullgraph=True)
    return graphs


def step(model: PreTrainingNetwork, batch: Batch) -> dict[str, Tensor]:
    return gradients_of_step(model, [batch], SEARCH if model.config.searching else None)


@pytest.mark.parametrize("shape", ["unequal", pytest.param("searching", marks=pytest.mark.slow)])
def test_one_graph_has_the_gradients_of_none(on_a_gpus_way: None, shape: str) -> None:
    model, eager = network(shape, 0.0), network(shape, 0.0)
    graphs, made = compiled(model), set()
    for seed, lengths in enumerate(LENGTHS):
        batch = batch_of(lengths, seed)
        torch.testing.assert_close(step(model, batch), step(eager, batch), rtol=1e-6, atol=1e-7)
        made.add(graphs.made)
    assert len(made) == 1
    assert model.state_dict().keys() == eager.state_dict().keys()


@pytest.mark.parametrize("shape", ["searching", pytest.param("unequal", marks=pytest.mark.slow)])
def test_every_step_has_masks_of_its_own(on_a_gpus_way: None, shape: str) -> None:
    """Embeddings, attention, LayerNorm: the seed decides, and the graph has frozen none."""
    model, batch = network(shape, 0.1), batch_of(LENGTHS[0])
    compiled(model)
    losses_of = []
    for seed in (0, 1, 2, 0):
        torch.manual_seed(seed)
        losses_of.append([score.loss.item() for score in model(batch).scores.values()])
    assert losses_of[0] == losses_of[3]
    assert len({tuple(found) for found in losses_of}) == 3


def run_compiled(workplace: Path, name: str, backend: Any, **options: Any) -> str:
    """A search and what follows of the small recipe, dropout on."""

    def prepare() -> None:
        patched_run.mock.patch.object(engine, "COMPILER", backend).start()
        options.get("patch", lambda: None)()

    steps = ("--search.steps", "8", "--search.snapshot_every", "4", "--phase1.steps", "8")
    arguments = ("--config", "small.yaml", "--run-dir", name, "--plan", "[search, narrow, phase1]", *steps)
    status, output = train_here(workplace, *arguments, "--compile", "on", prepare=prepare)
    assert status == 0, output
    return output


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_same_bits(flash: None, finished_run: Path, workplace: Path) -> None:
    """Two stages of other widths, with validations; asked to stop in the search."""
    graphs = Graphs("eager")
    assert "compiled in the first step" in run_compiled(workplace, "whole", graphs)
    # For training and for validation, in each of the two stages.
    assert graphs.made == 2 * 2
    run_compiled(workplace, "parts", "eager", patch=partial(patched_run.stop_once, "search", 5))
    assert not (workplace / "parts" / "DONE").exists()
    run_compiled(workplace, "parts", "eager")
    assert losses(workplace / "parts") == losses(workplace / "whole")
    ends = [Checkpoint(list_checkpoints(workplace / name / "checkpoints")[-1]) for name in ("whole", "parts")]
    assert all(torch.equal(ends[0].weights[name], ends[1].weights[name]) for name in ends[0].weights)
    assert set(ends[0].weights) == set(Checkpoint(list_checkpoints(finished_run / "checkpoints")[-1]).weights)


@pytest.mark.slow
def test_on_a_cpu_attention_stays_outside_the_graphs(workplace: Path) -> None:
    """Its blocks depend on the lengths of a batch, and every batch has others."""
    graphs = Graphs("eager")
    run_compiled(workplace, "pieces", graphs)
    assert 4 < graphs.made < 60


def test_a_step_that_fails_is_looked_at_without_the_graph(flash: None, finished_run: Path, workplace: Path) -> None:
    def prepare() -> None:
        patched_run.mock.patch.object(engine, "COMPILER", "eager").start()

    arguments = ("--config", "small.yaml", "--run-dir", "diverged-compiled", "--compile", "on", "--plan", "[search]")
    absurd = ("--phase1.learning_rate", "300", "--phase1.warmup", "0.05")
    status, output = train_here(workplace, *arguments, *absurd, prepare=prepare)
    assert status == 2 and "tensor is the" in error_line(output), output


@pytest.mark.parametrize(
    ("device", "capability", "stage", "found"),
    [("cpu", (0, 0), 1, False), ("cuda", (7, 0), 1, False), ("cuda", (9, 0), 1, True), ("cuda", (9, 0), 3, False)],
)
def test_auto(
    device: str, capability: tuple[int, int], stage: int, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    file = DeepSpeedFile.load(Path(zero_stage(tmp_path, stage)))
    assert engine.resolve_compile("auto", file, torch.device(device)) is found
    assert engine.resolve_compile(False, file, torch.device(device)) is False


def test_what_cannot_be_compiled_is_refused(tmp_path: Path) -> None:
    assert engine.resolve_compile(True, DeepSpeedFile.load(DEFAULT_DEEPSPEED), CPU)
    with pytest.raises(UserError, match=r"compile is on, but .*json asks for ZeRO stage 3; it must be off"):
        engine.resolve_compile(True, DeepSpeedFile.load(Path(zero_stage(tmp_path, 3))), CPU)
