"""Run files as plain trees: YAML 1.2 scalars, line numbers, overrides, nothing given twice.

Knows nothing of what a run file means (that is `backfire.config`), only how it is written:

>>> parse("{lr: 1e-5, shots: [10, 50]}").tree
{'lr': 1e-05, 'shots': [10, 50]}
"""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from backfire.errors import ConfigError

__all__ = ["Parsed", "dotted", "dump", "override", "parse"]

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Parsed:
    """What a run file holds, where each part stands, and what is wrong with its writing."""

    tree: Any
    """Dictionaries, lists and scalars."""
    lines: dict[Path, int] = field(default_factory=dict)
    """Line (from 1) of every key and list item."""
    mistakes: tuple[str, ...] = ()
    """One sentence for each duplicate key."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: `1e-5` is a number, `no` and `on` are words."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases: each thing is written out, and nothing can grow without bound."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not used here", problem_mark=mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012 - PyYAML's own attribute
        first: [*rules] for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, _data: Any) -> bool:
        """Write equal objects out each time."""
        return True


_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", [*"-+0123456789"]),
    ("float", rf"{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", [*"-+.0123456789"]),
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
        )


def parse(text: str, name: str = "run file") -> Parsed:
    """Return the content of YAML text.

    Args:
        text: One YAML document.
        name: What to call it in messages.

    Raises:
        ConfigError: when it is not YAML at all.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        mistakes: list[str] = []
        _survey(node, (), lines, mistakes)
        tree = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"reading {name}: it is not valid YAML ({where}{problem})") from error
    return Parsed(tree, lines, tuple(mistakes))


def _survey(node: Any, path: Path, lines: dict[Path, int], mistakes: list[str]) -> None:
    """Note the line of everything below `node`, and each key that a mapping holds twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            line = key.start_mark.line + 1
            if here in lines:
                mistakes.append(
                    f"{dotted(here)} (line {line}): the key is given twice, first in line "
                    f"{lines[here]}; keep one"
                )
            else:
                lines[here] = line
            _survey(value, here, lines, mistakes)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _survey(value, (*path, index), lines, mistakes)


def dotted(path: Sequence[str | int]) -> str:
    """Return a path as it is written after `--set`.

    >>> dotted(("attacks", 0, "shots"))
    'attacks.0.shots'
    """
    return ".".join(map(str, path)) or "(the whole file)"


def override(tree: Any, assignments: Sequence[str]) -> tuple[Any, list[str]]:
    """Return a copy of `tree` with `key.path=value` assignments applied in order, and mistakes.

    Values are YAML; a number in the path is a list index; missing mappings on the way are made.
    """
    result = copy.deepcopy(tree)
    mistakes: list[str] = []
    for text in assignments:
        path, found, value = text.partition("=")
        if not found or not path.strip():
            mistakes.append(f"--set {text}: write it as key.path=value, for example seeds=[0,1,2]")
            continue
        try:
            parsed = parse(value, f"--set {path}").tree
        except ConfigError as error:
            mistakes.append(str(error))
            continue
        problem = _assign(result, path.strip().split("."), parsed)
        if problem:
            mistakes.append(f"--set {path}: {problem}")
    return result, mistakes


def _assign(tree: Any, path: list[str], value: Any) -> str:
    """Put `value` at `path`; return what is wrong with the path, or nothing."""
    at = tree
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        before = dotted(path[:depth])
        key: Hashable = part
        if isinstance(at, list):
            if not part.isdecimal() or int(part) >= len(at):
                span = f"give an index from 0 to {len(at) - 1}" if at else "it has no item to set"
                return f"{before} is a list of {len(at)}; {span}, met {part!r}"
            key = int(part)
        elif not isinstance(at, dict):
            return f"{before} is {at!r}, which has nothing below it"
        elif not last and at.get(part) is None:
            if path[depth + 1].isdecimal():
                here = dotted(path[: depth + 1])
                return f"the file gives no list {here}; give the whole one, {here}=[...]"
            at[part] = {}
        if last:
            at[key] = value
        else:
            at = at[key]
    return ""


def dump(tree: Any, comment: str = "") -> str:
    """Return YAML text that `parse` reads back as equal; `comment` becomes its first line."""
    head = f"# {' '.join(comment.split())}\n" if comment else ""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96)
    return head + text
