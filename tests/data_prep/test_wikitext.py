"""Markup to prose: case by case, against mwparserfromhell, and on a real dump."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import mwparserfromhell
import pytest

from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.sources.input_files import Piece
from earlybert.data_prep.sources.mediawiki import _DISAMBIGUATION, read_articles, read_pages
from earlybert.data_prep.sources.wikitext import DROPPED_SECTIONS, prose

NAMESPACES = frozenset({"file", "image", "category", "datei"})


def plain(wikitext: str) -> list[str]:
    return list(prose(wikitext, NAMESPACES))


@pytest.mark.parametrize(
    ("wikitext", "words"),
    [
        ("A [[link]], a [[to|label]], [[Word]]s, [[:Category:X|a category]].", "A link, a label, Words, a category."),
        ("See [http://x.org the ''site''] or [https://y.org] or [//z.org/a?b=c Z].", "See the site or or Z."),
        ("'''Bold''', ''italic'', '''''both''''' and L'Amour.", "Bold, italic, both and L'Amour."),
        ("Text<ref>Note [[a]] {{cite|b}}</ref> goes<ref name=x /> on<REF name='y'>z</REF>.", "Text goes on."),
        ("Text<!-- a [[comment]]\n\nof two paragraphs --> goes on.", "Text goes on."),
        ("A {{template|with [[link|x]]|{{nested|y={{deeper}}}}}}gone.", "A gone."),
        ("[[File:A.jpg|thumb|A [[caption]] with {{template}} [http://x.org y].]]Text.", "Text."),
        ("[[Datei:A.jpg|mini]]Text [[de:Sprache]] and [[Category:Things]]", "Text and"),
        ("A <math>a < b</math> and H<sub>2</sub>O &amp; more&nbsp;&ndash; &lt;b&gt;.", "A and H2O & more – <b>."),
        ("{{convert|5|km|mi|abbr=on}} or {{cvt|5|-|6|kg}} or {{convert|5|to|6|m}}", "5 km or 5–6 kg or 5 to 6 m"),
        ("As {{lang|fr|mot ''juste''}} {{as of|2010|5|lc=y}} {{nowrap|1=a b}}.", "As mot juste as of 5 2010 a b."),
        ("{{circa|1900}}{{mdashb}}{{chem|H|2|O}}{{snd}}{{frac|1|2}}", "c. 1900—H2O – 1/2"),
        ("Name ({{IPA|x}}; born {{b|1900}}, died) lived ({{flag|y}}, {{z}}) here.", "Name (born, died) lived here."),
        ("Broken {{template and [[link|text.", "Broken template and link|text."),
        ("Broken }} and ]] ends <ref>unclosed.", "Broken and ends unclosed."),
        ("A {{t|[[broken}} template.", "A template."),
        ("One line\nand the next.", "One line and the next."),
        ("Line<br />break __NOTOC__ and <span class='x'>span</span>.", "Line break and span."),
        ("<gallery>\nA.jpg|x\n</gallery>\n<table><tr><td>x</td></tr></table>\nText.", "Text."),
    ],
)  # fmt: skip
def test_inside_a_paragraph(wikitext: str, words: str) -> None:
    assert plain(wikitext) == [words]


def test_structure_of_a_page() -> None:
    page = """{{Infobox
| name = X
| map = {{map|a={|}}
}}
{| class="wikitable"
! A
|-
| b
{|
| nested
|}
|}
Lead of the article.

* A list
# Another
: Indented
; Term: definition
Text after a list.
----
== History ==
First of the history.

{| class="unclosed"
| cell
=== Early ===
Second of the history.
== See also ==
Dropped text.
=== Below ===
Dropped too.
== Legacy ==
Last text.
==References==
{{reflist}}
Dropped at the end.
"""
    expected = [
        "Lead of the article.",
        "Text after a list.",
        "First of the history.",
        "Second of the history.",
        "Last text.",
    ]
    assert plain(page) == expected


BRACKETS = ["{{", "[[", "}}", "]]", "[[a|", "{{nowrap|a ", "{{a}}", "[[a]] ", "{|\n", "\n|}", "( "]


def require_linear_time(parse: Callable[[str], object], page: Callable[[int], str]) -> None:
    def seconds(copies: int) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            parse(page(copies))
            times.append(time.process_time() - start)
        return min(times)

    # A hundred times the page: quadratic time would be ten thousand times as long.
    assert seconds(50_000) < 1000 * max(seconds(500), 1e-4)


@pytest.mark.parametrize("piece", [*BRACKETS, "<ref>", "<!--", "<ref>a</ref>", "<b ", "'''", "="])
def test_time_is_linear_in_the_page(piece: str) -> None:
    require_linear_time(plain, lambda copies: piece * copies + "}}]]" * (copies // 4))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("begin", ["=", "== a", "[//a", "{{"])
def test_time_is_linear_in_a_run_of_blanks(begin: str) -> None:
    parse: Callable[[str], object] = _DISAMBIGUATION.search if begin == "{{" else plain
    require_linear_time(parse, lambda copies: begin + " " * copies + "x")


def real_dump() -> Path:
    return Path(os.environ["EARLYBERT_DATA"]) / "mediawiki" / "enwiki-sample-pages-articles.xml.bz2"


NEEDS_DUMP = pytest.mark.skipif("EARLYBERT_DATA" not in os.environ, reason="EARLYBERT_DATA names no folder with text")


def reference_paragraphs(wikitext: str) -> list[str]:
    """Long paragraphs as mwparserfromhell sees them, without what our rules leave out."""
    code = mwparserfromhell.parse(re.sub(r"^[*#:;].*$", "", wikitext, flags=re.MULTILINE))
    for section in code.get_sections(flat=True):
        if any(heading.title.strip().lower() in DROPPED_SECTIONS for heading in section.filter_headings()[:1]):
            code.remove(section)
    for link in code.filter_wikilinks(matches=lambda link: str(link.title).startswith(("File:", "Image:"))):
        code.remove(link) if code.contains(link) else None
    for tag in code.filter_tags(matches=lambda tag: str(tag.tag) in ("ref", "table", "math", "gallery")):
        code.remove(tag) if code.contains(tag) else None
    return [line for line in code.strip_code().split("\n") if len(line) > 200]


@NEEDS_DUMP
def test_real_articles_have_the_words_that_mwparserfromhell_finds() -> None:
    words = re.compile(r"\w+")
    counted = found = invented = written = 0
    for _, text in list(read_pages(Piece(real_dump(), 0), Counts()))[:8]:
        ours = set(words.findall(" ".join(plain(text))))
        theirs = set(words.findall(" ".join(reference_paragraphs(text))))
        counted, found = counted + len(theirs), found + len(theirs & ours)
        written, invented = written + len(ours), invented + len(ours - set(words.findall(text)))
    assert counted > 10_000 and found / counted > 0.99
    # Entities and words that a link's brackets cut in two are not in the source as they are in the prose.
    assert invented / written < 0.005


@NEEDS_DUMP
def test_hardly_any_markup_is_left_of_a_real_dump() -> None:
    markup = re.compile(r"\{\{|\}\}|\[\[|\]\]|<ref|\|")
    paragraphs = [paragraph for _, text in read_pages(Piece(real_dump(), 0), Counts()) for paragraph in plain(text)]
    left = sum(bool(markup.search(paragraph)) for paragraph in paragraphs)
    assert len(paragraphs) > 4000 and left < len(paragraphs) / 1000
    # What is left is dropped and counted.
    counts = Counts()
    cleaned = [paragraph for text in read_articles(Piece(real_dump(), 0), counts) for paragraph in text.split("\n")]
    assert not any(map(markup.search, cleaned)) and counts.rules["paragraph: markup"].dropped <= left
