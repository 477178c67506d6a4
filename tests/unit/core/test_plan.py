"""Who is tried, in which order and in which mode."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from extproc.config.snapshot import TargetKey
from extproc.core.health import HEALTHY, State, View
from extproc.core.outcome import RouteMode
from extproc.core.plan import Plan, Planned, Viewer, candidates, plan_request, plan_rest
from tests.unit.core.build import LONG_C, SMALL_A, A, B, C, chain, config, keys, provider, snapshot, target

COOLING = View(State.COOLING, eligible=False, reason="rate_limited", until=100.0)
TRIED_TICKETS = 1000


def all_healthy(key: TargetKey) -> View:
    """View every target as healthy."""
    return HEALTHY


def view(**by_provider: View) -> Viewer:
    """View the targets of these providers so, and every other one as healthy."""
    return lambda key: by_provider.get(key.provider, HEALTHY)


def slow(share: float) -> View:
    """View a target that gets only part of its traffic."""
    return View(State.DEGRADED, eligible=True, share=share, reason="slow")


def probe(share: float = 1.0) -> View:
    """View a half-open target."""
    return View(State.PROBING, eligible=True, share=share, probe=True, reason="rate_limited")


def plan(
    models: dict[str, Any],
    seen: Viewer = all_healthy,
    ticket: int = 0,
    requested: str = "big",
    protocol: Any = "openai",
    prefer: TargetKey | None = None,
    **more: Any,
) -> Plan:
    """Plan one request for a model of a config."""
    compiled = snapshot(config(models, **more))
    resolved = compiled.resolve(requested)
    assert resolved is not None
    return plan_request(compiled, resolved, protocol, seen, ticket, prefer=prefer)


def rest(
    models: dict[str, Any], tried: list[TargetKey], seen: Viewer = all_healthy, **more: Any
) -> tuple[Planned, ...]:
    """Plan what may follow failures of a request for `big`."""
    compiled = snapshot(config(models))
    resolved = compiled.resolve("big")
    assert resolved is not None
    return plan_rest(compiled, resolved, "openai", seen, 0, tried, **more)


def firsts(models: dict[str, Any], seen: Viewer = all_healthy) -> Counter[TargetKey]:
    """Count who goes first over many successive tickets."""
    compiled = snapshot(config(models))
    resolved = compiled.resolve("big")
    assert resolved is not None
    plans = (plan_request(compiled, resolved, "openai", seen, ticket) for ticket in range(TRIED_TICKETS))
    return Counter(made.planned[0].key for made in plans)


class TestTheOrder:
    def test_goes_by_tier_not_by_place_in_the_file(self) -> None:
        models = {"big": {"targets": [target(C, tier=2), target(A, tier=0), target(B, tier=1)]}}
        assert [A, B, C] == keys(plan(models).planned)

    def test_puts_fallback_models_behind_the_model_s_own_targets(self) -> None:
        models = {"big": chain(A, B, fallback=["small"]), "small": chain(SMALL_A)}
        assert [A, B, SMALL_A] == keys(plan(models).planned)

    def test_takes_fallback_models_in_the_order_of_the_file(self) -> None:
        models = {"big": chain(A, fallback=["y", "x"]), "x": chain(B), "y": chain(C)}
        assert [A, C, B] == keys(plan(models).planned)

    def test_follows_fallback_one_level_only(self) -> None:
        models = {"big": chain(A, fallback=["x"]), "x": chain(B, fallback=["y"]), "y": chain(C)}
        assert [A, B] == keys(plan(models).planned)

    def test_never_uses_context_fallback_for_a_new_request(self) -> None:
        models = {"big": chain(A, context_fallback=["long"]), "long": chain(LONG_C)}
        assert [A] == keys(plan(models).planned)

    def test_names_a_target_once_under_its_first_model(self) -> None:
        models = {"big": chain(A, B, fallback=["small"]), "small": chain(B, SMALL_A)}
        named = [(step.key, step.public_model) for step in plan(models).planned]
        assert [(A, "big"), (B, "big"), (SMALL_A, "small")] == named

    def test_fills_a_star_with_the_name_the_client_sent(self) -> None:
        models = {"any-*": {"targets": [{"provider": "a", "model": "*"}]}}
        assert [TargetKey("a", "any-1")] == keys(plan(models, requested="any-1").planned)

    def test_is_the_same_for_the_same_evidence(self) -> None:
        models = {"big": {"targets": [target(A), target(B), target(C)]}}
        assert plan(models, ticket=7) == plan(models, ticket=7)


class TestTheProtocol:
    MODELS: dict[str, Any] = {"big": chain(A, B)}  # noqa: RUF012
    PROVIDERS = {"b": provider("b", protocol="anthropic")}  # noqa: RUF012

    @pytest.mark.parametrize(("protocol", "expected"), [("openai", [A]), ("anthropic", [B])])
    def test_of_a_target_must_be_the_endpoint_s(self, protocol: str, expected: list[TargetKey]) -> None:
        assert expected == keys(plan(self.MODELS, protocol=protocol, providers=self.PROVIDERS).planned)

    def test_that_no_target_speaks_leaves_an_empty_plan_without_skips(self) -> None:
        assert Plan((), ()) == plan({"big": chain(A)}, protocol="anthropic")

    def test_leaves_the_only_target_of_a_protocol_in_mode_direct(self) -> None:
        planned = plan(self.MODELS, protocol="anthropic", providers=self.PROVIDERS).planned
        assert [RouteMode.DIRECT] == [step.mode for step in planned]


class TestWeights:
    def test_share_out_the_first_place(self) -> None:
        counts = firsts({"big": {"targets": [target(A, weight=3), target(B, weight=1)]}})
        assert {A: pytest.approx(750, abs=10), B: pytest.approx(250, abs=10)} == counts

    def test_hold_over_any_short_run(self) -> None:
        """Successive tickets fall evenly: of any sixteen requests about four go to the quarter."""
        compiled = snapshot(config({"big": {"targets": [target(A, weight=3), target(B, weight=1)]}}))
        resolved = compiled.resolve("big")
        assert resolved is not None
        plans = [plan_request(compiled, resolved, "openai", view(), ticket) for ticket in range(200)]
        first = [made.planned[0].key for made in plans]
        assert {3, 4, 5} >= {first[start : start + 16].count(B) for start in range(len(first) - 16)}

    def test_spread_over_the_second_places_too(self) -> None:
        models = {"big": {"targets": [target(A, weight=2), target(B), target(C)]}}
        compiled = snapshot(config(models))
        resolved = compiled.resolve("big")
        assert resolved is not None
        plans = [plan_request(compiled, resolved, "openai", view(), t).planned for t in range(TRIED_TICKETS)]
        second = Counter(planned[1].key for planned in plans if planned[0].key == A)
        assert {B: pytest.approx(250, abs=30), C: pytest.approx(250, abs=30)} == second

    def test_spread_the_traffic_of_a_failed_target_over_the_others(self) -> None:
        models = {"big": {"targets": [target(A, weight=2), target(B), target(C)]}}
        compiled = snapshot(config(models))
        resolved = compiled.resolve("big")
        assert resolved is not None
        tickets = [
            ticket
            for ticket in range(TRIED_TICKETS)
            if plan_request(compiled, resolved, "openai", view(), ticket).planned[0].key == A
        ]
        rests = (plan_rest(compiled, resolved, "openai", view(), ticket, [A]) for ticket in tickets)
        second = Counter(planned[0].key for planned in rests)
        assert {B: pytest.approx(250, abs=30), C: pytest.approx(250, abs=30)} == second

    def test_count_only_inside_a_tier(self) -> None:
        models = {"big": {"targets": [target(A, weight=1), target(B, weight=100, tier=1)]}}
        assert {A: TRIED_TICKETS} == firsts(models)

    def test_are_scaled_by_health(self) -> None:
        counts = firsts({"big": {"targets": [target(A), target(B)]}}, view(a=slow(0.25)))
        assert {A: pytest.approx(200, abs=15), B: pytest.approx(800, abs=15)} == counts


class TestHealth:
    def test_leaves_an_ill_target_out_with_the_reason(self) -> None:
        made = plan({"big": chain(A, B)}, view(a=COOLING))
        assert ([B], [(A, "big", "rate_limited")]) == (keys(made.planned), [tuple(skip) for skip in made.skipped])

    def test_gives_the_state_as_reason_when_there_is_no_other(self) -> None:
        made = plan({"big": chain(A, B)}, view(a=View(State.DOWN, eligible=False)))
        assert ["down"] == [skip.reason for skip in made.skipped]

    def test_spills_what_a_recovering_tier_may_not_take_to_the_next(self) -> None:
        counts = firsts({"big": chain(A, B)}, view(a=slow(0.3)))
        assert {A: pytest.approx(300, abs=15), B: pytest.approx(700, abs=15)} == counts

    def test_spills_to_a_fallback_model_when_the_whole_model_recovers(self) -> None:
        counts = firsts({"big": chain(A, fallback=["small"]), "small": chain(B)}, view(a=slow(0.5)))
        assert {A: pytest.approx(500, abs=15), B: pytest.approx(500, abs=15)} == counts

    def test_spills_on_over_several_recovering_tiers(self) -> None:
        counts = firsts({"big": chain(A, B, C)}, view(a=slow(0.5), b=slow(0.5)))
        expected = {A: pytest.approx(500, abs=20), B: pytest.approx(250, abs=20), C: pytest.approx(250, abs=20)}
        assert expected == counts

    def test_keeps_a_lone_recovering_target_in_use(self) -> None:
        assert {A: TRIED_TICKETS} == firsts({"big": chain(A)}, view(a=slow(0.1)))

    def test_keeps_who_gave_way_as_the_next_to_try(self) -> None:
        planned = plan({"big": chain(A, B)}, view(a=slow(0.001)), ticket=1).planned
        assert [B, A] == keys(planned)

    def test_marks_the_one_live_request_of_a_half_open_target(self) -> None:
        planned = plan({"big": chain(A, B)}, view(a=probe())).planned
        assert [(A, True), (B, False)] == [(step.key, step.probe) for step in planned]

    def test_is_asked_after_all_others_where_it_is_not_the_first(self) -> None:
        """Its second place is in the plans of all requests of the moment, and its probe is to be a single one."""
        planned = plan({"big": chain(A, B, C)}, view(b=probe())).planned
        assert [A, C, B] == keys(planned)

    def test_is_asked_after_fallback_models_too_where_it_is_not_the_first(self) -> None:
        models = {"big": chain(A, B, fallback=["small"]), "small": chain(C)}
        assert [(A, "big"), (C, "small"), (B, "big")] == [
            (step.key, step.public_model) for step in plan(models, view(b=probe())).planned
        ]


class TestTheMode:
    @pytest.mark.parametrize(
        ("models", "seen", "expected"),
        [
            ({"big": chain(A)}, view(), ["direct"]),
            ({"big": chain(A, B)}, view(), ["balanced", "provider_failover"]),
            ({"big": {"targets": [target(A), target(B)]}}, view(), ["balanced", "provider_failover"]),
            ({"big": chain(A, B)}, view(a=COOLING), ["health_reroute"]),
            ({"big": chain(A, B)}, view(b=COOLING), ["balanced"]),
            ({"big": chain(A, B, C)}, view(a=COOLING), ["health_reroute", "provider_failover"]),
            (
                {"big": chain(A, fallback=["s"]), "s": chain(B, C)},
                view(),
                ["direct", "model_fallback", "model_fallback"],
            ),
            ({"big": chain(A, fallback=["s"]), "s": chain(B)}, view(a=COOLING), ["model_fallback"]),
            ({"big": chain(A, B)}, view(a=COOLING, b=COOLING), ["last_resort", "last_resort"]),
        ],
    )
    def test_of_each_step_says_how_it_came_to_serve(
        self, models: dict[str, Any], seen: Viewer, expected: list[str]
    ) -> None:
        assert expected == [step.mode for step in plan(models, seen).planned]

    def test_is_health_reroute_when_a_recovering_tier_gives_way(self) -> None:
        planned = plan({"big": chain(A, B)}, view(a=slow(0.001)), ticket=1).planned
        assert [(B, "health_reroute"), (A, "provider_failover")] == [(step.key, step.mode) for step in planned]

    def test_is_balanced_when_only_weights_chose_another_target(self) -> None:
        models = {"big": {"targets": [target(A), target(B)]}}
        assert {"balanced"} == {plan(models, ticket=ticket).planned[0].mode for ticket in range(10)}


class TestWhenAllAreDown:
    MODELS: dict[str, Any] = {"big": chain(A, fallback=["small"]), "small": chain(B)}  # noqa: RUF012

    def test_least_bad_offers_every_target_as_a_last_resort(self) -> None:
        made = plan(self.MODELS, view(a=COOLING, b=COOLING))
        assert [(A, "last_resort"), (B, "last_resort")] == [(step.key, step.mode) for step in made.planned]

    def test_fail_offers_none_but_says_why(self) -> None:
        made = plan(self.MODELS, view(a=COOLING, b=COOLING), policy={"when_all_down": "fail"})
        assert ([], [A, B]) == (keys(made.planned), [skip.key for skip in made.skipped])


class TestASession:
    MODELS: dict[str, Any] = {"big": {"targets": [target(A), target(B), target(C, tier=1)]}}  # noqa: RUF012

    @pytest.mark.parametrize("own", [A, B, C])
    @pytest.mark.parametrize("ticket", range(4))
    def test_stays_on_its_own_target(self, own: TargetKey, ticket: int) -> None:
        planned = plan(self.MODELS, ticket=ticket, prefer=own).planned
        assert (own, {A, B, C}) == (planned[0].key, set(keys(planned)))

    @pytest.mark.parametrize("ill", [COOLING, slow(0.5), probe()])
    def test_leaves_a_target_that_is_not_fully_healthy(self, ill: View) -> None:
        tickets = range(20)
        moved = [plan(self.MODELS, view(a=ill), ticket=ticket, prefer=A).planned[0].key for ticket in tickets]
        unbound = [plan(self.MODELS, view(a=ill), ticket=ticket).planned[0].key for ticket in tickets]
        assert unbound == moved

    def test_of_a_target_that_is_no_longer_configured_is_planned_like_any_other(self) -> None:
        assert plan(self.MODELS) == plan(self.MODELS, prefer=TargetKey("gone", "gone"))


class TestTheRestAfterFailures:
    MODELS: dict[str, Any] = {  # noqa: RUF012
        "big": chain(A, B, fallback=["small"], context_fallback=["long"]),
        "small": chain(SMALL_A),
        "long": chain(LONG_C),
    }

    def test_is_what_was_not_tried_in_order_and_with_modes_of_later_attempts(self) -> None:
        steps = [(step.key, step.mode) for step in rest(self.MODELS, [A])]
        assert [(B, "provider_failover"), (SMALL_A, "model_fallback")] == steps

    def test_leaves_out_what_turned_ill_meanwhile(self) -> None:
        assert [SMALL_A] == keys(rest(self.MODELS, [A], view(b=COOLING)))

    def test_is_empty_when_everything_was_tried(self) -> None:
        assert () == rest(self.MODELS, [A, B, SMALL_A])

    def test_is_only_the_context_fallback_for_a_context_that_is_too_long(self) -> None:
        steps = [(step.key, step.mode) for step in rest(self.MODELS, [A], context=True)]
        assert [(LONG_C, "model_fallback")] == steps

    def test_tries_a_half_open_target_of_a_lower_tier_after_the_healthy_ones(self) -> None:
        assert [B, C] == keys(rest({"big": chain(A, C, B)}, [A], view(c=probe())))

    def test_tries_a_half_open_target_after_the_healthy_ones_of_its_tier(self) -> None:
        models = {"big": {"targets": [target(A), target(B), target(C)]}}
        compiled = snapshot(config(models))
        resolved = compiled.resolve("big")
        assert resolved is not None
        firsts = {plan_rest(compiled, resolved, "openai", view(b=probe()), ticket, [A])[0].key for ticket in range(20)}
        assert {C} == firsts


def test_candidates_name_every_target_of_a_protocol_tier_by_tier() -> None:
    models = {"big": {"targets": [target(B, tier=1), target(A)]}, "small": chain(SMALL_A, B)}
    compiled = snapshot(config(models))
    resolved = compiled.resolve("big")
    assert resolved is not None
    found = [(model.name, key) for model, _, key in candidates(compiled, resolved, ["small"], "openai")]
    assert [("big", A), ("big", B), ("small", SMALL_A)] == found
