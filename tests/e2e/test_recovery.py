"""A provider goes down under steady traffic and comes back: nobody notices, it is left alone, and it is eased back in.

Scaled to a tenth: down for six seconds instead of a minute, cooldowns of the default policy with a tenth of its `base`
and `max`. The steps of the return are the engine's own and not scaled; at this pace they are taken by successes. The
unscaled times, and other paces, are played without waiting in tests/property/test_recovery.py. Two providers fail at
once, each with a model, an account and a wall of its own: one says 503, the other resets every connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, provider
from tests.support.http1 import Reply
from tests.support.wall import Behaviour, Wall, error, ok, reset

HEALTHY_S, DOWN_S, LIMIT_S = 1.0, 6.0, 30.0
PACE_S = 0.05
"""Between two requests of a caller: twenty a second."""
FIRST_FAILURES = 3
LOG_DELAY_S = 0.5
STEP_SUCCESSES = 5
"""So many take the returning provider one step on."""
BASE_S, JITTER = 1.5, 0.1
COOLDOWN: dict[str, Any] = {"base": "1500ms", "max": "12s"}
AGAIN_ALL = 40
"""So many requests in a row at the recovered provider are full traffic again."""
WAYS: dict[str, Behaviour] = {"503": error(503), "reset": reset()}
ways = pytest.mark.parametrize("way", WAYS)


@dataclass(slots=True)
class Story:
    """What one provider and its callers saw; times are monotonic seconds."""

    down_at: float = 0.0
    up_at: float = 0.0
    replies: list[tuple[float, Reply]] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    others: int = 0
    """What the fallback's wall was asked."""

    @property
    def asked_while_down(self) -> list[float]:
        return [at for at in self.asked_at if self.down_at <= at < self.up_at]

    @property
    def served_after(self) -> list[tuple[float, bool]]:
        """Seconds since the provider was well again, and whether it was it that served."""
        after = [(at - self.up_at, reply) for at, reply in self.replies if at >= self.up_at]
        return [(at, (reply.header("x-gateway-served-by") or "").startswith("first")) for at, reply in after]

    @property
    def back_after_s(self) -> float:
        """When it served again for the first time."""
        return next((at for at, by_first in self.served_after if by_first), LIMIT_S)

    def spans(self, successes: int) -> list[int]:
        """Return of how many requests in a row it served so many, from its first success on."""
        served = [by_first for at, by_first in self.served_after if at >= self.back_after_s]
        places = [place for place, by_first in enumerate(served) if by_first]
        marks = places[::successes]
        return [later - earlier for earlier, later in pairwise(marks)]


@pytest.fixture(scope="module")
def stories(module_gateway_factory: GatewayFactory) -> Mapping[str, Story]:
    """Let both providers go down and come back, at the same time."""
    with Wall() as first_503, Wall() as first_reset, Wall() as other_503, Wall() as other_reset:
        walls = {"503": (first_503, other_503), "reset": (first_reset, other_reset)}
        gateway = module_gateway_factory(_config(walls))
        with ThreadPoolExecutor(len(walls)) as pool:
            told = pool.map(lambda way: _live_through(gateway, way, *walls[way]), walls)
            return dict(zip(walls, told, strict=True))


def _config(walls: Mapping[str, tuple[Wall, Wall]]) -> dict[str, Any]:
    providers: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for way, (first, other) in walls.items():
        providers |= {f"first-{way}": provider(first), f"other-{way}": provider(other)}
        models[f"model-{way}"] = {
            "targets": [{"provider": f"first-{way}", "model": "upstream"}],
            "fallback": [f"spare-{way}"],
        }
        models[f"spare-{way}"] = {"targets": [{"provider": f"other-{way}", "model": "upstream"}]}
    return {"schema": 1, "providers": providers, "models": models, "policies": {"default": {"cooldown": COOLDOWN}}}


def _live_through(gateway: Gateway, way: str, first: Wall, other: Wall) -> Story:
    story = Story()
    story.down_at = time.monotonic() + HEALTHY_S
    story.up_at = story.down_at + DOWN_S
    first.script(lambda _: WAYS[way] if story.down_at <= time.monotonic() < story.up_at else ok())
    due = time.monotonic()
    while due < story.up_at + LIMIT_S and not _is_back(story):
        threading.Event().wait(max(0.0, due - time.monotonic()))
        story.replies.append((time.monotonic(), gateway.chat(f"model-{way}")))
        due += PACE_S
    story.asked_at = [seen.at for seen in first.requests]
    story.others = other.count()
    return story


def _is_back(story: Story) -> bool:
    last = story.served_after[-AGAIN_ALL:]
    return len(last) == AGAIN_ALL and all(by_first for _, by_first in last)


@ways
def test_every_request_is_answered_while_a_provider_is_down(stories: Mapping[str, Story], way: str) -> None:
    """Down, probed or coming back: the caller gets a whole 200, at most one attempt later."""
    assert {(200, "clean")} == {(reply.status, reply.ended) for _, reply in stories[way].replies}
    assert {"1", "2"} == {reply.header("x-gateway-attempts") for _, reply in stories[way].replies}


@ways
def test_a_provider_that_is_down_is_asked_only_by_single_probes(stories: Mapping[str, Story], way: str) -> None:
    """After the first few failures at most one request a cooldown, and no two together."""
    asked = stories[way].asked_while_down
    # A reset is told by Envoy's log, a moment after it happened: a request that was sent meanwhile is no probe.
    probes = [at for at in asked[FIRST_FAILURES:] if at - asked[FIRST_FAILURES - 1] > LOG_DELAY_S]
    assert 3 <= len(probes) <= 4
    assert asked[FIRST_FAILURES - 1] - stories[way].down_at < 1.0
    gaps = [later - earlier for earlier, later in zip([asked[FIRST_FAILURES - 1], *probes], probes, strict=False)]
    assert min(gaps) >= BASE_S * (1.0 - JITTER) - PACE_S
    assert max(gaps) <= BASE_S * (1.0 + JITTER) + LOG_DELAY_S


@ways
def test_the_fallback_carries_what_the_provider_does_not(stories: Mapping[str, Story], way: str) -> None:
    """Each request costs one answer: by the provider, or by the fallback, and none is sent twice without need."""
    story = stories[way]
    failed = len(story.asked_while_down)
    assert len(story.replies) == len(story.asked_at) - failed + story.others


@ways
def test_full_traffic_is_back_soon_after_the_recovery(stories: Mapping[str, Story], way: str) -> None:
    """At most one more base cooldown until the first probe succeeds, then the steps."""
    story = stories[way]
    assert story.back_after_s <= BASE_S * (1.0 + JITTER) + LOG_DELAY_S
    assert [True] * AGAIN_ALL == [by_first for _, by_first in story.served_after[-AGAIN_ALL:]]
    assert story.served_after[-1][0] <= 12.0


@ways
def test_traffic_comes_back_step_by_step(stories: Mapping[str, Story], way: str) -> None:
    """About a tenth, then a quarter, then a half, then all: never a rush at a provider that has just got up."""
    tenth, quarter, half, *_ = stories[way].spans(STEP_SUCCESSES)
    assert STEP_SUCCESSES * 6 <= tenth <= STEP_SUCCESSES * 14
    assert tenth > quarter > half > STEP_SUCCESSES
    assert STEP_SUCCESSES == stories[way].spans(STEP_SUCCESSES)[-1]
