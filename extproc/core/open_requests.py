"""The requests under way: what this process remembers of each, and the one verdict of each attempt.

Owns the records from a request's plan to Envoy's last word of it, what clients and provider accounts have under way,
and the charging of each attempt exactly once: by the judge when it was answered, by the access log when it was silent
or good. A request that a process before this one began is taken over from its metadata. Invariant: what is remembered
is bounded in number, time and size, whatever Envoy's log fails to tell.
Not thread-safe: one event loop.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from extproc.config.snapshot import Cooldown
from extproc.core.affinity import Binding
from extproc.core.health import HealthEngine, Permit, Success, Transition
from extproc.core.in_flight import InFlight
from extproc.core.limits import ClientLimits
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.records import AttemptRecord, Evidence, Nobody, Observer, RequestRecord
from extproc.core.request_state import PlanStep, RequestState

if TYPE_CHECKING:
    from extproc.core.feedback import AttemptLogged

RECORD_LIMIT = 100_000
REFUSED_LIMIT = 10_000
GONE_LIMIT = 10_000
EARLY_LIMIT = 1_000
RECORD_MAX_AGE_S = 3600.0 * 2
REPORT_GRACE_S = 10.0
"""How long after a request's own log entry those of its attempts may still come."""
COUNTED_MAX_AGE_S = 600.0
"""How long after its request arrived an attempt counts as under way: its entry in Envoy's log may be lost."""
_CLASSES = frozenset(ErrorClass)
INHERITED = ("details lost in a restart of extproc",)


class OpenRequests:
    """Every request of one process that Envoy has not closed yet.

    `cooldown_of` returns the cooldown rules of a request's policy, None when no version is active.
    """

    def __init__(
        self,
        health: HealthEngine,
        limits: ClientLimits,
        in_flight: InFlight,
        cooldown_of: Callable[[RequestState], Cooldown | None],
        on_transition: Callable[[Transition], None],
    ) -> None:
        self.by_id: OrderedDict[str, RequestRecord] = OrderedDict()
        self.refused: OrderedDict[str, Evidence] = OrderedDict()
        self.observer: Observer = Nobody()
        self._health = health
        self._limits = limits
        self._in_flight = in_flight
        self._cooldown_of = cooldown_of
        self._on_transition = on_transition
        self._reported: deque[tuple[float, str]] = deque()
        self._early: OrderedDict[str, list[AttemptLogged]] = OrderedDict()
        """Entries of attempts of requests that nobody here knows; one of these may be taken over yet."""
        self._gone: OrderedDict[str, None] = OrderedDict()
        """Requests that ended before their time: an exchange of theirs may still be on its way to us."""

    def open(
        self,
        state: RequestState,
        now: float,
        session: bytes | None = None,
        evidence: Evidence | None = None,
        bound: Binding | None = None,
    ) -> None:
        """Remember a request whose first attempt is about to start."""
        if state.id in self._gone:
            return
        record = RequestRecord(state, session, bound, evidence=evidence, first_plan=state.plan, counted=True)
        self._remember(record, now)
        self._limits.begin(state.client)
        self.open_attempt(state, now)

    def _remember(self, record: RequestRecord, now: float) -> RequestRecord:
        while len(self.by_id) >= RECORD_LIMIT:
            self._forget(next(iter(self.by_id)), now)
        if (earlier := self.by_id.get(record.state.id)) is not None:
            self.ended(earlier)
        self.by_id[record.state.id] = record
        return record

    def refuse(self, request_id: str, evidence: Evidence) -> None:
        """Remember why a request had no plan until Envoy's log closes it."""
        while len(self.refused) >= REFUSED_LIMIT:
            self.refused.popitem(last=False)
        self.refused[request_id] = evidence

    def open_attempt(self, state: RequestState, now: float) -> None:
        """Remember that the state's present attempt starts now."""
        record = self.by_id.get(state.id)
        if record is None:
            self.take_over(state, now)
            return
        record.state = _without_body(state)
        step = state.step(state.attempt)
        if step is not None:
            record.attempts.append(self._begun(step, now, now))

    def _begun(self, step: PlanStep, started: float, now: float) -> AttemptRecord:
        self._in_flight.begin(step.provider)
        return AttemptRecord(step, self._health.begin(step.key, now), counted=True, started=started)

    def take_over(self, state: RequestState, now: float) -> None:
        """Remember a request that a process before this one began, unless it is known or long gone.

        That process charged the attempts whose class the state has; the others are still to be settled.
        """
        if state.id in self.by_id or state.id in self._gone or now - state.arrived > RECORD_MAX_AGE_S:
            return
        record = self._remember(RequestRecord(_without_body(state), taken_over=True), now)
        for number, step in enumerate(state.plan[: state.attempt], 1):
            started = state.started if number == state.attempt else state.arrived
            if number > len(state.classes):
                record.attempts.append(self._begun(step, started, now))
            else:
                record.attempts.append(_inherited(step, started, state.classes[number - 1]))

    def keep_early(self, entry: AttemptLogged) -> None:
        """Keep an entry of an attempt until its request is taken over: that may be a moment later."""
        if entry.request_id in self._gone:
            return
        while len(self._early) >= EARLY_LIMIT:
            self._early.popitem(last=False)
        # Headers would keep the whole message in memory that brought the entry; those of failures are not read.
        self._early.setdefault(entry.request_id, []).append(replace(entry, headers={}))

    def take_early(self, request_id: str) -> list[AttemptLogged]:
        """Hand out the entries that were kept of a request."""
        return self._early.pop(request_id, [])

    def attempt_held(self, state: RequestState, *, held: bool, first_token_s: float | None = None) -> None:
        """Remember whether the present attempt's answer is held back, and when its first output came."""
        attempt = _attempt(self.by_id.get(state.id), state.attempt)
        if attempt is not None:
            attempt.held = held
            attempt.first_token_s = first_token_s

    def decided(self, state: RequestState, attempt: int, what: str) -> None:
        """Remember what was decided after an attempt failed."""
        failed = _attempt(self.by_id.get(state.id), attempt)
        if failed is not None:
            failed.next = what

    def attempt_failed(self, state: RequestState, failure: Failure, now: float) -> None:
        """Charge the present attempt, which was answered and understood."""
        self.take_over(state, now)
        attempt = _attempt(self.by_id.get(state.id), state.attempt)
        if attempt is not None and not attempt.settled:
            self.settle(attempt, state, failure, now)

    def settle(
        self, attempt: AttemptRecord, state: RequestState, verdict: Failure | Success | None, now: float
    ) -> None:
        """Give an attempt its one verdict; None leaves health as it was."""
        if attempt.settled:
            return
        attempt.settled = True
        self._uncount(attempt)
        attempt.good = isinstance(verdict, Success)
        if isinstance(verdict, Failure):
            attempt.failure = verdict
        self.observer.attempt_settled(attempt, state)
        cooldown = self._cooldown_of(state)
        if cooldown is None:
            return
        for transition in self._health.end(attempt.permit, verdict, now, cooldown):
            self._on_transition(transition)

    def _uncount(self, attempt: AttemptRecord) -> None:
        if attempt.counted:
            attempt.counted = False
            self._in_flight.end(attempt.step.provider)

    # -- the end of a request --------------------------------------------------------------------------------------

    def left(self, request_id: str) -> None:
        """Remember that Envoy ended a request early: nobody will report what a late message of it might begin."""
        while len(self._gone) >= GONE_LIMIT:
            self._gone.popitem(last=False)
        self._gone[request_id] = None

    def reported(self, record: RequestRecord, entries_due: int, now: float) -> None:
        """Take note that Envoy reported a request's end, and how many entries it writes for the attempts of it."""
        record.expected = entries_due
        self._reported.append((now, record.state.id))
        self.close_if_done(record.state.id, now)

    def ended(self, record: RequestRecord) -> None:
        """Count a request no longer as one of its client's; Envoy may report its attempts later."""
        if record.counted:
            record.counted = False
            self._limits.end(record.state.client)

    def close_if_done(self, request_id: str, now: float) -> None:
        """Forget a request once Envoy reported it and each of its attempts that has an entry of its own."""
        record = self.by_id.get(request_id)
        if record is not None and record.expected is not None and record.logged >= record.expected:
            self._forget(request_id, now)

    def lose(self, arrived_before: float, now: float) -> int:
        """Forget the requests of an Envoy that is gone and will report nothing any more; return how many."""
        lost = [one for one, record in self.by_id.items() if record.state.arrived < arrived_before]
        for request_id in lost:
            self._forget(request_id, now)
        return len(lost)

    def sweep(self, now: float) -> None:
        """Forget requests whose end, or an attempt of which, was never reported; stop counting old attempts."""
        while self._reported and now - self._reported[0][0] > REPORT_GRACE_S:
            self._forget(self._reported.popleft()[1], now)
        for request_id, record in list(self.by_id.items()):
            age_s = now - record.state.arrived
            if age_s <= COUNTED_MAX_AGE_S:
                break
            for attempt in record.attempts:
                self._uncount(attempt)
            if age_s > RECORD_MAX_AGE_S:
                self._forget(request_id, now)

    def _forget(self, request_id: str, now: float) -> None:
        record = self.by_id.pop(request_id, None)
        if record is None:
            return
        self.ended(record)
        for attempt in record.attempts:
            self.settle(attempt, record.state, None, now)
        self.observer.request_closed(record, record.request, None, now)


def _attempt(record: RequestRecord | None, number: int) -> AttemptRecord | None:
    return record.attempts[number - 1] if record is not None and 0 < number <= len(record.attempts) else None


def _without_body(state: RequestState) -> RequestState:
    """Return a state that is cheap to keep: the first error may be 64 KiB long, and metadata carries it."""
    return state if state.first_error is None else replace(state, first_error=None)


def _inherited(step: PlanStep, started: float, error_class: str) -> AttemptRecord:
    # A class that this release does not know stays without a verdict.
    failure = Failure(ErrorClass(error_class), evidence=INHERITED) if error_class in _CLASSES else None
    permit = Permit(0, step.key, started, probe=False)
    return AttemptRecord(step, permit, failure, settled=True, started=started, inherited=True)
