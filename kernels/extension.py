"""The CUDA kernels in `csrc/`: built once with nvcc, loaded when a GPU is there, optional everywhere.

    python -m earlybert.kernels.extension        builds them, for V100, A100 and H100/H200 where this nvcc knows them

Without that command the first use on a GPU builds them. Without nvcc, without a GPU, or with EARLYBERT_KERNELS=torch,
every operation is plain PyTorch; one line says so and why. EARLYBERT_KERNELS=require ends the program where a GPU would
go without them.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from earlybert.core.errors import UserError
from earlybert.core.progress import say
from earlybert.core.ranks import rank
from earlybert.kernels.operators import DTYPES

SOURCES = Path(__file__).parent / "csrc"
# Each runs on every GPU of its generation. CUDA 13 has dropped sm_70: V100 needs nvcc 12.
ARCHITECTURES = (70, 80, 90)
IMPLEMENTATIONS = ("cuda", "require", "torch")
# Where NVIDIA's installers put the toolkit; few systems have that in their PATH.
TOOLKIT = Path("/usr/local/cuda")
# The oldest PyTorch whose stable ABI the sources keep to: 2.11.
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"


class BuildError(RuntimeError):
    """The extension cannot be built here; the text says why and what would help."""


def build(architectures: tuple[int, ...] = ARCHITECTURES, folder: Path | None = None) -> Path:
    """Builds the extension for those of `architectures` that nvcc knows; returns the library, at once if it is there.

    Raises BuildError without nvcc or when compilation fails.
    """
    nvcc = _nvcc()
    asked = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    if asked.returncode:
        raise BuildError(f"{nvcc} does not work: {asked.stderr.strip()}")
    known = [number for number in architectures if f"compute_{number}" in asked.stdout.split()]
    if not known:
        raise BuildError(f"{nvcc} knows none of sm_{', sm_'.join(map(str, architectures))}; V100 needs CUDA 12's nvcc")
    folder = folder or _build_folder()
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"operators-{_source_hash()}-{'-'.join(f'sm{number}' for number in known)}.so"
    if not library.exists():
        names = ", ".join(f"sm_{number}" for number in known)
        say(f"building the CUDA kernels for {names}, about a minute", enabled=rank() == 0)
    # One rank of a node compiles, the others wait for it.
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch) / library.name
                command = compile_command(nvcc, known, built, Path(torch.__file__).parent)
                outcome = subprocess.run(command, capture_output=True, text=True)
                if outcome.returncode:
                    raise BuildError(f"{nvcc} could not compile {SOURCES}:\n{outcome.stderr.strip()}")
                built.replace(library)
    return library


def compile_command(nvcc: str, architectures: list[int], library: Path, torch_folder: Path) -> list[str]:
    """What compiles and links `library` against the headers and libraries of an installed PyTorch."""
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    # Later generations translate the newest one's intermediate code.
    codes.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    flags = [
        "-std=c++20",
        "-O3",
        "-shared",
        "-Xcompiler=-fPIC",
        "-DUSE_CUDA",
        TARGET,
        f"-isystem={torch_folder}/include",
    ]
    # Python loads PyTorch's libraries for itself alone, so a library must say that it needs them.
    needed = [name for name in ("torch_cpu", "torch_cuda") if (torch_folder / "lib" / f"lib{name}.so").exists()]
    # PyPI's nvcc does not find the runtime that lies beside it.
    links = [f"-L{torch_folder}/lib", *(f"-l{name}" for name in needed), f"-L{Path(nvcc).parent.parent}/lib"]
    return [nvcc, *flags, *codes, str(SOURCES / "operators.cu"), *links, "-o", str(library)]


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    folders = [f"{home}/bin"] if home else [*os.get_exec_path(), f"{TOOLKIT}/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None:
        place = f"CUDA_HOME={home}" if home else f"PATH or {TOOLKIT}"
        raise BuildError(f"there is no nvcc in {place}; install the CUDA toolkit")
    return nvcc


def _build_folder() -> Path:
    default = Path.home() / ".cache" / "torch_extensions"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default) / "earlybert"


def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def needed_architecture(capability: tuple[int, int]) -> int:
    """Which of ARCHITECTURES serves a GPU of this compute capability."""
    return max(number for number in ARCHITECTURES if number <= max(capability[0] * 10, ARCHITECTURES[0]))


def chosen() -> str:
    """What the environment asks for; raises UserError for an unknown name."""
    name = os.environ.get("EARLYBERT_KERNELS", "cuda")
    if name not in IMPLEMENTATIONS:
        raise UserError(f"EARLYBERT_KERNELS is {name!r}; it must be one of {', '.join(IMPLEMENTATIONS)}")
    return name


@functools.cache
def _loaded(capability: tuple[int, int]) -> bool:
    wanted = chosen()
    if wanted == "torch":
        say("EARLYBERT_KERNELS is torch: plain PyTorch in place of the CUDA kernels", enabled=rank() == 0)
        return False
    try:
        _load(capability)
    except (BuildError, OSError) as error:
        if wanted == "require":
            raise UserError(f"EARLYBERT_KERNELS is require, but there are no CUDA kernels: {error}") from error
        # Every rank says so: another machine may have them.
        say(f"no CUDA kernels, plain PyTorch in their place: {error}")
        return False
    say("CUDA kernels loaded", enabled=rank() == 0)
    return True


def _load(capability: tuple[int, int]) -> None:
    if capability < (7, 0):
        raise BuildError("compute capability {}.{} is below 7.0".format(*capability))
    needed = needed_architecture(capability)
    present = sorted(_build_folder().glob(f"operators-{_source_hash()}-*sm{needed}*.so"))
    torch.ops.load_library(str(present[0] if present else build((needed,))))
    _try_kernel()


def _try_kernel() -> None:
    """Runs one small kernel: those of an nvcc newer than the driver load, and fail only when they are launched."""
    try:
        torch.ops.earlybert.bias_gelu_forward(torch.zeros(1, 8, device="cuda"), torch.zeros(8, device="cuda"))
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise BuildError(f"they load, but do not run: {str(error).splitlines()[0]}") from error


@torch.compiler.assume_constant_result
def _usable_on(device: torch.device) -> bool:
    return device.type == "cuda" and _loaded(torch.cuda.get_device_capability(device))


def operators_for(tensor: Tensor) -> bool:
    """Whether `torch.ops.earlybert` can work on this tensor; the first call on a GPU builds and loads them."""
    return tensor.dtype in DTYPES and _usable_on(tensor.device)


if __name__ == "__main__":
    try:
        print(build())
    except (BuildError, OSError) as problem:
        print(f"earlybert: error: {problem}", file=sys.stderr)
        sys.exit(2)
