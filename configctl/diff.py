"""What differs between two configs, by meaning: models, targets, policies, providers, clients.

Pure: two canonical contents in, changes out. Works on the normal form, so a default that somebody spells out is no
change. Targets are known by `provider/model` and clients by name, so that moving one is not changing it. An object of
another shape is compared as it is.
Invariant: no change holds a credential: keys are references, token digests are cut to their first digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from extproc.config.errors import SECRET_LIKE, format_path

ChangeKind = Literal["added", "removed", "changed", "reordered"]

SECTIONS = ("schema", "models", "policies", "providers", "clients", "server", "telemetry")
_DIGEST_SHOWN = 8
_ABSENT: Any = object()
_Steps = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; `before` and `after` are plain JSON values, None on the side where there is nothing."""

    path: str
    kind: ChangeKind
    before: Any
    after: Any


def diff_contents(before: bytes | None, after: bytes | None) -> tuple[Change, ...]:
    """Return the changes from one canonical content to another; None is a config that does not exist."""
    old, new = (orjson.loads(content) if content is not None else {} for content in (before, after))
    names = [*SECTIONS, *sorted((old.keys() | new.keys()) - set(SECTIONS))]
    changes: list[Change] = []
    for name in names:
        changes += _compare((name,), old.get(name, _ABSENT), new.get(name, _ABSENT))
    return tuple(changes)


def section_of(change: Change) -> str:
    """Return the top-level section of a change."""
    return next(
        (name for name in SECTIONS if change.path == name or change.path.startswith((f"{name}.", f"{name}["))), ""
    )


def _compare(path: _Steps, before: Any, after: Any) -> Iterator[Change]:
    if before is _ABSENT and after is _ABSENT:
        return
    if all(side is _ABSENT or _is_named(path, side) for side in (before, after)):
        yield from _compare_named(path, before, after)
    elif isinstance(before, dict) and isinstance(after, dict):
        yield from _compare_mappings(path, before, after)
    elif len(path) == 1 and (before is _ABSENT or after is _ABSENT) and isinstance(_present(before, after), dict):
        # A section that appears: one change for each of its entries reads better than one for all.
        yield from _compare_mappings(path, _or_empty(before), _or_empty(after))
    elif before is _ABSENT:
        yield Change(_written(path), "added", None, masked(path, after))
    elif after is _ABSENT:
        yield Change(_written(path), "removed", masked(path, before), None)
    elif before != after:
        yield Change(_written(path), "changed", masked(path, before), masked(path, after))


def _compare_mappings(path: _Steps, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    for key in sorted(before.keys() | after.keys()):
        yield from _compare((*path, key), before.get(key, _ABSENT), after.get(key, _ABSENT))


def _compare_named(path: _Steps, before: Any, after: Any) -> Iterator[Change]:
    old, new = _by_name(path, before), _by_name(path, after)
    for name in [*old, *(name for name in new if name not in old)]:
        yield from _compare((*path, f"[{name}]"), old.get(name, _ABSENT), new.get(name, _ABSENT))
    order, other = [name for name in old if name in new], [name for name in new if name in old]
    if order != other:
        yield Change(_written(path), "reordered", order, other)


def _is_named(path: _Steps, value: Any) -> bool:
    keys = _naming_keys(path)
    return bool(keys) and isinstance(value, list) and all(_has_texts(item, keys) for item in value)


def _naming_keys(path: _Steps) -> tuple[str, ...]:
    """Return the keys that name an entry of the list at a path, none where entries have no names."""
    if path == ("clients",):
        return ("name",)
    return ("provider", "model") if path[0] == "models" and path[-1] == "targets" else ()


def _has_texts(item: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(key), str) for key in keys)


def _by_name(path: _Steps, items: Any) -> dict[str, Any]:
    if items is _ABSENT:
        return {}
    keys = _naming_keys(path)
    return {"/".join(item[key] for key in keys): item for item in items}


def _written(path: _Steps) -> str:
    """Write a path; a step in brackets is an entry of a list, by name."""
    text = ""
    plain: list[str] = []
    for step in path:
        if step.startswith("[") and step.endswith("]"):
            text += _joined(text, plain) + step
            plain = []
        else:
            plain.append(step)
    return text + _joined(text, plain)


def _joined(text: str, plain: Iterable[str]) -> str:
    tail = format_path(tuple(plain))
    return f".{tail}" if text and tail and not tail.startswith("[") else tail


def masked(path: _Steps, value: Any) -> Any:
    """Return a value as it may be shown: digests cut, whatever looks like a credential hidden."""
    if isinstance(value, dict):
        return {key: masked((*path, key), item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(path, item) for item in value]
    if not isinstance(value, str):
        return value
    if path[-1] == "token_sha256":
        return f"{value[:_DIGEST_SHOWN]}..."
    return "(hidden)" if SECRET_LIKE.search(value) else value


def _present(before: Any, after: Any) -> Any:
    return after if before is _ABSENT else before


def _or_empty(value: Any) -> dict[str, Any]:
    return {} if value is _ABSENT else value
