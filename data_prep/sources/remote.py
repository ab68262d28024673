"""Files that are named by a URL (`s3://`, `gs://`, `https://`), through fsspec, with what is used of a `Path`."""

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from earlybert.core.errors import UserError, one_line

# So many bytes are taken from fsspec at a time: it searches a block for the end of every line.
BUFFER = 1 << 20
_URL = re.compile(r"[a-z][a-z0-9+.-]*(?:::|://)")


class State(NamedTuple):
    """Of a file: its size, and a number that changes with its content, named like those of `os.stat`."""

    st_size: int
    st_mtime_ns: int


class RemotePath(PurePosixPath):
    """A file behind a URL."""

    def __str__(self) -> str:
        # A path has lost one of the two slashes.
        return super().__str__().replace(":/", "://", 1)

    def is_file(self) -> bool:
        with _named(str(self)):
            system, place = _system(str(self))
            return bool(system.isfile(place))

    def stat(self) -> State:
        """Size and state; the size is 0 where the server does not say."""
        with _named(str(self)):
            system, place = _system(str(self))
            info = {name: value for name, value in system.info(place).items() if name != "url"}
        digest = hashlib.sha256(repr(sorted(info.items(), key=str)).encode()).digest()
        return State(info.get("size") or 0, int.from_bytes(digest[:7]))

    @property
    def has_parts(self) -> bool:
        """Whether it can be read from any byte on, which some web servers do not offer."""
        if not self.parts[0].startswith("http"):
            return True
        with _named(str(self)):
            system, place = _system(str(self))
            try:
                with system.open(place, cache_type="none") as file:
                    file.seek(max(0, file.size - 1))
                    file.read(1)
            except (ValueError, TypeError):
                return False
            return True

    def open(self, mode: str = "rb") -> BinaryIO:
        with _named(str(self)):
            system, place = _system(str(self))
            options = {} if self.has_parts else {"block_size": 0}
            return io.BufferedReader(system.open(place, mode, **options), BUFFER)


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def find_remote(name: str, in_folder: Callable[[PurePosixPath], bool]) -> list[RemotePath]:
    """What is there under a URL: the file, those of the folder that are wanted, or those that match a pattern.

    Raises:
        UserError: The place cannot be looked at.
    """
    with _named(name):
        system, place = _system(name)
        if system.isfile(place):
            return [RemotePath(name)]
        if re.search(r"[*?[]", place):
            return [RemotePath(system.unstrip_protocol(path)) for path in system.glob(place)]
        found = [RemotePath(system.unstrip_protocol(path)) for path in system.find(place)]
        return [path for path in found if in_folder(path)]


def _system(name: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(name)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(f"files: {name} needs a package that is missing ({one_line(error)}).") from None
    # What can go wrong is the library's, the network's and the store's: no list would be complete.
    except Exception as error:
        raise UserError(f"files: {name} cannot be read ({one_line(error) or type(error).__name__}).") from error
