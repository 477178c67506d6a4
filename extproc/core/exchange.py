"""The vocabulary of an ext_proc exchange: events that come in, actions that go out.

An exchange is one gRPC stream of one Envoy filter. `handle(event, now)` returns the actions in order; the transport
carries them out and owns sockets and timers. Invariants: one reply action for each message that Envoy sends in a
held or buffered mode, in order; after `Close` or `Abort` nothing more is sent; a message that an exchange does not
expect is answered with `Pass` and counted, never with an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from extproc.core.request_state import RequestState


class Part(StrEnum):
    """Which message of the exchange an event or a plain reply belongs to."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """Request headers, lower-case names, pseudo-headers included."""

    headers: Mapping[str, str]
    end_of_stream: bool
    state: RequestState | None = None


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The whole buffered request body."""

    body: bytes


@dataclass(frozen=True, slots=True)
class ResponseHeaders:
    """An answer's headers; `state` is None when the request never passed our route exchange."""

    status: int
    headers: Mapping[str, str]
    end_of_stream: bool
    state: RequestState | None


@dataclass(frozen=True, slots=True)
class ResponseBody:
    """A piece of an answer's body, cut as Envoy received it."""

    chunk: bytes
    end_of_stream: bool


@dataclass(frozen=True, slots=True)
class Trailers:
    """Request or response trailers."""

    part: Part


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The timer that the exchange asked for has run out."""


@dataclass(frozen=True, slots=True)
class Unexpected:
    """A message no filter of ours is configured to send."""


Event = RequestHeaders | RequestBody | ResponseHeaders | ResponseBody | Trailers | TimerFired | Unexpected


@dataclass(frozen=True, slots=True)
class Pass:
    """Answer a message without changing it."""

    part: Part


@dataclass(frozen=True, slots=True)
class RouteTo:
    """Send the request along its plan; `body` is None when the client's bytes serve as they are."""

    state: RequestState
    attempts: int
    path: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class SendAttempt:
    """Send a later attempt, rewritten for its own target."""

    state: RequestState
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Respond:
    """End the request with this answer; nothing is retried after it.

    `attempts` is how many the provider side has seen, None when unknown; `state` is written to metadata for the log.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    attempts: int | None
    version: int | None = None
    state: RequestState | None = None
    note: Mapping[str, str] | None = field(default=None, compare=False)
    """Facts for the log: the error code and, of a request that never had a state, its client and known names."""


@dataclass(frozen=True, slots=True)
class ReleaseHeaders:
    """Let an answer's headers go on; `retry` makes Envoy start the next attempt instead.

    `state` is written back to metadata when it changed; `replan` says that its plan did.
    """

    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()
    retry: bool = False
    state: RequestState | None = None
    replan: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseBody:
    """Send a piece of the answer on; `tokens` are the counts of token usage that came with it.

    `classes` are those of the failed attempts, once the attempt that this answer comes from is one of them.
    """

    chunk: bytes
    end_of_stream: bool
    tokens: Mapping[str, int] | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Ask for one `TimerFired` after `seconds`; replaces an earlier timer."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget the timer."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the exchange in good order: Envoy goes on without us."""


@dataclass(frozen=True, slots=True)
class Abort:
    """End the exchange with an error, so that the caller sees a broken answer."""

    reason: str


Action = Pass | RouteTo | SendAttempt | Respond | ReleaseHeaders | ReleaseBody | SetTimer | CancelTimer | Close | Abort


class Exchange(Protocol):
    """One side of one gRPC stream."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what to do about an event; `now` is epoch seconds."""
        ...

    def closed(self, now: float) -> None:
        """Take note that Envoy ended the stream."""
        ...
