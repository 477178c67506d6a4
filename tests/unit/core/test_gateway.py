"""The state that all exchanges share: versions, plans from live health, attempts charged once, sessions and records."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from extproc.core import gateway as gateway_module
from extproc.core.feedback import AttemptLogged, RequestLogged, attempt_logged, request_logged
from extproc.core.gateway import COUNTED_MAX_AGE_S, KEPT_VERSIONS, RECORD_MAX_AGE_S, REPORT_GRACE_S, Gateway
from extproc.core.health import HealthEngine, State, Success, Transition
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.request_state import FirstError, RequestState
from tests.unit.core.build import (
    CHAT,
    NOW,
    REQUEST_ID,
    SMALL_A,
    A,
    B,
    C,
    active,
    chain,
    config,
    gateway,
    keys,
    provider,
    routed,
    target,
    trip,
)

BIG: dict[str, Any] = {"big": chain(A, B)}
LIMITED = Failure(ErrorClass.RATE_LIMITED, 429)


def served(made: Gateway, state: RequestState, now: float = NOW + 1) -> None:
    """Let Envoy report that the present attempt went well."""
    step = state.plan[state.attempt - 1]
    attempt_logged(made, AttemptLogged(state.id, step.cluster, 200, frozenset(), 0.1, 0.5), now)


class TestVersions:
    def test_the_newest_activated_one_serves_new_requests(self) -> None:
        made = gateway(config(BIG), version=1)
        made.activate(active(config(BIG), version=2))
        assert made.active is not None
        assert 2 == made.active.snapshot.version

    def test_earlier_ones_stay_readable_for_requests_under_way(self) -> None:
        made = gateway(config(BIG), version=1)
        made.activate(active(config(BIG), version=2))
        found = made.version(1)
        assert found is not None
        assert 1 == found.snapshot.version

    def test_one_that_is_long_gone_is_stood_in_for_by_the_active_one(self) -> None:
        made = gateway()
        for number in range(1, KEPT_VERSIONS + 2):
            made.activate(active(config(BIG), version=number))
        assert made.version(1) is made.active

    def test_there_is_none_before_the_first(self) -> None:
        assert (None, None) == (gateway().active, gateway().version(1))


class TestPlans:
    def test_leave_out_providers_without_a_key(self) -> None:
        made = gateway(config(BIG), missing=["a"])
        assert made.active is not None
        views = [made.view(made.active, NOW)(key) for key in (A, B)]
        assert [(False, "missing_key"), (True, None)] == [(view.eligible, view.reason) for view in views]

    def test_never_use_a_provider_without_a_key_even_as_a_last_resort(self) -> None:
        made = gateway(config(BIG), missing=["a"])
        trip(made, B)
        assert [B] == keys(routed(made).plan)

    def test_count_tickets_per_model(self) -> None:
        made = gateway(config(BIG))
        assert [0, 1, 0, 2] == [made.ticket(model) for model in ("big", "big", "small", "big")]

    def test_of_what_follows_leave_out_what_was_tried(self) -> None:
        made = gateway(config({"big": chain(A, B, C)}))
        state = routed(made)
        assert made.active is not None
        assert [B, C] == keys(made.rest(state, made.active, NOW, context=False))

    def test_of_what_follows_are_empty_for_a_model_that_is_gone(self) -> None:
        made = gateway(config(BIG))
        state = dataclasses.replace(routed(made), model="gone")
        assert made.active is not None
        assert () == made.rest(state, made.active, NOW, context=False)

    def test_of_what_follows_skip_accounts_that_were_tried_once_the_retry_budget_is_spent(self) -> None:
        made = gateway(config({"big": chain(A, SMALL_A, B)}))
        state = routed(made)
        while made.budget.take(0.0, NOW):
            pass
        assert made.active is not None
        assert [B] == keys(made.rest(state, made.active, NOW, context=False))
        assert 1 == made.budget_denied

    @pytest.mark.parametrize(("share", "expected"), [(0.0, 30), (0.5, 50), (1.0, 100)])
    def test_may_pile_on_a_failed_account_by_the_share_that_the_config_says(self, share: float, expected: int) -> None:
        made = gateway(config(BIG, server={"retry_budget": share}))
        assert made.active is not None
        for _ in range(100):
            made.budget.request(NOW)
        assert expected == sum(made.may_pile_on(made.active, NOW) for _ in range(200))

    @pytest.mark.parametrize(("base", "expected"), [("20s", 20.0), ("30s", 30.0)])
    def test_know_when_a_target_can_serve_again(self, base: str, expected: float) -> None:
        made = gateway(config(BIG, {"cooldown": {"base": base, "jitter": 0}}))
        state = routed(made)
        trip(made, A)
        trip(made, B)
        assert made.active is not None
        assert expected == made.recovery_in(state, made.active, NOW)

    def test_expect_a_healthy_target_at_once(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        assert made.active is not None
        assert 0.0 == made.recovery_in(state, made.active, NOW)


class TestAProviderAtItsLimit:
    def made(self, models: dict[str, Any] | None = None, **policy: Any) -> Gateway:
        """Make a gateway whose account `a` may have two attempts under way."""
        account = provider("a", limits={"max_connections": 1, "max_pending": 1})
        return gateway(config(models or BIG, policy, providers={"a": account}))

    def arrive(self, made: Gateway, count: int) -> list[RequestState]:
        """Let requests arrive, each with an id of its own."""
        states = []
        for number in range(count):
            state = dataclasses.replace(routed(made), id=f"request-{number}")
            made.records[state.id] = made.records.pop(REQUEST_ID)
            made.records[state.id].state = state
            states.append(state)
        return states

    def test_is_passed_over_while_another_can_serve(self) -> None:
        made = self.made()
        firsts = [state.plan[0] for state in self.arrive(made, 4)]
        assert [A, A, B, B] == keys(firsts)

    def test_is_named_among_the_skipped_with_that_reason(self) -> None:
        made = self.made()
        self.arrive(made, 2)
        assert made.active is not None
        requested = made.active.snapshot.resolve("big")
        assert requested is not None
        plan = made.plan(made.active, requested, CHAT, 0, NOW)
        assert ([(A, "at_limit")], [(B, "health_reroute"), (A, "provider_failover")]) == (
            [(one.key, one.reason) for one in plan.skipped],
            [(one.key, one.mode) for one in plan.planned],
        )

    def test_that_cools_is_not_asked_for_all_that(self) -> None:
        made = self.made()
        self.arrive(made, 2)
        trip(made, A)
        assert [[B], [B]] == [keys(state.plan) for state in self.arrive(made, 2)]

    def test_serves_all_the_same_when_nobody_else_can(self) -> None:
        made = self.made({"big": chain(A)})
        assert ["direct"] * 4 == [state.plan[0].mode for state in self.arrive(made, 4)]

    def test_is_better_than_a_target_that_cools(self) -> None:
        made = self.made()
        trip(made, B)
        assert [A] * 4 == keys(state.plan[0] for state in self.arrive(made, 4))

    def test_is_the_last_target_while_there_is_another(self) -> None:
        made = self.made({"big": chain(B, A, C), "small": chain(A)})
        (waiting,) = self.arrive(made, 1)
        for number in range(2):
            made.open_attempt(dataclasses.replace(routed(made, model="small"), id=f"small-{number}"), NOW)
        assert made.active is not None
        assert [C, A] == keys(made.rest(waiting, made.active, NOW, context=False))

    def test_is_the_next_target_when_there_is_no_other(self) -> None:
        made = self.made({"big": chain(B, A), "small": chain(A)})
        (waiting,) = self.arrive(made, 1)
        for number in range(2):
            made.open_attempt(dataclasses.replace(routed(made, model="small"), id=f"small-{number}"), NOW)
        assert made.active is not None
        assert [A] == keys(made.rest(waiting, made.active, NOW, context=False))

    def test_has_room_again_when_an_attempt_has_its_verdict(self) -> None:
        made = self.made()
        first, _ = self.arrive(made, 2)
        made.attempt_failed(first, Failure(ErrorClass.INVALID_REQUEST, 400), NOW)
        assert 1 == made.in_flight.count("a")

    def test_has_room_again_when_a_request_is_forgotten(self) -> None:
        made = self.made()
        first, _ = self.arrive(made, 2)
        made.reported(made.records[first.id], 2, NOW)
        made.sweep(NOW + REPORT_GRACE_S + 1)
        assert 1 == made.in_flight.count("a")

    def test_does_not_count_for_long_what_was_never_reported(self) -> None:
        """The request may go on: it keeps its record, and its verdict counts nothing twice."""
        made = self.made()
        first, _ = self.arrive(made, 2)
        made.sweep(NOW + COUNTED_MAX_AGE_S + 1)
        served(made, first)
        assert (0, 1) == (made.in_flight.count("a"), made.records[first.id].logged)


class TestAnAttempt:
    def test_is_begun_when_its_request_is_opened(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        assert [A] == [attempt.step.key for attempt in made.records[REQUEST_ID].attempts]

    def test_is_charged_once_whoever_comes_first(self) -> None:
        made = gateway(config(BIG, {"cooldown": {"consecutive": 2}}))
        state = routed(made)
        for _ in range(3):
            made.attempt_failed(state, Failure(ErrorClass.SERVER_ERROR, 500), NOW + 1)
        assert made.health.view(A, NOW + 1).eligible

    def test_that_failed_is_no_success_afterwards(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        made.attempt_failed(state, LIMITED, NOW + 1)
        served(made, state)
        assert not made.health.view(A, NOW + 1).eligible

    def test_tells_every_change_of_health_once(self) -> None:
        told: list[Transition] = []
        made = Gateway(HealthEngine(lambda: 0.5), lambda: 0.5, told.append)
        made.activate(active(config(BIG)))
        state = routed(made)
        made.attempt_failed(state, LIMITED, NOW + 1)
        made.attempt_failed(state, LIMITED, NOW + 2)
        assert [(A, State.HEALTHY, State.COOLING)] == [(one.subject, one.old, one.new) for one in told]

    def test_settles_under_the_default_policy_when_its_own_is_gone(self) -> None:
        state = routed(gateway(config({"big": chain(A, policy="old")}, policies={"old": {}})))
        restarted = gateway(config(BIG), version=2)
        restarted.attempt_failed(state, LIMITED, NOW + 1)
        assert not restarted.health.view(A, NOW + 1).eligible

    def test_remembers_that_its_answer_is_held(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        made.attempt_held(state, held=True)
        held = made.records[REQUEST_ID].attempts[0].held
        made.attempt_held(state, held=False, first_token_s=0.4)
        attempt = made.records[REQUEST_ID].attempts[0]
        assert (True, False, 0.4) == (held, attempt.held, attempt.first_token_s)

    def test_without_a_verdict_gives_its_probe_slot_back(self) -> None:
        made = gateway(config({"big": chain(A)}, {"cooldown": {"base": "10s", "jitter": 0}}))
        trip(made, A)
        later = NOW + 11
        assert made.health.view(A, later).probe
        state = routed(made, now=later)
        assert not made.health.view(A, later).eligible
        made.settle(made.records[REQUEST_ID].attempts[0], state, None, later + 1)
        assert made.health.view(A, later + 1).probe

    def test_that_paces_itself_is_rested_until_its_limit_is_whole(self) -> None:
        made = gateway(config(BIG))
        made.pace(A, NOW + 30, NOW)
        views = [made.health.view(A, NOW + later) for later in (1, 31)]
        assert [(False, "paced"), (True, None)] == [(view.eligible, view.reason) for view in views]


class TestASession:
    MODELS: dict[str, Any] = {  # noqa: RUF012
        "big": {"targets": [target(A), target(B)], "affinity": {"body": "user", "ttl": "60s"}, "fallback": ["small"]},
        "small": chain(C),
    }

    def first(self, made: Gateway, now: float, user: str = "u") -> Any:
        """Return who goes first for a user's request; the request is left open."""
        return routed(made, now=now, user=user).plan[0].key

    def test_stays_with_the_target_that_served_it(self) -> None:
        made = gateway(config(self.MODELS))
        own = self.first(made, NOW)
        served(made, made.records[REQUEST_ID].state)
        assert [own] * 6 == [self.first(made, NOW + 2) for _ in range(6)]

    def test_is_its_own_caller_s_alone(self) -> None:
        made = gateway(config(self.MODELS))
        self.first(made, NOW)
        served(made, made.records[REQUEST_ID].state)
        assert {A, B} == {self.first(made, NOW + 2, user=f"other-{number}") for number in range(6)}

    def test_is_forgotten_after_its_time_to_live(self) -> None:
        made = gateway(config(self.MODELS))
        self.first(made, NOW)
        served(made, made.records[REQUEST_ID].state, NOW + 1)
        assert {A, B} == {self.first(made, NOW + 61) for _ in range(6)}

    def test_is_not_bound_by_an_attempt_that_failed(self) -> None:
        made = gateway(config(self.MODELS))
        state = routed(made, user="u")
        made.attempt_failed(state, Failure(ErrorClass.SERVER_ERROR, 500), NOW + 1)
        served(made, state)
        assert 0 == len(made.affinity)

    def test_returns_to_its_own_model_once_that_has_recovered(self) -> None:
        """One that fell back would otherwise stay with the fallback model as long as it is in use."""
        made = gateway(config(self.MODELS, {"cooldown": {"base": "5s", "jitter": 0}}))
        for key in (A, B):
            made.health.drain(key, "op", "", NOW + 5, NOW)
        assert C == self.first(made, NOW)
        served(made, made.records[REQUEST_ID].state)
        assert self.first(made, NOW + 10) in (A, B)


class TestRecords:
    def test_are_swept_when_their_end_was_never_reported(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        made.sweep(NOW + RECORD_MAX_AGE_S)
        kept = len(made.records)
        made.sweep(NOW + RECORD_MAX_AGE_S + 1)
        assert (1, 0) == (kept, len(made.records))

    def test_are_bounded_and_the_oldest_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gateway_module, "RECORD_LIMIT", 2)
        made = gateway(config(BIG))
        state = routed(made)
        for name in ("x", "y"):
            made.open_request(dataclasses.replace(state, id=name), NOW)
        assert ["x", "y"] == list(made.records)

    def test_begun_by_a_process_before_this_one_are_bounded_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gateway_module, "RECORD_LIMIT", 2)
        state = routed(gateway(config(BIG)))
        restarted = gateway(config(BIG))
        for name in ("x", "y", "z"):
            restarted.open_attempt(dataclasses.replace(state, id=name).opened(2, NOW, ("timeout",)), NOW)
        assert ["y", "z"] == list(restarted.records)

    def test_are_forgotten_soon_after_their_end_when_an_attempt_s_entry_is_lost(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        request_logged(made, RequestLogged(REQUEST_ID, 200, frozenset(), 1), NOW + 1)
        made.sweep(NOW + 1 + REPORT_GRACE_S)
        kept = len(made.records)
        made.sweep(NOW + 2 + REPORT_GRACE_S)
        assert (1, 0) == (kept, len(made.records))

    def test_of_long_requests_stay_while_others_are_forgotten(self) -> None:
        made = gateway(config(BIG))
        state = routed(made)
        made.open_request(dataclasses.replace(state, id="short"), NOW)
        request_logged(made, RequestLogged("short", 200, frozenset(), 1), NOW + 1)
        made.sweep(NOW + 2 + REPORT_GRACE_S)
        assert [REQUEST_ID] == list(made.records)

    def test_hold_no_body_of_an_error(self) -> None:
        made = gateway(config(BIG))
        first = FirstError(500, b"x" * 65_536, ())
        made.open_attempt(routed(made).failed("server_error", first).opened(2, NOW, ("server_error",)), NOW)
        record = made.records[REQUEST_ID]
        assert (2, None) == (record.state.attempt, record.state.first_error)

    def test_that_are_forgotten_leave_health_as_it_was(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        made.sweep(NOW + RECORD_MAX_AGE_S + 1)
        assert made.health.view(A, NOW + RECORD_MAX_AGE_S + 1).eligible

    def test_of_a_request_nobody_knows_are_not_missed(self) -> None:
        gateway(config(BIG)).close_if_done("nobody", NOW)


def test_a_success_is_no_verdict_of_a_settled_attempt() -> None:
    made = gateway(config(BIG))
    state = routed(made)
    attempt = made.records[REQUEST_ID].attempts[0]
    made.settle(attempt, state, LIMITED, NOW + 1)
    made.settle(attempt, state, Success(0.1), NOW + 2)
    assert "rate_limited" == made.health.view(A, NOW + 2).reason


def test_a_plan_for_an_endpoint_names_its_paths() -> None:
    assert [CHAT, CHAT] == [step.path for step in routed(gateway(config(BIG))).plan]
