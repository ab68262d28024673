"""The CUDA operators `torch.ops.earlybert.*` for CPU tensors: the kernels' own source, compiled by g++ and emulated."""

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from earlybert.kernels import extension, lamb_step
from earlybert.kernels.extension import SOURCES
from earlybert.kernels.operators import DTYPES, SCHEMAS

HERE = Path(__file__).parent
# As in csrc/operators.cu, but fewer, so that small tests have several rows in a group.
FORWARD_GROUPS, PARTIAL_SUMS = 5, 3


def wheel_folder(name: str) -> Path | None:
    """Where a wheel of NVIDIA's put its files, or None."""
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / name).is_dir():
            return Path(place) / name
    return None


HEADERS = [wheel_folder(name) for name in ("cuda_runtime", "cuda_nvcc", "cuda_cccl")]
MISSING = (
    None
    if all(HEADERS) and shutil.which("g++")
    else "needs g++ and CUDA's headers from wheels: pip install '.[sm70-check]'"
)


@cache
def library_path() -> Path:
    """g++'s library of the emulated kernels, which lives as long as this process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    includes = [f"-I{SOURCES}", f"-I{HERE}", *(f"-isystem{header}/include" for header in HEADERS)]
    library = Path(folder) / "emulated.so"
    command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas", *includes]
    subprocess.run([*command, str(HERE / "emulated_kernels.cpp"), "-o", str(library)], check=True)
    return library


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class Operators:
    """Implementations of the operators in csrc/operators.cu, with its signatures."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def bias_gelu_forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        output = torch.empty_like(hidden)
        rows = hidden.numel() // bias.numel()
        self.library.run_gelu_forward(
            *(DTYPES.index(hidden.dtype), pointer(hidden), pointer(bias), pointer(output)),
            *(ctypes.c_longlong(rows), bias.numel(), min(rows, FORWARD_GROUPS)),
        )
        return output

    def bias_gelu_backward(self, grad_output: Tensor, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        grad_hidden = torch.empty_like(hidden)
        rows = hidden.numel() // bias.numel()
        partial = torch.full((min(rows, PARTIAL_SUMS), bias.numel()), torch.nan)
        self.library.run_gelu_backward(
            *(DTYPES.index(hidden.dtype), pointer(grad_output), pointer(hidden), pointer(bias), pointer(grad_hidden)),
            *(pointer(partial), ctypes.c_longlong(rows), bias.numel(), len(partial)),
        )
        return grad_hidden, partial

    def dropout_residual_layer_norm_forward(
        self,
        hidden: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        probability: float,
        seed: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output, total = torch.empty_like(hidden), torch.empty_like(hidden)
        rows = hidden.numel() // weight.numel()
        mean, deviation = torch.empty(rows), torch.empty(rows)
        tensors = (hidden, residual, weight, bias, output, total, mean, deviation)
        self.library.run_norm_forward(
            *(DTYPES.index(hidden.dtype), *map(pointer, tensors), ctypes.c_longlong(rows), weight.numel()),
            *(ctypes.c_float(epsilon), ctypes.c_double(probability), ctypes.c_ulonglong(int(seed))),
        )
        return output, total, mean, deviation

    def dropout_residual_layer_norm_backward(
        self,
        grad_output: Tensor,
        total: Tensor,
        mean: Tensor,
        deviation: Tensor,
        weight: Tensor,
        probability: float,
        seed: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_residual = torch.empty_like(total)
        grad_hidden = torch.empty_like(total) if probability else total.new_empty(0)
        rows = mean.numel()
        partial = torch.full((2, min(rows, PARTIAL_SUMS), weight.numel()), torch.nan)
        tensors = (grad_output, total, mean, deviation, weight, grad_hidden if probability else None, grad_residual)
        self.library.run_norm_backward(
            *(DTYPES.index(total.dtype), *map(pointer, tensors), pointer(partial), ctypes.c_longlong(rows)),
            *(weight.numel(), partial.shape[1], ctypes.c_double(probability), ctypes.c_ulonglong(int(seed))),
        )
        return grad_hidden, grad_residual, partial

    def lamb_stage_one(
        self,
        stretches: Tensor,
        chunk_owner: Tensor,
        chunk_start: Tensor,
        *numbers: float,
    ) -> Tensor:
        partial = torch.full((len(chunk_owner), 2), torch.nan, dtype=torch.float64)
        squares = torch.empty(2, len(stretches), dtype=torch.float64)
        tensors = (stretches, chunk_owner, chunk_start, partial, squares)
        self.library.run_lamb_stage_one(
            *(*map(pointer, tensors), len(chunk_owner), len(stretches)),
            *(ctypes.c_double(number) for number in numbers),
        )
        return squares

    def lamb_stage_two(self, stretches: Tensor, factors: Tensor, chunk_owner: Tensor, chunk_start: Tensor) -> None:
        tensors = (stretches, factors, chunk_owner, chunk_start)
        self.library.run_lamb_stage_two(*map(pointer, tensors), len(chunk_owner))


def register(library: ctypes.CDLL) -> torch.library.Library:
    """Makes `torch.ops.earlybert.*` work on CPU tensors until the result is destroyed."""
    operators, registered = Operators(library), torch.library.Library("earlybert", "IMPL")
    for schema in SCHEMAS:
        name = schema.split("(")[0]
        registered.impl(name, getattr(operators, name), "CPU")
    return registered


@contextmanager
def lamb_kernels() -> Iterator[None]:
    """Has `Lamb` take the registered kernels for CPU tensors, and nothing else."""
    usable = mock.patch.object(extension, "operators_for", lambda tensor: tensor.dtype in DTYPES)
    with usable, mock.patch.object(lamb_step, "TorchLambStep", None):
        yield
