"""Building and choosing the CUDA extension, as far as that can be seen without a GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from earlybert.core.errors import UserError
from earlybert.kernels import extension
from earlybert.kernels.gelu import linear, linear_gelu
from earlybert.kernels.layer_norm import (
    _fits,
    dropout_residual_layer_norm,
    dropout_residual_layer_norm_reference,
)


@pytest.fixture(autouse=True)
def forgotten_choice() -> Iterator[None]:
    """No test sees what another one loaded."""
    extension._loaded.cache_clear()
    yield
    extension._loaded.cache_clear()


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((7, 0), 70), ((7, 5), 70), ((8, 0), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 90), ((12, 0), 90)],
)
def test_each_generation_has_its_code(capability: tuple[int, int], architecture: int) -> None:
    assert extension.needed_architecture(capability) == architecture


def test_without_nvcc_there_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "earlybert.kernels.extension"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_HOME": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")},
    )
    assert outcome.returncode == 2
    assert outcome.stderr == f"earlybert: error: there is no nvcc in CUDA_HOME={tmp_path}; install the CUDA toolkit\n"
    assert not (tmp_path / "built").exists()


def test_nvcc_is_looked_for_where_the_toolkit_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In PATH first; CUDA_HOME names the only place."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(extension, "TOOLKIT", tmp_path / "toolkit")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(extension.BuildError, match=f"there is no nvcc in PATH or {tmp_path}/toolkit; install"):
        extension._nvcc()
    for folder in ("toolkit/bin", "path", "home/bin"):
        nvcc = tmp_path / folder / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.touch(mode=0o755)
        if folder == "home/bin":
            monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
        assert extension._nvcc() == str(nvcc)


def test_a_failed_build_falls_back_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert not extension._loaded((8, 0))
    assert not extension._loaded((8, 0))
    assert capsys.readouterr().err == (
        f"no CUDA kernels, plain PyTorch in their place: there is no nvcc in CUDA_HOME={tmp_path}; install the CUDA "
        "toolkit\n"
    )


@pytest.mark.parametrize("rank", ["0", "1"])
def test_rank_0_says_that_it_builds_and_loads(
    rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    # The last argument is what it is to write.
    nvcc.write_text(
        '#!/bin/sh\n[ "$1" = --list-gpu-arch ] && echo compute_80 && exit\nfor last; do :; done\n: > "$last"\n'
    )
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(extension, "_try_kernel", lambda: None)
    assert extension._loaded((8, 0))
    extension._loaded.cache_clear()
    assert extension._loaded((8, 0))
    said = "building the CUDA kernels for sm_80, about a minute\nCUDA kernels loaded\nCUDA kernels loaded\n"
    assert capsys.readouterr().err == (said if rank == "0" else "")


def test_an_nvcc_that_fails_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho no licence >&2\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert not extension._loaded((8, 0))
    assert "nvcc does not work: no licence" in capsys.readouterr().err


def test_a_file_that_is_no_library_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    damaged = tmp_path / "earlybert" / f"operators-{extension._source_hash()}-sm70-sm80.so"
    damaged.parent.mkdir()
    damaged.write_bytes(b"nothing")
    assert not extension._loaded((7, 0))
    assert "no CUDA kernels" in capsys.readouterr().err


def test_kernels_that_load_but_do_not_run_fall_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of an nvcc newer than the driver: here there is no GPU to run them."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    library = tmp_path / "earlybert" / f"operators-{extension._source_hash()}-sm80.so"
    library.parent.mkdir()
    library.touch()
    zeros = torch.zeros
    launched: list[torch.Size] = []

    def launch(hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        launched.append(hidden.shape)
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version\nmore")

    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(torch.ops.earlybert, "bias_gelu_forward", launch)
    assert not extension._loaded((8, 0))
    said = capsys.readouterr().err
    assert launched and "they load, but do not run: CUDA driver version is insufficient" in said
    assert "kernels loaded" not in said and said.count("\n") == 1


def test_the_environment_can_ask_for_plain_pytorch_only_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EARLYBERT_KERNELS", "torch")
    assert not extension._loaded((8, 0))
    assert capsys.readouterr().err == "EARLYBERT_KERNELS is torch: plain PyTorch in place of the CUDA kernels\n"
    extension._loaded.cache_clear()
    monkeypatch.setenv("EARLYBERT_KERNELS", "tensorflow")
    with pytest.raises(UserError, match="EARLYBERT_KERNELS is 'tensorflow'; it must be"):
        extension._loaded((8, 0))


def test_required_kernels_that_cannot_be_built_end_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EARLYBERT_KERNELS", "require")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for capability, reason in (((8, 0), "there is no nvcc in CUDA_HOME="), ((6, 1), "compute capability 6.1 is below")):
        with pytest.raises(UserError, match=f"EARLYBERT_KERNELS is require, but there are no CUDA kernels: {reason}"):
            extension._loaded(capability)
    assert not capsys.readouterr().err


def test_cpu_tensors_take_the_reference() -> None:
    hidden_TH, residual_TH = torch.randn(2, 5, 12)
    weight_H, bias_H = torch.randn(2, 12)
    arguments = hidden_TH, residual_TH, weight_H, bias_H, 0.0, 1e-12
    assert not extension.operators_for(hidden_TH)
    assert torch.equal(dropout_residual_layer_norm(*arguments), dropout_residual_layer_norm_reference(*arguments))


def test_layer_norm_kernel_takes_rows_of_one_block() -> None:
    for dtype, columns, fits in (
        (torch.float16, 4096, True),
        (torch.float16, 4104, False),
        (torch.float16, 1001, False),
        (torch.float32, 2048, True),
        (torch.float32, 2052, False),
        (torch.float32, 511, True),
    ):
        assert _fits(torch.empty(1, columns, dtype=dtype)) is fits


def test_columns_beyond_the_weight_change_nothing() -> None:
    # What linear_gelu returns on a GPU for 717 neurons: 768 columns, the last 51 of them zero.
    generator = torch.Generator().manual_seed(0)
    input_TH, weight_FH = torch.randn(6, 16, generator=generator), torch.randn(717, 16, generator=generator)
    output_weight_HF = torch.randn(16, 717, generator=generator).requires_grad_()
    narrow_TF = linear_gelu(input_TH, weight_FH, torch.randn(717, generator=generator))
    wide_TF = torch.nn.functional.pad(narrow_TF, (0, 51)).requires_grad_()
    narrow_TH, wide_TH = linear(narrow_TF, output_weight_HF, None), linear(wide_TF, output_weight_HF, None)
    torch.testing.assert_close(wide_TH, narrow_TH, rtol=1e-6, atol=1e-5)
    (gradient_TF,) = torch.autograd.grad(wide_TH.square().sum(), wide_TF)
    assert torch.equal(gradient_TF[:, 717:], torch.zeros(6, 51))
