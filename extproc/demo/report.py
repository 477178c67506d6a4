"""What the demonstration prints: steps, claims, one table of the requests, and the verdict.

Owns the words' layout, at most 100 columns, and the count of claims. Which claims there are is `story.py`'s.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

_COLUMNS = (
    ("#", 1),
    ("the primary", 17),
    ("was asked", 9),
    ("status", 6),
    ("route mode", 14),
    ("served by", 23),
    ("model received", 14),
    ("attempts", 8),
)
_TIMES = ("no", "once", "twice")


@dataclass(frozen=True, slots=True)
class Row:
    """One request in the closing table: the primary's state, how often it was asked, and the answer."""

    primary: str
    primary_asked: int
    status: int
    route_mode: str
    served_by: str
    model_received: str
    attempts: int


@dataclass(slots=True)
class Report:
    """Prints as the story goes, and remembers which claims did not hold."""

    rows: list[Row] = field(default_factory=list)
    claims: int = 0
    failed: list[str] = field(default_factory=list)
    broken_off: bool = False

    def say(self, text: str = "") -> None:
        """Print a line."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def step(self, text: str) -> None:
        """Print the heading of a step."""
        self.say()
        self.say(text)

    def claim(self, text: str, held: bool, seen: object = "") -> None:
        """Print a claim and whether it held; `seen` is what was there instead."""
        self.claims += 1
        if held:
            self.say(f"   ok      {text}")
        else:
            self.failed.append(text)
            self.say(f"   FAILED  {text}")
            self.say(f"           seen: {seen}")

    def break_off(self, why: str) -> None:
        """Print why the demonstration ended before its end."""
        self.broken_off = True
        self.say(f"\n{why}")

    def table(self) -> None:
        """Print what happened to each request."""
        self.say()
        self.say(_line([title for title, _ in _COLUMNS]))
        self.say(_line(["-" * width for _, width in _COLUMNS]))
        for number, row in enumerate(self.rows, 1):
            asked = _TIMES[row.primary_asked] if row.primary_asked < len(_TIMES) else f"{row.primary_asked} times"
            answer = (row.status, row.route_mode, row.served_by, row.model_received, row.attempts)
            self.say(_line([str(cell) for cell in (number, row.primary, asked, *answer)]))

    def verdict(self) -> int:
        """Print the verdict and return the exit code."""
        self.say()
        if self.failed:
            self.say(f"{len(self.failed)} of {self.claims} claims did not hold:")
            for text in self.failed:
                self.say(f"  - {text}")
            return 1
        self.say(f"All {self.claims} claims held.")
        return 0


def _line(cells: list[str]) -> str:
    return " ".join(cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip()
