"""The requests under way: what this process remembers of each, and the one verdict of each attempt.

Owns the records from a request's plan to Envoy's last word of it, what clients and provider accounts have under way,
and the charging of each attempt exactly once: by the judge when it was answered, by the access log when it was silent
or good. Invariant: what is remembered is bounded in number, time and size, whatever Envoy's log fails to tell.
Not thread-safe: one event loop.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace

from extproc.config.snapshot import Cooldown
from extproc.core.health import HealthEngine, Success, Transition
from extproc.core.in_flight import InFlight
from extproc.core.limits import ClientLimits
from extproc.core.outcome import Failure
from extproc.core.records import AttemptRecord, Evidence, Nobody, Observer, RequestRecord
from extproc.core.request_state import RequestState

RECORD_LIMIT = 100_000
REFUSED_LIMIT = 10_000
GONE_LIMIT = 10_000
RECORD_MAX_AGE_S = 3600.0 * 2
REPORT_GRACE_S = 10.0
"""How long after a request's own log entry those of its attempts may still come."""
COUNTED_MAX_AGE_S = 600.0
"""How long after its request arrived an attempt counts as under way: its entry in Envoy's log may be lost."""


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
        self._gone: OrderedDict[str, None] = OrderedDict()
        """Requests that ended before their time: an exchange of theirs may still be on its way to us."""

    def open(
        self, state: RequestState, now: float, session: bytes | None = None, evidence: Evidence | None = None
    ) -> None:
        """Remember a request whose first attempt is about to start."""
        if state.id in self._gone:
            return
        record = RequestRecord(state, session, evidence=evidence, first_plan=state.plan, counted=True)
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
            if state.id in self._gone:
                return
            record = self._remember(RequestRecord(state, first=state.attempt), now)
        # The first error may be 64 KiB long, and metadata carries it.
        record.state = state if state.first_error is None else replace(state, first_error=None)
        step = state.step(state.attempt)
        if step is not None:
            record.attempts.append(AttemptRecord(step, self._health.begin(step.key, now), counted=True, started=now))
            self._in_flight.begin(step.provider)

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
        record = self.by_id.get(state.id)
        attempt = _attempt(record, state.attempt)
        step = state.step(state.attempt)
        if attempt is None and step is not None and state.id not in self._gone:
            # Another process began it, or this one restarted since: the failure counts all the same.
            attempt = AttemptRecord(step, self._health.begin(step.key, now), started=state.started)
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
    index = -1 if record is None else number - record.first
    return record.attempts[index] if record is not None and 0 <= index < len(record.attempts) else None
