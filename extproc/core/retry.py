"""Decides what follows a failed attempt: stop, the next target, the same one after a wait, or a context fallback.

Pure. Knows policy and arithmetic; which target is next is `plan.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from extproc.config.snapshot import Policy
from extproc.core.outcome import ErrorClass, Failure

FINAL = frozenset({ErrorClass.CONTENT_FILTERED, ErrorClass.INVALID_REQUEST, ErrorClass.CLIENT_ABORT})


class Verb(StrEnum):
    """What to do next."""

    STOP = "stop"
    NEXT = "next"
    SAME = "same_target"
    CONTEXT = "context_fallback"


class Next(NamedTuple):
    """The decision, why, and for SAME how long to wait first."""

    verb: Verb
    reason: str
    wait_s: float = 0.0


class Spent(NamedTuple):
    """What a request has used up when an attempt fails."""

    attempts: int
    """Attempts made, the failed one included."""
    same_target: int
    """Times the failed target was tried in a row, the failed one included."""
    elapsed_s: float
    """Since the request arrived."""
    attempt_s: float
    """Since the failed attempt started."""
    hold_left_s: float
    """How long an answer may still be held before one of Envoy's timers runs out."""


def next_step(
    failure: Failure, spent: Spent, policy: Policy, now: float, draw: float, allow_same: Callable[[], bool]
) -> Next:
    """Decide after a failure; `draw` in [0, 1) jitters the back-off, `allow_same` asks the retry budget last."""
    if failure.error_class in FINAL:
        return Next(Verb.STOP, f"{failure.error_class} is final")
    if spent.attempts >= policy.attempts:
        return Next(Verb.STOP, "attempts spent")
    if spent.elapsed_s >= policy.deadline_s:
        return Next(Verb.STOP, "deadline passed")
    if failure.error_class is ErrorClass.CONTEXT_LENGTH:
        return Next(Verb.CONTEXT, "needs a larger context")
    wait_s = same_target_wait(failure, spent, policy, now, draw)
    if wait_s is None:
        return Next(Verb.NEXT, "another target")
    if not allow_same():
        return Next(Verb.NEXT, "no retry budget for the same target")
    return Next(Verb.SAME, "worth one more try", wait_s)


def same_target_wait(failure: Failure, spent: Spent, policy: Policy, now: float, draw: float) -> float | None:
    """Return how long to wait before the same target is tried again, None when it is not worth it."""
    rule = policy.same_target
    if failure.error_class not in rule.on or spent.same_target > rule.max:
        return None
    if failure.retry_at is not None:
        wait_s = max(0.0, failure.retry_at - now)
        if wait_s > rule.retry_after_up_to_s:
            return None
    elif failure.error_class is ErrorClass.RATE_LIMITED or spent.attempt_s >= rule.only_if_faster_than_s:
        return None
    else:
        ceiling = min(rule.backoff_s * 2 ** (spent.same_target - 1), rule.max_backoff_s)
        wait_s = ceiling * (0.5 + draw / 2)
    if wait_s >= spent.hold_left_s or spent.elapsed_s + wait_s >= policy.deadline_s:
        return None
    return wait_s
