"""YAML text -> plain data, with the line of every key and value.

Owns what may be written in YAML here: text keys, no duplicate keys, no merge keys, no tags, no empty
values, one document. Leaves the meaning of keys to the model. Plain words are read as YAML 1.2 does, so
`on` and `off` are text.
Invariants: depth, length and the number of values after aliases are bounded; sequences come out as tuples,
so that strict models take them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from extproc.config.errors import Fault, Path

MAX_TEXT_CHARS = 8 * 1024 * 1024
MAX_DEPTH = 24
MAX_VALUES = 300_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_COLLECTION_TAGS = ("!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_INT = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,4})?", re.ASCII)
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(frozen=True, slots=True)
class Document:
    """The data of a file, the line of every path in it, and what was wrong with the YAML itself."""

    data: object
    lines: dict[Path, int]
    faults: tuple[Fault, ...]


class _RefusedError(Exception):
    """The text cannot be read any further."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.fault = Fault((), reason, line)


@dataclass(frozen=True, slots=True)
class _Scalar:
    line: int
    value: object


@dataclass(frozen=True, slots=True)
class _Sequence:
    line: int
    items: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Mapping:
    line: int
    items: tuple[tuple[_Node, _Node], ...]


_Node = _Scalar | _Sequence | _Mapping


def parse_document(text: str) -> Document:
    """Read one YAML document; faults that stop the reading leave `data` None and are the only ones given."""
    try:
        if len(text) > MAX_TEXT_CHARS:
            raise _RefusedError(1, f"is longer than {MAX_TEXT_CHARS} characters; split the gateway or shorten the file")
        root = _Composer(yaml.parse(text, Loader=_LOADER)).compose()
        builder = _Builder()
        data = builder.build(root, ())
        return Document(data, builder.lines, tuple(builder.faults))
    except _RefusedError as refused:
        return Document(None, {}, (refused.fault,))
    except (yaml.reader.ReaderError, UnicodeEncodeError) as error:
        position = error.start if isinstance(error, UnicodeEncodeError) else int(error.position)
        line = text.count("\n", 0, position) + 1
        return Document(None, {}, (Fault((), "has a character that YAML does not allow; remove it", line),))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = min(mark.line if mark else 0, text.rstrip().count("\n")) + 1
        return Document(None, {}, (Fault((), f"is not valid YAML here: {error.problem}", line),))


class _Composer:
    """Events -> nodes; an alias shares the node of its anchor, which must be complete by then."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._anchors: dict[str, _Node] = {}

    def compose(self) -> _Node:
        root: _Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise _RefusedError(_line(event), "starts a second document; keep one document in a file")
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, 0)
        if root is None or (isinstance(root, _Scalar) and root.value is None):
            raise _RefusedError(1, "is empty; start with `schema: 1` and a `models` section")
        return root

    def _node(self, event: yaml.Event, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise _too_deep(_line(event))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _RefusedError(_line(event), "uses an alias with no anchor before it; define the anchor first")
            return self._anchors[event.anchor]
        if not isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent):
            raise TypeError(f"not the start of a node: {type(event).__name__}")
        node = self._fresh(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _fresh(self, event: yaml.CollectionStartEvent | yaml.ScalarEvent, depth: int) -> _Node:
        line = _line(event)
        allowed = _TEXT_TAGS if isinstance(event, yaml.ScalarEvent) else _COLLECTION_TAGS
        if event.tag is not None and event.tag not in allowed:
            raise _RefusedError(line, "uses a YAML tag; remove it")
        if isinstance(event, yaml.ScalarEvent):
            return _Scalar(line, _plain_value(event.value) if event.implicit[0] else event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            return _Sequence(line, tuple(self._children(yaml.SequenceEndEvent, depth)))
        children = list(self._children(yaml.MappingEndEvent, depth))
        return _Mapping(line, tuple(zip(children[::2], children[1::2], strict=True)))

    def _children(self, end: type[yaml.Event], depth: int) -> Iterator[_Node]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield self._node(event, depth + 1)


class _Builder:
    """Nodes -> plain data, aliases written out; collects what is wrong and goes on."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.faults: list[Fault] = []
        self._values = 0

    def build(self, node: _Node, path: Path, line: int | None = None) -> object:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _RefusedError(node.line, f"has more than {MAX_VALUES} values once aliases are written out; use fewer")
        if len(path) > MAX_DEPTH:
            raise _too_deep(node.line)
        self.lines[path] = line or node.line
        if isinstance(node, _Sequence):
            return tuple(self.build(item, (*path, position)) for position, item in enumerate(node.items))
        if isinstance(node, _Mapping):
            return self._mapping(node, path)
        if node.value is None:
            self._fault(path, "has no value; give it one or remove the key")
        return node.value

    def _mapping(self, node: _Mapping, path: Path) -> dict[str, object]:
        seen = _Keys()
        for key, value in node.items:
            if (name := self._key(key, path)) is None:
                continue
            here = (*path, name)
            if name in seen.lines:
                self._fault(here, f"appears twice; the first is on line {seen.lines[name]}", key.line)
                continue
            seen.lines[name] = key.line
            built = self.build(value, here, key.line)
            if built is not None:
                seen.data[name] = built
        return seen.data

    def _key(self, node: _Node, path: Path) -> str | None:
        if not isinstance(node, _Scalar) or not isinstance(node.value, str):
            self._fault(path, "has a key that is not text; put the key in quotes", node.line)
            return None
        if node.value == "<<":
            self._fault((*path, "<<"), "merge keys are not supported; write the keys out", node.line)
            return None
        return node.value

    def _fault(self, path: Path, reason: str, line: int | None = None) -> None:
        self.faults.append(Fault(path, reason, line or self.lines[path]))


@dataclass(slots=True)
class _Keys:
    data: dict[str, object] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


def _too_deep(line: int) -> _RefusedError:
    return _RefusedError(line, f"is nested deeper than {MAX_DEPTH} levels; flatten it")


def _plain_value(text: str) -> object:
    word = text.lower() if text in (text.lower(), text.upper(), text.capitalize()) else text
    if word in _WORDS:
        return _WORDS[word]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
