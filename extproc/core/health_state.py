"""The words of the health engine: states, what readers see, and what passes between it and its callers.

Owns value types only; how one state follows another is health_cell.py's and health.py's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

from extproc.config.snapshot import TargetKey

Subject: TypeAlias = TargetKey | str
"""What can be ill: one target, or a provider account (its name)."""


class State(StrEnum):
    """The health of a target or a provider account."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    COOLING = "cooling"
    PROBING = "probing"
    DOWN = "down"


_SEVERITY: dict[State, int] = {state: rank for rank, state in enumerate(State)}


class View(NamedTuple):
    """How a target looks to the planner, its provider account included.

    `eligible` with `probe` means: only as the single live request of a half-open target or account. `share`
    in (0, 1] scales the target's weight. `until` is the epoch second at which the present state ends by
    itself, None if it does not. `reason` is an error class, or `paced`, `slow`, `recovering`,
    `operator_down`, `drained`.
    """

    state: State
    eligible: bool
    share: float = 1.0
    probe: bool = False
    until: float | None = None
    reason: str | None = None

    @classmethod
    def healthy(cls) -> View:
        """Return the view of a target that nothing is known against."""
        return HEALTHY

    @classmethod
    def ineligible(cls, reason: str) -> View:
        """Return the view of a target that may not be used for a reason outside of health."""
        return cls(State.DOWN, eligible=False, reason=reason)

    def within(self, account: View) -> View:
        """Return a target's view together with its provider account's: the worse of the two rules."""
        worse = account if _SEVERITY[account.state] > _SEVERITY[self.state] else self
        if self.eligible and account.eligible:
            return worse._replace(share=min(self.share, account.share), probe=self.probe or account.probe)
        blocking = [view for view in (self, account) if not view.eligible]
        ends = [view.until for view in blocking if view.until is not None]
        until = max(ends) if len(ends) == len(blocking) else None
        return (blocking[0] if worse.eligible else worse)._replace(until=until, share=1.0, probe=False)


HEALTHY = View(State.HEALTHY, eligible=True)


class Permit(NamedTuple):
    """One attempt under way; `id` grows with every attempt and so tells what began before what."""

    id: int
    key: TargetKey
    started_at: float
    probe: bool


class Success(NamedTuple):
    """An attempt that went well; times to first token are compared among requests of like `size_bytes`."""

    first_token_s: float | None = None
    size_bytes: int = 0


class Transition(NamedTuple):
    """A change of state, told once; `until` and `reason` are those of the new state."""

    subject: Subject
    old: State
    new: State
    reason: str | None
    until: float | None


class Operator(NamedTuple):
    """What an operator ordered; a `drain` still serves as a last resort, a `down` serves nothing."""

    kind: Literal["down", "drain"]
    owner: str
    reason: str
    expires_at: float | None

    def holds(self, now: float) -> bool:
        """Tell whether the order has not expired."""
        return self.expires_at is None or now < self.expires_at


class Row(NamedTuple):
    """One line of the health table: a subject's own view, without its provider's."""

    subject: Subject
    view: View
    streak: int
    operator: Operator | None
