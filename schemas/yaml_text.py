"""YAML text to plain data by the core schema of YAML 1.2, with the line of every key; and back.

PyYAML parses the text. What a scalar means is decided here, because PyYAML follows YAML 1.1, where `no` is
false, `010` is 8 and `1_0` is 10.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, SequenceNode

from talkforge.schemas.errors import one_line

MAX_ALIASED = 10_000
"""Most values that aliases may add to a text; aliases inside aliases multiply, and would fill the memory."""

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_CORE = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", ["t", "T", "f", "F"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", _NUMBER, list("-+.0123456789")),
)
"""Kind of a plain scalar, its pattern and the characters it may begin with. Anything else is a text.
Source: YAML 1.2.2, section 10.3.2."""


class YamlError(ValueError):
    """The text is not YAML, or not plain data; the message is one line."""


class _Loader(yaml.SafeLoader):
    """Sees plain scalars as YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own attribute)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that are something else to YAML 1.1 or to 1.2, so that both read them as texts."""


for _kind, _pattern, _first in _CORE:
    _compiled = re.compile(f"(?:{_pattern})$")
    _Loader.add_implicit_resolver(_TAG + _kind, _compiled, _first)
    _Dumper.add_implicit_resolver(_TAG + _kind, _compiled, _first)


def load(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """Data of a YAML text, and the line of every key and list entry, counted from 1.

    Raises:
        YamlError: the text is not YAML, has several documents, a key twice, a tag that is not of the core
            schema, or aliases that expand to more than `MAX_ALIASED` values.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is None:
            return None, {}
        counts: dict[int, int] = {}
        if _count(root, counts, set()) - len(counts) > MAX_ALIASED:
            raise YamlError(f"its aliases expand to more than {MAX_ALIASED} values")
        lines: dict[KeyPath, int] = {}
        return _value(root, (), lines), lines
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YamlError(f"{line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise YamlError(one_line(error)) from None
    except RecursionError:
        raise YamlError("is nested too deeply") from None


def dump(data: Any) -> str:
    """YAML text of plain data that `load` reads back; keys stay in their order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _count(node: Node, counts: dict[int, int], above: set[int]) -> int:
    """Values that a node stands for; one that several aliases name is counted each time it is named."""
    if id(node) in above:
        raise YamlError(f"line {_line(node)}: an alias names what it lies in")
    if id(node) not in counts:
        below: list[Node] = []
        if isinstance(node, SequenceNode):
            below = node.value
        elif isinstance(node, MappingNode):
            below = [child for pair in node.value for child in pair]
        counts[id(node)] = 1 + sum(_count(child, counts, above | {id(node)}) for child in below)
    return counts[id(node)]


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _value(node: Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    lines.setdefault(path, _line(node))
    kind = str(node.tag).removeprefix(_TAG)
    if isinstance(node, SequenceNode) and kind == "seq":
        return [_value(child, (*path, index), lines) for index, child in enumerate(node.value)]
    if isinstance(node, MappingNode) and kind == "map":
        return _mapping(node, path, lines)
    text = str(node.value)
    try:
        match kind:
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            case "float":
                return float(re.sub(r"\.(?=[inIN])", "", text))
    except ValueError:
        raise YamlError(f"line {_line(node)}: {text!r} is no {kind}") from None
    raise YamlError(f"line {_line(node)}: the tag {node.tag} is not supported")


def _mapping(node: MappingNode, path: KeyPath, lines: dict[KeyPath, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, child in node.value:
        if isinstance(key_node, SequenceNode | MappingNode):
            raise YamlError(f"line {_line(key_node)}: expected a name as key, found a list or a section")
        key = str(key_node.value)
        below = (*path, key)
        if key in found:
            name = ".".join(map(str, below))
            raise YamlError(f"line {_line(key_node)}: {name} is there twice, first in line {lines[below]}")
        lines[below] = _line(key_node)
        found[key] = _value(child, below, lines)
    return found
