"""Outages of any length up to a few minutes, played against the engine and the planner with the default policy.

Nothing waits: the clock is a value. A model's only target goes down and comes back under steady traffic; another
model is its fallback. Attempts take a while, so that many are under way at once.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.config.snapshot import TargetKey
from extproc.core.health import HealthEngine, Permit, Success
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.plan import plan_request

FIRST = TargetKey("first", "upstream")
DOWN_AT = 1_000_000.0
ATTEMPT_S = 0.3
AGAIN_WITHIN_S = 30.0
FAULTS = {ErrorClass.OVERLOADED: 503, ErrorClass.SERVER_ERROR: 500, ErrorClass.CONNECTION: None}
SNAPSHOT = compile_snapshot(
    load_config(
        json.dumps(
            {
                "schema": 1,
                "providers": {name: {"base_url": f"https://{name}.example.com/v1"} for name in ("first", "other")},
                "models": {
                    "big": {"targets": [{"provider": "first", "model": "upstream"}], "fallback": ["spare"]},
                    "spare": {"targets": [{"provider": "other", "model": "upstream"}]},
                },
            }
        )
    ),
    1,
)
COOLDOWN = SNAPSHOT.policies["default"].cooldown


@dataclass
class Story:
    """What the provider saw: epoch seconds and whether it was a probe."""

    up_at: float
    asked: list[tuple[float, bool]] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)
    """When requests went to the fallback at once."""

    @property
    def asked_while_down(self) -> list[tuple[float, bool]]:
        """Return what it was asked during its outage."""
        return [(at, probe) for at, probe in self.asked if DOWN_AT <= at < self.up_at]

    @property
    def full_after_s(self) -> float:
        """Return how long after its recovery some request still went elsewhere."""
        return max(self.refused_at) - self.up_at


def play(kind: ErrorClass, down_s: float, per_second: float, draw: Callable[[], float]) -> Story:
    """Send requests at a steady pace until well after the provider has come back."""
    engine, story = HealthEngine(draw), Story(DOWN_AT + down_s)
    resolved = SNAPSHOT.resolve("big")
    assert resolved is not None
    under_way: list[tuple[float, Permit, bool]] = []
    for ticket in range(int((down_s + 62.0) * per_second)):
        now = DOWN_AT - 1.0 + ticket / per_second
        while under_way and under_way[0][0] <= now:
            at, permit, good = heapq.heappop(under_way)
            engine.end(permit, Success() if good else Failure(kind, FAULTS[kind]), at, COOLDOWN)
        # The loop variable is passed by value: the planner asks for views before the next request comes.
        plan = plan_request(SNAPSHOT, resolved, "openai", partial(engine.view, now=now), ticket)
        if plan.planned[0].key != FIRST:
            story.refused_at.append(now)
            continue
        permit = engine.begin(FIRST, now)
        story.asked.append((now, permit.probe))
        heapq.heappush(under_way, (now + ATTEMPT_S, permit, not DOWN_AT <= now < story.up_at))
    return story


def seeded(seed: int) -> Callable[[], float]:
    """Return a die that shows the same jitter every time."""
    return random.Random(seed).random  # noqa: S311 - a die, not a secret


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_a_minute_s_outage_is_over_half_a_minute_after_it_ends(kind: ErrorClass, draw: float) -> None:
    """Twenty requests a second, whichever way the jitter falls."""
    assert 0.0 < play(kind, 60.0, 20.0, lambda: draw).full_after_s <= AGAIN_WITHIN_S


@pytest.mark.parametrize("kind", FAULTS)
def test_during_a_minute_s_outage_the_provider_is_asked_by_single_probes(kind: ErrorClass) -> None:
    """What was under way when it tripped aside, at most one request in a base cooldown less its jitter."""
    asked = play(kind, 60.0, 20.0, seeded(1)).asked_while_down
    probes = [at for at, probe in asked if probe]
    first_failures_end = DOWN_AT + ATTEMPT_S + COOLDOWN.consecutive / 20.0
    assert probes == [at for at, _ in asked if at > first_failures_end]
    assert 3 <= len(probes) <= 4
    gaps = [later - earlier for earlier, later in zip([DOWN_AT, *probes], probes, strict=False)]
    assert min(gaps) >= COOLDOWN.base_s * (1.0 - COOLDOWN.jitter)


@settings(max_examples=60)
@given(
    kind=st.sampled_from([*FAULTS]),
    down_s=st.floats(5.0, 60.0),
    per_second=st.floats(1.0, 40.0),
    seed=st.integers(0, 10**6),
)
def test_no_outage_of_up_to_a_minute_is_felt_longer_than_half_a_minute(
    kind: ErrorClass, down_s: float, per_second: float, seed: int
) -> None:
    """Whatever the traffic: a quiet target is given its steps by time, a busy one by its successes."""
    assert play(kind, down_s, per_second, seeded(seed)).full_after_s <= AGAIN_WITHIN_S


def test_a_long_outage_is_probed_ever_more_rarely() -> None:
    """An hour costs a few dozen callers a failed first attempt, not two hundred."""
    probes = [at for at, probe in play(ErrorClass.OVERLOADED, 3600.0, 5.0, lambda: 0.5).asked_while_down if probe]
    assert 30 <= len(probes) <= 45
    assert COOLDOWN.max_s == pytest.approx(probes[-1] - probes[-2], abs=1.0)
