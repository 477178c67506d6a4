"""The attempt-request exchange: the second and later attempts of a request, rewritten for their own target.

Envoy retries resets, refusals and timeouts without asking, so this is where an attempt may still be refused: the
plan is over, the deadline has passed, or Envoy chose a cluster that is not the planned one. A refusal ends the
request with the first provider error, else 504 or 502; the provider sees nothing.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from extproc.config.snapshot import Policy
from extproc.core.body import parse_request_body
from extproc.core.endpoints import Kind
from extproc.core.errors import JSON, GatewayError
from extproc.core.exchange import (
    Action,
    Close,
    Event,
    Part,
    Pass,
    RequestBody,
    RequestHeaders,
    Respond,
    SendAttempt,
    Trailers,
)
from extproc.core.gateway import Active, Gateway
from extproc.core.outcome import ErrorClass
from extproc.core.request_state import RequestState
from extproc.core.route import retry_headers

ATTEMPT_COUNT = "x-envoy-attempt-count"
LATE = "deadline passed"
TIMER_SLACK_S = 0.05
"""How far our clock may be from Envoy's timers."""


class _State(StrEnum):
    WANT_HEADERS = "want_headers"
    WANT_BODY = "want_body"
    DONE = "done"


class AttemptExchange:
    """Prepares or refuses one later attempt; `cluster` is where Envoy is about to send it."""

    def __init__(self, gateway: Gateway, cluster: str) -> None:
        self._gateway = gateway
        self._cluster = cluster
        self._state = _State.WANT_HEADERS
        self._request: RequestState | None = None

    def __repr__(self) -> str:
        return f"<AttemptExchange {self._cluster} {self._state}>"

    def closed(self, now: float) -> None:
        """Envoy's access log settles an attempt that was prepared and then dropped."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """Answer the headers, then the body; then the exchange is over."""
        if self._state is _State.WANT_HEADERS and isinstance(event, RequestHeaders):
            return self._on_headers(event, now)
        if self._state is _State.WANT_BODY and isinstance(event, RequestBody):
            return self._on_body(event.body, now)
        self._gateway.unexpected_messages += 1
        return [Pass(event.part)] if isinstance(event, Trailers) else []

    def _on_headers(self, event: RequestHeaders, now: float) -> list[Action]:
        count = event.headers.get(ATTEMPT_COUNT, "")
        state = event.state
        active = self._gateway.version(state.version) if state is not None else None
        if state is None or active is None or not count.isdecimal():
            error = GatewayError("gateway_unavailable", "The gateway lost track of this request; send it again.")
            return self._end(Respond(error.status, (JSON,), error.body("openai"), None))
        attempt = int(count)
        self._gateway.requests.take_over(state, now)
        policy = self._gateway.policy_of(state, active)
        silent = len(state.classes) < attempt - 1
        state = state.opened(attempt, now, self._classes(state, policy, attempt, now))
        reason = self._refusal(state, active, now) or (self._silent_refusal(state, active, now) if silent else None)
        if silent or reason is not None:
            self._tell(state, reason)
        if reason is not None:
            late = reason == LATE
            return self._end(last_answer(self._gateway, state, active, now, late=late))
        self._request = state
        self._state = _State.WANT_BODY
        return [Pass(Part.REQUEST_HEADERS)]

    def _tell(self, state: RequestState, refusal: str | None) -> None:
        """Note what followed an attempt that Envoy gave up by itself."""
        step = state.step(state.attempt)
        what = f"next: Envoy gave it up, {step.key}" if refusal is None and step is not None else f"stop: {refusal}"
        self._gateway.requests.decided(state, state.attempt - 1, what)

    def _classes(self, state: RequestState, policy: Policy, attempt: int, now: float) -> tuple[str, ...]:
        """Complete the failed classes: an attempt that nobody judged was silent or never connected."""
        silent = silent_class(now - state.started, silence_limit_s(state.kind, policy), policy.connect_timeout_s)
        missing = attempt - 1 - len(state.classes)
        return (*state.classes, *(str(silent) for _ in range(missing)))

    def _refusal(self, state: RequestState, active: Active, now: float) -> str | None:
        policy = self._gateway.policy_of(state, active)
        step = state.step(state.attempt)
        if step is None:
            return "plan over"
        if state.attempt > policy.attempts:
            return "attempts spent"
        if now - state.arrived > policy.deadline_s:
            return LATE
        if step.cluster != self._cluster:
            return "not the planned cluster"
        return None

    def _silent_refusal(self, state: RequestState, active: Active, now: float) -> str | None:
        """Refuse what Envoy retried by itself: the silent target again, or an account without budget for it.

        While an account that was not asked yet follows, its predecessors are tried too, budget or not.
        """
        *earlier, step = state.plan[: state.attempt]
        if earlier[-1].key == step.key:
            return "the silent target again"
        tried = {one.provider for one in earlier}
        if step.provider not in tried:
            return None
        # Envoy cannot skip a place of its plan: to refuse this one would be to refuse the move to that account.
        attempts = self._gateway.policy_of(state, active).attempts
        if any(one.provider not in tried for one in state.plan[state.attempt : attempts]):
            self._gateway.budget.overdraw(now)
        elif not self._gateway.may_pile_on(active, now):
            return "retry budget spent"
        return None

    def _on_body(self, raw: bytes, now: float) -> list[Action]:
        state = self._request
        step = state.step(state.attempt) if state else None
        if state is None or step is None:
            raise RuntimeError("a body before its headers were accepted")
        parsed = parse_request_body(raw)
        if isinstance(parsed, GatewayError):
            raise TypeError("the body of a later attempt no longer parses")
        self._gateway.requests.open_attempt(state, now)
        return self._end(SendAttempt(state, step.path, parsed.with_model(step.model)))

    def _end(self, action: Action) -> list[Action]:
        self._state = _State.DONE
        return [action, Close()]


def silent_class(elapsed_s: float, limit_s: float, connect_timeout_s: float) -> ErrorClass:
    """Return the class of an attempt that ended without an answer after `elapsed_s`.

    Envoy does not say why it gave an attempt up before its log does, which is too late here. Its timer runs out hardly
    ever early, and starts once there is a connection: so what took less time was a lost connection, and so was what
    took exactly a `connect_timeout` that is longer.
    """
    if connect_timeout_s > limit_s + TIMER_SLACK_S and abs(elapsed_s - connect_timeout_s) <= TIMER_SLACK_S:
        return ErrorClass.CONNECTION
    return ErrorClass.TIMEOUT if elapsed_s >= limit_s - TIMER_SLACK_S else ErrorClass.CONNECTION


def silence_limit_s(kind: Kind, policy: Policy) -> float:
    """Return how long Envoy waits for a silent provider on the route of this kind (docs/envoy.md section 5)."""
    if kind is Kind.UNARY:
        return policy.first_byte_timeout_s
    if kind is Kind.STREAM_UNGUARDED or policy.stream_guard == "off":
        return max(policy.first_token_timeout_s, policy.stream_idle_timeout_s)
    if policy.stream_guard == "complete":
        return policy.deadline_s
    return policy.first_token_timeout_s


def last_answer(
    gateway: Gateway,
    state: RequestState,
    active: Active,
    now: float,
    *,
    late: bool = False,
) -> Respond:
    """Return the answer of a request that nothing served: the first provider error, else an error of our own.

    Advice about trying again belongs to the answer that is given, whatever failed last. `late` says that the deadline
    ended the request. The attempts it tells of are those whose failure is known.
    """
    first = state.first_error
    plain = first is not None and first.plain
    headers = () if plain else retry_headers(gateway.recovery_in(state, active, now))
    attempts = len(state.classes)
    state = replace(state, attempt=attempts)
    if first is not None:
        known = {name for name, _ in first.headers}
        added = tuple((name, value) for name, value in headers if name not in known)
        return Respond(first.status, (*first.headers, *added), first.body, attempts, state=state)
    error = _own_error(state.classes, late)
    note = {"error": error.code}
    return Respond(error.status, (JSON, *headers), error.body(state.protocol), attempts, state=state, note=note)


def _own_error(classes: tuple[str, ...], late: bool) -> GatewayError:
    if late or ErrorClass.TIMEOUT in classes:
        return GatewayError("upstream_timeout", "No provider answered in time.")
    if ErrorClass.BAD_ANSWER in classes:
        return GatewayError("upstream_bad_answer", "The provider's answer was empty or not what this endpoint returns.")
    return GatewayError("upstream_connect_failed", "No provider could be reached.")
