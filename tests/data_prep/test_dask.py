"""The corpus that a Dask engine makes is the one that a single process makes, whatever happens to its workers."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from earlybert.core.errors import UserError
from earlybert.data_prep import workers as workers_module
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.prepare import prepare
from earlybert.data_prep.samples.corpus import Corpus
from earlybert.data_prep.steps import preparation, reading
from earlybert.data_prep.tokens import text
from tests.data_prep import small_steps
from tests.data_prep.conftest import make_documents


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CorpusConfig:
    """Many units, blocks and shards; the file is named relative to the folder of the command."""
    for module, name in (
        (reading, "SMALLEST_UNIT"),
        (text, "TOKENS_PER_BLOCK"),
        (preparation, "TOKENS_PER_SHARD"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    small_steps.make_steps_small()
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        Path(f"part-{number}.txt").write_text("\n\n".join(make_documents()[number::8]))
    return CorpusConfig(source="text", files=["part-*.txt"], vocab_size=300, lengths=[32], validation_fraction=0.2)


def manifest(corpus: Corpus) -> bytes:
    return (corpus.directory / "manifest.json").read_bytes()


@pytest.mark.slow
def test_a_killed_worker_of_two_loses_nothing(config: CorpusConfig, tmp_path: Path) -> None:
    import distributed

    expected = manifest(prepare(config, tmp_path / "expected"))
    out, work = Path("corpus"), tmp_path / "corpus.partial"
    with distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        killed = []

        def kill_one() -> None:
            """When a fourth of all files is there, and again when samples are being made."""
            for pattern, count in (("*/tokens-*/*/tokenised.json", 3), ("*/merged-*/train-32/spill-*", 2)):
                while len(list(work.glob(pattern))) < count and not (tmp_path / "corpus").exists():
                    time.sleep(0.002)
                pid = next(iter(cluster.workers.values())).pid
                if pid and not (tmp_path / "corpus").exists():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pattern)

        killer = threading.Thread(target=kill_one)
        killer.start()
        corpus = prepare(config, out, dask=cluster.scheduler_address)
        killer.join()
    assert killed and manifest(corpus) == expected
    assert not work.exists()


def test_without_the_package_or_an_engine_it_is_one_sentence(
    config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earlybert.data_prep.dask_engine.PATIENCE", "1s")
    with pytest.raises(UserError, match=r"^dask is tcp://127\.0\.0\.1:9, where no scheduler answers \(.*\)\.$"):
        prepare(config, tmp_path / "corpus", dask="tcp://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"^workers is 2, but dask is tcp://x:1, which has workers of its own; leave one"
    ):
        prepare(config, tmp_path / "corpus", workers=2, dask="tcp://x:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"^dask is tcp://x:1, but the package distributed is missing; pip install"):
        prepare(config, tmp_path / "corpus", dask="tcp://x:1")
    assert not (tmp_path / "corpus").exists()


class Engine:
    """In the place of a Dask engine: workers that see something else."""

    lost = ()

    def __init__(self, seen: tuple[str, bool]) -> None:
        self.seen = seen

    def everywhere(self, *_: object) -> dict[str, tuple[str, bool]]:
        return {"tcp://b:2": self.seen}

    def shutdown(self, *, cancel_futures: bool) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "sees", "words"),
    [(None, False, r"no file .*config\.json"), ("x", True, "another version of this program")],
)
def test_a_worker_that_sees_other_files_or_has_another_program_is_named(
    code: str | None, sees: bool, words: str, config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine((code or preparation.code_key(), sees))
    monkeypatch.setattr(workers_module, "DaskEngine", lambda _: engine)
    with pytest.raises(UserError, match=rf"^dask: the worker tcp://b:2 has {words}; all need the same program"):
        prepare(config, tmp_path / "corpus", dask="tcp://a:1")
