"""MediaWiki's markup to prose, in time linear in the page.

Nothing is expanded: templates go, but for the few whose arguments are the words of the sentence (`templates.py`).
Templates and links nest, so one pass over their brackets keeps a stack and settles the innermost first; all else is
regular. What goes leaves a mark, `GAP`, until the end: only gaps in the text that we made ourselves are closed.
`mwparserfromhell` takes about ten times as long, which would make it the slowest step of all (docs/data.md).
"""

import html
import re
from collections.abc import Callable, Iterator
from itertools import chain

from earlybert.data_prep.sources.templates import GAP, protected, restored, template_words

# MediaWiki itself stops at 40 templates inside each other.
DEEPEST = 40

DROPPED_SECTIONS = frozenset(
    {
        "bibliography", "citations", "explanatory notes", "external links", "footnotes", "further reading",
        "general references", "literature cited", "notes", "notes and citations", "notes and references",
        "reference", "references", "references and notes", "see also", "selected bibliography", "sources",
        "works cited",
    }
)  # fmt: skip

_ELEMENTS = (
    "nowiki|ref|references|math|chem|ce|gallery|timeline|score|source|syntaxhighlight|pre|hiero|imagemap|graph|mapframe"
    "|maplink|templatestyles|templatedata|inputbox|indicator|table|noinclude|includeonly|categorytree|ul|ol|dl"
)
# HTML that MediaWiki lets through, and its extensions whose content is text. What else stands in < > is text itself.
_TAGS = (
    "abbr|b|bdi|bdo|big|blockquote|br|caption|center|cite|code|col|colgroup|data|dd|del|dfn|div|dt|em|font|h[1-6]|hr"
    "|i|ins|kbd|li|link|mark|meta|p|q|rb|rp|rt|rtc|ruby|s|samp|small|span|strike|strong|sub|sup|tbody|td|tfoot"
    "|th|thead|time|tr|tt|u|var|wbr|onlyinclude|poem|section|phonos|charinsert|langconvert"
)
_ELEMENT = re.compile(rf"<!--|<(/?)({_ELEMENTS})(?=[\s/>])([^<>]*)>", re.IGNORECASE)
_BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]")
_TABLE = re.compile(rf"^[ \t:*{GAP}]*(?:(\{{\|)|(\|\}}))|^==", re.MULTILINE)
# Quantifiers that give nothing back (`++`) where two could share a run of blanks in as many ways as it is long.
_EXTERNAL_LINK = re.compile(r"\[(?:(?:[a-zA-Z]{2,9}:)?//|mailto:)[^\s\[\]]++(?:[ \t]++([^\[\]\n]*+))?\]")
_TAG = re.compile(rf"</?(?:{_TAGS}|{_ELEMENTS})(?=[\s/>])[^<>]*>", re.IGNORECASE)
_LINE_BREAK = re.compile(r"<(?:br|p|div|/p|/div|hr)(?=[\s/>])[^<>]*>", re.IGNORECASE)
_APOSTROPHES = re.compile(r"(''+)")
_SWITCH = re.compile(r"__(\w{1,60}?)__")
# In small letters only these are switches, or `__init__` would be one.
_SWITCHES = frozenset(
    {
        "notoc", "forcetoc", "toc", "noeditsection", "nogallery", "notitleconvert", "notc", "nocontentconvert", "nocc",
        "newsectionlink", "nonewsectionlink", "hiddencat", "expectunusedcategory", "index", "noindex", "staticredirect",
        "disambig", "archivedtalk", "notalk", "noglobal", "kein_inhaltsverzeichnis", "keininhaltsverzeichnis",
        "inhaltsverzeichnis", "inhaltsverzeichnis_erzwingen", "abschnitte_nicht_bearbeiten", "aucunetdm",
        "aucunsommaire", "sommaire", "tdm", "sectionnoneditable", "notdc", "nosommario", "indice", "sinindice", "tdc",
    }
)  # fmt: skip
_VARIANTS = re.compile(r"-\{(?!\{)([^{}]*)\}-")
_VARIANT = re.compile(r"(?:[^;]*=>)?\s*([a-z]{2,3}(?:-[a-z]+)*)\s*:(.*)", re.DOTALL)
_VARIANT_BORDER = re.compile(r";(?=\s*(?:[^;:]*=>)?\s*[a-z]{2,3}(?:-[a-z]+)*\s*:|\s*$)")
_HEADING = re.compile(r"(={1,6})(.*)\1")
_INTERLANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]+)*|simple)")

_EMPTY_BRACKETS = re.compile(rf"\((?:[\s,;:–/{GAP}]|or|and)*\)|\[[\s{GAP}]*\]")
_GAP_AFTER_BRACKET = re.compile(rf"\((?:[\s{GAP}]|[,;:](?=[\s,;:{GAP}]))+")
# A comma or a full stop has no space before it in any language; French has one before the others.
_GAP_BEFORE_STOP = re.compile(rf"([\s{GAP}]+)([,;.!?])(?=[\s{GAP}]|$)")
_DOUBLE_STOP = re.compile(r"[,;](?:\s?[,;])*\s?([,;]|\.(?!\.))")
# What the authors' mistakes leave of the markup; hardly ever a sign that is meant.
_LEFTOVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|</?ref\b|\|")


def prose(
    wikitext: str, dropped_namespaces: frozenset[str], broken: Callable[[str], None] | None = None
) -> Iterator[str]:
    """The paragraphs of a page: no headings, tables, lists, pictures, references, formulas; see `DROPPED_SECTIONS`.

    Args:
        wikitext: The page as its authors wrote it.
        dropped_namespaces: Lowercase prefixes of links that stand for no words (`file`, `image`, `category`).
        broken: Gets the paragraphs that still hold markup, in place of the caller.
    """
    text = _drop_elements(wikitext)
    text = _settle_brackets(text, dropped_namespaces)
    text = _drop_tables(text)
    text = _VARIANTS.sub(lambda match: _variant(match[1]), text)
    text = _EXTERNAL_LINK.sub(lambda link: link[1] or GAP, text)
    text = _TAG.sub("", _LINE_BREAK.sub("\n", text))
    text = "\n".join(_without_emphasis(line) if "''" in line else line for line in text.split("\n"))
    text = _SWITCH.sub(_without_switch, text)
    for paragraph in _paragraphs(text):
        tidied = _tidy(html.unescape(paragraph))
        if broken is not None and _LEFTOVER.search(tidied):
            broken(restored(tidied))
        elif tidied := restored(tidied).strip():
            yield tidied


def _without_emphasis(line: str) -> str:
    """A line without the apostrophes that mark bold and italic: MediaWiki's rule (`doQuotes` in its parser).

    Of four one is text, of more than five all but five. Where both bold and italic stay open at the line's end, one
    bold mark is an apostrophe and an italic mark: the first after a word of one letter, else after a longer word, else
    after a space.
    """
    # Text and marks take turns.
    parts = _APOSTROPHES.split(line)
    bold = italic = 0
    for index in range(1, len(parts), 2):
        length = len(parts[index])
        marks = 3 if length == 4 else min(length, 5)
        parts[index - 1] += "'" * (length - marks)
        parts[index] = "'" * marks
        bold += marks in (3, 5)
        italic += marks in (2, 5)
    if bold % 2 and italic % 2:
        ends = {index: parts[index - 1][-2:] for index in range(1, len(parts), 2) if len(parts[index]) == 3}
        one_letter = [index for index, end in ends.items() if end[-1:] != " " and end[:-1] == " "]
        longer = [index for index, end in ends.items() if end[-1:] != " " and end[:-1] != " "]
        if chosen := (one_letter or longer or list(ends))[:1]:
            parts[chosen[0] - 1] += "'"
    return "".join(parts[::2])


def _without_switch(match: re.Match[str]) -> str:
    """`__NOTOC__` and its like in any language vanish; what has small letters is mostly none."""
    word = match[1]
    return "" if word.upper() == word or word.lower() in _SWITCHES else match[0]


def _variant(inside: str) -> str:
    """The words of `-{zh-hans:a;zh-hant:b}-`, which is text in several scripts: those of the first."""
    flags, bar, rules = inside.rpartition("|")
    if bar and set("TH-") & {flag.strip() for flag in flags.split(";")}:
        return GAP  # a title, or a rule for the rest of the page
    match = _VARIANT.fullmatch(_VARIANT_BORDER.split(rules)[0])
    return match[2].strip() if match else rules


def _drop_elements(text: str) -> str:
    """Drop comments and the elements whose content is no prose; of one that is never closed, the tag only.

    What `<nowiki>` holds is text, whatever it looks like; so are brackets that the author left empty after a word.
    """
    kept: list[str] = []
    position = 0
    # Names with no further closing tag; each is searched to the end once, which keeps the time linear.
    never_closed: set[str] = set()
    while match := _ELEMENT.search(text, position):
        kept.append(text[position : match.start()])
        position = match.end()
        if match[0] == "<!--":
            end = text.find("-->", position)
            position = len(text) if end < 0 else end + 3
            continue
        kept.append(GAP)
        if not match[1] and not match[3].endswith("/") and (name := match[2].lower()) not in never_closed:
            close = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(text, position)
            if close:
                if name == "nowiki":
                    kept[-1] = protected(text[position : close.start()])
                position = close.end()
            else:
                never_closed.add(name)
    kept.append(text[position:])
    return "".join(kept)


def _settle_brackets(text: str, dropped_namespaces: frozenset[str]) -> str:
    """Replace every template and link by its words; brackets without a partner vanish."""
    # What was opened, and the text collected inside it; the lowest level is the page.
    opened: list[str] = []
    levels: list[list[str]] = [[]]
    templates = position = 0
    for match in _BRACKETS.finditer(text):
        levels[-1].append(text[position : match.start()])
        position = match.end()
        bracket = match[0]
        if bracket in ("{{", "[["):
            opened.append(bracket)
            levels.append([])
            templates += bracket == "{{"
            continue
        partner = "{{" if bracket == "}}" else "[["
        if not (templates if partner == "{{" else opened and opened[-1] == "[["):
            continue
        # Links that a template's end cuts off were none: their text belongs to the template.
        depth = len(opened) - 1
        while opened[depth] != partner:
            depth -= 1
        inside = "".join(chain.from_iterable(levels[depth + 1 :]))
        del opened[depth:], levels[depth + 1 :]
        templates -= partner == "{{"
        if depth < DEEPEST:
            words = template_words(inside) if partner == "{{" else _link_words(inside, dropped_namespaces)
            levels[-1].append(words)
    levels[-1].append(text[position:])
    return "".join(chain.from_iterable(levels))


def _link_words(inside: str, dropped_namespaces: frozenset[str]) -> str:
    target, bar, label = inside.partition("|")
    prefix, colon, _ = target.partition(":")
    prefix = prefix.strip()
    if colon and (prefix.lower() in dropped_namespaces or (not bar and _INTERLANGUAGE.fullmatch(prefix))):
        return GAP
    return label.rpartition("|")[2] if bar else target.lstrip(": ").partition("#")[0] or target


def _drop_tables(text: str) -> str:
    """Drop `{| ... |}`, one inside the other; a table that is never closed ends at the next heading."""
    kept: list[str] = []
    depth = position = 0
    for match in _TABLE.finditer(text):
        if match[1]:
            if depth == 0:
                kept.append(text[position : match.start()])
            depth += 1
        elif depth == 0:
            continue
        elif match[2]:
            depth -= 1
            position = match.end()
        else:
            depth = 0
            position = match.start()
    if depth == 0:
        kept.append(text[position:])
    return "".join(kept)


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of plain lines; headings, lists and remains of tables end them, dropped sections are left out."""
    lines: list[str] = []
    dropped_at = 0
    for marked in text.split("\n"):
        line = marked.replace(GAP, "") if GAP in marked else marked
        heading = _HEADING.fullmatch(line.rstrip()) if line.startswith("=") else None
        if heading:
            level = len(heading[1])
            if not dropped_at or level <= dropped_at:
                dropped_at = level if heading[2].strip().lower() in DROPPED_SECTIONS else 0
        if not heading and line.strip() and line[0] not in "*#:;|!{}" and not line.startswith("----"):
            if not dropped_at:
                lines.append(marked)
        elif lines:
            yield " ".join(lines)
            lines = []
    if lines:
        yield " ".join(lines)


def _tidy(paragraph: str) -> str:
    """Close the gaps that templates, formulas and references leave; what the author left empty stays."""
    paragraph = " ".join(paragraph.split())
    if GAP in paragraph:
        paragraph = _EMPTY_BRACKETS.sub(lambda match: GAP if GAP in match[0] else match[0], paragraph)
    if "(" in paragraph:
        paragraph = _GAP_AFTER_BRACKET.sub("(", paragraph)
    if ")" in paragraph:
        *before, last = paragraph.split(")")
        paragraph = ")".join([*map(_without_gap_at_end, before), last])
    paragraph = _GAP_BEFORE_STOP.sub(_close_gap, paragraph)
    paragraph = _DOUBLE_STOP.sub(r"\1", paragraph.replace(GAP, ""))
    return " ".join(paragraph.split())


def _without_gap_at_end(text: str) -> str:
    """What stands before a closing bracket; stops before a gap go with it."""
    return text.rstrip(f" ,;:{GAP}") if text[-1:] in (" ", GAP) else text


def _close_gap(match: re.Match[str]) -> str:
    """A stop right after the sentence. The author's own space stays where French wants it: before ! ? and ;"""
    gap, stop = match.groups()
    return stop if stop in ",." or (gap[0] == " " and gap[-1] == GAP) else gap + stop
