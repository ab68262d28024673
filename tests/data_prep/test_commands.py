"""`earlybert prepare verify` and `stats`."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep.commands.describe import length_histogram
from earlybert.data_prep.commands.prepare import main
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus

SHARDS = ["train/length-32/shard-00000.arrow", "validation/length-64/shard-00000.arrow"]


@pytest.fixture
def copy(corpus: Corpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus.directory, tmp_path / "copy"))


def test_whole_corpus_is_whole(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(corpus.directory)])
    files = len([path for path in corpus.directory.rglob("*") if path.is_file()]) - 1
    assert f"all {files} files are intact" in capsys.readouterr().out


def test_every_damaged_shard_is_named_and_the_others_counted(copy: Path) -> None:
    for shard in SHARDS:
        content = bytearray((copy / shard).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / shard).write_bytes(content)
    with pytest.raises(UserError) as raised:
        main(["verify", str(copy)])
    message = str(raised.value)
    assert all(shard in message for shard in SHARDS) and "\n" not in message
    assert f"other {len(Corpus.open(copy).manifest['files']) - 2} files are intact" in message


def test_counts_that_are_not_the_files_are_named(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["counts"]["train"]["samples"]["32"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"train samples of length 32, not"):
        main(["verify", str(copy)])


def test_samples_are_counted_alike_with_and_without_reading_them(corpus: Corpus) -> None:
    for split in ("train", "validation"):
        for length in corpus.lengths:
            assert corpus.stored_samples(split, length) == len(corpus.samples(split, length)) > 0


def test_statistics_are_printed_and_drawn(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["stats", str(corpus.directory), "--png", str(tmp_path / "drawing")])
    printed = capsys.readouterr().out
    counts = corpus.manifest["counts"]["train"]
    usage = counts["usage"]["64"]
    for expected in (f"{counts['tokens']:,}", f"{1 - usage['fill']:.1%}", "text", "100.0%", "drawing"):
        assert expected in printed
    assert (tmp_path / "drawing").read_bytes().startswith(b"\x89PNG")
    assert not (corpus.directory / "stats.png").exists()


def test_names_with_brackets_are_printed_as_they_are(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    for counts in manifest["counts"].values():
        counts["sources"] = {"[red]news": counts["sources"]["text"]}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    folder = copy.parent / "[de] [" / "b]"  # rich would take this for the end of a style
    folder.parent.mkdir()
    copy.rename(folder)
    main(["stats", str(folder)])
    printed = capsys.readouterr().out
    assert f"corpus: {folder}\n" in printed and f"picture: {folder}/stats.png" in printed and "[red]news" in printed


def test_histogram_is_that_of_the_samples(corpus: Corpus) -> None:
    for split, length in (("train", 32), ("validation", 64)):
        samples = corpus.samples(split, length)
        sizes = [len(sample.input_ids) for sample in samples.rows(range(len(samples)))]
        assert np.array_equal(length_histogram(corpus, split, length), np.bincount(sizes, minlength=length + 1))


def test_packing_that_was_not_prepared_is_named(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"without packing; prepare it with --packing true"):
        corpus.packed_rows("train", 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify"], ["directory"]),
        (["stats", "absent"], ["absent/manifest.json is missing"]),
        (["verify", "absent"], ["absent/manifest.json is missing"]),
        (["merge", "absent"], ["absent.partial/config.json is missing"]),
        (["stats", "absent", "--pgn", "x"], ["--pgn"]),
        (["--out", "x", "--part", "2"], ["part is '2'", "3/8"]),
        (["--out", "x", "--part", "3/2"], ["part is 3/2", "1/2 to 2/2"]),
    ],
)
def test_bad_argument_is_one_sentence(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        main([str(tmp_path / argument) if argument in ("x", "absent") else argument for argument in arguments])
    assert all(word in str(raised.value) for word in words) and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("style", ["words", "repeated", "literal", "folder", "pattern"])
def test_lists_are_written_as_one_likes(style: str, tmp_path: Path) -> None:
    folder = tmp_path / "de [1]"
    folder.mkdir()
    for name in ("a: b.txt", "b.txt"):
        (folder / name).write_text("\n\n".join(f"Here is text {number} of {name}." for number in range(60)))
    names = [str(folder / "a: b.txt"), str(folder / "b.txt")]
    files, lengths = {
        "words": (["--files", *names], ["--lengths", "16", "32"]),
        "repeated": (["--files+", names[0], "--files+", names[1]], ["--lengths=[16,32]"]),
        "literal": (["--files", json.dumps(names)], ["--lengths", "[16, 32]"]),
        "folder": (["--files", str(folder)], ["--lengths", "16", "32"]),
        "pattern": ([f"--files={folder}/*.txt"], ["--lengths", "16", "32"]),
    }[style]
    main([*files, *lengths, "--source", "text", "--vocab_size", "200", "--out", str(tmp_path / "corpus")])
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.lengths == [16, 32]
    assert sum(split["documents"] for split in corpus.manifest["counts"].values()) == 120


def test_private_data_sets_are_asked_for_with_the_token(tmp_path: Path) -> None:
    """A server in the hub's place gets the token, and its refusal is one sentence."""
    tokens = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_ofthetest", "HF_HUB_OFFLINE": "0"}
    options = ["--source", "hub", "--hub_name", "someone/private", "--out", str(tmp_path / "corpus")]
    run = [sys.executable, "-c", "from earlybert.core.cli import main; main()", "prepare", *options]
    environment = os.environ | hub | {"HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert result.returncode == 2 and "Bearer hf_ofthetest" in tokens, result.stderr
    assert "hub_name: the data set someone/private cannot be loaded" in result.stderr.splitlines()[-1]


LIMITED = """
import resource, signal, sys
from earlybert.core.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


def test_full_disk_is_one_sentence_and_work_goes_on_afterwards(
    config: CorpusConfig, corpus: Corpus, tmp_path: Path
) -> None:
    """A limit on the size of a file stands for the full disk: the same call fails in the same places."""
    file, out = config.files[0], tmp_path / "corpus"
    arguments = ["--source=text", f"--files=[{file}]", "--vocab_size=400", "--lengths=[32,64]", "--duplicates=2"]
    command = ["prepare", *arguments, "--validation_fraction=0.1", "--out", str(out)]
    biggest = max(path.stat().st_size for path in corpus.directory.rglob("*"))
    named = set()
    for limit in (3_000, biggest - 1):
        run = [sys.executable, "-c", LIMITED, str(limit), *command]
        result = subprocess.run(run, capture_output=True, text=True, timeout=120)
        message = result.stderr.strip().splitlines()[-1]
        assert result.returncode == 2, result.stderr
        match = re.fullmatch(
            r"earlybert: error: (\S+) cannot be written \(.*File too large\); what is finished stays.*", message
        )
        assert match, message
        named.add(match[1])
        assert not out.exists() and not Path(match[1]).exists()
    assert len(named) == 2, "the second came further"
    assert prepare(config, out).fingerprint == corpus.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
