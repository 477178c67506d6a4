"""A gateway without Envoy whose requests are driven by hand and whose stories are collected.

Owns: the config of three accounts, and the few messages of Envoy that begin and end a request. Time is `NOW`.
"""

from __future__ import annotations

import json
from typing import Any

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.exchange import Action, RequestBody, RequestHeaders, RouteTo
from extproc.core.feedback import AttemptLogged, RequestLogged, attempt_logged, request_logged
from extproc.core.gateway import Active, Gateway
from extproc.core.health import HealthEngine
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.request_state import RequestState
from extproc.core.route import RouteExchange
from extproc.core.story import Story
from extproc.metrics import Metrics
from extproc.telemetry import Telemetry

NOW = 1_700_000_000.0
CHAT = "/v1/chat/completions"
FIRST = TargetKey("first", "big-1")
SECOND = TargetKey("second", "big-2")
THIRD = TargetKey("third", "small-1")
CONFIG: dict[str, Any] = {
    "schema": 1,
    "providers": {name: {"base_url": f"https://{name}.example.com/v1"} for name in ("first", "second", "third")},
    "models": {
        "big": {
            "targets": [
                {"provider": "first", "model": "big-1", "weight": 3},
                {"provider": "second", "model": "big-2", "tier": 1},
            ],
            "fallback": ["small"],
        },
        "small": {"targets": [{"provider": "third", "model": "small-1"}]},
        "any-*": {"targets": [{"provider": "third", "model": "*"}]},
    },
}


def snapshot(config: dict[str, Any] | None = None, version: int = 1) -> Snapshot:
    """Compile a config as a file would be."""
    return compile_snapshot(load_config(json.dumps(config or CONFIG)), version)


class Scene:
    """One gateway with its telemetry; `stories` and `metrics` are what it told."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.gateway = Gateway(HealthEngine(lambda: 0.5), lambda: 0.5)
        self.snapshot = snapshot(config)
        pairs = [(provider, policy) for provider in self.snapshot.providers for policy in self.snapshot.policies]
        self.gateway.activate(Active(self.snapshot, {pair: f"{pair[0]}-cluster" for pair in pairs}))
        self.metrics = Metrics(
            lambda: list(self.gateway.health.states(NOW)), lambda: len(self.gateway.requests.by_id), lambda: True
        )
        self.metrics.bound_by(self.snapshot)
        self.stories: list[Story] = []
        self.gateway.requests.observer = Telemetry(self.metrics, self, self.gateway.snapshot)

    def add(self, story: Story) -> None:
        """Be the ledger."""
        self.stories.append(story)

    @property
    def story(self) -> Story:
        """The only story told so far."""
        (story,) = self.stories
        return story

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample, 0 when there is none."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def send(self, request_id: str, model: str = "big", **members: Any) -> list[Action]:
        """Let a request arrive; returns the answer to its body, or to its headers when that was the end."""
        exchange = RouteExchange(self.gateway)
        headers = {":method": "POST", ":path": CHAT, "x-request-id": request_id}
        actions = exchange.handle(RequestHeaders(headers, False), NOW)
        body = json.dumps({"model": model, "messages": [], **members}).encode()
        return exchange.handle(RequestBody(body), NOW) if len(actions) == 1 else actions

    def begin(self, request_id: str, model: str = "big", **members: Any) -> RequestState:
        """Let a request arrive that gets a plan; returns its state."""
        action = self.send(request_id, model, **members)[0]
        assert isinstance(action, RouteTo)
        return action.state

    def attempt_ends(self, request_id: str, cluster: str, status: int = 200, **more: Any) -> None:
        """Let Envoy report an attempt."""
        facts: dict[str, Any] = {"flags": frozenset(), "first_byte_s": 0.1, "duration_s": 0.2, **more}
        attempt_logged(self.gateway, AttemptLogged(request_id, cluster, status, **facts), NOW + 1)

    def request_ends(self, request_id: str, status: int = 200, attempts: int = 1, **more: Any) -> None:
        """Let Envoy report a request; keywords are RequestLogged's, `told` among them."""
        facts: dict[str, Any] = {"flags": frozenset(), "path": CHAT, "method": "POST", "duration_s": 0.5, **more}
        request_logged(self.gateway, RequestLogged(request_id, status, attempts=attempts, **facts), NOW + 1)

    def trip(self, key: TargetKey, kind: ErrorClass = ErrorClass.RATE_LIMITED) -> None:
        """Take a target out of health by one failure."""
        cooldown = self.snapshot.policies["default"].cooldown
        self.gateway.health.end(self.gateway.health.begin(key, NOW), Failure(kind, 429), NOW, cooldown)


def served(by: TargetKey = FIRST, model: str = "big", mode: str = "balanced", **more: str) -> dict[str, str]:
    """Return what Envoy tells of a request that was served."""
    told = {"model": "big", "served_model": model, "served_by": str(by), "route_mode": mode, "attempts": "1"}
    return told | {"kind": "unary", "version": "1", "endpoint": CHAT, "policy": "default", "client": ""} | more


def whole_story(**more: Any) -> Story:
    """Tell of a request `r` whose first choice was out of service and whose second one served."""
    scene = Scene()
    scene.trip(FIRST)
    scene.begin("r")
    scene.attempt_ends("r", "second-cluster")
    scene.request_ends("r", told=served(), tokens={"input": 7, "output": 3}, **more)
    return scene.story
