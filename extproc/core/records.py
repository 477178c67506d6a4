"""What this process remembers of a request under way, and who is told when it ends.

Values and one interface; `open_requests.py` makes, charges and forgets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from extproc.config.snapshot import ResolvedModel, TargetKey
from extproc.core.affinity import Binding
from extproc.core.health import Permit, View
from extproc.core.outcome import Failure
from extproc.core.request_state import PlanStep, RequestState

if TYPE_CHECKING:
    from extproc.core.feedback import AttemptLogged, RequestLogged


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a plan was made from, beside snapshot and ticket: `seen` holds every view that was not plain healthy.

    `why` says of those what each view rests on, as `name=value`: values and the thresholds they are measured against.
    """

    requested: ResolvedModel
    endpoint: str
    ticket: int
    version: int
    seen: Mapping[TargetKey, View]
    prefer: TargetKey | None = None
    pinned: bool = False
    why: Mapping[TargetKey, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class AttemptRecord:
    """One attempt of a request under way."""

    step: PlanStep
    permit: Permit
    failure: Failure | None = None
    settled: bool = False
    counted: bool = False
    """Whether it counts as one of its provider's attempts under way."""
    held: bool = False
    """Whether its answer began but nothing of it has reached the caller."""
    first_token_s: float | None = None
    started: float = 0.0
    good: bool = False
    next: str | None = None
    """What was decided after it failed, and why."""
    logged: AttemptLogged | None = None
    inherited: bool = False
    """Whether a process before this one charged it: only its class is known, and Envoy's entry went there."""


@dataclass(slots=True)
class RequestRecord:
    """What this process remembers of a request until Envoy's log closed it."""

    state: RequestState
    session: bytes | None = None
    bound: Binding | None = None
    """The session's binding when the request was planned."""
    taken_over: bool = False
    """Whether a process before this one began it: Envoy's entries of some attempts may have gone there."""
    attempts: list[AttemptRecord] = field(default_factory=list)
    logged: int = 0
    """Entries of its attempts that came."""
    expected: int | None = None
    """How many of those Envoy writes; known once the request's own came."""
    counted: bool = False
    """Whether it counts as one of its client's requests under way."""
    evidence: Evidence | None = None
    first_plan: tuple[PlanStep, ...] = ()
    request: RequestLogged | None = None


class Observer(Protocol):
    """Who is told of each request and attempt, once; must not block or raise."""

    def attempt_settled(self, attempt: AttemptRecord, state: RequestState) -> None:
        """Take note of an attempt's verdict."""
        ...

    def request_logged(self, request: RequestLogged) -> None:
        """Take note of what Envoy says a caller got."""
        ...

    def request_closed(
        self, record: RequestRecord | None, request: RequestLogged | None, refused: Evidence | None, now: float
    ) -> None:
        """Take note that nothing more will be heard of a request; what is not known of it is None."""
        ...


class Nobody:
    """The observer of a gateway that nobody watches."""

    def attempt_settled(self, attempt: AttemptRecord, state: RequestState) -> None:
        """Do nothing."""

    def request_logged(self, request: RequestLogged) -> None:
        """Do nothing."""

    def request_closed(
        self, record: RequestRecord | None, request: RequestLogged | None, refused: Evidence | None, now: float
    ) -> None:
        """Do nothing."""
