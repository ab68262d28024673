"""Flat arrays in raw files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt


def map_array(path: Path, dtype: npt.DTypeLike) -> np.ndarray:
    """The flat array in a raw file, memory-mapped, read-only."""
    import pyarrow

    if not path.stat().st_size:
        return np.zeros(0, dtype)  # cannot be mapped
    # numpy's own would keep the file open: a large corpus has more units than a process may have open files.
    return np.frombuffer(pyarrow.memory_map(str(path)).read_buffer(), dtype)
