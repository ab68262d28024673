"""The cluster's precondition, and a checkout whose trainer is a stub."""

import getpass
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import slurm


@pytest.fixture(scope="session", autouse=True)
def on_a_cluster() -> None:
    if "MINI_SLURM_DIR" not in os.environ:
        pytest.fail("these tests need the virtual cluster of tests/slurm/mini_slurm.sh; run `make test-slurm`")


@pytest.fixture(autouse=True)
def nothing_left_over(on_a_cluster: None) -> Iterator[None]:
    """A test that fails must not leave its job on the nodes."""
    yield
    slurm("scancel", "--quiet", f"--user={getpass.getuser()}")


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with the shipped slurm/ and stubs of everything that it calls."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm", ignore=shutil.ignore_patterns("site.sh"))
    (tmp_path / "pretrain").mkdir()
    shutil.copy(Path(__file__).with_name("stub_run.py"), tmp_path / "pretrain" / "run.py")
    return tmp_path
