"""What follows a failed attempt of a request: the next attempt with the plan it runs on, or the end and its answer.

Joins `retry.py`'s decision with a fresh look at health, charges the failure, and keeps the first meaningful provider
error for the caller. Leaves messages and timers to the judge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from extproc.config.snapshot import Policy
from extproc.core.attempt import last_answer, silence_limit_s
from extproc.core.exchange import Respond
from extproc.core.gateway import Active, Gateway
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.request_state import FirstError, PlanStep, RequestState
from extproc.core.retry import Spent, Verb, next_step

HOLD_MARGIN = 0.8
"""Share of what is left of Envoy's timer that an answer may be held for (docs/envoy.md section 2)."""
CALLERS_OWN = frozenset({ErrorClass.CONTEXT_LENGTH, ErrorClass.CONTENT_FILTERED})
"""Errors that tell the caller about the request: always what the caller gets, even after another error."""
NO_ADVICE = CALLERS_OWN | {ErrorClass.INVALID_REQUEST}


@dataclass(frozen=True, slots=True)
class Case:
    """One attempt under judgement: the request, its version, and the step that was tried."""

    state: RequestState
    active: Active
    policy: Policy
    step: PlanStep

    def hold_left_s(self, now: float) -> float:
        """Return how long an answer may still be held before one of Envoy's timers runs out."""
        limit_s = silence_limit_s(self.state.kind, self.policy)
        return max(0.0, (limit_s - (now - self.state.started)) * HOLD_MARGIN)


@dataclass(frozen=True, slots=True)
class GoOn:
    """Another attempt follows: the state it starts from, whether its plan is new, how long to wait first."""

    state: RequestState
    replan: bool
    wait_s: float = 0.0


def open_case(gateway: Gateway, state: RequestState | None) -> Case | None:
    """Return the case of an answer; None when its request never passed our route exchange."""
    if state is None:
        return None
    active = gateway.version(state.version)
    step = state.step(state.attempt)
    if active is None or step is None:
        return None
    return Case(state, active, gateway.policy_of(state, active), step)


def after_failure(
    gateway: Gateway, case: Case, failure: Failure, error: FirstError | None, now: float
) -> GoOn | Respond:
    """Charge a failure and say what follows; `error` is what the provider answered, None when that has no meaning."""
    gateway.requests.attempt_failed(case.state, failure, now)
    if error is not None and failure.error_class in NO_ADVICE:
        error = replace(error, plain=True)
    first = case.state.first_error or error
    state, policy = case.state, case.policy
    denied = gateway.budget_denied
    decision = next_step(
        failure,
        _spent(case, now),
        policy,
        now,
        gateway.draw(),
        lambda: gateway.may_pile_on(case.active, now),
    )
    if decision.verb is Verb.SAME:
        gateway.requests.decided(state, state.attempt, f"{decision.verb} in {decision.wait_s:.3g} s: {decision.reason}")
        # The extra try takes a place of its own, so the plan's last one may no longer be among the attempts.
        tail = (case.step, *state.plan[state.attempt : policy.attempts - 1])
        return GoOn(state.failed(failure.error_class, first, tail), True, decision.wait_s)
    if decision.verb is not Verb.STOP:
        context = decision.verb is Verb.CONTEXT
        rest = gateway.rest(state, case.active, now, context=context or state.context)
        if rest:
            gateway.requests.decided(state, state.attempt, f"{decision.verb}: {decision.reason}, {rest[0].key}")
            following = state.failed(failure.error_class, first, rest, context)
            return GoOn(following, following.plan != state.plan)
    nobody = "no target is left" if gateway.budget_denied == denied else "no retry budget, no other target is left"
    stopped = decision.reason if decision.verb is Verb.STOP else nobody
    gateway.requests.decided(state, state.attempt, f"{Verb.STOP}: {stopped}")
    return _give_up(gateway, case, failure, error if failure.error_class in CALLERS_OWN else first, now)


def _give_up(gateway: Gateway, case: Case, failure: Failure, error: FirstError | None, now: float) -> Respond:
    state = case.state.failed(failure.error_class, error)
    return last_answer(gateway, state, case.active, now)


def _spent(case: Case, now: float) -> Spent:
    state = case.state
    in_a_row = 0
    while in_a_row < state.attempt and state.plan[state.attempt - 1 - in_a_row].key == case.step.key:
        in_a_row += 1
    return Spent(state.attempt, in_a_row, now - state.arrived, now - state.started, case.hold_left_s(now))
