"""The CUDA kernels for tests without a GPU: compiled once a session, and skipped where nothing can compile them."""

import ctypes
from collections.abc import Iterator

import pytest
import torch

from tests.kernels import emulated


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """g++'s library of the emulated kernels."""
    if emulated.MISSING:
        pytest.skip(emulated.MISSING)
    return ctypes.CDLL(str(emulated.library_path()))


@pytest.fixture(scope="module")
def operators(library: ctypes.CDLL) -> Iterator[torch.library.Library]:
    """`torch.ops.earlybert.*` for CPU tensors."""
    registered = emulated.register(library)
    yield registered
    registered._destroy()
