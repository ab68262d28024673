"""MediaWiki's markup to prose, in time linear in the page.

Nothing is expanded: templates go, but for the few whose arguments are the words of the sentence. Templates and links
nest, so one pass over their brackets keeps a stack and settles the innermost first; all else is regular.
`mwparserfromhell` takes about ten times as long, which would make it the slowest step of all (docs/data.md).
"""

import html
import re
from collections.abc import Callable, Iterator
from itertools import chain

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
    "ref|references|math|chem|ce|gallery|timeline|score|source|syntaxhighlight|pre|hiero|imagemap|graph|mapframe|maplink"
    "|templatestyles|templatedata|inputbox|indicator|table|noinclude|includeonly|categorytree|ul|ol|dl"
)
_ELEMENT = re.compile(rf"<!--|<(/?)({_ELEMENTS})\b([^<>]*)>", re.IGNORECASE)
_BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]")
_TABLE = re.compile(r"^[ \t:*]*(?:(\{\|)|(\|\}))|^==", re.MULTILINE)
# Quantifiers that give nothing back (`++`) where two could share a run of blanks in as many ways as it is long.
_EXTERNAL_LINK = re.compile(r"\[(?:(?:[a-zA-Z]{2,9}:)?//|mailto:)[^\s\[\]]++(?:[ \t]++([^\[\]\n]*+))?\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_LINE_BREAK = re.compile(r"<(?:br|p|div|/p|/div|hr)\b[^<>]*>", re.IGNORECASE)
_EMPHASIS = re.compile(r"'{2,5}")
_SWITCH = re.compile(r"__[A-Z]{3,}__")
_HEADING = re.compile(r"(={1,6})(.*)\1")
_INTERLANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*")

_NAMED_ARGUMENT = re.compile(r"\s*([\w-]+)\s*=(?!=)")

_EMPTY_BRACKETS = re.compile(r"\((?:[\s,;:–/]|or|and)*\)|\[\s*\]")
_GAP_AFTER_BRACKET = re.compile(r"\((?:\s|[,;:](?=[\s,;:]))+")
_GAP_BEFORE_BRACKET = re.compile(r"(?:\s?[,;:])*\s\)")
_GAP_BEFORE_STOP = re.compile(r"\s+([,;.!?](?:\s|$))")
_DOUBLE_STOP = re.compile(r"[,;](?:\s?[,;])*\s?([,;]|\.(?!\.))")


def prose(wikitext: str, dropped_namespaces: frozenset[str]) -> Iterator[str]:
    """The paragraphs of a page: no headings, tables, lists, pictures, references, formulas; see `DROPPED_SECTIONS`.

    Args:
        wikitext: The page as its authors wrote it.
        dropped_namespaces: Lowercase prefixes of links that stand for no words (`file`, `image`, `category`).
    """
    text = _drop_elements(wikitext)
    text = _settle_brackets(text, dropped_namespaces)
    text = _drop_tables(text)
    text = _EXTERNAL_LINK.sub(lambda link: link[1] or "", text)
    text = _SWITCH.sub("", _EMPHASIS.sub("", _TAG.sub("", _LINE_BREAK.sub("\n", text))))
    for paragraph in _paragraphs(text):
        if tidied := _tidy(html.unescape(paragraph)):
            yield tidied


def _drop_elements(text: str) -> str:
    """Drop comments and the elements whose content is no prose; of one that is never closed, the tag only."""
    kept: list[str] = []
    position = 0
    # Names with no further closing tag; each is searched to the end once, which keeps the time linear.
    never_closed: set[str] = set()
    while found := _ELEMENT.search(text, position):
        kept.append(text[position : found.start()])
        position = found.end()
        if found[0] == "<!--":
            end = text.find("-->", position)
            position = len(text) if end < 0 else end + 3
        elif not found[1] and not found[3].endswith("/") and (name := found[2].lower()) not in never_closed:
            close = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(text, position)
            if close:
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
    for found in _BRACKETS.finditer(text):
        levels[-1].append(text[position : found.start()])
        position = found.end()
        bracket = found[0]
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
            words = _template_words(inside) if partner == "{{" else _link_words(inside, dropped_namespaces)
            levels[-1].append(words)
    levels[-1].append(text[position:])
    return "".join(chain.from_iterable(levels))


def _link_words(inside: str, dropped_namespaces: frozenset[str]) -> str:
    target, bar, label = inside.partition("|")
    prefix, colon, _ = target.partition(":")
    prefix = prefix.strip()
    if colon and (prefix.lower() in dropped_namespaces or (not bar and _INTERLANGUAGE.fullmatch(prefix))):
        return ""
    return label.rpartition("|")[2] if bar else target.lstrip(": ").partition("#")[0] or target


def _template_words(inside: str) -> str:
    name, _, rest = inside.partition("|")
    words = INLINE_TEMPLATES.get(name.strip().lower().replace("_", " "))
    return words(_arguments(rest)) if words else ""


def _arguments(text: str) -> dict[str, str]:
    """A template's arguments by name; those without one are called 1, 2, and so on, as in MediaWiki."""
    arguments: dict[str, str] = {}
    unnamed = 0
    for part in text.split("|"):
        named = _NAMED_ARGUMENT.match(part)
        if not named:
            unnamed += 1
        arguments[named[1] if named else str(unnamed)] = part[named.end() if named else 0 :].strip()
    return arguments


def _argument(*names: str) -> Callable[[dict[str, str]], str]:
    """The first of these arguments that is there."""
    return lambda arguments: next((arguments[name] for name in names if arguments.get(name)), "")


def _constant(words: str) -> Callable[[dict[str, str]], str]:
    return lambda arguments: words


def _quantity(arguments: dict[str, str]) -> str:
    """`convert|5|km|mi` is "5 km", `convert|5|to|6|km` is "5 to 6 km", `convert|5|-|6|km` is "5–6 km"."""
    first, second, third, fourth = (arguments.get(str(number), "") for number in range(1, 5))
    if second in ("-", "–"):
        return f"{first}–{third} {fourth}"
    if second in ("to", "and", "by", "x", "or", "to(-)", "and(-)"):
        return f"{first} {second.removesuffix('(-)')} {third} {fourth}"
    return f"{first} {second}"


def _fraction(arguments: dict[str, str]) -> str:
    numbers = [arguments[name] for name in ("1", "2", "3") if arguments.get(name)]
    if len(numbers) == 3:
        return f"{numbers[0]} {numbers[1]}/{numbers[2]}"
    return "/".join(["1", *numbers] if len(numbers) == 1 else numbers)


def _as_of(arguments: dict[str, str]) -> str:
    words = "as of" if "lc" in arguments else "As of"
    return " ".join([words, *(arguments[name] for name in ("3", "2", "1") if arguments.get(name))])


INLINE_TEMPLATES: dict[str, Callable[[dict[str, str]], str]] = {
    **dict.fromkeys(("nowrap", "nobr", "small", "smaller", "big", "em", "strong", "abbr", "sic"), _argument("1")),
    **dict.fromkeys(("val", "formatnum", "angbr", "mvar", "vanchor", "visible anchor"), _argument("1")),
    **dict.fromkeys(("not a typo", "as written", "linktext", "ill", "interlanguage link", "nihongo"), _argument("1")),
    **dict.fromkeys(("quote", "blockquote", "quotation", "cquote"), _argument("text", "quote", "1")),
    **dict.fromkeys(("lang", "transl", "transliteration", "tooltip", "color"), _argument("3", "text", "2")),
    **dict.fromkeys(("convert", "cvt", "unit"), _quantity),
    **dict.fromkeys(("frac", "fraction", "sfrac"), _fraction),
    **dict.fromkeys(("snd", "spaced ndash", "spnd", "spaced en dash", "ndash", "–"), _constant(" – ")),
    **dict.fromkeys(("mdash", "mdashb", "emdash", "em dash", "—"), _constant("—")),
    **dict.fromkeys(("nbsp", "space", "spaces", "thinsp", "zwsp"), _constant(" ")),
    **dict.fromkeys(("'", "`", "apostrophe"), _constant("'")),
    **dict.fromkeys(("circa", "c.", "ca."), lambda arguments: f"c. {arguments.get('1', '')}"),
    "'s": _constant("'s"),
    **dict.fromkeys(("chem", "chem2"), lambda arguments: "".join(arguments.values())),
    "as of": _as_of,
    "e": lambda arguments: f"×10^{arguments.get('1', '')}",
}


def _drop_tables(text: str) -> str:
    """Drop `{| ... |}`, one inside the other; a table that is never closed ends at the next heading."""
    kept: list[str] = []
    depth = position = 0
    for found in _TABLE.finditer(text):
        if found[1]:
            if depth == 0:
                kept.append(text[position : found.start()])
            depth += 1
        elif depth == 0:
            continue
        elif found[2]:
            depth -= 1
            position = found.end()
        else:
            depth = 0
            position = found.start()
    if depth == 0:
        kept.append(text[position:])
    return "".join(kept)


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of plain lines; headings, lists and remains of tables end them, dropped sections are left out."""
    lines: list[str] = []
    dropped_at = 0
    for line in text.split("\n"):
        heading = _HEADING.fullmatch(line.rstrip()) if line.startswith("=") else None
        if heading:
            level = len(heading[1])
            if not dropped_at or level <= dropped_at:
                dropped_at = level if heading[2].strip().lower() in DROPPED_SECTIONS else 0
        if not heading and line.strip() and line[0] not in "*#:;|!{}" and not line.startswith("----"):
            if not dropped_at:
                lines.append(line)
        elif lines:
            yield " ".join(lines)
            lines = []
    if lines:
        yield " ".join(lines)


def _tidy(paragraph: str) -> str:
    """Close the gaps that templates, formulas and references leave."""
    paragraph = " ".join(paragraph.split())
    if "(" in paragraph or "[" in paragraph:
        paragraph = _GAP_AFTER_BRACKET.sub("(", _EMPTY_BRACKETS.sub("", paragraph))
    # Looking first costs a hundredth of trying the expression at every letter.
    if " )" in paragraph:
        paragraph = _GAP_BEFORE_BRACKET.sub(")", paragraph)
    paragraph = _DOUBLE_STOP.sub(r"\1", _GAP_BEFORE_STOP.sub(r"\1", paragraph))
    return paragraph.replace("  ", " ").strip()
