"""The one convention of all commands: dashes or underscores in an option's name, and errors that are one sentence."""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin

from earlybert.core.errors import UserError

if TYPE_CHECKING:
    import jsonargparse


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Options named as they are declared: `--run-dir=a-b` becomes `--run_dir=a-b`. Values stay as they are."""
    return [re.sub(r"^--[A-Za-z][^=]*", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in argv]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, if any is near; letters' case does not matter."""
    spelt = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), spelt, n=1)
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

    def error(self, message: str) -> NoReturn:
        """Raises UserError in place of printing the usage and leaving."""
        if match := re.match(r"unrecognized arguments: (--\S+)", message):
            raise UserError(_unknown_option(match[1], self, self.prog))
        if match := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            choice = nearest(match[1], re.findall(r"[^\s,']+", match[2]))
            if choice:
                raise UserError(f'{message}; did you mean "{choice}"?')
        raise UserError(f"{message}; see {self.prog} --help")


def parse(parser: "jsonargparse.ArgumentParser", argv: Sequence[str]) -> Any:
    """What a jsonargparse parser (with exit_on_error=False) makes of the arguments, its classes instantiated.

    A list may also be written as several words or as one: `--files a.txt b.txt`. Raises UserError.
    """
    from jsonargparse import ArgumentError

    try:
        return parser.instantiate(parser.parse_args(_with_lists(with_underscores(argv), parser)))
    except ArgumentError as error:
        raise UserError(_one_sentence(error, parser)) from None


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


def _one_sentence(error: Exception, parser: argparse.ArgumentParser) -> str:
    text = str(error)
    if match := re.match(r'Parser key "([^"]+)"(?: element \d+)?:\s*(.*)', text, re.DOTALL):
        key, problem = match.groups()
        problem = " ".join(re.sub(r"<class '([^']+)'>", r"\1", problem).replace("typing.", "").split())
        if union := re.search(r"Subtypes: \[(.*)\] Errors: .* Given value: (.*)$", problem):
            kinds = [re.sub(r"Literal\['(\w+)'\]", r"\1", kind) for kind in union[1].split(", ") if kind != "NoneType"]
            return f"{key} is {union[2]}; expected {' or '.join(kinds)}"
        expected, _, value = problem.partition(". Got value: ")
        return f"{key} is {value or 'wrong'}; {expected[:1].lower() + expected[1:]}"
    if match := re.match(r"[Uu]nrecognized arguments: (.*)", text):
        return _unknown_option(match[1].split()[0], parser)
    return " ".join(text.split())


def _unknown_option(option: str, parser: argparse.ArgumentParser, prog: str = "") -> str:
    names = (name.lstrip("-") for name in parser._option_string_actions if name.startswith("--"))
    close = nearest(option.lstrip("-").split("=")[0], names)
    hint = f'did you mean "{close}"?' if close else f"{prog} --help lists all".lstrip()
    return f"unknown option {option}; {hint}"
