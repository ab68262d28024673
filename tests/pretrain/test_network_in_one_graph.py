"""The encoder is one graph for torch.compile, whatever the lengths, on the way that a GPU takes: by shapes alone."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from earlybert.kernels import extension
from earlybert.pretrain.network.batch import Batch
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.model import meta_network

DEVICE = torch.device("meta")


@pytest.fixture(autouse=True)
def forgotten_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("kernels", "searching"),
    [(True, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((True, False), (False, True)))],
    ids=["kernels, searching", "kernels, dense", "PyTorch, searching"],
)
def test_encoder(kernels: bool, searching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARLYBERT_ATTENTION", "flash")
    monkeypatch.setattr(extension, "_usable_on", torch.compiler.assume_constant_result(lambda device: kernels))
    config = NetworkConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, searching=searching
    )
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(meta_network(config).bfloat16().encode, backend=counter, fullgraph=True)
    for sequences, longest in ((4, 16), (3, 20), (7, 12), (5, 16), (2, 30), (9, 9)):
        lengths_B = torch.arange(longest, longest - sequences, -1).clamp(min=2)
        second_T = lengths_B.cumsum(0) - lengths_B + 1  # the second token of every sequence is predicted
        ids_T = torch.zeros(int(lengths_B.sum()), dtype=torch.int64)
        batch = Batch.of(lengths_B.tolist(), ids_T, ids_T, second_T, second_T, lengths_B)
        hidden_MH = compiled(batch.to(DEVICE))
        assert hidden_MH.shape == (2 * sequences, 64)
        hidden_MH.sum().backward()
    # The first lengths, those that varied next, and those that varied after them.
    assert counter.frame_count <= 3
