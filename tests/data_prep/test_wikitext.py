"""Markup to prose: case by case, against mwparserfromhell, and on a real dump."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import mwparserfromhell
import pytest

from earlybert.data_prep.cleaning.counts import Counts
from earlybert.data_prep.sources.mediawiki import _DISAMBIGUATION, read_articles, read_pages
from earlybert.data_prep.sources.source import Fragment
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
        ("As {{lang|fr|mot ''juste''}} {{as of|2010|5|lc=y}} {{nowrap|1=a b}}.", "As mot juste as of May 2010 a b."),
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


@pytest.mark.parametrize(
    ("wikitext", "words"),
    [
        # MediaWiki's doQuotes: four apostrophes are one and bold, over five are five and the rest.
        ("l'''Iliade'' d'Homère", "l'Iliade d'Homère"),
        ("L''''armonium''' suona", "L'armonium suona"),
        ("The ''Titanic'''s band", "The Titanic's band"),
        ("The ''Eagle''{{'s}} flight and {{'}}tis {{'re}}", "The Eagle's flight and 'tis 're"),
        ("'''<nowiki>'</nowiki>twas''' so", "'twas so"),
        ("''Titanic''<nowiki/>'s", "Titanic's"),
        ("a '''''''seven''''' b", "a ''seven b"),
        ("L'''équipe'' d'une ''saison''", "L'équipe d'une saison"),
        ("è l'''Eneide'', poi '''testo'''", "è l'Eneide, poi testo"),
        ("one '''bold line\nanother'' line", "one bold line another line"),
    ],
)
def test_apostrophes_are_what_mediawiki_takes_them_for(wikitext: str, words: str) -> None:
    assert plain(wikitext) == [words]


@pytest.mark.parametrize(
    ("wikitext", "words"),
    [
        ("{{formatnum:1234}}, {{formatnum:-1234567.5}}, {{formatnum:1,234|R}}", "1,234, -1,234,567.5, 1234"),
        ("{{formatnum: 12x }}, {{formatnum:{{formatnum:9876|R}}}}, {{formatnum|4000}}", "12x, 9,876, 4,000"),
        ("{{lc:ABC}} {{uc:abc}} {{ucfirst:éa}} {{lcfirst:Ab}} {{plural:1|day|days}} {{plural:2|day|days}}",
         "abc ABC Éa ab day days"),
        ("{{convert|6|ft|4|in|cm|0}} tall", "6 ft 4 in tall"),
        ("{{convert|10|x|20|x|30|cm|in}}", "10 x 20 x 30 cm"),
        ("{{convert|1|±|0.5|km}}", "1 ± 0.5 km"),
        ("{{convert|11|st|4|lb|kg}}, {{convert|5|ft|0|m}}, {{convert|100|km|mi|0}}", "11 st 4 lb, 5 ft, 100 km"),
        ("{{convert|3|to|5|ft|2|in}}, {{convert|5|by(x)|6|m}}", "3 to 5 ft 2 in, 5 by 6 m"),
        ("{{as of|2009|12|31}} it was", "As of 31 December 2009 it was"),
        ("{{as of|2009|12|31|df=US|lc=y}} and {{as of|2009|since=y}} and {{as of|2009|12|bare=y}}",
         "as of December 31, 2009 and Since 2009 and December 2009"),
    ],
)  # fmt: skip
def test_numbers_are_kept(wikitext: str, words: str) -> None:
    assert plain(wikitext) == [words]


@pytest.mark.parametrize("wikitext", ["{{formatnum:DIGITS}}", "{{as of|2009|DIGITS}}", "{{as of|2009|1|DIGITS}}"])
def test_more_digits_than_python_makes_a_number_of_stay_as_they_are(wikitext: str) -> None:
    digits = "7" * 5000
    (words,) = plain(f"It is {wikitext.replace('DIGITS', digits)} long.")
    assert digits in words


@pytest.mark.parametrize(
    ("wikitext", "words"),
    [
        ("use <nowiki>{{stub}}</nowiki> and <nowiki>[[x|y]]</nowiki> and <nowiki>&amp;</nowiki>",
         "use {{stub}} and [[x|y]] and &"),
        ("<nowiki>* no list</nowiki> and <nowiki><!-- no comment --></nowiki>", "* no list and <!-- no comment -->"),
        ("<!-- <nowiki> -->Text [[goes]] on<!-- </nowiki> -->.", "Text goes on."),
        ("a List<String> and x <y and z> w and 1 < 2 > 0", "a List<String> and x <y and z> w and 1 < 2 > 0"),
        ("H<sub >2</sub >O, <STRONG>loud</STRONG>, a<br/>b, <ref-like>", "H2O, loud, a b, <ref-like>"),
        ("call f() or a[] or g( ) but (<ref>x</ref>) not (, {{x}})", "call f() or a[] or g() but not"),
        ("Comment ? Oui ! Bien ; soit : là", "Comment ? Oui ! Bien ; soit : là"),
        ("Comment<ref>a</ref> ? Word {{x}}? Word {{x}}, and {{x}} .", "Comment ? Word? Word, and."),
        ("A [http://x y] b [https://x.org/a_(b) c (d)]", "A y b c (d)"),
        ("Text [[simple:Text]] and [[:simple:Text]] and [[simple:Text|a label]]", "Text and simple:Text and a label"),
        ("def __init__(self) and __notoc__ a__b__c", "def __init__(self) and a__b__c"),
        ("__KEIN_INHALTSVERZEICHNIS__ Text __目次非表示__ und __kein_inhaltsverzeichnis__ mehr __ÍNDICE__",
         "Text und mehr"),
        ("他在-{zh-hans:计算机;zh-hant:電腦}-前，-{zh:甲; zh-tw:乙;}-，-{原文}--{T|标题}-", "他在计算机前，甲，原文"),
        ("用-{H|zh-cn:甲;zh-tw:乙}--{A|zh-cn:软件;zh-tw:軟體}-和-{博客=>zh-tw:部落格;}-。", "用软件和部落格。"),
    ],
)  # fmt: skip
def test_what_is_text_stays(wikitext: str, words: str) -> None:
    assert plain(wikitext) == [words]


@pytest.mark.parametrize("sign", "[](){}<>|'=_,;:.!?-*#&/\"~ \n")
@pytest.mark.parametrize("form", ["{}", "{} ", "a{}", "{}{}", "({} "])
def test_time_is_linear_in_runs_of_every_sign(sign: str, form: str) -> None:
    require_linear_time(plain, lambda copies: form.format(sign, sign) * copies + "x")


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
    for _, text in list(read_pages(Fragment(real_dump(), 0), Counts()))[:8]:
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
    paragraphs = [paragraph for _, text in read_pages(Fragment(real_dump(), 0), Counts()) for paragraph in plain(text)]
    left = sum(bool(markup.search(paragraph)) for paragraph in paragraphs)
    assert len(paragraphs) > 4000 and left < len(paragraphs) / 1000
    # What is left is dropped and counted.
    counts = Counts()
    cleaned = [paragraph for text in read_articles(Fragment(real_dump(), 0), counts) for paragraph in text.split("\n")]
    assert not any(map(markup.search, cleaned)) and counts.rules["paragraph: markup"].dropped <= left
