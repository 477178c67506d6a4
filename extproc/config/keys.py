"""Which keys the file may have at a path, read off the model.

Owns the walk over the model's types, for hints and for tests that go through every key.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from extproc.config.errors import Path
from extproc.config.model import GatewayConfig


def known_keys(path: Path) -> tuple[str, ...]:
    """Return the keys that the section at `path` may have; none where keys are free or it is no section."""
    current: Any = GatewayConfig
    for step in path:
        current = next(_below(current, step), None)
    return tuple(field_types(current)) if _is_section(current) else ()


def field_types(section: type[BaseModel]) -> dict[str, Any]:
    """Return a section's keys as the file spells them, each with the bare type of its value."""
    return {field.alias or name: bare_type(field.annotation) for name, field in section.model_fields.items()}


def bare_type(annotation: Any) -> Any:
    """Strip `Annotated` and `| None` from a type."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
        else:
            return annotation


def _below(current: Any, step: str | int) -> Iterator[Any]:
    if _is_section(current):
        yield from (kind for key, kind in field_types(current).items() if key == step)
    elif get_origin(current) is dict:
        yield bare_type(get_args(current)[1])
    elif get_origin(current) is tuple:
        yield bare_type(get_args(current)[0])


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
