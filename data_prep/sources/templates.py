"""MediaWiki's templates whose arguments are the words of the sentence, and what stands for text and gaps meanwhile."""

import html
import re
from collections.abc import Callable, Sequence

# Where something was dropped; a private character, which no text holds.
GAP = "\U000f8000"
# Text that looks like markup, until the markup is gone: every ASCII sign has a private character for itself.
_FIRST_SIGN = 0xF8100
_SIGNS = {ord(sign): _FIRST_SIGN + ord(sign) for sign in "'{}[]<>|_=*#:;!&-"}
_TEXT = {private: sign for sign, private in _SIGNS.items()} | {ord(GAP): None}
_PRIVATE = re.compile(rf"[{GAP}{chr(_FIRST_SIGN)}-{chr(_FIRST_SIGN + 127)}]")

_NAMED_ARGUMENT = re.compile(r"\s*([\w-]+)\s*=(?!=)")
_NUMBER = re.compile(r"[-−+]?\d[\d.,/+⁄]*")
# Python makes no number of some thousand digits, and raises an error.
_PLAIN_NUMBER = re.compile(r"([-−]?)(\d{1,100})(\.\d*)?")
_DAY_OR_MONTH = re.compile(r"\d\d?")
# Of English wikis, which have the template.
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

Arguments = dict[str, str]


def protected(text: str) -> str:
    """Text that is no markup, whatever it looks like, until `restored`."""
    return html.unescape(text).translate(_SIGNS)


def restored(text: str) -> str:
    """The same text as its readers see it."""
    return text.translate(_TEXT) if _PRIVATE.search(text) else text


def template_words(inside: str) -> str:
    """The words of a template, given what stands between its braces; a gap for one without."""
    name, bar, rest = inside.partition("|")
    # A parser function has a colon before its first argument: {{formatnum:1234|R}}.
    function, colon, first = name.partition(":")
    if colon and (words := PARSER_FUNCTIONS.get(function.strip().lower())):
        return words([first.strip(), *(rest.split("|") if bar else ())]) or GAP
    template = INLINE_TEMPLATES.get(name.strip().lower().replace("_", " "))
    return (template(_arguments(rest)) if template else "") or GAP


def _arguments(text: str) -> Arguments:
    """A template's arguments by name; those without one are called 1, 2, and so on, as in MediaWiki."""
    arguments: Arguments = {}
    unnamed = 0
    for part in text.split("|"):
        named = _NAMED_ARGUMENT.match(part)
        if not named:
            unnamed += 1
        arguments[named[1] if named else str(unnamed)] = part[named.end() if named else 0 :].strip()
    return arguments


def _argument(*names: str) -> Callable[[Arguments], str]:
    """The first of these arguments that is there."""
    return lambda arguments: next((arguments[name] for name in names if arguments.get(name)), "")


def _constant(words: str) -> Callable[[Arguments], str]:
    return lambda arguments: words


def _grouped(arguments: Sequence[str]) -> str:
    """`formatnum:1234567.8` is "1,234,567.8"; with R or NOSEP, or for anything else, the number as it is written."""
    number, *options = arguments
    plain = _PLAIN_NUMBER.fullmatch(number)
    if plain is None or {"R", "NOSEP"} & {option.strip() for option in options}:
        return number.replace(",", "") if "R" in options else number
    return f"{plain[1]}{int(plain[2]):,}{plain[3] or ''}"


RANGES = {
    **dict.fromkeys(("-", "–", "&ndash;"), "–"),
    **dict.fromkeys(("to", "and", "by", "or", "x", "×", "±", "+/-", "+", "&", "to about"), None),
    **{f"{word}(-)": word for word in ("to", "and", "by", "or")},
    **{"by(x)": "by", "xx": "×", "*": "×", "and-": "and", "to-": "to"},
}  # fmt: skip
# What a unit may be followed by, with a number of its own: 6 ft 4 in.
SMALLER_UNITS = {
    "mi": ("yd", "ft", "chain", "chains", "furlong", "ch"), "yd": ("ft", "in"), "ft": ("in", "inch"),
    "st": ("lb", "lbs"), "lb": ("oz",), "LT": ("cwt",), "long ton": ("long cwt",), "cwt": ("lb",), "gal": ("qt", "pt"),
    "h": ("min",), "min": ("s",), "deg": ("min",), "hand": ("in",), "foot": ("inch", "in"), "feet": ("inches", "in"),
}  # fmt: skip


def _quantity(arguments: Arguments) -> str:
    """The input of `convert` as it is shown: `5|km|mi` is "5 km", `5|-|6|km` "5–6 km", `6|ft|4|in|cm` "6 ft 4 in"."""
    rest = [arguments[str(number)] for number in range(1, 20) if str(number) in arguments]
    words = rest.pop(0) if rest else ""
    while len(rest) > 1 and rest[0] in RANGES:
        between = RANGES[rest[0]] or rest[0]
        words += f"–{rest[1]}" if between == "–" else f" {between} {rest[1]}"
        rest = rest[2:]
    unit = rest.pop(0) if rest else ""
    words = f"{words} {unit}".strip()
    while len(rest) > 1 and _NUMBER.fullmatch(rest[0]) and rest[1] in SMALLER_UNITS.get(unit, ()):
        unit = rest[1]
        words += f" {rest[0]} {unit}"
        rest = rest[2:]
    return words


def _fraction(arguments: Arguments) -> str:
    numbers = [arguments[name] for name in ("1", "2", "3") if arguments.get(name)]
    if len(numbers) == 3:
        return f"{numbers[0]} {numbers[1]}/{numbers[2]}"
    return "/".join(["1", *numbers] if len(numbers) == 1 else numbers)


def _as_of(arguments: Arguments) -> str:
    """`2009|12|31` is "As of 31 December 2009"; `df=US`, `since=y`, `lc=y` and `bare=y` as the template has them."""
    year, month, day = (arguments.get(name, "") for name in ("1", "2", "3"))
    if _DAY_OR_MONTH.fullmatch(month) and 1 <= int(month) <= 12:
        month = _MONTHS[int(month) - 1]
    day = str(int(day)) if _DAY_OR_MONTH.fullmatch(day) else day
    if month and day and arguments.get("df", "").upper() == "US":
        date = f"{month} {day}, {year}"
    else:
        date = " ".join(part for part in (day, month, year) if part)
    if arguments.get("bare"):
        return date
    words = "Since" if arguments.get("since") else "As of"
    return f"{words.lower() if arguments.get('lc') else words} {date}"


PARSER_FUNCTIONS: dict[str, Callable[[Sequence[str]], str]] = {
    "formatnum": _grouped,
    "lc": lambda arguments: arguments[0].lower(),
    "uc": lambda arguments: arguments[0].upper(),
    "lcfirst": lambda arguments: arguments[0][:1].lower() + arguments[0][1:],
    "ucfirst": lambda arguments: arguments[0][:1].upper() + arguments[0][1:],
    "plural": lambda arguments: (arguments[1:2] if arguments[0] == "1" else arguments[2:] or arguments[1:] or [""])[0],
}

INLINE_TEMPLATES: dict[str, Callable[[Arguments], str]] = {
    **dict.fromkeys(("nowrap", "nobr", "small", "smaller", "big", "em", "strong", "abbr", "sic"), _argument("1")),
    **dict.fromkeys(("val", "angbr", "mvar", "vanchor", "visible anchor"), _argument("1")),
    "formatnum": lambda arguments: _grouped([arguments.get("1", ""), arguments.get("2", "")]),
    **dict.fromkeys(("not a typo", "as written", "linktext", "ill", "interlanguage link", "nihongo"), _argument("1")),
    **dict.fromkeys(("quote", "blockquote", "quotation", "cquote"), _argument("text", "quote", "1")),
    **dict.fromkeys(("lang", "transl", "transliteration", "tooltip", "color"), _argument("3", "text", "2")),
    **dict.fromkeys(("convert", "cvt", "unit"), _quantity),
    **dict.fromkeys(("frac", "fraction", "sfrac"), _fraction),
    **dict.fromkeys(("snd", "spaced ndash", "spnd", "spaced en dash", "ndash", "–"), _constant(" – ")),
    **dict.fromkeys(("mdash", "mdashb", "emdash", "em dash", "—"), _constant("—")),
    **dict.fromkeys(("nbsp", "space", "spaces", "thinsp", "zwsp"), _constant(" ")),
    **dict.fromkeys(("'", "`", "apostrophe"), _constant(protected("'"))),
    **dict.fromkeys(("circa", "c.", "ca."), lambda arguments: f"c. {arguments.get('1', '')}"),
    **{f"'{letters}": _constant(protected("'") + letters) for letters in ("", "s", "t", "d", "m", "re", "ve", "ll")},
    "s'": _constant("s" + protected("'")),
    "'\"": _constant(protected("'\"")),
    "\"'": _constant(protected("\"'")),
    "=": _constant(protected("=")),
    **dict.fromkeys(("chem", "chem2"), lambda arguments: "".join(arguments.values())),
    "as of": _as_of,
    "e": lambda arguments: f"×10^{arguments.get('1', '')}",
}
