"""YAML that a person wrote, read so that every value knows its line.

``yaml.safe_load`` forgets where a value came from, lets a repeated key silently win, and expands aliases
without a bound. This reader composes the same safe subset itself: plain data only, every repeated key
reported, a bounded number of nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from vtc.shown import shown

KeyPath = tuple[str | int, ...]
"""Where a value sits: ``("stages", 0, "keep")``."""

MAX_BYTES = 64 * 1024
MAX_NODES = 10_000
MAX_DEPTH = 32
MAX_BITS = 64
"""Of an integer: Python neither writes nor reads integers of thousands of digits in decimals."""

_OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|[-+]?[0-9_]+(:[0-9_.]+)+")
"""Numbers of base 8 and 60, which look like decimals, times and ratios."""

_MAP = "tag:yaml.org,2002:map"
_SEQUENCE = "tag:yaml.org,2002:seq"


@dataclass(frozen=True)
class Document:
    """Plain data, the line of each of its values, and what was wrong with the text.

    Attributes
    ----------
    data
        Dictionaries, lists and scalars; ``None`` for an empty or unreadable text.
    lines
        1-based line of the key (in a mapping) or item (in a list) at each path.
    problems
        ``(line, message)`` in the order of the text; ``data`` is not to be trusted when there are any.
    """

    data: Any
    lines: Mapping[KeyPath, int]
    problems: tuple[tuple[int, str], ...] = ()


@dataclass
class _Reader:
    loader: yaml.SafeLoader
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    nodes: int = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        line = _line(node)
        self.lines.setdefault(path, line)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _TooBig(line, f"more than {MAX_NODES} values")
        if len(path) > MAX_DEPTH:
            raise _TooBig(line, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE:
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self.problems.append((line, f"the tag {shown(node.tag)} is not allowed, write plain values"))
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self.problems.append((line, f"keys are words, {_shown(key_node)} is not"))
                continue
            if key in data:
                first = self.lines[(*path, key)]
                self.problems.append((line, f"'{shown(key)}' is given twice, first on line {first}"))
                continue
            self.lines[(*path, key)] = line
            data[key] = self.build(value_node, (*path, key))
        return data

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag == "tag:yaml.org,2002:merge":
            return node.value  # merge keys expand without a bound; "<<" then is an unknown key like any other
        try:
            value = self.loader.construct_object(node)
            if not isinstance(value, int) or value.bit_length() <= MAX_BITS:
                if isinstance(value, int | float) and _OTHER_BASE.fullmatch(node.value):
                    self.problems.append((_line(node), f"{_shown(node)} is {value} in YAML; write that, in decimals"))
                return value
            self.problems.append((_line(node), f"{_shown(node)} is too large a number"))
        except yaml.YAMLError:
            self.problems.append((_line(node), f"the tag {shown(node.tag)} is not allowed, write plain values"))
        except (
            ValueError,
            OverflowError,
            KeyError,
            IndexError,
        ):  # a date of month 13, an int of 5,000 digits, "!!int ''"
            self.problems.append((_line(node), f"{_shown(node)} is not a value"))
        return None


class _TooBig(Exception):
    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


def read_yaml(text: str) -> Document:
    """Read one YAML document of plain values.

    Parameters
    ----------
    text
        The document.

    Returns
    -------
    Document
        What it says; syntax errors, repeated keys, tags and excessive size are in its ``problems``, nothing
        is raised.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        return Document(None, {}, ((1, f"larger than {MAX_BYTES // 1024} KiB"),))
    reader = None
    try:
        loader = yaml.SafeLoader(text)
        reader = _Reader(loader)
        node = loader.get_single_node()
        data = None if node is None else reader.build(node, ())
    except RecursionError:
        return Document(None, {}, ((1, "nested too deeply"),))
    except _TooBig as error:
        return Document(None, {}, ((error.line, error.what),))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, [error.context, error.problem])) or "unreadable"
        return Document(None, {}, ((mark.line + 1 if mark else 1, f"not valid YAML: {' '.join(what.split())}"),))
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        return Document(None, {}, ((1, f"not valid YAML: {reason}"),))
    return Document(data, reader.lines, tuple(reader.problems))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"'{shown(node.value, 40)}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
