"""What is known of one request, carried in Envoy's metadata between the exchanges that serve it.

Immutable; `wire.ext_proc` writes it to metadata and reads it back, so any extproc can go on with any request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from extproc.config.snapshot import Protocol, TargetKey
from extproc.core.endpoints import Kind
from extproc.core.outcome import RouteMode


class PlanStep(NamedTuple):
    """One attempt as planned: who serves, through which cluster, at which path, in which mode."""

    provider: str
    model: str
    public_model: str
    cluster: str
    path: str
    mode: RouteMode

    @property
    def key(self) -> TargetKey:
        """The target's identity."""
        return TargetKey(self.provider, self.model)


@dataclass(frozen=True, slots=True)
class FirstError:
    """The provider's error that the caller gets if nothing serves: bytes as they came, at most 64 KiB."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...]
    plain: bool = False
    """Whether it goes to the caller without advice about trying again: the fault is the request's."""


@dataclass(frozen=True, slots=True)
class RequestState:
    """One request between arrival and answer; `attempt` counts from 1."""

    id: str
    version: int
    policy: str
    kind: Kind
    protocol: Protocol
    endpoint: str
    query: str
    client: str
    model: str
    ticket: int
    arrived: float
    plan: tuple[PlanStep, ...]
    classes: tuple[str, ...] = ()
    """Classes of failed attempts, in order; shorter than `attempt` while the present one is open."""
    attempt: int = 1
    started: float = 0.0
    """When the present attempt began, epoch seconds."""
    context: bool = False
    """Whether the plan already moved to context_fallback models."""
    first_error: FirstError | None = None
    hide_usage: bool = False
    """Whether we asked for the stream's usage and the caller did not."""

    def step(self, attempt: int) -> PlanStep | None:
        """Return the planned step of an attempt, None beyond the plan."""
        return self.plan[attempt - 1] if 1 <= attempt <= len(self.plan) else None

    def opened(self, attempt: int, now: float, classes: tuple[str, ...]) -> RequestState:
        """Return the state in which `attempt` has begun."""
        return replace(self, attempt=attempt, started=now, classes=classes)

    def failed(
        self,
        error_class: str,
        first_error: FirstError | None,
        rest: tuple[PlanStep, ...] | None = None,
        context: bool = False,
    ) -> RequestState:
        """Return the state after the present attempt failed; `rest` replaces what was planned after it."""
        plan = self.plan if rest is None else self.plan[: self.attempt] + rest
        classes = (*self.classes[: self.attempt - 1], error_class)
        return replace(
            self,
            classes=classes,
            first_error=first_error,
            plan=plan,
            context=self.context or context,
        )
