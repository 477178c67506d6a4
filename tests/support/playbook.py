"""Tests of an exchange as a conversation: `>>` sends an event, `<<` expects the next action.

    assert (
        Playbook(exchange, clock)
        >> RequestHeaders({...}, end_of_stream=False)
        << Pass(Part.REQUEST_HEADERS)
    )

Owns the clock's movement between lines, the one timer that an exchange may ask for, and the transcript that a failed
line shows. Invariants: actions are compared exactly and in order; the next `>>` and the end (`assert`) fail while an
action has not been expected; a `Fires` line needs a timer.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from extproc.core.exchange import Action, CancelTimer, Event, Exchange, SetTimer, TimerFired

SHOWN_CHARS = 300


@dataclass(slots=True)
class Clock:
    """The time that an exchange is told, epoch seconds."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class After:
    """`event` comes `seconds` after the line before; not if a timer runs out first."""

    seconds: float
    event: Event


@dataclass(frozen=True, slots=True)
class Fires:
    """The timer runs out."""


class Some:
    """Expects an action of a kind, of which only the named fields are compared."""

    def __init__(self, kind: type[Any], **fields: Any) -> None:
        self.kind = kind
        self.fields = fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, self.kind) and all(getattr(other, k) == v for k, v in self.fields.items())

    __hash__ = None  # type: ignore[assignment]  # a pattern is equal to many things

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.fields.items()]
        return f"{self.kind.__name__}({', '.join([*shown, '...'])})"


class JsonBody(bytes):
    """Stands for bytes that are JSON with at least these members, nested ones included."""

    members: dict[str, Any]

    def __new__(cls, **members: Any) -> Self:
        made = super().__new__(cls)
        made.members = members
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, bytes):
            return NotImplemented
        try:
            return _holds(self.members, orjson.loads(other))
        except orjson.JSONDecodeError:
            return False

    __hash__ = None  # type: ignore[assignment]  # a pattern is equal to many things

    def __repr__(self) -> str:
        return f"JsonBody({self.members!r})"


def error_body(code: str) -> JsonBody:
    """Stand for OpenAI's envelope of one of the gateway's own errors."""
    return JsonBody(error={"code": code})


@dataclass(slots=True)
class Playbook:
    """One conversation with `exchange`; `clock` may be shared with what the exchange was built from."""

    exchange: Exchange
    clock: Clock = field(default_factory=Clock)
    timer_at: float | None = None
    _pending: deque[Action] = field(default_factory=deque)
    _transcript: list[str] = field(default_factory=list)

    def __rshift__(self, line: Event | After | Fires) -> Self:
        """Send an event; every action of the one before must have been expected."""
        self._end_of_actions()
        event = self._event_of(line)
        self._transcript.append(f">> {_shown(line)}")
        for action in self.exchange.handle(event, self.clock.now):
            self._note_timer(action)
            self._pending.append(action)
        return self

    def __lshift__(self, expected: Action | Some) -> Self:
        """Expect the next action."""
        if not self._pending:
            self._fail(f"<< {_shown(expected)}", "no action came")
        action = self._pending.popleft()
        if expected != action:
            self._fail(f"<< {_shown(expected)}", _difference(expected, action))
        self._transcript.append(f"<< {_shown(action)}")
        return self

    def __bool__(self) -> bool:
        self._end_of_actions()
        return True

    def _event_of(self, line: Event | After | Fires) -> Event:
        if isinstance(line, Fires):
            if self.timer_at is None:
                self._fail(">> Fires()", "no timer was set")
            self.clock.now, self.timer_at = max(self.clock.now, self.timer_at or 0.0), None
            return TimerFired()
        if not isinstance(line, After):
            return line
        self.clock.now += line.seconds
        if self.timer_at is not None and self.timer_at <= self.clock.now:
            self._fail(f">> {_shown(line)}", f"the timer runs out {self.clock.now - self.timer_at:g} s earlier")
        return line.event

    def _note_timer(self, action: Action) -> None:
        if isinstance(action, SetTimer):
            self.timer_at = self.clock.now + action.seconds
        elif isinstance(action, CancelTimer):
            self.timer_at = None

    def _end_of_actions(self) -> None:
        if self._pending:
            self._fail("", "not expected: " + "; ".join(map(_shown, self._pending)))

    def _fail(self, line: str, why: str) -> None:
        script = "\n".join([*self._transcript, *([line] if line else [])])
        raise AssertionError(f"{self.exchange!r}\n{script}\n   {why}")


def _holds(expected: Any, found: Any) -> bool:
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(name in found and _holds(value, found[name]) for name, value in expected.items())
    return bool(expected == found)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def _difference(expected: Action | Some, action: Action) -> str:
    """Name the fields in which an action is not the expected one."""
    kind = expected.kind if isinstance(expected, Some) else type(expected)
    if not isinstance(action, kind):
        return f"came: {_shown(action)}"
    wanted = expected.fields if isinstance(expected, Some) else _fields(expected)
    found = _fields(action)
    lines = [
        f"{name}: expected {_shown(value)}\n   {' ' * len(name)}  came     {_shown(found[name])}"
        for name, value in wanted.items()
        if value != found[name]
    ]
    return "\n   ".join(lines)


def _fields(action: Action) -> dict[str, Any]:
    return {item.name: getattr(action, item.name) for item in dataclasses.fields(action)}
