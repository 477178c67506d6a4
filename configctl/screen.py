"""Where a verb's output goes: data to stdout, talk to stderr.

Owns the two streams; what is written is `render.py`'s and `shapes.py`'s. rich is imported when something is printed
for people: scripts, which ask for JSON, do not wait for it.
"""

from __future__ import annotations

import os
import sys
from functools import cached_property
from typing import IO, TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from rich.console import Console


class Screen:
    """Where output goes; `data` is stdout, `talk` is stderr."""

    @cached_property
    def data(self) -> Console:
        """Write to stdout."""
        return _console(sys.stdout)

    @cached_property
    def talk(self) -> Console:
        """Write to stderr."""
        return _console(sys.stderr)

    def json(self, value: object) -> None:
        """Print one JSON document."""
        sys.stdout.write(f"{to_json(value, orjson.OPT_INDENT_2)}\n")

    def say(self, sentence: str, style: str = "") -> None:
        """Tell the operator something that is no data."""
        print_line(self.talk, sentence, style)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print text, a line or several: what it holds is no markup and steers no terminal."""
    from rich.text import Text

    console.print(Text("\n".join(map(visible, text.split("\n"))), style=style))


def to_json(value: object, option: int = 0) -> str:
    """Write JSON that cannot steer a terminal: what is not printable in a text is escaped, which means the same."""
    text = orjson.dumps(value, option=option).decode()
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text)


def visible(text: str) -> str:
    """Return text that cannot steer a terminal: each control character becomes a space."""
    return "".join(char if char.isprintable() else " " for char in text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def drop_output() -> None:
    """Send what stdout still holds, and could not write, nowhere: Python would try again when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def is_terminal() -> bool:
    """Tell whether somebody can be asked."""
    return sys.stdin.isatty()


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, emoji=False, soft_wrap=True)
