"""What a view rests on is told with the values and the thresholds they are measured against."""

from __future__ import annotations

import pytest

from extproc.core.health_state import State
from extproc.core.outcome import ErrorClass
from tests.unit.core.test_health import A1, A2, START, World, first_tokens


def why(world: World) -> tuple[str, ...]:
    return world.engine.evidence(A1, world.now)


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_told_of_a_healthy_target(world: World) -> None:
    world.ok()
    assert () == why(world)


def test_a_run_of_failures_is_told_against_its_limit(world: World) -> None:
    world.fail(ErrorClass.SERVER_ERROR, times=3)
    assert ("failures_in_a_row=3", "consecutive=3") == why(world)


def test_a_ratio_is_told_with_its_volume() -> None:
    world = World(consecutive=100, failure_ratio=0.5, min_requests=4)
    world.ok(times=2)
    world.fail(ErrorClass.SERVER_ERROR, times=2)
    assert ("failures=2", "requests=4", "failure_ratio=0.5", "min_requests=4", "window_s=30") == why(world)


@pytest.mark.parametrize(("retry_in_s", "expected"), [(None, "refused=1"), (12.0, "told_s=12")])
def test_a_refusal_is_told_with_the_providers_own_time(world: World, retry_in_s: float | None, expected: str) -> None:
    world.fail(ErrorClass.RATE_LIMITED, retry_in_s=retry_in_s)
    assert (expected,) == why(world)


def test_a_longer_time_met_later_replaces_the_evidence(world: World) -> None:
    late = world.begin()
    world.fail(ErrorClass.SERVER_ERROR, times=3)
    world.end(late, world.failure(ErrorClass.RATE_LIMITED, 99.0))
    assert ("told_s=99",) == why(world)


def test_a_fault_of_the_account_says_so(world: World) -> None:
    world.fail(ErrorClass.CONNECTION, times=3)
    assert ("account.failures_in_a_row=3", "account.consecutive=3") == why(world)


def test_a_promoted_fault_names_the_number_of_targets(world: World) -> None:
    world.fail(ErrorClass.RATE_LIMITED, A1)
    world.fail(ErrorClass.RATE_LIMITED, A2)
    assert ("refused=1", "account.targets_out=2", "account.window_s=30") == why(world)


def test_a_half_open_target_says_whether_its_probe_is_under_way(world: World) -> None:
    world.fail(ErrorClass.SERVER_ERROR, times=3)
    world.now += 15.0
    assert "probe=free" == why(world)[-1]
    world.begin()
    assert "probe=under_way" == why(world)[-1]


def test_a_failed_probe_is_the_evidence_of_the_next_cooldown(world: World) -> None:
    world.fail(ErrorClass.SERVER_ERROR, times=3)
    world.now += 15.0
    world.fail(ErrorClass.SERVER_ERROR)
    assert ("probe=failed",) == why(world)


def test_a_recovery_is_told_against_its_end(world: World) -> None:
    world.fail(ErrorClass.SERVER_ERROR, times=3)
    world.now += 15.0
    world.ok(times=3)
    world.now += 1.0
    assert ("recovering_s=1", "whole_after_s=12", "successes=2", "whole_after_successes=15") == why(world)


def test_a_pause_says_that_nothing_is_left(world: World) -> None:
    world.engine.pace(A1, START + 8.0, START)
    assert ("remaining=0",) == why(world)


def test_slowness_is_told_against_the_usual_time(world: World) -> None:
    first_tokens(world, 0.1, 30)
    first_tokens(world, 10.0, 20)
    measured, usual, factor = (fact.split("=") for fact in why(world))
    assert (State.DEGRADED, "first_token_s", "usual_s", ["slow_factor", "3"]) == (
        world.state(),
        measured[0],
        usual[0],
        factor,
    )
    assert "10" == measured[1]
    assert 0.1 == pytest.approx(float(usual[1]), rel=0.2)


def test_an_order_is_told_with_its_owner_and_reason(world: World) -> None:
    world.engine.drain(A1, "ann", "new disks", None, world.now)
    assert ("order=drain", "owner=ann", "order_reason=new disks") == why(world)


def test_what_time_has_ended_is_no_evidence(world: World) -> None:
    world.engine.pace(A1, START + 8.0, START)
    world.now += 8.0
    assert () == why(world)
