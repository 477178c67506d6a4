"""When targets and provider accounts trip, how long they rest, and how they come back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from extproc.config.snapshot import Cooldown, TargetKey
from extproc.core.health import CELLS_KEPT, HealthEngine, Permit, State, Success, Transition, View
from extproc.core.outcome import ErrorClass, Failure

A1, A2, A3 = (TargetKey("a", name) for name in ("one", "two", "three"))
B1 = TargetKey("b", "one")
START = 1_000_000.0
COOLDOWN = Cooldown(
    base_s=15.0,
    factor=2.0,
    max_s=120.0,
    jitter=0.1,
    consecutive=3,
    failure_ratio=0.5,
    window_s=30.0,
    min_requests=5,
    quota_s=1800.0,
    cap_s=86_400.0,
)
STATUS = {
    ErrorClass.RATE_LIMITED: 429,
    ErrorClass.QUOTA_EXHAUSTED: 429,
    ErrorClass.AUTH_REJECTED: 401,
    ErrorClass.MODEL_UNAVAILABLE: 404,
    ErrorClass.OVERLOADED: 503,
    ErrorClass.SERVER_ERROR: 500,
    ErrorClass.CONTEXT_LENGTH: 400,
    ErrorClass.CONTENT_FILTERED: 400,
    ErrorClass.INVALID_REQUEST: 400,
}
SLOW_TO_TRIP = (
    ErrorClass.SERVER_ERROR,
    ErrorClass.OVERLOADED,
    ErrorClass.TIMEOUT,
    ErrorClass.BAD_ANSWER,
    ErrorClass.STREAM_CUT,
    ErrorClass.STREAM_STALL,
)
NOBODYS = (
    ErrorClass.CONTEXT_LENGTH,
    ErrorClass.CONTENT_FILTERED,
    ErrorClass.INVALID_REQUEST,
    ErrorClass.CLIENT_ABORT,
)


class World:
    """An engine, a clock and a policy; `draw` is what every die shows (0.5: no jitter)."""

    def __init__(self, draw: float = 0.5, **policy: Any) -> None:
        self.engine = HealthEngine(lambda: draw)
        self.now = START
        self.cooldown = replace(COOLDOWN, **policy)
        self.told: list[Transition] = []

    def begin(self, key: TargetKey = A1) -> Permit:
        return self.engine.begin(key, self.now)

    def end(self, permit: Permit, verdict: Failure | Success | None) -> None:
        self.told += self.engine.end(permit, verdict, self.now, self.cooldown)

    def ok(self, key: TargetKey = A1, times: int = 1) -> None:
        for _ in range(times):
            self.end(self.begin(key), Success())

    def fail(self, kind: ErrorClass, key: TargetKey = A1, *, times: int = 1, retry_in_s: float | None = None) -> None:
        for _ in range(times):
            self.end(self.begin(key), self.failure(kind, retry_in_s))

    def failure(self, kind: ErrorClass, retry_in_s: float | None = None) -> Failure:
        return Failure(kind, STATUS.get(kind), None if retry_in_s is None else self.now + retry_in_s)

    def view(self, key: TargetKey = A1) -> View:
        return self.engine.view(key, self.now)

    def state(self, key: TargetKey = A1) -> State:
        return self.view(key).state

    def cooling_s(self, key: TargetKey = A1) -> float:
        view = self.view(key)
        assert view.until is not None
        return view.until - self.now

    def own_state(self, subject: TargetKey | str) -> State:
        return next(row.view.state for row in self.engine.states(self.now) if row.subject == subject)


@pytest.fixture
def world() -> World:
    return World()


# What trips, and what is charged.


def test_an_unknown_target_is_healthy(world: World) -> None:
    assert View(State.HEALTHY, True, 1.0, False, None, None) == world.view()


@pytest.mark.parametrize("kind", [ErrorClass.RATE_LIMITED, ErrorClass.MODEL_UNAVAILABLE])
def test_a_clear_refusal_cools_the_target_at_once_and_not_its_account(world: World, kind: ErrorClass) -> None:
    world.fail(kind)
    assert View(State.COOLING, False, 1.0, False, START + 15, kind.value) == world.view(A1)
    assert State.HEALTHY is world.state(A2)


@pytest.mark.parametrize(
    ("kind", "expected_s"), [(ErrorClass.AUTH_REJECTED, 15.0), (ErrorClass.QUOTA_EXHAUSTED, 1800.0)]
)
def test_a_fault_of_the_account_cools_all_its_targets(world: World, kind: ErrorClass, expected_s: float) -> None:
    world.fail(kind)
    assert View(State.COOLING, False, 1.0, False, START + expected_s, kind.value) == world.view(A2)
    assert State.HEALTHY is world.state(B1)


@pytest.mark.parametrize("kind", SLOW_TO_TRIP)
def test_other_faults_trip_after_so_many_in_a_row(world: World, kind: ErrorClass) -> None:
    world.fail(kind, times=2)
    assert State.HEALTHY is world.state()
    world.fail(kind)
    assert State.COOLING is world.state()
    assert State.HEALTHY is world.state(A2)


@pytest.mark.parametrize("kind", [*SLOW_TO_TRIP, ErrorClass.CONNECTION])
def test_any_fault_with_a_time_trips_at_once_until_then(world: World, kind: ErrorClass) -> None:
    world.fail(kind, retry_in_s=40.0)
    assert State.COOLING is world.state()
    assert 40.0 == world.cooling_s()


@pytest.mark.parametrize("kind", NOBODYS)
def test_a_fault_of_the_request_or_the_caller_changes_nothing(world: World, kind: ErrorClass) -> None:
    world.fail(kind, times=50, retry_in_s=60.0)
    assert View.healthy() == world.view()
    assert [] == world.told


def test_a_failure_that_does_not_tell_whose_fault_it_is_changes_nothing(world: World) -> None:
    for _ in range(50):
        world.end(world.begin(), Failure(ErrorClass.MODEL_UNAVAILABLE, 404, vague=True))
    assert View.healthy() == world.view()
    assert [] == world.told


def test_an_attempt_without_verdict_changes_nothing(world: World) -> None:
    for _ in range(50):
        world.end(world.begin(), None)
    assert View.healthy() == world.view()


def test_connection_failures_of_several_targets_add_up_on_the_account(world: World) -> None:
    for key in (A1, A2, A3):
        world.fail(ErrorClass.CONNECTION, key)
    assert State.COOLING is world.own_state("a")
    assert State.HEALTHY is world.own_state(A1)


def test_an_answered_error_breaks_a_row_of_connection_failures() -> None:
    world = World(min_requests=100)
    world.fail(ErrorClass.CONNECTION, times=2)
    world.fail(ErrorClass.SERVER_ERROR)
    world.fail(ErrorClass.CONNECTION, times=2)
    assert State.HEALTHY is world.state()


def test_a_success_breaks_the_row() -> None:
    world = World(min_requests=100)
    for _ in range(4):
        world.fail(ErrorClass.SERVER_ERROR, times=2)
        world.ok(times=4)
    assert State.HEALTHY is world.state()


def test_a_success_that_began_before_the_failures_does_not_break_the_row(world: World) -> None:
    old = world.begin()
    world.fail(ErrorClass.SERVER_ERROR, times=2)
    world.end(old, Success())
    world.fail(ErrorClass.SERVER_ERROR)
    assert State.COOLING is world.state()


def test_a_busy_target_does_not_trip_on_a_few_quick_failures_among_slow_successes(world: World) -> None:
    for _ in range(30):
        slow = [world.begin() for _ in range(9)]
        world.fail(ErrorClass.SERVER_ERROR)
        for permit in slow:
            world.end(permit, Success())
        world.now += 0.1
    assert State.HEALTHY is world.state()


def test_a_high_share_of_failures_trips_without_a_row(world: World) -> None:
    world.cooldown = replace(world.cooldown, consecutive=100)
    for _ in range(3):
        world.ok()
        world.fail(ErrorClass.SERVER_ERROR)
    assert State.COOLING is world.state()


def test_a_share_of_too_few_requests_does_not_trip(world: World) -> None:
    world.cooldown = replace(world.cooldown, consecutive=100)
    world.fail(ErrorClass.SERVER_ERROR, times=4)
    assert State.HEALTHY is world.state()


def test_failures_older_than_the_window_do_not_count_in_the_share(world: World) -> None:
    world.cooldown = replace(world.cooldown, consecutive=100)
    world.fail(ErrorClass.SERVER_ERROR, times=4)
    world.now += 31.0
    world.fail(ErrorClass.SERVER_ERROR)
    assert State.HEALTHY is world.state()


def test_a_lower_share_of_failures_does_not_trip(world: World) -> None:
    world.cooldown = replace(world.cooldown, consecutive=100)
    for _ in range(50):
        world.ok(times=2)
        world.fail(ErrorClass.SERVER_ERROR)
    assert State.HEALTHY is world.state()


# How long a cooldown lasts.


def trip_again(world: World, kind: ErrorClass = ErrorClass.RATE_LIMITED) -> float:
    """Let the cooldown end, fail the probe, and return the next one's length."""
    world.now += world.cooling_s()
    assert world.view().probe
    world.fail(kind)
    return world.cooling_s()


def test_cooldowns_grow_by_the_factor_up_to_the_maximum(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED)
    lengths = [world.cooling_s(), *(trip_again(world) for _ in range(5))]
    assert [15.0, 30.0, 60.0, 120.0, 120.0, 120.0] == lengths


def test_cooldowns_of_a_fault_grow_to_a_quarter_of_the_outage_so_far(world: World) -> None:
    world.fail(ErrorClass.SERVER_ERROR, times=3)
    lengths = [world.cooling_s(), *(trip_again(world, ErrorClass.SERVER_ERROR) for _ in range(30))]
    assert [15.0, 15.0, 15.0, 15.0, 15.0, 18.75] == lengths[:6]
    assert [120.0, 120.0] == lengths[-2:]


def test_a_small_base_still_grows_by_the_factor() -> None:
    world = World(base_s=1.0)
    world.fail(ErrorClass.SERVER_ERROR, times=3)
    world.now += 100.0
    lengths = []
    for _ in range(4):
        world.fail(ErrorClass.SERVER_ERROR)
        lengths.append(world.cooling_s())
        world.now += world.cooling_s()
    assert [2.0, 4.0, 8.0, 16.0] == lengths


def test_a_rejected_key_cools_longer_each_time(world: World) -> None:
    world.fail(ErrorClass.AUTH_REJECTED)
    assert 30.0 == trip_again(world, ErrorClass.AUTH_REJECTED)


def test_a_spent_quota_cools_as_long_each_time(world: World) -> None:
    world.fail(ErrorClass.QUOTA_EXHAUSTED)
    assert 1800.0 == trip_again(world, ErrorClass.QUOTA_EXHAUSTED)


@pytest.mark.parametrize(("draw", "expected_s"), [(0.0, 13.5), (0.5, 15.0), (1.0, 16.5)])
def test_the_length_is_jittered(draw: float, expected_s: float) -> None:
    world = World(draw)
    world.fail(ErrorClass.RATE_LIMITED)
    assert expected_s == pytest.approx(world.cooling_s())


def test_a_told_time_is_taken_at_its_word_the_first_time(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1, retry_in_s=300.0)
    assert 300.0 == world.cooling_s(A1)
    world.fail(ErrorClass.RATE_LIMITED, B1, retry_in_s=2.0)
    assert 2.0 == world.cooling_s(B1)


def test_a_told_time_that_proved_wrong_is_only_a_floor(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1, retry_in_s=2.0)
    world.now += 3.0
    world.fail(ErrorClass.RATE_LIMITED, A1, retry_in_s=2.0)
    assert 15.0 == world.cooling_s(A1)


def test_a_told_time_is_capped() -> None:
    world = World(cap_s=600.0)
    world.fail(ErrorClass.RATE_LIMITED, retry_in_s=1e9)
    assert 600.0 == world.cooling_s()


def test_later_failures_of_the_same_fault_neither_shorten_nor_lengthen_a_cooldown(world: World) -> None:
    under_way = [world.begin() for _ in range(5)]
    world.fail(ErrorClass.RATE_LIMITED, retry_in_s=60.0)
    for permit in under_way:
        world.now += 1.0
        world.end(permit, world.failure(ErrorClass.RATE_LIMITED))
    assert 55.0 == world.cooling_s()


def test_a_later_told_time_lengthens_a_cooldown_and_an_earlier_one_does_not(world: World) -> None:
    late, early = world.begin(), world.begin()
    world.fail(ErrorClass.RATE_LIMITED, retry_in_s=60.0)
    world.end(late, world.failure(ErrorClass.RATE_LIMITED, 90.0))
    world.end(early, world.failure(ErrorClass.RATE_LIMITED, 5.0))
    assert 90.0 == world.cooling_s()


def test_failures_under_way_when_a_target_tripped_do_not_count_as_a_new_streak(world: World) -> None:
    under_way = [world.begin() for _ in range(20)]
    for permit in under_way:
        world.end(permit, world.failure(ErrorClass.SERVER_ERROR))
    assert 15.0 == world.cooling_s()


# What the policy says: every number of `cooldown` moves the decision that it is about.


@pytest.mark.parametrize("consecutive", [1, 2, 4])
def test_a_target_trips_after_as_many_failures_in_a_row_as_the_policy_says(consecutive: int) -> None:
    world = World(consecutive=consecutive, min_requests=100)
    world.fail(ErrorClass.SERVER_ERROR, times=consecutive - 1)
    assert State.HEALTHY is world.state()
    world.fail(ErrorClass.SERVER_ERROR)
    assert State.COOLING is world.state()


@pytest.mark.parametrize(
    ("failure_ratio", "expected"), [(0.4, State.COOLING), (0.5, State.HEALTHY), (0.6, State.HEALTHY)]
)
def test_a_target_trips_at_the_share_of_failures_that_the_policy_says(failure_ratio: float, expected: State) -> None:
    world = World(consecutive=100, failure_ratio=failure_ratio)
    world.ok(times=3)
    world.fail(ErrorClass.SERVER_ERROR, times=2)
    assert expected is world.state()


@pytest.mark.parametrize(("min_requests", "expected"), [(4, State.COOLING), (5, State.HEALTHY)])
def test_a_share_counts_from_as_many_requests_as_the_policy_says(min_requests: int, expected: State) -> None:
    world = World(consecutive=100, min_requests=min_requests)
    world.fail(ErrorClass.SERVER_ERROR, times=4)
    assert expected is world.state()


@pytest.mark.parametrize(("window_s", "expected"), [(30.0, State.HEALTHY), (60.0, State.COOLING)])
def test_failures_count_for_as_long_as_the_policy_says(window_s: float, expected: State) -> None:
    world = World(consecutive=100, window_s=window_s)
    world.fail(ErrorClass.SERVER_ERROR, times=4)
    world.now += 31.0
    world.fail(ErrorClass.SERVER_ERROR)
    assert expected is world.state()


@pytest.mark.parametrize(("factor", "expected"), [(1.0, [15.0, 15.0, 15.0]), (2.5, [15.0, 37.5, 93.75])])
def test_cooldowns_grow_by_the_factor_that_the_policy_says(factor: float, expected: list[float]) -> None:
    world = World(factor=factor)
    world.fail(ErrorClass.RATE_LIMITED)
    assert expected == [world.cooling_s(), trip_again(world), trip_again(world)]


def test_cooldowns_grow_up_to_the_maximum_that_the_policy_says() -> None:
    world = World(max_s=20.0)
    world.fail(ErrorClass.RATE_LIMITED)
    assert [15.0, 20.0, 20.0] == [world.cooling_s(), trip_again(world), trip_again(world)]


@pytest.mark.parametrize(("jitter", "expected_s"), [(0.0, 15.0), (0.4, 21.0)])
def test_the_length_is_jittered_by_the_share_that_the_policy_says(jitter: float, expected_s: float) -> None:
    world = World(draw=1.0, jitter=jitter)
    world.fail(ErrorClass.RATE_LIMITED)
    assert expected_s == pytest.approx(world.cooling_s())


def test_a_spent_quota_cools_as_long_as_the_policy_says() -> None:
    world = World(quota_s=600.0)
    world.fail(ErrorClass.QUOTA_EXHAUSTED)
    assert 600.0 == world.cooling_s()


# Half-open: one live request at a time.


@pytest.fixture
def half_open(world: World) -> World:
    """Return a world whose A1 has just ended its cooldown."""
    world.fail(ErrorClass.RATE_LIMITED)
    world.now += 15.0
    return world


def test_after_the_cooldown_one_live_request_may_try(half_open: World) -> None:
    assert View(State.PROBING, True, 1.0, True, None, "rate_limited") == half_open.view()
    assert half_open.begin().probe
    assert View(State.PROBING, False, 1.0, False, None, "rate_limited") == half_open.view()
    assert not half_open.begin().probe


def test_looking_does_not_take_the_slot(half_open: World) -> None:
    views = {half_open.view() for _ in range(10)}
    assert {True} == {view.probe for view in views}


@pytest.mark.parametrize("kind", [None, *NOBODYS, ErrorClass.CONNECTION])
def test_a_probe_that_says_nothing_of_the_target_gives_its_slot_back(half_open: World, kind: ErrorClass | None) -> None:
    probe = half_open.begin()
    half_open.end(probe, None if kind is None else half_open.failure(kind))
    assert half_open.view().probe


def test_a_probe_of_which_nothing_is_heard_loses_its_slot(half_open: World) -> None:
    half_open.begin()
    half_open.now += 59.9
    assert not half_open.view().eligible
    half_open.now += 0.1
    assert half_open.begin().probe


def test_a_lost_probe_does_not_free_the_slot_of_its_successor(half_open: World) -> None:
    lost = half_open.begin()
    half_open.now += 60.0
    half_open.begin()
    half_open.end(lost, None)
    assert not half_open.view().eligible


def test_a_refused_probe_cools_longer(half_open: World) -> None:
    half_open.fail(ErrorClass.MODEL_UNAVAILABLE)
    assert View(State.COOLING, False, 1.0, False, half_open.now + 30, "model_unavailable") == half_open.view()


def test_a_probe_that_meets_a_fault_cools_as_long_again(half_open: World) -> None:
    half_open.fail(ErrorClass.SERVER_ERROR)
    assert View(State.COOLING, False, 1.0, False, half_open.now + 15, "server_error") == half_open.view()


def test_a_good_probe_ends_the_cooldown(half_open: World) -> None:
    half_open.ok()
    assert View(State.DEGRADED, True, 0.1, False, None, "recovering") == half_open.view()


def test_a_success_that_began_before_the_cooldown_does_not_end_it(world: World) -> None:
    old = world.begin()
    world.fail(ErrorClass.RATE_LIMITED)
    world.end(old, Success())
    assert State.COOLING is world.state()


def test_a_success_that_began_before_the_cooldown_does_not_end_it_when_it_is_half_open(world: World) -> None:
    old = world.begin()
    world.fail(ErrorClass.RATE_LIMITED)
    world.now += 15.0
    world.end(old, Success())
    assert State.PROBING is world.state()


def test_a_last_resort_success_during_the_cooldown_does_not_end_it(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED)
    world.now += 5.0
    world.ok()
    assert State.COOLING is world.state()


def test_a_probe_overtaken_by_a_newer_cooldown_does_not_end_that(half_open: World) -> None:
    late = half_open.engine.begin(A1, START)  # under way since the first cooldown
    probe = half_open.engine.begin(A1, half_open.now)
    half_open.end(late, half_open.failure(ErrorClass.RATE_LIMITED, 40.0))
    half_open.end(probe, Success())
    assert State.COOLING is half_open.state()


def test_a_failure_under_way_since_the_cooldown_is_not_a_failed_probe(half_open: World) -> None:
    half_open.end(half_open.engine.begin(A1, START), half_open.failure(ErrorClass.TIMEOUT))
    assert half_open.view().probe


def test_an_old_failure_after_recovery_does_not_count(half_open: World) -> None:
    half_open.cooldown = replace(half_open.cooldown, consecutive=1)
    old = half_open.engine.begin(A1, START)
    half_open.ok()
    half_open.end(old, half_open.failure(ErrorClass.TIMEOUT))
    assert State.DEGRADED is half_open.state()


# Recovery, step by step.


def test_traffic_comes_back_with_time(half_open: World) -> None:
    half_open.ok()
    shares = []
    for _ in range(4):
        shares.append(half_open.view().share)
        half_open.now += 4.0
    assert [0.1, 0.25, 0.5, 1.0] == shares


def test_traffic_comes_back_sooner_with_successes(half_open: World) -> None:
    half_open.ok()
    shares = []
    for _ in range(4):
        shares.append(half_open.view().share)
        half_open.ok(times=5)
    assert [0.1, 0.25, 0.5, 1.0] == shares
    assert State.HEALTHY is half_open.state()


def test_a_fault_during_recovery_continues_the_streak(half_open: World) -> None:
    half_open.ok()
    half_open.now += 8.0
    half_open.fail(ErrorClass.RATE_LIMITED)
    assert 30.0 == half_open.cooling_s()


def test_a_full_recovery_ends_the_streak(half_open: World) -> None:
    half_open.ok()
    half_open.now += 12.0
    half_open.fail(ErrorClass.RATE_LIMITED)
    assert 15.0 == half_open.cooling_s()


# The provider account.


def test_two_targets_that_trip_promote_the_fault_to_the_account(world: World) -> None:
    world.fail(ErrorClass.SERVER_ERROR, A1, times=3)
    assert State.HEALTHY is world.state(A3)
    world.fail(ErrorClass.SERVER_ERROR, A2, times=3)
    assert View(State.COOLING, False, 1.0, False, START + 15, "server_error") == world.view(A3)


def test_two_trips_further_apart_than_the_window_promote_nothing(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1, retry_in_s=100.0)
    world.now += 31.0
    world.fail(ErrorClass.RATE_LIMITED, A2)
    assert State.HEALTHY is world.state(A3)


def test_one_target_that_trips_twice_promotes_nothing(half_open: World) -> None:
    half_open.fail(ErrorClass.RATE_LIMITED)
    assert State.HEALTHY is half_open.state(A2)


def test_two_missing_models_promote_nothing(world: World) -> None:
    world.fail(ErrorClass.MODEL_UNAVAILABLE, A1)
    world.fail(ErrorClass.MODEL_UNAVAILABLE, A2)
    assert State.HEALTHY is world.state(A3)


def test_a_success_between_two_trips_prevents_promotion(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.ok(A3)
    world.fail(ErrorClass.RATE_LIMITED, A2)
    assert State.HEALTHY is world.own_state("a")


def test_an_old_success_between_two_trips_does_not_prevent_promotion(world: World) -> None:
    old = world.begin(A3)
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.end(old, Success())
    world.fail(ErrorClass.RATE_LIMITED, A2)
    assert State.COOLING is world.own_state("a")


def test_a_success_that_began_after_promotion_demotes_the_account(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.fail(ErrorClass.RATE_LIMITED, A2)
    world.ok(A3)
    assert State.DEGRADED is world.own_state("a")
    assert State.COOLING is world.own_state(A1)


def test_a_success_that_began_before_promotion_does_not_demote(world: World) -> None:
    old = world.begin(A3)
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.fail(ErrorClass.RATE_LIMITED, A2)
    world.end(old, Success())
    assert State.COOLING is world.own_state("a")


def test_a_promoted_account_whose_probe_fails_cools_longer(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1, retry_in_s=600.0)
    world.fail(ErrorClass.RATE_LIMITED, A2, retry_in_s=600.0)
    world.now += 15.0
    world.fail(ErrorClass.RATE_LIMITED, A3)
    assert 30.0 == world.cooling_s(A3)


def test_failures_under_way_at_promotion_do_not_cool_the_account_longer(world: World) -> None:
    under_way = [world.begin(A3) for _ in range(10)]
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.fail(ErrorClass.RATE_LIMITED, A2)
    for permit in under_way:
        world.end(permit, world.failure(ErrorClass.SERVER_ERROR))
    assert 15.0 == world.cooling_s(A3)


def test_a_target_and_its_account_recovering_together_keep_the_lesser_share(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.fail(ErrorClass.RATE_LIMITED, A2)
    world.now += 11.0
    world.ok(A3)
    world.now += 4.0
    world.ok(A1)
    assert (0.25, 0.1) == (world.view(A3).share, world.view(A1).share)


def test_a_half_open_account_lets_one_request_through_for_all_its_targets(world: World) -> None:
    world.fail(ErrorClass.QUOTA_EXHAUSTED, A1)
    world.now += 1800.0
    assert (True, True) == (world.view(A2).probe, world.view(A3).probe)
    assert world.begin(A2).probe
    assert (False, False) == (world.view(A1).eligible, world.view(A3).eligible)


def test_a_server_error_does_not_end_the_trial_of_a_spent_quota(world: World) -> None:
    world.fail(ErrorClass.QUOTA_EXHAUSTED, A1)
    world.now += 1800.0
    world.fail(ErrorClass.SERVER_ERROR, A1)
    assert world.view(A1).probe


def test_any_answer_ends_a_connection_fault(world: World) -> None:
    world.fail(ErrorClass.CONNECTION, A1, times=3)
    world.now += 15.0
    world.fail(ErrorClass.SERVER_ERROR, A1)
    assert State.DEGRADED is world.own_state("a")


# Pacing.


def test_a_spent_limit_rests_the_target_and_it_is_back_without_a_probe(world: World) -> None:
    world.told += world.engine.pace(A1, START + 8.0, START)
    assert View(State.COOLING, False, 1.0, False, START + 8.0, "paced") == world.view()
    world.now += 8.0
    assert View.healthy() == world.view()
    world.ok()
    assert [State.COOLING, State.HEALTHY] == [transition.new for transition in world.told]


def test_a_pause_is_never_shortened_and_an_old_one_says_nothing(world: World) -> None:
    world.engine.pace(A1, START + 8.0, START)
    world.engine.pace(A1, START + 2.0, START)
    world.engine.pace(A2, START - 1.0, START)
    assert 8.0 == world.cooling_s(A1)
    assert View.healthy() == world.view(A2)


# Slowness.


def first_tokens(world: World, seconds: float, times: int, size_bytes: int = 1000) -> None:
    """Serve requests one second apart with this time to first token."""
    for _ in range(times):
        world.now += 1.0
        world.end(world.begin(), Success(seconds, size_bytes))


def test_a_target_far_slower_than_it_was_gets_less_traffic(world: World) -> None:
    first_tokens(world, 0.5, 40)
    first_tokens(world, 5.0, 12)
    view = world.view()
    assert (State.DEGRADED, "slow", True) == (view.state, view.reason, view.eligible)
    assert 0.1 <= view.share <= 0.5


def test_a_burst_of_slow_answers_halves_the_traffic_only_once(world: World) -> None:
    first_tokens(world, 0.5, 40)
    for _ in range(100):
        world.end(world.begin(), Success(5.0, 1000))
    assert 0.5 == world.view().share


def test_a_slow_target_keeps_a_tenth_of_its_traffic(world: World) -> None:
    first_tokens(world, 0.5, 40)
    first_tokens(world, 5.0, 300)
    assert 0.1 <= world.view().share < 0.2


def test_a_slow_target_gets_its_traffic_back_when_it_is_quick_again(world: World) -> None:
    first_tokens(world, 0.5, 40)
    first_tokens(world, 5.0, 60)
    first_tokens(world, 0.5, 150)
    assert View.healthy() == world.view()


def test_a_slow_target_without_traffic_is_not_slow_for_ever(world: World) -> None:
    first_tokens(world, 0.5, 40)
    first_tokens(world, 5.0, 60)
    world.now += 120.0
    assert View.healthy() == world.view()


def test_large_requests_are_not_compared_with_small_ones(world: World) -> None:
    first_tokens(world, 0.2, 40, size_bytes=500)
    first_tokens(world, 6.0, 60, size_bytes=2_000_000)
    assert View.healthy() == world.view()


@pytest.mark.parametrize(("usual_s", "later_s", "times"), [(0.5, 5.0, 3), (0.02, 0.1, 60), (0.5, 0.9, 60)])
def test_few_or_small_delays_are_no_slowness(usual_s: float, later_s: float, times: int) -> None:
    world = World()
    first_tokens(world, usual_s, 40)
    first_tokens(world, later_s, times)
    assert View.healthy() == world.view()


def test_a_new_target_is_never_called_slow(world: World) -> None:
    first_tokens(world, 0.1, 5)
    first_tokens(world, 9.0, 14)
    assert View.healthy() == world.view()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_time_is_ignored(world: World, seconds: float) -> None:
    first_tokens(world, 0.5, 40)
    first_tokens(world, seconds, 60)
    assert View.healthy() == world.view()


# Operators.


def test_an_operator_takes_a_target_down_until_it_expires(world: World) -> None:
    world.engine.operator_down(A1, "ann", "maintenance", START + 60, START)
    assert View(State.DOWN, False, 1.0, False, START + 60, "operator_down") == world.view(A1)
    assert State.HEALTHY is world.state(A2)
    world.now += 60.0
    assert View.healthy() == world.view(A1)


def test_an_operator_takes_a_whole_account_down(world: World) -> None:
    world.engine.operator_down("a", "ann", "contract ended", None, START)
    assert View(State.DOWN, False, 1.0, False, None, "operator_down") == world.view(A2)


def test_successes_and_failures_do_not_lift_an_operators_order(world: World) -> None:
    world.engine.drain(A1, "ann", "maintenance", None, START)
    world.ok()
    world.fail(ErrorClass.RATE_LIMITED)
    assert "drained" == world.view().reason


def test_restore_ends_order_cooldown_pause_and_streak(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED)
    world.engine.pace(A1, START + 99, START)
    world.engine.operator_down(A1, "ann", "why", None, START)
    told = world.engine.restore(A1, START)
    assert (Transition(A1, State.DOWN, State.HEALTHY, None, None),) == told
    assert View.healthy() == world.view()
    world.fail(ErrorClass.RATE_LIMITED)
    assert 15.0 == world.cooling_s()


def test_the_table_names_who_ordered_what(world: World) -> None:
    world.engine.operator_down("a", "ann", "maintenance", None, START)
    row = next(iter(world.engine.states(START)))
    assert row.operator is not None
    assert ("a", "down", "ann", "maintenance") == (row.subject, *row.operator[:3])


# When everything is down.


def test_the_least_bad_is_the_soonest_to_recover(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1, retry_in_s=60.0)
    world.fail(ErrorClass.RATE_LIMITED, B1, retry_in_s=30.0)
    assert B1 == world.engine.least_bad([A1, B1], START)
    assert START + 30 == world.engine.recovery_time([A1, B1], START)


def test_equals_keep_their_order(world: World) -> None:
    assert A2 == world.engine.least_bad([A2, A1], START)


def test_a_drained_target_is_the_last_of_all_and_a_downed_one_is_never_chosen(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1, retry_in_s=6000.0)
    world.engine.drain(A2, "ann", "old", None, START)
    world.engine.operator_down(B1, "ann", "broken", None, START)
    assert A1 == world.engine.least_bad([B1, A2, A1], START)
    assert A2 == world.engine.least_bad([B1, A2], START)
    assert world.engine.least_bad([B1], START) is None
    assert world.engine.least_bad([], START) is None


def test_a_recovery_time_waits_for_the_account_too(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.fail(ErrorClass.QUOTA_EXHAUSTED, A1)
    assert START + 1800 == world.engine.recovery_time([A1], START)


def test_there_is_no_recovery_time_under_an_order_without_end(world: World) -> None:
    world.engine.operator_down(A1, "ann", "why", None, START)
    assert world.engine.recovery_time([A1], START) is None
    world.engine.operator_down(B1, "ann", "why", START + 7, START)
    assert START + 7 == world.engine.recovery_time([A1, B1], START)


def test_a_serving_target_recovers_now_and_a_probe_under_way_soon(half_open: World) -> None:
    now = half_open.now
    assert now == half_open.engine.recovery_time([A1], now)
    half_open.begin()
    assert now + 1.0 == half_open.engine.recovery_time([A1], now)


# Transitions.


def test_every_change_is_told_once_and_in_a_chain(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED)
    world.now += 15.0
    world.fail(ErrorClass.RATE_LIMITED)
    world.now += 30.0
    world.ok()
    world.now += 30.0
    world.told += world.engine.elapse(world.now)
    assert [
        Transition(A1, State.HEALTHY, State.COOLING, "rate_limited", START + 15),
        Transition(A1, State.COOLING, State.PROBING, "rate_limited", None),
        Transition(A1, State.PROBING, State.COOLING, "rate_limited", START + 45),
        Transition(A1, State.COOLING, State.PROBING, "rate_limited", None),
        Transition(A1, State.PROBING, State.DEGRADED, "recovering", None),
        Transition(A1, State.DEGRADED, State.HEALTHY, None, None),
    ] == world.told
    assert () == world.engine.elapse(world.now)


def test_a_promotion_is_told_for_the_account(world: World) -> None:
    world.fail(ErrorClass.OVERLOADED, A1, retry_in_s=20.0)
    world.fail(ErrorClass.OVERLOADED, A2, retry_in_s=20.0)
    assert [A1, A2, "a"] == [transition.subject for transition in world.told]


# What is kept.


def test_a_reload_drops_removed_targets_and_keeps_the_others(world: World) -> None:
    for key in (A1, A2, B1):
        world.fail(ErrorClass.RATE_LIMITED, key)
    world.engine.operator_down("b", "ann", "why", None, START)
    world.engine.retain({A1, A3})
    assert ["a", A1, A3] == [row.subject for row in world.engine.states(START)]
    assert State.COOLING is world.state(A1)
    assert View.healthy() == world.view(B1)


def test_a_reload_keeps_the_targets_behind_a_star(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.engine.retain({TargetKey("a", "*")})
    assert State.COOLING is world.state(A1)


def test_names_from_callers_do_not_fill_the_memory(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, B1)
    for number in range(CELLS_KEPT + 50):
        world.ok(TargetKey("a", f"name-{number}"))
    assert CELLS_KEPT + 2 == sum(1 for _ in world.engine.states(START))
    assert State.COOLING is world.state(B1)


def revived(world: World) -> World:
    """Return a new world that read what this one saved, as JSON."""
    other = World()
    other.now = world.now
    other.engine.load(json.loads(json.dumps(world.engine.dump())), world.now)
    return other


def test_cooldowns_pauses_and_orders_survive_a_restart_with_their_deadlines(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1, retry_in_s=99.0)
    world.fail(ErrorClass.QUOTA_EXHAUSTED, B1)
    world.engine.pace(A2, START + 30, START)
    world.engine.drain(A3, "ann", "why", START + 500, START)
    world.now += 10.0
    other = revived(world)
    for key in (A1, A2, A3, B1):
        assert world.view(key) == other.view(key)


def test_a_streak_survives_a_restart(half_open: World) -> None:
    other = revived(half_open)
    other.fail(ErrorClass.RATE_LIMITED)
    assert 30.0 == other.cooling_s()


def test_the_length_of_an_outage_survives_a_restart(world: World) -> None:
    world.fail(ErrorClass.SERVER_ERROR, times=3)
    for _ in range(8):
        trip_again(world, ErrorClass.SERVER_ERROR)
    other = revived(world)
    assert 30.0 < trip_again(world, ErrorClass.SERVER_ERROR) == trip_again(other, ErrorClass.SERVER_ERROR)


def test_an_outage_saved_without_its_beginning_is_probed_soon(world: World) -> None:
    entry = {"provider": "a", "model": "one", "until": START + 9, "reason": "server_error", "streak": 6}
    world.engine.load({"subjects": [entry]}, START)
    assert 15.0 == trip_again(world, ErrorClass.SERVER_ERROR)


def test_healthy_subjects_are_not_saved(world: World) -> None:
    world.ok()
    assert {"version": 1, "subjects": []} == world.engine.dump()


def test_a_saved_deadline_does_not_shorten_a_newer_one(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED)
    saved = world.engine.dump()
    other = World()
    other.fail(ErrorClass.RATE_LIMITED, retry_in_s=500.0)
    other.engine.load(saved, START)
    assert 500.0 == other.cooling_s()


def test_unconfigured_subjects_are_not_loaded(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1)
    other = World()
    other.engine.retain({A2})
    other.engine.load(world.engine.dump(), START)
    assert View.healthy() == other.view(A1)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [],
        {"subjects": {}},
        {"subjects": [None, 3, {}, {"provider": 1}, {"provider": "a", "model": 1}]},
        {"subjects": [{"provider": "a", "model": "one", "until": "soon", "reason": "x"}]},
        {"subjects": [{"provider": "a", "model": "one", "until": float("nan"), "reason": "x"}]},
        {"subjects": [{"provider": "a", "model": "one", "until": 10**400, "reason": "x"}]},
        {"subjects": [{"provider": "a", "model": "one", "until": START + 9, "reason": "Not a reason"}]},
        {"subjects": [{"provider": "a", "model": "one", "until": True, "reason": "x"}]},
        {"subjects": [{"provider": "a", "model": "one", "paced_until": START - 1}]},
        {"subjects": [{"provider": "a", "model": "one", "operator": {"kind": "up"}}]},
        {
            "subjects": [
                {
                    "provider": "a",
                    "operator": {"kind": "down", "owner": "o", "reason": "r", "expires_at": "x"},
                }
            ]
        },
    ],
)
def test_malformed_state_is_ignored(world: World, saved: object) -> None:
    world.engine.load(saved, START)
    assert View.healthy() == world.view()


def test_a_bad_entry_does_not_hide_a_good_one(world: World) -> None:
    good = {"provider": "a", "model": "one", "until": START + 9, "reason": "rate_limited", "streak": "many"}
    world.engine.load({"subjects": [7, good]}, START)
    assert 9.0 == world.cooling_s()


def test_a_deadline_saved_under_a_wrong_clock_is_bounded(world: World) -> None:
    saved = {"subjects": [{"provider": "a", "model": "one", "until": START * 1000, "reason": "rate_limited"}]}
    world.engine.load(saved, START)
    assert 31 * 86_400.0 == world.cooling_s()
