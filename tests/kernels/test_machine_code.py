"""Machine code for V100 and A100 from the CUDA sources, without a GPU and without nvcc: NVRTC and ptxas from wheels.

`pip install '.[sm70-check]'` brings the wheels. What NVRTC accepts for sm_70, nvcc 12 accepts; ptxas is the one that
makes the final code, so what it says of registers and spills holds on the card.
"""

import ctypes
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from earlybert.kernels.extension import SOURCES
from tests.kernels.emulated import wheel_folder

CUDA_TYPES = {"__half": 2, "__nv_bfloat16": 2, "float": 4}
ROW_KERNELS = (
    "bias_gelu_forward",
    "bias_gelu_backward",
    "dropout_residual_layer_norm_forward",
    "dropout_residual_layer_norm_backward",
)
LAMB_KERNELS = ("lamb_stage_one", "lamb_stage_two")
# 512 threads of 128 registers fill the register file of an SM: LayerNorm could not be launched with more.
MOST_REGISTERS = 128


NVRTC, RUNTIME, NVCC, CUDA_13 = (wheel_folder(n) for n in ("cuda_nvrtc", "cuda_runtime", "cuda_nvcc", "cu13"))
pytestmark = pytest.mark.skipif(
    not (NVRTC and RUNTIME and NVCC), reason="needs the wheels of NVRTC 12: pip install '.[sm70-check]'"
)


@dataclass(frozen=True)
class Compiled:
    """One kernel: its PTX, and what ptxas says of its machine code."""

    ptx: str
    registers: int
    stack_bytes: int
    spill_bytes: int


def instantiations() -> list[str]:
    packs = [(dtype, pack) for dtype, size in CUDA_TYPES.items() for pack in (16 // size, 1)]
    return [f"earlybert::{kernel}<{dtype}, {pack}>" for kernel in ROW_KERNELS for dtype, pack in packs]


def nvrtc(source: str, names: Sequence[str], architecture: int) -> tuple[str, dict[str, str]]:
    """PTX of a source with these template instances, and the name of each in it."""
    assert NVRTC and RUNTIME and NVCC
    # Found by the library when it is loaded before.
    ctypes.CDLL(str(next(NVRTC.glob("lib/libnvrtc-builtins.so*"))), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(next(NVRTC.glob("lib/libnvrtc.so.*"))))
    program = ctypes.c_void_p()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    for name in names:
        assert not library.nvrtcAddNameExpression(program, name.encode())
    includes = [f"-I{SOURCES}", f"-I{RUNTIME / 'include'}", f"-I{NVCC / 'include'}"]
    options = [f"--gpu-architecture=compute_{architecture}", "-std=c++17", *includes]
    status = library.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    )
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    lowered = {}
    for name in names:
        pointer = ctypes.c_char_p()
        assert not library.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(pointer))
        assert pointer.value
        lowered[name] = pointer.value.decode()
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value.decode(), lowered


@pytest.fixture(scope="module", params=[70, 80], ids=["sm70", "sm80"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """Every kernel by name."""
    return compile_for(request.param, tmp_path_factory.mktemp("code"))


def compile_for(architecture: int, folder: Path) -> dict[str, Compiled]:
    """Every kernel by name; leaves kernels.cubin in `folder`."""
    source = "\n".join(f'#include "{name}.cuh"' for name in ("gelu", "layer_norm", "lamb"))
    names = [*instantiations(), *(f"earlybert::{kernel}" for kernel in LAMB_KERNELS)]
    ptx, lowered = nvrtc(source, names, architecture)
    (folder / "kernels.ptx").write_text(ptx)
    assert NVCC
    assembled = subprocess.run(
        [NVCC / "bin" / "ptxas", "-v", f"-arch=sm_{architecture}", "kernels.ptx", "-o", "kernels.cubin"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert assembled.returncode == 0, assembled.stderr
    report = {}
    for part in assembled.stderr.split("Compiling entry function ")[1:]:
        symbol = part.split("'")[1]
        stack, stores, loads = map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part)[:3])
        used = re.search(r"Used (\d+) registers", part)
        assert used
        report[symbol] = (int(used[1]), stack, stores + loads)
    bodies = {match[1]: match[2] for match in re.finditer(r"\.entry (\w+)\((.*?)\n}", ptx, re.DOTALL)}
    return {name: Compiled(bodies[symbol], *report[symbol]) for name, symbol in lowered.items()}


def test_nothing_is_spilled_and_the_registers_suffice(compiled: dict[str, Compiled]) -> None:
    assert len(compiled) == 4 * 6 + 2
    for name, kernel in compiled.items():
        assert (kernel.stack_bytes, kernel.spill_bytes) == (0, 0), name
        assert kernel.registers <= MOST_REGISTERS, name


def accesses(ptx: str, kind: str) -> list[int]:
    """Bytes of each access of a kind ("ld" or "st") to global memory, or to what may be that, in PTX."""
    found = re.findall(rf"\b{kind}(?:\.global)?(?:\.nc)?(?:\.v(\d))?\.\w(\d+)", ptx)
    return [int(vector or 1) * int(bits) // 8 for vector, bits in found]


def test_activations_move_sixteen_bytes_at_a_time(compiled: dict[str, Compiled]) -> None:
    for kernel in ROW_KERNELS:
        for dtype, size in CUDA_TYPES.items():
            packed = compiled[f"earlybert::{kernel}<{dtype}, {16 // size}>"].ptx
            # Each row is read and written in whole packs; narrower ones are statistics and sums in fp32.
            assert accesses(packed, "ld").count(16) >= 2, (kernel, dtype)
            assert accesses(packed, "st").count(16) >= 1, (kernel, dtype)
            assert not any(bytes_moved < 4 for bytes_moved in accesses(packed, "ld") + accesses(packed, "st"))
            single = compiled[f"earlybert::{kernel}<{dtype}, 1>"].ptx
            assert 16 not in accesses(single, "ld") + accesses(single, "st"), (kernel, dtype)


def test_lamb_moves_sixteen_bytes_at_a_time(compiled: dict[str, Compiled]) -> None:
    for kernel, reads, writes in (("lamb_stage_one", 4, 3), ("lamb_stage_two", 2, 1)):
        ptx = compiled[f"earlybert::{kernel}"].ptx
        assert accesses(ptx, "ld").count(16) >= reads
        assert accesses(ptx, "st").count(16) >= writes


def test_machine_code_of_a100_has_128_bit_accesses_and_no_local_memory(tmp_path: Path) -> None:
    # PyPI's disassemblers know sm_75 and newer; for sm_70 the tests above read what goes into ptxas and its report.
    nvdisasm = CUDA_13 / "bin" / "nvdisasm" if CUDA_13 else tmp_path
    if not nvdisasm.is_file():
        pytest.skip("needs nvidia-cuda-nvdisasm: pip install '.[sm70-check]'")
    compile_for(80, tmp_path)
    listing = subprocess.run([nvdisasm, "-c", tmp_path / "kernels.cubin"], capture_output=True, text=True, check=True)
    code = dict(part.split(":", 1) for part in re.split(r"\n\.text\.", listing.stdout)[1:])
    assert len(code) == 4 * 6 + 2 + 1
    for symbol, text in code.items():
        assert not re.search(r"\b(LDL|STL)\b", text), symbol
        single = "Li1E" in symbol or "squared_norms" in symbol
        assert bool(re.search(r"\bLDG?\.E(\.\w+)*\.128", text)) is not single, symbol
        assert bool(re.search(r"\bSTG?\.E(\.\w+)*\.128", text)) is not single, symbol
