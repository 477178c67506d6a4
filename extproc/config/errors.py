"""What is wrong with an operator's file, said so that it can be put right.

Owns the error values, how a path and a line are written, and the near-miss hint. Leaves finding faults to
the others.
Invariant: nothing here ever holds a value from the file; names of keys may appear, hidden when they look
like secrets.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

Path = tuple[str | int, ...]
"""Keys and list positions from the root of the file to one value."""

SECRET_LIKE = re.compile(r"(?<![A-Za-z0-9])((sk|pk|rk|xai|pplx)-|(gsk|ghp|hf|r8)_|AIza|AKIA|eyJ)[A-Za-z0-9_-]{12,}")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_*/:@-]+")
_SHOWN_CHARS = 80


class Fault(NamedTuple):
    """One thing that is wrong, before it is known which line it stands on."""

    path: Path
    reason: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class ConfigError:
    """What to put right: `path` like `models.gpt-4o.targets[1].weight`, `where` like `gateway.yaml:12`."""

    path: str
    where: str | None
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.reason) if part)


class ConfigErrors(Exception):  # noqa: N818 - the plural is the point
    """Everything that is wrong with one config; `str()` gives one line an error."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


def shown(name: str) -> str:
    """Return a key's name fit for a message: cut when long, hidden when it looks like a secret."""
    if SECRET_LIKE.search(name):
        return "(hidden)"
    printable = "".join(char if char.isprintable() else "?" for char in name)
    return printable if len(printable) <= _SHOWN_CHARS else printable[:_SHOWN_CHARS] + "..."


def format_path(path: Path) -> str:
    """Write a path as `models.gpt-4o.targets[1]`; a key with a dot as `models["gpt-4.1"]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(name := shown(step)):
            text += f".{name}" if text else name
        else:
            text += f'["{name}"]'
    return text


def near_miss(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that a word is probably meant to be."""
    return next(iter(difflib.get_close_matches(word[:_SHOWN_CHARS], sorted(known), n=1)), None)


def hint(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for a near miss, else `; known: a, b`, else nothing."""
    names = sorted(known)
    if near := near_miss(word, names):
        return f"; did you mean '{shown(near)}'?"
    listed = ", ".join(shown(name) for name in names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; known: {listed}" if names else ""
