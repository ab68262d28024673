"""Files behind URLs: the same documents as on disk, from fsspec's memory and from web servers."""

import gzip
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.sources import input_files
from earlybert.data_prep.steps import reading
from earlybert.data_prep.steps.reading import work_units
from tests.data_prep.reading import read_texts, read_units

TEXTS = [f"This is document number {number}, äöü.\nIts second line." for number in range(40)]


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "STRETCH", 500)
    monkeypatch.setattr(reading, "SMALLEST_UNIT", 500)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.parquet", row_group_size=10)
    plain = "\n\n".join(TEXTS).encode()
    contents = {"a.txt": plain, "a.txt.gz": gzip.compress(plain), "a.parquet": (tmp_path / "a.parquet").read_bytes()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return contents


def text_config(*names: str) -> CorpusConfig:
    return CorpusConfig(source="text", files=list(names))


def test_memory_of_fsspec(files: dict[str, bytes]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, content in files.items():
        memory.pipe(f"/remote-test/{name}", content)
    memory.pipe("/remote-test/notes.md", b"Not a text file.")
    for name, units in (("a.txt", -(-len(files["a.txt"]) // 500)), ("a.txt.gz", 1), ("a.parquet", 4)):
        found = read_units(text_config(f"memory://remote-test/{name}"))
        assert [document.text for unit in found for document in unit] == TEXTS, name
        assert len(found) == units > 0, name
    assert read_texts(text_config("memory://remote-test/*.txt")) == TEXTS
    assert read_texts(text_config("memory://remote-test")) == TEXTS * 3, "of the folder what has a known ending"
    (before, *_) = work_units(text_config("memory://remote-test/a.txt"))
    memory.pipe("/remote-test/a.txt", b"x" + files["a.txt"])
    (after, *_) = work_units(text_config("memory://remote-test/a.txt"))
    assert before.key != after.key
    with pytest.raises(UserError, match=r"^files: no file matches memory://remote-test/nothing\*\.txt\.$"):
        work_units(text_config("memory://remote-test/nothing*.txt"))


class WithParts(SimpleHTTPRequestHandler):
    """Gives the bytes that are asked for, as most web servers do."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not (asked := self.headers.get("Range")):
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)
        return None


class WithoutParts(SimpleHTTPRequestHandler):
    """Gives whole files only."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[type], str]]:
    servers = []

    def start(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_web_server_that_gives_parts(files: dict[str, bytes], serve: Callable[[type], str]) -> None:
    pytest.importorskip("aiohttp")
    url = serve(WithParts)
    for name in files:
        found = read_units(text_config(f"{url}/{name}"))
        assert [document.text for unit in found for document in unit] == TEXTS, name
        assert (len(found) > 1) == (name != "a.txt.gz"), name


def test_web_server_that_gives_whole_files_only(files: dict[str, bytes], serve: Callable[[type], str]) -> None:
    pytest.importorskip("aiohttp")
    url = serve(WithoutParts)
    for name in ("a.txt", "a.txt.gz"):
        found = read_units(text_config(f"{url}/{name}"))
        assert [[document.text for document in unit] for unit in found] == [TEXTS], name
    with pytest.raises(UserError, match=r"a\.parquet lies on a server that has no parts of files.*download it\.$"):
        work_units(text_config(f"{url}/a.parquet"))
    with pytest.raises(UserError, match=r"^files: no file matches http://127.*absent\.txt\.$"):
        work_units(text_config(f"{url}/absent.txt"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/a.txt", "needs a package that is missing .*s3fs"),
        ("gs://bucket/a.txt", "needs a package that is missing .*gcsfs"),
        ("nosuch://bucket/a.txt", "cannot be read .*nosuch"),
    ],
)
def test_missing_package_and_unknown_protocol_are_named(url: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"^files: {url} {words}.*\.$") as raised:
        work_units(text_config(url))
    assert "\n" not in str(raised.value)
