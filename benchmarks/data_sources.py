"""How quick is reading and cleaning, how clean is the result, and does memory stay flat?

    python benchmarks/data_sources.py FOLDER [--megabytes 20] [--memory 10 100 1000] [--out FILE.json]

FOLDER holds `mediawiki/*.xml.bz2` and `wikipedia/*.jsonl.xz`. Medians of three turns. Speeds are in MB (10**6 bytes
of UTF-8) a second of one core's time, of what the step takes in, so steps can be compared with their neighbours:
the wikitext of a dump is about twice its prose. `--memory` reads the dump repeated to so many MB of XML, each size in
a process of its own, and prints that process's peak memory beyond what it had before reading.
"""

import argparse
import bz2
import gzip
import json
import lzma
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mwparserfromhell
import numpy as np
from backports import zstd
from provenance import measured_on

from earlybert.core.errors import UserError
from earlybert.core.files import write_json
from earlybert.data_prep.cleaning.config import CleaningConfig
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.cleaning.duplicates import duplicates
from earlybert.data_prep.cleaning.near_duplicates import minhash_bands, near_duplicates
from earlybert.data_prep.cleaning.rules import clean
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.sources.input_files import open_file
from earlybert.data_prep.sources.mediawiki import read_pages
from earlybert.data_prep.sources.source import Fragment
from earlybert.data_prep.sources.wikitext import prose
from earlybert.data_prep.steps.reading import read_unit, work_units

TURNS = 3
NAMESPACES = frozenset({"file", "image", "media", "category"})
MARKUP = ("{{", "}}", "[[", "]]", "<ref", "|")


def size(texts: Iterable[str]) -> float:
    """MB of UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def seconds(run: Callable[[], object]) -> float:
    """Median processor time of a few turns: what others do on the machine hardly counts."""
    times = []
    for _ in range(TURNS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def drain(items: Iterable[object]) -> None:
    """Take all items."""
    for _ in items:
        pass


def documents(config: CorpusConfig) -> Iterator[str]:
    """The text of all cleaned documents."""
    for unit in work_units(config):
        for document in read_unit(unit, config, Counts()):
            yield document.text


def read_through(config: CorpusConfig) -> None:
    drain(documents(config))


def dump_speeds(dump: Path) -> dict[str, float]:
    """Each step of reading a dump, and mwparserfromhell on the same pages."""
    with open_file(dump) as stream:
        xml = stream.read()
    pages = [text for _, text in read_pages(Fragment(dump, 0), Counts())]
    config = CorpusConfig(source="mediawiki", files=[str(dump)])
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "dump.xml"
        plain.write_bytes(xml)
        pages_seconds = seconds(lambda: drain(read_pages(Fragment(plain, 0), Counts())))
    whole, wikitext = len(xml) / 1e6, size(pages)
    return {
        "unpack bz2 (XML)": whole / seconds(lambda: bz2.decompress(dump.read_bytes())),
        "XML to pages (XML)": whole / pages_seconds,
        "markup to prose (wikitext)": wikitext / seconds(lambda: [list(prose(text, NAMESPACES)) for text in pages]),
        "  mwparserfromhell (wikitext)": wikitext
        / seconds(lambda: [mwparserfromhell.parse(text).strip_code() for text in pages]),
        "dump to clean documents (XML)": whole / seconds(partial(read_through, config)),
        "dump to clean documents (prose)": size(documents(config)) / seconds(partial(read_through, config)),
    }


def text_speeds(texts: list[str]) -> dict[str, float]:
    """Readers of text files in every compression, and the steps that every document goes through."""
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    total, speeds = size(texts), {}
    with tempfile.TemporaryDirectory() as folder:
        for ending, content in {
            ".txt": "\n\n".join(texts).encode(),
            ".jsonl": rows,
            ".jsonl.gz": gzip.compress(rows, 6),
            ".jsonl.zst": zstd.compress(rows),
            ".jsonl.xz": lzma.compress(rows, preset=3),
            ".jsonl.bz2": bz2.compress(rows),
        }.items():
            file = Path(folder) / f"text{ending}"
            file.write_bytes(content)
            config = CorpusConfig(source="text", files=[str(file)])
            speeds[f"{ending} to clean documents"] = total / seconds(partial(read_through, config))
    rules = CleaningConfig()
    speeds["  cleaning alone"] = total / seconds(lambda: [clean(text, rules, Counts()) for text in texts])
    speeds["near duplicates: MinHash"] = total / seconds(lambda: [minhash_bands(text) for text in texts])
    return speeds


def duplicate_speeds(count: int) -> dict[str, float]:
    """Documents a second of finding duplicates among `count` documents in a hundred units."""
    rng = np.random.default_rng(1)
    digests = [rng.integers(0, 2**64, (count // 100, 2), dtype=np.uint64) for _ in range(100)]
    bands = [rng.integers(0, 2**64, (count // 100, 14), dtype=np.uint64) for _ in range(100)]
    digests[50][:1000], bands[50][:1000, 3] = digests[7][:1000], bands[7][:1000, 3]
    none = [np.zeros(count // 100, dtype=bool)] * 100
    return {
        "exact, documents/s": count / seconds(lambda: duplicates(digests)),
        "near, documents/s": count / seconds(lambda: near_duplicates(bands, none)),
    }


def leftovers(dump: Path) -> dict[str, float]:
    """Paragraphs with markup in them: as the parser leaves them, and in the documents."""
    sign = re.compile("|".join(map(re.escape, MARKUP)))
    pages = read_pages(Fragment(dump, 0), Counts())
    parsed = [paragraph for _, text in pages for paragraph in prose(text, NAMESPACES)]
    config = CorpusConfig(source="mediawiki", files=[str(dump)])
    cleaned = [paragraph for text in documents(config) for paragraph in text.split("\n")]
    return {
        "paragraphs": len(parsed),
        "with markup, per 1,000, as parsed": 1000 * sum(map(bool, map(sign.search, parsed))) / len(parsed),
        "with markup, per 1,000, in documents": 1000 * sum(map(bool, map(sign.search, cleaned))) / len(cleaned),
    }


def _peak_megabytes(dump: Path, queue: "multiprocessing.Queue[float]") -> None:
    config = CorpusConfig(source="mediawiki", files=[str(dump)])
    before = _memory("VmRSS")
    drain(documents(config))
    queue.put(_memory("VmHWM") - before)


def _memory(field: str) -> float:
    """Memory of this process in MiB, from Linux; `getrusage` would count what its parent had."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak_memory(dump: Path, megabytes: float) -> float:
    """Peak memory, in MiB, of a process that reads the dump repeated to so many MB of XML."""
    with open_file(dump) as stream:
        xml = stream.read()
    begin, end = xml.index(b"<page>"), xml.rindex(b"</mediawiki>")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "repeated.xml.gz"
        with gzip.open(file, "wb", compresslevel=1) as out:
            out.write(xml[:begin])
            drain(out.write(xml[begin:end]) for _ in range(max(1, round(megabytes * 1e6 / (end - begin)))))
            out.write(xml[end:])
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        child = context.Process(target=_peak_megabytes, args=(file, queue))
        child.start()
        peak = queue.get()
        child.join()
    return peak


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=20, help="how much clean text to read")
    parser.add_argument("--documents", type=int, default=1_000_000, help="how many to search for duplicates")
    parser.add_argument("--memory", type=float, nargs="*", default=[10, 100], help="sizes of dumps in MB of XML")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    dump = next((options.folder / "mediawiki").glob("*.xml.bz2"), None)
    if dump is None:
        parser.error(f"{options.folder} has no mediawiki/*.xml.bz2")
    files = [str(options.folder / "wikipedia" / "*.jsonl.xz")]
    try:
        texts = list(documents(CorpusConfig(source="text", files=files, max_megabytes=options.megabytes)))
    except UserError as error:
        parser.error(str(error))
    results: dict[str, dict[str, Any]] = {
        "MediaWiki dump, MB/s": dump_speeds(dump),
        "text, MB/s": text_speeds(texts),
        f"duplicates among {options.documents:,}": duplicate_speeds(options.documents),
        "leftovers of markup": leftovers(dump),
        "peak memory of reading, MiB": {f"{size:g} MB of XML": peak_memory(dump, size) for size in options.memory},
    }
    for title, rows in results.items():
        print(title)
        for name, value in rows.items():
            print(f"  {name:36}{value:>12,.4g}" if value < 10_000 else f"  {name:36}{value:>12,.0f}")
    if options.out:
        found = measured_on("datasets") | results
        write_json(options.out, found)


if __name__ == "__main__":
    main()
