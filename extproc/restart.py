"""When to start a child again: the pure half of supervision.

Owns the waits; processes and clocks are the callers'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double from `first_s` to `max_s` and start over after a life of `forgiven_after_s`."""

    first_s: float = 0.05
    max_s: float = 5.0
    forgiven_after_s: float = 30.0
    streak: int = 0
    """Short lives in a row so far."""

    def after_exit(self, lived_s: float) -> tuple[Backoff, float]:
        """Return the policy to go on with and the wait in seconds before the next start."""
        streak = 0 if lived_s >= self.forgiven_after_s else self.streak
        wait_s = min(self.first_s * 2.0 ** min(streak, 32), self.max_s)
        return replace(self, streak=streak + 1), wait_s
