"""One way in which a provider can fail, and what must follow: the words in which the table of failures is written.

Owns the shape of a case and the ready-made answers and errors of its providers, each of which says who it is.
Leaves the cases themselves to tests/e2e/failure_cases.py, running them to its test, printing them to failure_doc.py.
Invariant: every good answer has the same `ANSWER`, so that a whole one can be told from a part of one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Literal

from tests.support.wall import Behaviour, Ending, Event, Headers, Played, Seen, error, ok, sse

Who = Literal["first", "second", "long"]
"""The provider that is asked first, the one after it, and the one of the `context_fallback` model."""
Kind = Literal["unary", "stream"]
Models = Literal["pair", "alone", "context"]
"""Two providers in two tiers; one provider; one provider, a fallback model and a context fallback model."""
Reach = Literal["wall", "refused", "plain_text", "wrong_name", "no_name"]

TOKENS = 60
WORDS = tuple(f"word{number:02} " for number in range(TOKENS))
ANSWER = "".join(WORDS)
BOTH: tuple[Kind, ...] = ("unary", "stream")
STREAM: tuple[Kind, ...] = ("stream",)
UNARY: tuple[Kind, ...] = ("unary",)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that a provider sees; it comes `after_s` (least, most) behind the one before."""

    who: Who
    after_s: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Gets:
    """What the caller gets: `by` names whose answer or error it is, None for the gateway's own."""

    status: int
    by: Who | None
    mode: str = "none"
    end: Literal["whole", "broken", "error event"] = "whole"
    code: str | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """How the first provider stands afterwards: its target, its account, and why."""

    target: str = "healthy"
    account: str = "healthy"
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One row: what the first provider does and everything that follows from it.

    `gets` has an element for each request that is sent, one after the other. `classes` are those of the first
    request's failed attempts.
    """

    name: str
    does: str
    first: Behaviour | tuple[Behaviour, ...]
    gets: tuple[Gets, ...]
    asks: tuple[Ask, ...]
    classes: tuple[str, ...] = ()
    health: Health = field(default_factory=Health)
    kinds: tuple[Kind, ...] = BOTH
    models: Models = "pair"
    second: Behaviour = field(default_factory=lambda: answers())
    long: Behaviour = field(default_factory=lambda: answers())
    reach: Reach = "wall"


@dataclass(frozen=True, slots=True)
class Section:
    """Cases under one policy."""

    title: str
    policy: str
    cases: tuple[Case, ...]


# ----------------------------------------------------------------------------------------------------
# What follows


def served(by: Who, mode: str) -> Gets:
    """Return the whole answer of a provider."""
    return Gets(200, by, mode)


def broken(by: Who = "first", mode: str = "balanced") -> Gets:
    """Return an answer that ends so that nobody takes it for a whole one."""
    return Gets(200, by, mode, "broken")


def passed_on(status: int, by: Who = "first", *, headers: Mapping[str, str | None] | None = None) -> Gets:
    """Return a provider's own error; a header that must be absent has the value None."""
    return Gets(status, by, headers=headers or {})


def own(status: int, code: str) -> Gets:
    """Return an error of the gateway itself."""
    return Gets(status, None, code=code, headers={"x-should-retry": "false"})


def target(state: str, reason: str) -> Health:
    return Health(target=state, reason=reason)


def account(state: str, reason: str) -> Health:
    return Health(account=state, reason=reason)


# ----------------------------------------------------------------------------------------------------
# What providers say


def who_of(seen: Seen) -> str:
    """Return which provider a request was meant for: the second part of its path."""
    return seen.path.split("/")[2]


def answers(**options: Any) -> Behaviour:
    """Answer well; options are those of `Talk`."""
    return ok(ANSWER, chunks=TOKENS, **options)


def fails(status: int, code: str | None = None, **options: Any) -> Behaviour:
    """Answer with an error whose message says who sent it; options are those of `error`."""

    def play(seen: Seen) -> Played:
        return error(status, code, message=f"{who_of(seen)} says no", **options).play(seen)

    return Behaviour(f"fails {status}", play)


def limited(headers: Headers | None = None) -> Behaviour:
    """429 with these headers."""
    return fails(429, "rate_limit_exceeded", headers=headers)


def limited_until_date(in_s: int) -> Behaviour:
    """429 with a Retry-After that is an HTTP date so many seconds from the answer."""

    def play(seen: Seen) -> Played:
        return limited({"retry-after": formatdate(time.time() + in_s, usegmt=True)}).play(seen)

    return Behaviour("limited until date", play)


def tokens(start: int = 0, stop: int = TOKENS) -> list[Event]:
    """Return the stream events of some words of the answer."""
    return [_chunk({"content": word}) for word in WORDS[start:stop]]


def role() -> Event:
    return _chunk({"role": "assistant", "content": ""})


def finish(reason: str = "stop") -> Event:
    return _chunk({}, reason)


def error_event(code: str, kind: str = "server_error") -> Event:
    """Return an event that tells of an error inside a 200 stream."""
    return {"error": {"message": "first says no", "type": kind, "param": None, "code": code}}


def streams(*events: Event, done: bool = True, end: Ending = "clean", headers: Headers | None = None) -> Behaviour:
    """Stream events."""
    return sse(events, done=done, end=end, headers=headers)


def _chunk(delta: Mapping[str, str], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": dict(delta), "finish_reason": reason}
    return {"id": "chatcmpl-wall", "object": "chat.completion.chunk", "choices": [choice]}
