"""The state that all exchanges share: versions, plans from live health and sessions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from extproc.core.gateway import KEPT_VERSIONS, Gateway
from extproc.core.open_requests import COUNTED_MAX_AGE_S, REPORT_GRACE_S
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.request_state import RequestState
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
    served,
    target,
    trip,
)

BIG: dict[str, Any] = {"big": chain(A, B)}
LIMITED = Failure(ErrorClass.RATE_LIMITED, 429)


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
            made.requests.by_id[state.id] = made.requests.by_id.pop(REQUEST_ID)
            made.requests.by_id[state.id].state = state
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
            made.requests.open_attempt(dataclasses.replace(routed(made, model="small"), id=f"small-{number}"), NOW)
        assert made.active is not None
        assert [C, A] == keys(made.rest(waiting, made.active, NOW, context=False))

    def test_is_the_next_target_when_there_is_no_other(self) -> None:
        made = self.made({"big": chain(B, A), "small": chain(A)})
        (waiting,) = self.arrive(made, 1)
        for number in range(2):
            made.requests.open_attempt(dataclasses.replace(routed(made, model="small"), id=f"small-{number}"), NOW)
        assert made.active is not None
        assert [A] == keys(made.rest(waiting, made.active, NOW, context=False))

    def test_has_room_again_when_an_attempt_has_its_verdict(self) -> None:
        made = self.made()
        first, _ = self.arrive(made, 2)
        made.requests.attempt_failed(first, Failure(ErrorClass.INVALID_REQUEST, 400), NOW)
        assert 1 == made.in_flight.count("a")

    def test_has_room_again_when_a_request_is_forgotten(self) -> None:
        made = self.made()
        first, _ = self.arrive(made, 2)
        made.requests.reported(made.requests.by_id[first.id], 2, NOW)
        made.requests.sweep(NOW + REPORT_GRACE_S + 1)
        assert 1 == made.in_flight.count("a")

    def test_does_not_count_for_long_what_was_never_reported(self) -> None:
        """The request may go on: it keeps its record, and its verdict counts nothing twice."""
        made = self.made()
        first, _ = self.arrive(made, 2)
        made.requests.sweep(NOW + COUNTED_MAX_AGE_S + 1)
        served(made, first)
        assert (0, 1) == (made.in_flight.count("a"), made.requests.by_id[first.id].logged)


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
        served(made, made.requests.by_id[REQUEST_ID].state)
        assert [own] * 6 == [self.first(made, NOW + 2) for _ in range(6)]

    def test_stays_with_the_target_that_its_first_request_was_planned_for(self) -> None:
        """The next request may come before Envoy has told who served the first."""
        made = gateway(config(self.MODELS))
        assert 1 == len({self.first(made, NOW + second) for second in range(6)})

    def test_moves_with_a_request_that_failed_over(self) -> None:
        made = gateway(config(self.MODELS))
        state = routed(made, user="u")
        other = state.plan[1].key
        made.requests.attempt_failed(state, Failure(ErrorClass.SERVER_ERROR, 500), NOW + 1)
        second = state.opened(2, NOW + 1, ("server_error",))
        made.requests.open_attempt(second, NOW + 1)
        made.requests.by_id[REQUEST_ID].logged = 1
        served(made, second)
        assert {other} == {self.first(made, NOW + 2) for _ in range(6)}

    def test_is_its_own_caller_s_alone(self) -> None:
        made = gateway(config(self.MODELS))
        self.first(made, NOW)
        served(made, made.requests.by_id[REQUEST_ID].state)
        assert {A, B} == {self.first(made, NOW + 2, user=f"other-{number}") for number in range(6)}

    def test_is_forgotten_after_its_time_to_live(self) -> None:
        made = gateway(config(self.MODELS))
        self.first(made, NOW)
        served(made, made.requests.by_id[REQUEST_ID].state, NOW + 1)
        sessions = [made.affinity.find(record.session or b"", NOW + 61) for record in made.requests.by_id.values()]
        assert [None] == sessions

    def test_is_not_prolonged_by_an_attempt_that_failed(self) -> None:
        made = gateway(config(self.MODELS))
        state = routed(made, user="u")
        made.requests.attempt_failed(state, Failure(ErrorClass.SERVER_ERROR, 500), NOW + 1)
        session = made.requests.by_id[REQUEST_ID].session or b""
        served(made, state)
        assert None is made.affinity.find(session, NOW + 60)

    def test_returns_to_its_own_model_once_that_has_recovered(self) -> None:
        """One that fell back would otherwise stay with the fallback model as long as it is in use."""
        made = gateway(config(self.MODELS, {"cooldown": {"base": "5s", "jitter": 0}}))
        for key in (A, B):
            made.health.drain(key, "op", "", NOW + 5, NOW)
        assert C == self.first(made, NOW)
        served(made, made.requests.by_id[REQUEST_ID].state)
        assert self.first(made, NOW + 10) in (A, B)


def test_a_target_that_paces_itself_is_rested_until_its_limit_is_whole() -> None:
    made = gateway(config(BIG))
    made.pace(A, NOW + 30, NOW)
    views = [made.health.view(A, NOW + later) for later in (1, 31)]
    assert [(False, "paced"), (True, None)] == [(view.eligible, view.reason) for view in views]


def test_a_plan_for_an_endpoint_names_its_paths() -> None:
    assert [CHAT, CHAT] == [step.path for step in routed(gateway(config(BIG))).plan]
