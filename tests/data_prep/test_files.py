"""Arrays in files."""

import os
from pathlib import Path

import numpy as np

from earlybert.data_prep.tokens.arrays import map_array


def test_mapped_arrays_keep_no_file_open(tmp_path: Path) -> None:
    """A large corpus has thousands of units, and many systems let a process have 1,024 open files."""
    np.arange(9).tofile(tmp_path / "a.bin")
    before = len(os.listdir("/proc/self/fd"))
    arrays = [map_array(tmp_path / "a.bin", np.int64) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) < before + 50
    assert all(np.array_equal(array, np.arange(9)) for array in arrays)
