"""The health of one subject, a target or a provider account, as a small state machine.

Owns when it trips, how long it cools, how it comes back, and what it looks like at a given time. Leaves to
health.py which subjects an event concerns. Pure: time and chance are passed in.

Invariants: a deadline only grows until the cooldown ends; a cooldown ends by a success that began when it was
half-open (for a fault promoted from targets: by any success that began after it), or by the operator; what
began before the newest trip neither ends it nor counts as a new one; `calm` is False whenever `view` could
differ from healthy.

Cooldowns grow with the streak. After a refusal (a limit, a key, a missing model) by the policy's factor alone: who was
told no asks ever more rarely. After a fault, which may end at any time, never beyond OUTAGE_SHARE of the outage so
far (and never below the base): so the end of an outage is noticed after a fraction of its own length.

Consecutive failures are counted over completions. A success that began before the last failure does not end
the run, as it may be older than the fault, but it is weighed: the run trips only while failures make up
`failure_ratio` of it. So a fault shows within `consecutive` failures even while old streams still end well,
and a busy target that fails one request in ten does not trip by coincidence.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from extproc.config.snapshot import Cooldown, TargetKey
from extproc.core.health_state import HEALTHY, Operator, Permit, State, Subject, View
from extproc.core.latency import Latency
from extproc.core.outcome import ErrorClass

PROBE_LEASE_S: Final = 60.0
"""A probe of which nothing was heard for so long has lost its slot."""
RECOVERY_SHARES: Final = (0.1, 0.25, 0.5)
RECOVERY_STEP_S: Final = 4.0
RECOVERY_STEP_SUCCESSES: Final = 5
OUTAGE_SHARE: Final = 0.25
"""With the default base of 15 s, an outage of a minute is noticed as over within 16.5 s and full traffic is back
12 s later, jitter and all steps included."""

TRIPS_AT_ONCE: Final = frozenset(
    {
        ErrorClass.RATE_LIMITED,
        ErrorClass.QUOTA_EXHAUSTED,
        ErrorClass.AUTH_REJECTED,
        ErrorClass.MODEL_UNAVAILABLE,
    }
)

_STREAK_LIMIT: Final = 30
_PROBE_VERDICT_S: Final = 1.0  # a guess at when a probe under way ends; it only feeds advice to callers
_BUCKETS_PER_WINDOW: Final = 10
_BUCKETS_KEPT: Final = 128


class Moment(NamedTuple):
    """When, and under which policy, an outcome came in; `seq` is the last permit id given out."""

    now: float
    seq: int
    cooldown: Cooldown
    rng: Callable[[], float]


@dataclass(slots=True)
class Bucket:
    """Outcomes that ended within a tenth of a window."""

    started_at: float
    good: int = 0
    bad: int = 0


@dataclass(slots=True)
class Cell:
    """One subject's health; `seq` values are permit ids and order events without a clock."""

    subject: Subject
    calm: bool = True
    reported: State = State.HEALTHY
    """The state of the last transition told."""

    tripped: bool = False
    promoted: bool = False
    until: float = 0.0
    reason: str = ""
    why: tuple[str, ...] = ()
    """What the newest trip rests on: values and the thresholds they reached, as `name=value`."""
    streak: int = 0
    ill_since: float = 0.0
    """When the first cooldown of the streak began."""
    tripped_seq: int = 0
    closed_seq: int = 0
    recovering_at: float | None = None
    recovered: int = 0
    paced_until: float = 0.0
    operator: Operator | None = None

    probe_id: int = 0
    probe_at: float = 0.0

    run_bad: int = 0
    run_old_good: int = 0
    run_seq: int = 0
    buckets: deque[Bucket] = field(default_factory=lambda: deque(maxlen=_BUCKETS_KEPT))

    latency: Latency = field(default_factory=Latency)
    suspects: dict[TargetKey, tuple[float, int]] = field(default_factory=dict)
    """Of a provider account: targets that tripped lately, with when and at which seq."""

    def view(self, now: float) -> View:
        """Return how the subject looks by itself."""
        if self.calm:
            return HEALTHY
        operator = self.operator
        if operator is not None and operator.holds(now):
            reason = "operator_down" if operator.kind == "down" else "drained"
            return View(State.DOWN, eligible=False, until=operator.expires_at, reason=reason)
        blocked_until = self.blocked_until()
        if now < blocked_until:
            reason = self.reason if self.tripped and self.until >= self.paced_until else "paced"
            return View(State.COOLING, eligible=False, until=blocked_until, reason=reason)
        if self.tripped:
            free = self.slot_is_free(now)
            return View(State.PROBING, eligible=free, probe=free, reason=self.reason)
        recovery, latency = self._recovery_share(now), self.latency.share(now)
        if recovery < 1.0 or latency < 1.0:
            reason = "recovering" if recovery < 1.0 else "slow"
            return View(State.DEGRADED, eligible=True, share=recovery * latency, reason=reason)
        return HEALTHY

    def evidence(self, now: float) -> tuple[str, ...]:
        """Return what `view` rests on: values and the thresholds of the policy, as `name=value`."""
        operator = self.operator
        if operator is not None and operator.holds(now):
            return (f"order={operator.kind}", f"owner={operator.owner}", f"order_reason={operator.reason}")
        if now < self.blocked_until():
            return self.why if self.tripped and self.until >= self.paced_until else ("remaining=0",)
        if self.tripped:
            return (*self.why, f"probe={'free' if self.slot_is_free(now) else 'under_way'}")
        return (*self._recovery_evidence(now), *self.latency.evidence(now))

    def blocked_until(self) -> float:
        """Return the later deadline of cooldown and pacing; 0 when there was none."""
        return max(self.paced_until, self.until) if self.tripped else self.paced_until

    def ready_at(self, now: float) -> float:
        """Return the epoch second from which the subject could serve; infinite if it never will."""
        if self.calm:
            return now
        ready = max(now, self.blocked_until())
        if self.operator is not None and self.operator.holds(now):
            ready = max(ready, math.inf if self.operator.expires_at is None else self.operator.expires_at)
        if self.is_half_open(ready) and not self.slot_is_free(ready):
            ready += _PROBE_VERDICT_S
        return ready

    def slot_is_free(self, now: float) -> bool:
        """Tell whether no probe is under way."""
        return self.probe_id == 0 or now - self.probe_at >= PROBE_LEASE_S

    def is_half_open(self, now: float) -> bool:
        """Tell whether the cooldown is over but not yet disproved by a live request."""
        return self.tripped and now >= self.blocked_until()

    def take_slot(self, permit_id: int, now: float) -> bool:
        """Take the probe slot if the subject is half-open and the slot is free."""
        if not self.view(now).probe:
            return False
        self.probe_id, self.probe_at = permit_id, now
        return True

    def give_slot_back(self, permit_id: int) -> None:
        """Free the probe slot if this attempt still holds it."""
        if self.probe_id == permit_id:
            self.probe_id = 0

    def answer(self, permit: Permit, now: float, cooldown: Cooldown) -> None:
        """Count an attempt that says nothing against this subject."""
        self._count(now, cooldown, good=True)
        if self.run_bad:
            if permit.id > self.run_seq:
                self.run_bad = self.run_old_good = 0
            else:
                self.run_old_good += 1

    def succeed(self, permit: Permit, now: float, cooldown: Cooldown, seq: int) -> None:
        """Take in a success."""
        self.answer(permit, now, cooldown)
        if self.tripped:
            if permit.started_at >= self.until or (self.promoted and permit.id > self.tripped_seq):
                self.close(seq)
                self.recovering_at = now
        elif self.recovering_at is not None and permit.id > self.closed_seq:
            self.recovered += 1

    def fail(self, reason: ErrorClass, retry_at: float | None, permit: Permit, moment: Moment) -> bool:
        """Take in a failure charged to this subject; return whether a new cooldown began."""
        at_once = reason in TRIPS_AT_ONCE or retry_at is not None
        if self.tripped and permit.started_at < self.until:
            if at_once:
                self._lengthen(reason, retry_at, moment)
            return False
        if not self.tripped and not at_once:
            if permit.id <= self.closed_seq:
                return False  # it began under the fault that is over
            self._count(moment.now, moment.cooldown, good=False)
            self.run_bad += 1
            self.run_seq = moment.seq
            why = self._run_trips(moment.cooldown) or self._ratio_trips(moment)
            if not why:
                return False
        else:
            why = _told(retry_at, moment) if at_once else ("probe=failed",)
        self.trip(reason, retry_at, moment, why)
        return True

    def trip(
        self,
        reason: ErrorClass,
        retry_at: float | None,
        moment: Moment,
        why: tuple[str, ...],
        *,
        promoted: bool = False,
    ) -> None:
        """Begin a new cooldown, one streak longer than the last."""
        if self.streak == 0:
            self.ill_since = moment.now
        self.streak = min(self.streak + 1, _STREAK_LIMIT)
        self.until = self._deadline(reason, retry_at, moment)
        self.tripped, self.promoted, self.reason, self.calm = True, promoted, reason.value, False
        self.why = why
        self.tripped_seq, self.recovering_at = moment.seq, None

    def close(self, seq: int) -> None:
        """End the cooldown; counters start afresh."""
        self.tripped = self.promoted = False
        self.closed_seq = seq
        self.recovering_at, self.recovered = None, 0
        self.run_bad = self.run_old_good = 0
        self.buckets.clear()
        self.suspects.clear()

    def settle(self, now: float) -> None:
        """Forget what time has ended: expired orders, paid pauses, finished recoveries."""
        if self.operator is not None and not self.operator.holds(now):
            self.operator = None
        if self.recovering_at is not None and self._recovery_share(now) >= 1.0:
            self.recovering_at, self.recovered, self.streak = None, 0, 0
        idle = self.operator is None and not self.tripped and self.recovering_at is None
        self.calm = idle and self.paced_until <= now and self.latency.settle(now) >= 1.0

    def _count(self, now: float, cooldown: Cooldown, *, good: bool) -> None:
        buckets = self.buckets
        if not buckets or now - buckets[-1].started_at >= cooldown.window_s / _BUCKETS_PER_WINDOW:
            buckets.append(Bucket(now))
        if good:
            buckets[-1].good += 1
        else:
            buckets[-1].bad += 1

    def _run_trips(self, cooldown: Cooldown) -> tuple[str, ...]:
        """Return what makes the run of failures trip, nothing when it does not."""
        run = self.run_bad + self.run_old_good
        if self.run_bad < cooldown.consecutive or self.run_bad < cooldown.failure_ratio * run:
            return ()
        return (f"failures_in_a_row={self.run_bad}", f"consecutive={cooldown.consecutive}")

    def _ratio_trips(self, moment: Moment) -> tuple[str, ...]:
        """Return what makes the failures of the window trip, nothing when they do not."""
        cooldown = moment.cooldown
        recent = [b for b in self.buckets if b.started_at > moment.now - cooldown.window_s]
        bad = sum(b.bad for b in recent)
        total = bad + sum(b.good for b in recent)
        if total < cooldown.min_requests or bad < cooldown.failure_ratio * total:
            return ()
        return (
            f"failures={bad}",
            f"requests={total}",
            f"failure_ratio={cooldown.failure_ratio:g}",
            f"min_requests={cooldown.min_requests}",
            f"window_s={cooldown.window_s:g}",
        )

    def _lengthen(self, reason: ErrorClass, retry_at: float | None, moment: Moment) -> None:
        """Let a failure met during a cooldown move the deadline: only a told time or another fault does."""
        if reason != self.reason:
            deadline = self._deadline(reason, retry_at, moment)
        elif retry_at is not None:
            deadline = min(retry_at, moment.now + moment.cooldown.cap_s)
        else:
            return
        if deadline > self.until:
            self.until, self.reason, self.promoted = deadline, reason.value, False
            self.why = _told(retry_at, moment)
            self.tripped_seq = moment.seq

    def _deadline(self, reason: ErrorClass, retry_at: float | None, moment: Moment) -> float:
        """Return when a cooldown ends: at the told time, but never below what the streak before has earned."""
        cooldown = moment.cooldown
        told = retry_at is not None
        if reason is ErrorClass.QUOTA_EXHAUSTED:
            wait_s = cooldown.quota_s
        elif told and self.streak == 1:
            wait_s = 0.0
        else:
            wait_s = self._earned_s(reason, self.streak - (2 if told else 1), moment)
        wait_s = min(wait_s * (1.0 + cooldown.jitter * (2.0 * moment.rng() - 1.0)), cooldown.cap_s)
        at = moment.now if retry_at is None else min(retry_at, moment.now + cooldown.cap_s)
        return max(moment.now + wait_s, at)

    def _earned_s(self, reason: ErrorClass, growths: int, moment: Moment) -> float:
        """Return how long the streak makes a cooldown, jitter aside."""
        cooldown = moment.cooldown
        wait_s = min(cooldown.base_s * cooldown.factor**growths, cooldown.max_s)
        if reason in TRIPS_AT_ONCE:
            return wait_s
        return min(wait_s, max(cooldown.base_s, OUTAGE_SHARE * (moment.now - self.ill_since)))

    def _recovery_evidence(self, now: float) -> tuple[str, ...]:
        if self.recovering_at is None or self._recovery_share(now) >= 1.0:
            return ()
        steps = len(RECOVERY_SHARES)
        return (
            f"recovering_s={max(0.0, now - self.recovering_at):.3g}",
            f"whole_after_s={steps * RECOVERY_STEP_S:g}",
            f"successes={self.recovered}",
            f"whole_after_successes={steps * RECOVERY_STEP_SUCCESSES}",
        )

    def _recovery_share(self, now: float) -> float:
        if self.recovering_at is None:
            return 1.0
        by_time = int(max(0.0, now - self.recovering_at) / RECOVERY_STEP_S)
        step = max(by_time, self.recovered // RECOVERY_STEP_SUCCESSES)
        return RECOVERY_SHARES[step] if step < len(RECOVERY_SHARES) else 1.0


def _told(retry_at: float | None, moment: Moment) -> tuple[str, ...]:
    """Return what a cooldown that begins at once rests on: the provider's own time, or its refusal alone."""
    return ("refused=1",) if retry_at is None else (f"told_s={max(0.0, retry_at - moment.now):.3g}",)
