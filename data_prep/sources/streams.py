"""Packed files of several streams, one after the other, in which damage is damage wherever it lies.

The standard library takes what follows a bz2 or xz stream and is none for rubbish, and ends as if the file ended there:
half of a file would be lost in silence.
"""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from backports import zstd

CHUNK = 1 << 16


class _Streams(io.RawIOBase):
    """The unpacked bytes of all streams of a file. Zeros between and after streams are padding, as xz has it."""

    def __init__(self, file: BinaryIO | Path, decompressor: Callable[[], Any]) -> None:
        self._owns_file = isinstance(file, Path)
        self._file = file.open("rb") if isinstance(file, Path) else file
        self._make = decompressor
        self._decompressor: Any = None
        self._packed, self._offset, self._begin = b"", 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and (self._decompressor is not None or self._begin_stream()):
            if not self._packed and self._decompressor.needs_input and not self._fill():
                raise EOFError("the packed file ends within a stream")
            try:
                data = self._decompressor.decompress(self._packed, len(buffer))
            except (OSError, lzma.LZMAError) as error:
                raise OSError(
                    f"no stream, or a damaged one, begins at its packed byte {self._begin}: {error}"
                ) from None
            self._packed = b""
            if self._decompressor.eof:
                self._packed, self._decompressor = self._decompressor.unused_data, None
        buffer[: len(data)] = data
        return len(data)

    def _begin_stream(self) -> bool:
        """Passes over padding, which cannot come first; False at the end of the file."""
        while True:
            if self._offset > len(self._packed):
                self._packed = self._packed.lstrip(b"\0")
            if self._packed:
                break
            if not self._fill():
                return False
        self._begin, self._decompressor = self._offset - len(self._packed), self._make()
        return True

    def _fill(self) -> bool:
        self._packed = self._file.read(CHUNK)
        self._offset += len(self._packed)
        return bool(self._packed)

    def close(self) -> None:
        if self._owns_file:
            self._file.close()
        super().close()


def _opener(decompressor: Callable[[], Any]) -> Callable[..., BinaryIO]:
    def open_streams(file: BinaryIO | Path, mode: str = "rb") -> BinaryIO:
        """For reading bytes, as `bz2.open` and its like."""
        return io.BufferedReader(_Streams(file, decompressor))

    return open_streams


# The standard library sees damage in these: gzip has padding of its own, zstd none.
OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": _opener(bz2.BZ2Decompressor),
    ".xz": _opener(lzma.LZMADecompressor),
    ".zst": zstd.open,
}
