"""YAML files that users write: every mistake is named with its file and line."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from earlybert.core.arguments import nearest
from earlybert.core.errors import UserError, one_line
from earlybert.core.files import reading

# More names than these are not listed.
MOST_NAMES = 12


def check_yaml(path: Path, section: type, what: str, beside: Iterable[str] = ()) -> set[str]:
    """The keys of a YAML file; raises UserError when it is malformed or one is no field of a dataclass.

    Args:
        path: The file.
        section: The dataclass, whose fields may be dataclasses and lists of them.
        what: What such a file is called.
        beside: Keys that it may have beside the fields.
    """
    with reading(path, what):
        text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise UserError(f"{path}: is empty; it must be {what}")
        _check_keys(node, section, "", path, what, beside)
        yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: is not valid YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML ({one_line(error)})") from None
    return {key.value for key, _ in node.value}


def _check_keys(node: yaml.Node, section: type, prefix: str, path: Path, what: str, beside: Iterable[str]) -> None:
    """Refuses keys that no field has, by file and line."""
    if not isinstance(node, yaml.MappingNode):
        raise UserError(
            f"{path}:{node.start_mark.line + 1}: {prefix.rstrip('.') or what} must be a mapping of keys to values"
        )
    types = get_type_hints(section)
    hints = {field.name: types[field.name] for field in dataclasses.fields(section)}
    known, seen = [*hints, *beside], set[str]()
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{path}:{line}: a key must be a name, not a list or mapping")
        if key not in known:
            raise UserError(f'{path}:{line}: unknown key "{prefix}{key}"{_hint(key, known, what)}')
        if key in seen:
            raise UserError(f'{path}:{line}: key "{prefix}{key}" appears twice; keep one of them')
        seen.add(key)
        inner = _section_in(hints.get(key))
        listed = isinstance(value_node, yaml.SequenceNode) and get_origin(hints.get(key)) is list
        for part in value_node.value if listed else [value_node]:
            if inner:
                _check_keys(part, inner, f"{prefix}{key}.", path, what, ())


def _hint(key: str, known: Iterable[str], what: str) -> str:
    names = list(known)
    if close := nearest(key, names):
        return f'; did you mean "{close}"?'
    return f"; known are {', '.join(names)}" if len(names) <= MOST_NAMES else f", which {what} does not have"


def _section_in(hint: Any) -> type | None:
    """The dataclass of a section, also of one that may be left out and of a list of them; None for other types."""
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is list else (hint,)
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)
