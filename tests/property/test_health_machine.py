"""Random lives of a few targets never break the promises of the health engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from extproc.config.snapshot import Cooldown, TargetKey
from extproc.core.health import PROBE_LEASE_S, HealthEngine, Permit, Row, State, Subject, Success, Transition
from extproc.core.outcome import CHARGED_TO, Charge, ErrorClass, Failure

KEYS = [TargetKey("a", "one"), TargetKey("a", "two"), TargetKey("a", "three"), TargetKey("b", "one")]
SUBJECTS: list[Subject] = ["a", "b", *KEYS]
COOLDOWN = Cooldown(
    base_s=15.0,
    factor=2.0,
    max_s=120.0,
    jitter=0.1,
    consecutive=2,
    failure_ratio=0.5,
    window_s=30.0,
    min_requests=5,
    quota_s=300.0,
    cap_s=3600.0,
)
UNANSWERED = {ErrorClass.TIMEOUT, ErrorClass.CONNECTION, ErrorClass.CLIENT_ABORT}
ACTUAL_FAULTS = [kind for kind in ErrorClass if CHARGED_TO[kind] is not Charge.NOBODY]
NOBODYS = [kind for kind in ErrorClass if CHARGED_TO[kind] is Charge.NOBODY]

keys = st.sampled_from(KEYS)
subjects = st.sampled_from(SUBJECTS)
picks = st.integers(0, 1000)
waits = st.none() | st.floats(1.0, 400.0)


@dataclass
class Attempt:
    """An attempt under way, as the model remembers it."""

    permit: Permit
    event: int
    slots: set[Subject] = field(default_factory=set)


class HealthMachine(RuleBasedStateMachine):
    """The engine beside a model that knows events, probe slots, orders and suspicions, but no counters."""

    @initialize()
    def start(self) -> None:
        self.now = 1_000_000.0
        self.event = 0
        self.attempts: list[Attempt] = []
        self.lost: list[Attempt] = []
        self.orders: dict[Subject, tuple[str, float | None]] = {}
        self.tripped_event: dict[Subject, int] = {}
        self.suspects: dict[str, dict[TargetKey, tuple[float, int]]] = {"a": {}, "b": {}}
        self.reported: dict[Subject, State] = dict.fromkeys(SUBJECTS, State.HEALTHY)
        self.engine = self.fresh_engine()

    def fresh_engine(self) -> HealthEngine:
        engine = HealthEngine(lambda: 0.25)
        engine.retain(KEYS)
        return engine

    def rows(self) -> dict[Subject, Row]:
        return {row.subject: row for row in self.engine.states(self.now)}

    def saved(self) -> dict[Subject, dict[str, object]]:
        """Return the engine's saved cooldowns, the only window on what the views do not show."""
        entries = self.engine.dump()["subjects"]
        return {TargetKey(e["provider"], e["model"]) if "model" in e else e["provider"]: e for e in entries}

    def cooldowns(self) -> dict[Subject, tuple[object, ...]]:
        """Return deadline, reason and streak of everything that tripped."""
        names = ("until", "reason", "streak", "promoted")
        return {k: tuple(e[name] for name in names) for k, e in self.saved().items() if "until" in e}

    def heard(self, told: tuple[Transition, ...]) -> None:
        """Check that transitions of a subject form a chain."""
        for transition in told:
            assert self.reported[transition.subject] is transition.old
            assert transition.old is not transition.new
            self.reported[transition.subject] = transition.new

    def holder(self, subject: Subject) -> Attempt | None:
        """Return the live attempt that holds a probe slot."""
        for attempt in [*self.attempts, *self.lost]:
            if subject in attempt.slots and self.now - attempt.permit.started_at < PROBE_LEASE_S:
                return attempt
        return None

    def finish(self, pick: int, verdict: Failure | Success | None) -> Attempt:
        """End one of the attempts under way and check what holds for every end."""
        attempt = self.attempts.pop(pick % len(self.attempts))
        before, saved_before = self.rows(), self.saved()
        self.event += 1
        self.heard(self.engine.end(attempt.permit, verdict, self.now, COOLDOWN))
        attempt.slots.clear()
        after, saved_after = self.rows(), self.saved()
        involved = {attempt.permit.key, attempt.permit.key.provider}
        for subject in SUBJECTS:
            if subject not in involved:
                assert before[subject].view == after[subject].view
            self.check_deadline(subject, before, after, saved_before, attempt, verdict)
            old = saved_before.get(subject, {})
            new = saved_after.get(subject, {})
            if "until" in new and new["until"] != old.get("until"):
                self.tripped_event[subject] = self.event
        self.check_promotion(attempt, verdict, before, after, saved_before, saved_after)
        return attempt

    def check_deadline(
        self,
        subject: Subject,
        before: dict[Subject, Row],
        after: dict[Subject, Row],
        saved: dict[Subject, dict[str, object]],
        attempt: Attempt,
        verdict: Failure | Success | None,
    ) -> None:
        """Check that a deadline ahead of us never comes nearer, but for a fault that was only inferred."""
        old, new = before[subject].view, after[subject].view
        began_before = attempt.event < self.tripped_event.get(subject, 0)
        if old.state is State.COOLING and old.until is not None:
            refuted = isinstance(verdict, Success) and saved[subject].get("promoted") is True
            if not refuted or began_before:
                assert new.state is State.COOLING
                assert new.until is not None
                assert new.until >= old.until
        if old.state is State.PROBING and began_before:
            assert new.state in (State.PROBING, State.COOLING)

    def check_promotion(
        self,
        attempt: Attempt,
        verdict: Failure | Success | None,
        before: dict[Subject, Row],
        after: dict[Subject, Row],
        saved_before: dict[Subject, dict[str, object]],
        saved_after: dict[Subject, dict[str, object]],
    ) -> None:
        """Two fresh trips make the account cool; a success begun after them, or after it cooled, clears it."""
        key, name = attempt.permit.key, attempt.permit.key.provider
        was_tripped = "until" in saved_before.get(name, {})
        is_tripped = "until" in saved_after.get(name, {})
        suspects = self.suspects[name]
        if isinstance(verdict, Success):
            kept = {k: trip for k, trip in suspects.items() if trip[1] > attempt.event}
            self.suspects[name] = kept
            if was_tripped and saved_before[name].get("promoted") is True:
                began_after = attempt.event >= self.tripped_event.get(name, 0)
                assert not (began_after and is_tripped)
        elif verdict is not None and CHARGED_TO[verdict.error_class] is Charge.TARGET:
            kept = {k: trip for k, trip in suspects.items() if trip[0] >= self.now - COOLDOWN.window_s}
            fresh = "until" in saved_after.get(key, {}) and (
                "until" not in saved_before.get(key, {}) or after[key].streak > before[key].streak
            )
            if fresh and not was_tripped and verdict.error_class is not ErrorClass.MODEL_UNAVAILABLE:
                kept[key] = (self.now, self.event)
                assert is_tripped == (len(kept) >= 2)
            self.suspects[name] = kept
        if was_tripped and not is_tripped:
            self.suspects[name] = {}

    # Rules.

    @rule(seconds=st.floats(0.0, 200.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def time_passes_to_the_next_deadline(self) -> None:
        ends = [row.view.until for row in self.rows().values() if row.view.until is not None]
        self.now = max(self.now, min(ends, default=self.now))

    @rule(key=keys)
    def begin(self, key: TargetKey) -> None:
        before = self.rows()
        view = self.engine.view(key, self.now)
        self.event += 1
        attempt = Attempt(self.engine.begin(key, self.now), self.event)
        attempt.slots = {subject for subject in (key, key.provider) if before[subject].view.probe}
        for subject in attempt.slots:
            assert self.holder(subject) is None
        self.attempts.append(attempt)
        assert attempt.permit.probe == bool(attempt.slots)
        assert not view.probe or attempt.permit.probe
        assert not self.engine.view(key, self.now).probe

    @precondition(lambda self: self.attempts)
    @rule(pick=picks, first_token_s=st.none() | st.floats(0.001, 60.0), size_bytes=st.integers(0, 10**7))
    def succeed(self, pick: int, first_token_s: float | None, size_bytes: int) -> None:
        self.finish(pick, Success(first_token_s, size_bytes))

    @precondition(lambda self: self.attempts)
    @rule(pick=picks, kind=st.sampled_from(ACTUAL_FAULTS), wait_s=waits)
    def fail(self, pick: int, kind: ErrorClass, wait_s: float | None) -> None:
        retry_at = None if wait_s is None else self.now + wait_s
        attempt = self.finish(pick, Failure(kind, None if kind in UNANSWERED else 500, retry_at))
        charged: Subject = attempt.permit.key
        if CHARGED_TO[kind] is Charge.PROVIDER:
            charged = attempt.permit.key.provider
        if retry_at is not None and charged not in self.live_orders():
            view = self.rows()[charged].view
            assert view.until is not None
            assert view.until >= retry_at

    @precondition(lambda self: self.attempts)
    @rule(pick=picks, kind=st.none() | st.sampled_from(NOBODYS), wait_s=waits)
    def end_without_verdict(self, pick: int, kind: ErrorClass | None, wait_s: float | None) -> None:
        retry_at = None if wait_s is None else self.now + wait_s
        before, cooldowns = self.rows(), self.cooldowns()
        self.finish(pick, None if kind is None else Failure(kind, 400, retry_at))
        after = self.rows()
        for subject in SUBJECTS:
            assert before[subject].view[:1] + before[subject].view[4:] == (
                after[subject].view[:1] + after[subject].view[4:]
            )
        assert cooldowns == self.cooldowns()

    @precondition(lambda self: self.attempts)
    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        """Nothing is ever heard of an attempt again."""
        self.lost.append(self.attempts.pop(pick % len(self.attempts)))

    @rule(key=keys, seconds=st.floats(-5.0, 60.0))
    def pace(self, key: TargetKey, seconds: float) -> None:
        before = self.rows()[key].view
        self.heard(self.engine.pace(key, self.now + seconds, self.now))
        after = self.rows()[key].view
        if before.state is State.COOLING and before.until is not None:
            assert after.until is not None
            assert after.until >= before.until
        if self.now + seconds > self.now and key not in self.live_orders():
            assert after.state is State.COOLING

    @rule(subject=subjects, kind=st.sampled_from(["down", "drain"]), seconds=st.none() | st.floats(1.0, 300.0))
    def order(self, subject: Subject, kind: str, seconds: float | None) -> None:
        expires = None if seconds is None else self.now + seconds
        act = self.engine.operator_down if kind == "down" else self.engine.drain
        self.heard(act(subject, "ann", "because", expires, self.now))
        self.orders[subject] = (kind, expires)
        assert self.rows()[subject].view.state is State.DOWN

    @rule(subject=subjects)
    def restore(self, subject: Subject) -> None:
        self.event += 1
        self.heard(self.engine.restore(subject, self.now))
        self.orders.pop(subject, None)
        for attempt in [*self.attempts, *self.lost]:
            attempt.slots.discard(subject)
        if isinstance(subject, str):
            self.suspects[subject] = {}
        assert self.rows()[subject].view.state is State.HEALTHY

    @rule()
    def restart(self) -> None:
        """Start a new process on what the old one saved; attempts under way are forgotten."""
        saved, before = json.loads(json.dumps(self.engine.dump())), self.rows()
        self.engine = self.fresh_engine()
        self.engine.load(saved, self.now)
        for subject, row in self.rows().items():
            old = before[subject].view
            if old.state in (State.COOLING, State.DOWN):
                assert old == row.view
            elif old.state is State.PROBING:
                assert row.view == old._replace(eligible=True, probe=True)
            else:
                assert row.view.state is State.HEALTHY
            self.reported[subject] = row.view.state
        self.attempts.clear()
        self.lost.clear()
        self.suspects = {"a": {}, "b": {}}

    @rule()
    def elapse(self) -> None:
        self.heard(self.engine.elapse(self.now))
        for subject, row in self.rows().items():
            assert self.reported[subject] is row.view.state

    # Invariants.

    def live_orders(self) -> dict[Subject, str]:
        orders = self.orders.items()
        return {subject: kind for subject, (kind, end) in orders if end is None or self.now < end}

    @invariant()
    def a_probe_slot_is_free_exactly_when_nobody_holds_it(self) -> None:
        for subject, row in self.rows().items():
            if row.view.state is State.PROBING:
                assert row.view.eligible == row.view.probe == (self.holder(subject) is None)

    @invariant()
    def a_target_is_eligible_only_together_with_its_account(self) -> None:
        rows = self.rows()
        for key in KEYS:
            own, account, view = rows[key].view, rows[key.provider].view, self.engine.view(key, self.now)
            assert view.eligible == (own.eligible and account.eligible)
            assert view.probe == (view.eligible and (own.probe or account.probe))
            assert 0.0 < view.share <= 1.0
            assert view.state in (own.state, account.state)

    @invariant()
    def orders_hold_until_they_expire(self) -> None:
        live = self.live_orders()
        for subject, row in self.rows().items():
            assert (row.view.state is State.DOWN) == (subject in live)

    @invariant()
    def there_is_always_a_defined_answer(self) -> None:
        live = self.live_orders()
        usable = [key for key in KEYS if live.get(key) != "down" and live.get(key.provider) != "down"]
        choice = self.engine.least_bad(KEYS, self.now)
        assert (choice in usable) if usable else choice is None
        at = self.engine.recovery_time(KEYS, self.now)
        if at is None:
            assert all({key, key.provider} & live.keys() for key in KEYS)
        else:
            assert at >= self.now
            busy = any(attempt.slots for attempt in [*self.attempts, *self.lost])
            assert busy or any(self.engine.view(key, at).eligible for key in KEYS)


TestHealthMachine = HealthMachine.TestCase
TestHealthMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
