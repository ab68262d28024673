"""Packed files of several streams: padding is read over, damage is not."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from earlybert.core.errors import UserError
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.sources.input_files import UNPACKING_ERRORS
from earlybert.data_prep.sources.streams import OPENERS
from tests.data_prep.reading import read_texts

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
FIRST, SECOND = b"first\n" * 5000, b"second\n" * 5000


@pytest.mark.parametrize("ending", PACKERS)
def test_streams_follow_one_another(ending: str) -> None:
    pack = PACKERS[ending]
    packed = pack(FIRST) + pack(b"") + pack(SECOND)
    assert OPENERS[ending](io.BytesIO(packed)).read() == FIRST + SECOND
    assert list(OPENERS[ending](io.BytesIO(packed))) == (FIRST + SECOND).splitlines(keepends=True)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("zeros", [4, 200_000])
def test_zeros_are_padding(ending: str, zeros: int) -> None:
    pack = PACKERS[ending]
    packed = pack(FIRST) + bytes(zeros) + pack(SECOND) + bytes(zeros)
    assert OPENERS[ending](io.BytesIO(packed)).read() == FIRST + SECOND


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("damage", ["head", "rubbish", "cut"])
def test_damage_after_the_first_stream_is_named(ending: str, damage: str, tmp_path: Path) -> None:
    """A bit of the second stream's head, what follows the last stream, or a file cut within the second."""
    packed = [PACKERS[ending](b"One document of words.\n\nAnother one of words.\n\n" * 3) for _ in range(2)]
    if damage == "head":
        packed[1] = bytes([packed[1][0] ^ 1]) + packed[1][1:]
    elif damage == "rubbish":
        packed.append(b"rubbish")
    else:
        packed[1] = packed[1][:-5]
    with pytest.raises(UNPACKING_ERRORS):
        OPENERS[ending](io.BytesIO(b"".join(packed))).read()
    file = tmp_path / f"text.txt{ending}"
    file.write_bytes(b"".join(packed))
    with pytest.raises(UserError, match=r"text\.txt.* cannot be read after byte"):
        read_texts(CorpusConfig(source="text", files=[str(file)]))
