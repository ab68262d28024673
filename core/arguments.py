"""The one convention of all commands: dashes or underscores in an option's name, and errors that are one sentence."""

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

from earlybert.core.errors import UserError, one_line

if TYPE_CHECKING:
    import jsonargparse

# What a value must be, by the type that a parser wants.
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list", "dict": "a mapping"}
# A beginning this long is enough to tell what was meant.
BEGINNING = 3


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Options named as they are declared: `--run-dir=a-b` becomes `--run_dir=a-b`. Values stay as they are."""
    return [re.sub(r"^--[A-Za-z][^=]*", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in argv]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, if any is near or one begins like the other; case does not matter."""
    spelt, name = {other.lower(): other for other in known}, name.lower()
    close = difflib.get_close_matches(name, spelt, n=1)
    if not close and len(name) >= BEGINNING:
        close = [other for other in spelt if other.startswith(name) or (other and name.startswith(other))]
    return spelt[close[0]] if close else None


def alternatives(name: str, known: Sequence[str]) -> str:
    """The end of an error about a name that is not known: the nearest one, else all of them."""
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else f"; it must be one of {', '.join(known)}"


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the commands' convention: options are declared with underscores and never abbreviated."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; what it does not know has underscores, too."""
        return super().parse_known_args(with_underscores(sys.argv[1:] if args is None else args), namespace)

    @property
    def options(self) -> list[str]:
        """Their names, as they are declared."""
        return _options(self)

    def error(self, message: str) -> NoReturn:
        """Raises UserError in place of printing the usage and leaving."""
        raise UserError(_one_sentence(message, self, self.options))


def parse(parser: "jsonargparse.ArgumentParser", argv: Sequence[str], beside: Iterable[str] = ()) -> Any:
    """What a jsonargparse parser (with exit_on_error=False) makes of the arguments, its classes instantiated.

    A list may also be written as several words or as one: `--files a.txt b.txt`. Raises UserError, which may have meant
    one of the options `beside` the parser's, that another one has read.
    """
    from jsonargparse import ArgumentError

    try:
        parsed = parser.parse_args(_with_lists(with_underscores(argv), parser))
        for name, value in parsed.items():
            _require_finite(name, value)
        return parser.instantiate(parsed)
    except ArgumentError as error:
        raise UserError(_one_sentence(str(error), parser, [*_options(parser), *beside])) from None


def _require_finite(name: str, value: object) -> None:
    """Refuses what YAML takes for a number and nothing can be computed with, such as 1e400."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{name} is {number}; it must be a finite number")


def _with_lists(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """`--files a b` as `--files=["a", "b"]`; a word in brackets is a list already."""
    written: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        item = _item_type(parser._option_string_actions.get(option))
        values = [value] if equals else []
        while item and not equals and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if not item or not values:
            written.append(word)
        elif len(values) == 1 and re.fullmatch(r"\[.*\]", values[0], re.DOTALL):
            written.append(f"{option}={values[0]}")
        else:
            # Names of files may hold what YAML takes for something else.
            listed = map(json.dumps, values) if item is str else values
            written.append(f"{option}=[{', '.join(listed)}]")
    return written


def _item_type(action: object) -> type | None:
    """Of an option that takes a list, what is in it."""
    hint = getattr(action, "_typehint", None)
    return get_args(hint)[0] if get_origin(hint) is list else None


def _one_sentence(message: str, parser: argparse.ArgumentParser, options: Sequence[str]) -> str:
    """What a parser found wrong, in the words of the other errors."""
    more = f"see {parser.prog} --help"
    if match := re.match(r'Parser key "([^"]+)"(?: element \d+)?:\s*(.*)', message, re.DOTALL):
        return _wrong_value(*match.groups())
    message = one_line(message)
    if match := re.match(r"[Uu]nrecognized arguments: (\S+)", message):
        if not match[1].startswith("--"):
            return f"unexpected argument {match[1]!r}; {more}"
        close = nearest(match[1][2:].partition("=")[0], options)
        hint = f'did you mean "{close}"?' if close else more
        return f"unknown option {match[1]}; {hint}"
    if match := re.match(r"the following arguments are required: (.*)", message):
        return f"{match[1]} {'are' if ', ' in match[1] else 'is'} missing; {more}"
    if not (match := re.match(r"argument ([^\s:/]+)\S*: (.*)", message)):
        return message
    name, problem = match.groups()
    if choice := re.match(r"invalid choice: '(.*)' \(choose from (.*)\)", problem):
        known = re.findall(r"[^\s,']+", choice[2])
        return f"{name} is {choice[1]!r}{alternatives(choice[1], known)}"
    if kind := re.match(r"invalid (\w+) value: (.*)", problem):
        return f"{name} is {kind[2]}; it must be {KINDS.get(kind[1], kind[1])}"
    return f"{name} has no value; {more}" if problem.startswith("expected ") else f"{name} {problem}"


def _wrong_value(key: str, problem: str) -> str:
    """What jsonargparse says of a value of another type."""
    # Of an item of a list, which has fields of its own.
    item = r"Problem with given class_path '[^']*':\s*Parser key \"([^\"]+)\"(?: element \d+)?:\s*(.*)"
    if inner := re.match(item, problem, re.DOTALL):
        return _wrong_value(f"{key}.{inner[1]}", inner[2])
    if section := re.match(r"Unable to load config '(.*)'", problem):
        return f"{key} is {section[1]!r}, but is a section; give its fields one by one, as --{key}.FIELD"
    match = re.search(r"(?:Expected a|Subtypes:) (.*?)(?:\. Got value:|\n.*Given value:) ?(.*)$", problem, re.DOTALL)
    if not match:
        return f"{key} is wrong: {one_line(problem)}"
    wanted, value = match[1].replace("typing.", ""), match[2]
    names = re.findall(r"'([^']+)'", "".join(re.findall(r"Literal\[[^]]*\]", wanted)))
    types = re.findall(r"\w+", re.sub(r"<class|Literal\[[^]]*\]|(?<=\w)\[[^]]*\]", "", wanted.split("\n")[0]))
    kinds = [KINDS.get(kind, kind) for kind in types if kind != "NoneType"]
    hint = f"; it must be {' or '.join([*kinds, *names])}" if kinds else alternatives(value, names)
    return f"{key} is {value or repr(value)}{hint}"


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Names of a parser's options, as they are declared."""
    return [name[2:] for name in parser._option_string_actions if name.startswith("--")]
