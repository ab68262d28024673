"""Dumps: which pages are articles, that every way of cutting and packing gives the same ones, and damage."""

import bz2
import gzip
import tracemalloc
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from backports import zstd

from earlybert.core.errors import UserError
from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.config import CorpusConfig
from earlybert.data_prep.sources import input_files, mediawiki
from earlybert.data_prep.steps import reading
from earlybert.data_prep.steps.reading import WorkUnit, read_unit, work_units
from tests.data_prep.reading import read_texts

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="de">
  <siteinfo><sitename>Wikipedia</sitename><namespaces>
    <namespace key="-2" case="first-letter">Medium</namespace><namespace key="0" case="first-letter" />
    <namespace key="6" case="first-letter">Datei</namespace>
    <namespace key="14" case="first-letter">Kategorie</namespace>
  </namespaces></siteinfo>
"""
FOOT = "</mediawiki>\n"


def page(title: str, text: str, namespace: int = 0, extra: str = "", model: str = "wikitext") -> str:
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>1</id>\n{extra}"
        f"    <revision>\n      <id>2</id>\n      <model>{model}</model>\n"
        f'      <text bytes="3" xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n'
    )


def article(number: int) -> str:
    rng = np.random.default_rng(number)
    return f"Article {number} says <{'ä' * rng.integers(1, 300)}> & more about [[page]]."


def pages(count: int) -> list[str]:
    return [page(f"Title {number}", article(number)) for number in range(count)]


def config_for(*files: Path) -> CorpusConfig:
    return CorpusConfig(source="mediawiki", files=[str(file) for file in files])


MULTISTREAM = "wiki-pages-articles-multistream.xml.bz2"


def write_multistream(folder: Path, streams: list[list[str]], name: str = MULTISTREAM) -> Path:
    """As Wikimedia does: a stream for the head, one for each hundred pages or so, one for the end."""
    packed, index = bz2.compress(HEAD.encode()), []
    for number, stream in enumerate(streams):
        index += [f"{len(packed)}:{number}:A title: with colons\n" for _ in stream]
        packed += bz2.compress("".join(stream).encode())
    (folder / name).write_bytes(packed + bz2.compress(FOOT.encode()))
    index_name = name.replace("multistream", "multistream-index").replace(".xml", ".txt")
    (folder / index_name).write_bytes(bz2.compress("".join(index).encode()))
    return folder / name


def test_articles_only(tmp_path: Path) -> None:
    content = [
        page("First", "The first article is about [[Datei:X.jpg|mini|nothing]] this [[Kategorie:Y]]."),
        page("Old name", "#WEITERLEITUNG [[First]]", extra='<redirect title="First" />'),
        page("Older name", "#redirect [[First]]"),
        page("Talk:First", "A long talk about the first article.", namespace=1),
        page("Data", '{"text": "JSON that is no article at all"}', model="json"),
        page("Many (disambiguation)", "Many may refer to a number of things."),
        page("Few", "Few may refer to some things.\n{{Disambiguation|geo}}"),
        page("Wenige", "Wenige steht für verschiedene Dinge. {{Begriffsklärung}}"),
        page("Needed", "This link {{disambiguation needed|date=May}} is about something."),
        page("Empty", "{{Infobox|a=b}}\n"),
    ]
    (tmp_path / "dump.xml").write_text(HEAD + "".join(content) + FOOT)
    config, counts = config_for(tmp_path / "dump.xml"), Counts()
    texts = [document.text for unit in work_units(config) for document in read_unit(unit, config, counts)]
    assert texts == ["The first article is about this.", "This link is about something."]
    dropped = {name: (rule.dropped, rule.examples) for name, rule in counts.rules.items()}
    assert dropped == {
        "page: redirect": (2, ["Old name", "Older name"]),
        "page: no article": (2, ["Talk:First", "Data"]),
        "page: disambiguation": (3, ["Many (disambiguation)", "Few", "Wenige"]),
        "document: short": (1, []),
    }


def test_of_several_revisions_the_newest_counts(tmp_path: Path) -> None:
    def revision(time: str, text: str) -> str:
        return f"<revision><timestamp>{time}</timestamp><model>wikitext</model><text>{text}</text></revision>"

    first, second, third = (f"This is version {word} of an article." for word in ("one", "two", "three"))
    for order in ((first, second, third), (third, first, second)):
        times = {first: "2001-01-01T00:00:00Z", second: "2009-05-01T00:00:00Z", third: "2024-01-01T00:00:00Z"}
        revisions = "".join(revision(times[text], text) for text in order)
        (tmp_path / "history.xml").write_text(
            f"{HEAD}<page><title>A</title><ns>0</ns>{revisions}</page>{page('B', 'The last article of all.')}{FOOT}"
        )
        assert read_texts(config_for(tmp_path / "history.xml")) == [third, "The last article of all."]


def test_a_page_without_a_namespace_is_judged_by_its_title(tmp_path: Path) -> None:
    titles = ("Kategorie:Ort", "Datei:A.jpg", "Ort", "2001: Odyssee", "kategorie: X")
    content = "".join(page(title, f"This text is about {title}.").replace("<ns>0</ns>", "") for title in titles)
    (tmp_path / "old.xml").write_text(HEAD + content + FOOT)
    expected = ["This text is about Ort.", "This text is about 2001: Odyssee."]
    assert read_texts(config_for(tmp_path / "old.xml")) == expected


def test_files_have_names_that_the_head_does_not_list(tmp_path: Path) -> None:
    text = "[[Bild:Haus.jpg|miniatur|Ein [[Haus]]]]Das Haus steht. [[Afbeelding:X.png]][[ファイル:Y.jpg|右]]Ende."
    (tmp_path / "old.xml").write_text(HEAD + page("Haus", text) + FOOT)
    assert read_texts(config_for(tmp_path / "old.xml")) == ["Das Haus steht. Ende."]


def test_every_packing_gives_the_same_articles(tmp_path: Path) -> None:
    content = HEAD + "".join(pages(30)) + FOOT
    expected = [f"Article {number}" for number in range(30)]
    for name, packed in (
        ("a.xml", content.encode()),
        ("b.xml.bz2", bz2.compress(content.encode())),
        ("c.xml.gz", gzip.compress(content.encode())),
        ("d.xml.zst", zstd.compress(content.encode())),
        ("wiki-pages-articles1.xml-p1p30.bz2", bz2.compress(content.encode())),
    ):
        (tmp_path / name).write_bytes(packed)
        found = read_texts(config_for(tmp_path / name))
        assert [" ".join(text.split()[:2]) for text in found] == expected
        assert all(text.endswith("> & more about page.") for text in found)


@pytest.mark.parametrize("stretch", [50, 333, 4000])
def test_stretches_of_a_plain_dump_hold_each_article_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch: int
) -> None:
    (tmp_path / "a.xml").write_text(HEAD + "".join(pages(40)) + FOOT)
    expected = read_texts(config_for(tmp_path / "a.xml"))
    monkeypatch.setattr(input_files, "STRETCH", stretch)
    monkeypatch.setattr(reading, "SMALLEST_UNIT", stretch)
    monkeypatch.setattr(mediawiki, "CHUNK", 64)
    config = config_for(tmp_path / "a.xml")
    found = [[document.text for document in read_unit(unit, config, Counts())] for unit in work_units(config)]
    assert len(found) > 3 and [text for unit in found for text in unit] == expected and len(expected) == 40


@pytest.mark.parametrize("name", [MULTISTREAM, "wiki-pages-articles-multistream3.xml-p1p40.bz2"])
def test_streams_are_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made = pages(40)
    dump = write_multistream(tmp_path, [made[:10], made[10:25], made[25:26], made[26:]], name)
    (whole,) = work_units(config_for(dump))
    assert [(fragment.start, fragment.end) for fragment in whole.fragments] == [(0, dump.stat().st_size)]
    together = [document.text for document in read_unit(whole, config_for(dump), Counts())]
    assert len(together) == 40

    monkeypatch.setattr(reading, "SMALLEST_UNIT", 1)
    config = config_for(dump)
    apart = [[document.text for document in read_unit(unit, config, Counts())] for unit in work_units(config)]
    # The head makes a unit of its own when units are so small.
    assert list(map(len, apart)) == [0, 10, 15, 1, 14]
    assert [text for unit in apart for text in unit] == together
    # Pictures are known by their German name, which only the head tells.
    assert mediawiki._dropped_namespaces(dump) >= {"datei", "kategorie", "file"}


def test_parts_of_a_dump_are_units_in_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pages(40)
    for part in (1, 2):
        group = made[20 * part - 20 : 20 * part]
        write_multistream(tmp_path, [group[:12], group[12:]], f"wiki-multistream{part}.xml-p{part}p{part + 9}.bz2")
    monkeypatch.setattr(reading, "SMALLEST_UNIT", 1)
    config = config_for(tmp_path / "wiki-multistream*.xml-p*.bz2")
    found = [[document.text for document in read_unit(unit, config, Counts())] for unit in work_units(config)]
    assert list(map(len, found)) == [0, 12, 8, 0, 12, 8]
    assert [" ".join(text.split()[:2]) for unit in found for text in unit] == [f"Article {n}" for n in range(40)]


def read(file: Path) -> list[str]:
    return read_texts(config_for(file))


DUMP = (HEAD + "".join(pages(300)) + FOOT).encode()
STREAMS = bz2.compress(DUMP[:100_000]) + bz2.compress(DUMP[100_000:])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xml", DUMP.replace(b"Article 7 says", b"A <b says"), ["broken XML", "line", "after the page 'Title 6'"]),
        ("a.xml", DUMP[:3000], ["broken XML", "after the page 'Title"]),
        ("a.xml", DUMP[: DUMP.index(b"  <page>", 3000)], ["broken XML", "no element found"]),
        ("a.xml", b"\x89PNG\r\n\x1a\n\0\0", ["broken XML", "line 1", "before any page"]),
        ("a.xml", b"", ["broken XML", "no element found"]),
        ("a.xml", b'<?xml version="1.0" encoding="none"?>' + DUMP, ["unknown encoding", "before any page"]),
        ("a.xml", b"<html><body>Not found</body></html>", ["no MediaWiki dump", "<html>"]),
        ("a.xml.bz2", bz2.compress(DUMP)[:-20], ["cannot be read", "before any page"]),
        ("a.xml.bz2", STREAMS[:-20], ["cannot be read", "after the page 'Title"]),
        ("a.xml.bz2", b"no bz2", ["cannot be read"]),
        ("a.xml.gz", gzip.compress(DUMP)[:-9], ["cannot be read", "after the page 'Title"]),
        ("a.txt", b"text", ["a.txt", "must end in .xml"]),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        read(tmp_path / name)
    assert all(word in str(raised.value) for word in [*words, name]), raised.value
    assert "\n" not in str(raised.value)


def test_dump_without_pages_gives_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(HEAD + FOOT)
    assert read_texts(config_for(tmp_path / "a.xml")) == []


def test_damaged_stream_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pages(40)
    dump = write_multistream(tmp_path, [made[:10], made[10:20], made[20:30], made[30:]])
    monkeypatch.setattr(reading, "SMALLEST_UNIT", 1)
    config = config_for(dump)
    third = work_units(config)[3].fragments[0]
    content = bytearray(dump.read_bytes())
    content[third.start + 40] ^= 255
    dump.write_bytes(content)
    read_texts, messages = [], []
    for unit in work_units(config):
        try:
            read_texts += [document.text for document in read_unit(unit, config, Counts())]
        except UserError as error:
            messages.append(str(error))
    assert len(read_texts) == 30 and len(messages) == 1
    assert f"(from byte {third.start} on) cannot be read" in messages[0]


def test_damaged_head_is_named_by_every_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pages(20)
    dump = write_multistream(tmp_path, [made[:10], made[10:]])
    content = bytearray(dump.read_bytes())
    content[40] ^= 255
    dump.write_bytes(content)
    monkeypatch.setattr(reading, "SMALLEST_UNIT", 1)
    for unit in work_units(config_for(dump)):
        with pytest.raises(UserError, match=r"multistream\.xml\.bz2(: its head|.*cannot be read before any page)"):
            list(read_unit(unit, config_for(dump), Counts()))


@pytest.mark.parametrize("lines", ["600000:1:A\n", "90:1:A\n80:2:B\n", "no number\n"])
def test_index_of_another_dump_is_named(tmp_path: Path, lines: str) -> None:
    dump = write_multistream(tmp_path, [pages(3)])
    (tmp_path / "wiki-pages-articles-multistream-index.txt.bz2").unlink()
    (tmp_path / "wiki-pages-articles-multistream-index.txt").write_text(lines)
    with pytest.raises(UserError, match=rf"index\.txt:{lines.count(chr(10))} is not an index of"):
        work_units(config_for(dump))


def test_truncated_index_is_named(tmp_path: Path) -> None:
    dump = write_multistream(tmp_path, [pages(3)])
    index = tmp_path / "wiki-pages-articles-multistream-index.txt.bz2"
    index.write_bytes(index.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"index\.txt\.bz2 cannot be read"):
        work_units(config_for(dump))


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    peaks = []
    for copies in (5, 50):
        file = tmp_path / f"{copies}.xml.gz"
        with gzip.open(file, "wb", compresslevel=1) as stream:
            stream.write(HEAD.encode())
            for number in range(copies):
                stream.write(page(f"Title {number}", "A word or two. " * 7000).encode())
            stream.write(FOOT.encode())
        unit: WorkUnit = work_units(config_for(file))[0]
        tracemalloc.start()
        found = sum(1 for _ in read_unit(unit, config_for(file), Counts()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found == copies
    assert peaks[1] < 1.2 * peaks[0]


def test_a_damaged_stream_of_a_multistream_dump_is_not_passed_over(tmp_path: Path) -> None:
    for index in (True, False):
        dump = write_multistream(tmp_path, [pages(20)[first : first + 5] for first in range(0, 20, 5)])
        if not index:
            (tmp_path / "wiki-pages-articles-multistream-index.txt.bz2").unlink()
        assert len(read_texts(config_for(dump))) == 20
        content = bytearray(dump.read_bytes())
        third = [at for at in range(len(content)) if content[at : at + 3] == b"BZh"][3]
        content[third] ^= 1
        dump.write_bytes(content)
        with pytest.raises(UserError, match="no stream, or a damaged one, begins at its packed byte"):
            read_texts(config_for(dump))
