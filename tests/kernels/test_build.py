"""The CUDA extension compiled by nvcc: against the installed PyTorch, and against the oldest and newest supported ones.

nvcc is taken from CUDA_HOME or PATH, or from PyPI (`pip install nvidia-cuda-nvcc nvidia-cuda-cccl`, with the same
version for everything they bring). Headers of other PyTorch releases come from wheels in the folder that
EARLYBERT_TORCH_WHEELS names: `pip download --no-deps --dest FOLDER torch==2.11.0`, and the newest alike. Only their
headers are unpacked; nothing is installed.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import emulated
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from earlybert.kernels import extension
from earlybert.kernels.operators import SCHEMAS

pytestmark = pytest.mark.slow

SETUP = Path(__file__).parents[2] / "setup.py"


@pytest.fixture(autouse=True)
def nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of PyPI's does where there is no other."""
    wheel = emulated.wheel_folder("cu13")
    if "CUDA_HOME" not in os.environ and shutil.which("nvcc") is None and wheel and (wheel / "bin" / "nvcc").is_file():
        monkeypatch.setenv("CUDA_HOME", str(wheel))
    try:
        extension._nvcc()
    except extension.BuildError as error:
        pytest.skip(f"{error}, or pip install nvidia-cuda-nvcc nvidia-cuda-cccl")


def test_nvcc_builds_a_library_that_registers_the_operators(tmp_path: Path) -> None:
    library = extension.build(folder=tmp_path)
    assert extension.build(folder=tmp_path) == library
    # What PyTorch's CPU build lacks.
    lacking = ("aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg", "torch_c10_cuda_free_error_msg")
    (tmp_path / "stub.c").write_text("\n".join(f"int {name}(void) {{ return 1; }}" for name in lacking))
    subprocess.run(["gcc", "-shared", "-fPIC", "stub.c", "-o", "stub.so"], cwd=tmp_path, check=True)
    names = sorted(schema.split("(")[0] for schema in SCHEMAS)
    code = f"""
import ctypes, torch
import earlybert.kernels.operators
ctypes.CDLL({str(tmp_path / "stub.so")!r}, mode=ctypes.RTLD_GLOBAL)
torch.ops.load_library({str(library)!r})
for name in {names!r}:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("earlybert::" + name, "CUDA"), name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def supported_releases() -> tuple[str, str]:
    """The oldest and the newest minor release of PyTorch that setup.py allows."""
    line = next(text for text in SETUP.read_text().splitlines() if text.strip().startswith('"torch>='))
    bounds = {bound.operator: Version(bound.version) for bound in Requirement(line.strip(' ,"')).specifier}
    oldest, beyond = bounds[">="], bounds["<"]
    return f"{oldest.major}.{oldest.minor}", f"{beyond.major}.{beyond.minor - 1}"


@pytest.mark.parametrize("release", supported_releases())
def test_nvcc_compiles_against_the_headers_of_other_releases(release: str, tmp_path: Path) -> None:
    folder = os.environ.get("EARLYBERT_TORCH_WHEELS")
    wheels = sorted(Path(folder).glob(f"torch-{release}.*.whl")) if folder else []
    if wheels:
        with zipfile.ZipFile(wheels[-1]) as wheel:
            wheel.extractall(tmp_path, [name for name in wheel.namelist() if name.startswith("torch/include/")])
        torch_folder = tmp_path / "torch"
    elif torch.__version__.startswith(f"{release}."):
        torch_folder = Path(torch.__file__).parent
    else:
        pytest.skip(f"EARLYBERT_TORCH_WHEELS names no folder with a wheel of torch {release}")
    command = extension.compile_command(extension._nvcc(), [90], tmp_path / "operators.so", torch_folder)
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
