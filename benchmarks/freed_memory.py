"""What `keep_freed_memory` changes, put back: the C library gives freed memory to the system again."""

import ctypes
import platform

from earlybert.core.devices import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def give_freed_memory_back() -> None:
    """Sets the largest limits that glibc chooses by itself; no effect where it is another library."""
    if platform.libc_ver()[0] == "glibc":
        set_option = ctypes.CDLL(None).mallopt
        set_option(M_MMAP_THRESHOLD, 1 << 25)
        set_option(M_TRIM_THRESHOLD, 1 << 26)
