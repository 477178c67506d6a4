"""The requests under way: each attempt charged once, records bounded and forgotten."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from extproc.core import open_requests
from extproc.core.feedback import RequestLogged, request_logged
from extproc.core.gateway import Gateway
from extproc.core.health import HealthEngine, State, Success, Transition
from extproc.core.open_requests import RECORD_MAX_AGE_S, REPORT_GRACE_S
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.request_state import FirstError
from tests.unit.core.build import NOW, REQUEST_ID, A, B, active, chain, config, gateway, routed, served, trip

BIG: dict[str, Any] = {"big": chain(A, B)}
LIMITED = Failure(ErrorClass.RATE_LIMITED, 429)


class TestAnAttempt:
    def test_is_begun_when_its_request_is_opened(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        assert [A] == [attempt.step.key for attempt in made.requests.by_id[REQUEST_ID].attempts]

    def test_is_charged_once_whoever_comes_first(self) -> None:
        made = gateway(config(BIG, {"cooldown": {"consecutive": 2}}))
        state = routed(made)
        for _ in range(3):
            made.requests.attempt_failed(state, Failure(ErrorClass.SERVER_ERROR, 500), NOW + 1)
        assert made.health.view(A, NOW + 1).eligible

    def test_that_failed_is_no_success_afterwards(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        made.requests.attempt_failed(state, LIMITED, NOW + 1)
        served(made, state)
        assert not made.health.view(A, NOW + 1).eligible

    def test_tells_every_change_of_health_once(self) -> None:
        told: list[Transition] = []
        made = Gateway(HealthEngine(lambda: 0.5), lambda: 0.5, told.append)
        made.activate(active(config(BIG)))
        state = routed(made)
        made.requests.attempt_failed(state, LIMITED, NOW + 1)
        made.requests.attempt_failed(state, LIMITED, NOW + 2)
        assert [(A, State.HEALTHY, State.COOLING)] == [(one.subject, one.old, one.new) for one in told]

    def test_settles_under_the_default_policy_when_its_own_is_gone(self) -> None:
        state = routed(gateway(config({"big": chain(A, policy="old")}, policies={"old": {}})))
        restarted = gateway(config(BIG), version=2)
        restarted.requests.attempt_failed(state, LIMITED, NOW + 1)
        assert not restarted.health.view(A, NOW + 1).eligible

    def test_remembers_that_its_answer_is_held(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        made.requests.attempt_held(state, held=True)
        held = made.requests.by_id[REQUEST_ID].attempts[0].held
        made.requests.attempt_held(state, held=False, first_token_s=0.4)
        attempt = made.requests.by_id[REQUEST_ID].attempts[0]
        assert (True, False, 0.4) == (held, attempt.held, attempt.first_token_s)

    def test_without_a_verdict_gives_its_probe_slot_back(self) -> None:
        made = gateway(config({"big": chain(A)}, {"cooldown": {"base": "10s", "jitter": 0}}))
        trip(made, A)
        later = NOW + 11
        assert made.health.view(A, later).probe
        state = routed(made, now=later)
        assert not made.health.view(A, later).eligible
        made.requests.settle(made.requests.by_id[REQUEST_ID].attempts[0], state, None, later + 1)
        assert made.health.view(A, later + 1).probe


class TestRecords:
    def test_are_swept_when_their_end_was_never_reported(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        made.requests.sweep(NOW + RECORD_MAX_AGE_S)
        kept = len(made.requests.by_id)
        made.requests.sweep(NOW + RECORD_MAX_AGE_S + 1)
        assert (1, 0) == (kept, len(made.requests.by_id))

    def test_of_an_envoy_that_is_gone_are_forgotten_and_those_of_the_next_kept(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        made.requests.open(dataclasses.replace(state, id="next", arrived=NOW + 5), NOW + 5)
        assert 1 == made.requests.lose(NOW + 5, NOW + 6)
        assert (["next"], 1) == (list(made.requests.by_id), made.in_flight.count("a"))

    def test_are_bounded_and_the_oldest_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(open_requests, "RECORD_LIMIT", 2)
        made = gateway(config(BIG))
        state = routed(made)
        for name in ("x", "y"):
            made.requests.open(dataclasses.replace(state, id=name), NOW)
        assert ["x", "y"] == list(made.requests.by_id)

    def test_begun_by_a_process_before_this_one_are_bounded_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(open_requests, "RECORD_LIMIT", 2)
        state = routed(gateway(config(BIG)))
        restarted = gateway(config(BIG))
        for name in ("x", "y", "z"):
            restarted.requests.open_attempt(dataclasses.replace(state, id=name).opened(2, NOW, ("timeout",)), NOW)
        assert ["y", "z"] == list(restarted.requests.by_id)

    def test_are_forgotten_soon_after_their_end_when_an_attempt_s_entry_is_lost(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        request_logged(made, RequestLogged(REQUEST_ID, 200, frozenset(), 1), NOW + 1)
        made.requests.sweep(NOW + 1 + REPORT_GRACE_S)
        kept = len(made.requests.by_id)
        made.requests.sweep(NOW + 2 + REPORT_GRACE_S)
        assert (1, 0) == (kept, len(made.requests.by_id))

    def test_of_long_requests_stay_while_others_are_forgotten(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        made.requests.open(dataclasses.replace(state, id="short"), NOW)
        request_logged(made, RequestLogged("short", 200, frozenset(), 1), NOW + 1)
        made.requests.sweep(NOW + 2 + REPORT_GRACE_S)
        assert [REQUEST_ID] == list(made.requests.by_id)

    def test_hold_no_body_of_an_error(self) -> None:
        made = gateway(config(BIG))
        first = FirstError(500, b"x" * 65_536, ())
        made.requests.open_attempt(routed(made).failed("server_error", first).opened(2, NOW, ("server_error",)), NOW)
        record = made.requests.by_id[REQUEST_ID]
        assert (2, None) == (record.state.attempt, record.state.first_error)

    def test_that_are_forgotten_leave_health_as_it_was(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        made.requests.sweep(NOW + RECORD_MAX_AGE_S + 1)
        assert made.health.view(A, NOW + RECORD_MAX_AGE_S + 1).eligible

    def test_of_a_request_nobody_knows_are_not_missed(self) -> None:
        gateway(config(BIG)).requests.close_if_done("nobody", NOW)


def test_a_success_is_no_verdict_of_a_settled_attempt() -> None:
    made = gateway(config(BIG))
    state = routed(made)
    attempt = made.requests.by_id[REQUEST_ID].attempts[0]
    made.requests.settle(attempt, state, LIMITED, NOW + 1)
    made.requests.settle(attempt, state, Success(0.1), NOW + 2)
    assert "rate_limited" == made.health.view(A, NOW + 2).reason
