"""Scenes for tests of the decision core: configs, an active version with its clusters, requests and their states."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.exchange import RequestBody, RequestHeaders
from extproc.core.feedback import AttemptLogged, attempt_logged
from extproc.core.gateway import Active, Gateway
from extproc.core.health import HealthEngine
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.plan import Planned
from extproc.core.request_state import PlanStep, RequestState
from extproc.core.route import RouteExchange

NOW = 1_700_000_000.0
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
REQUEST_ID = "5f0c8a4e-0000-4000-8000-000000000001"

A = TargetKey("a", "m-a")
B = TargetKey("b", "m-b")
C = TargetKey("c", "m-c")
SMALL_A = TargetKey("a", "s-a")
LONG_C = TargetKey("c", "l-c")


def target(key: TargetKey, weight: int = 1, tier: int = 0) -> dict[str, Any]:
    """Write one line of a model's targets."""
    return {"provider": key.provider, "model": key.model, "weight": weight, "tier": tier}


def provider(name: str, **more: Any) -> dict[str, Any]:
    """Write a provider account."""
    return {"base_url": f"https://{name}.example.com/v1"} | more


def config(models: dict[str, Any], policy: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Write a config whose providers are those that `models` name; `policy` is the default one."""
    names = {line["provider"] for model in models.values() for line in model["targets"]}
    providers = {name: provider(name) for name in sorted(names)} | more.pop("providers", {})
    policies = more.pop("policies", {}) | ({"default": policy} if policy else {})
    return {"schema": 1, "providers": providers, "models": models} | ({"policies": policies} if policies else {}) | more


def chain(*keys: TargetKey, **model: Any) -> dict[str, Any]:
    """Write a model whose targets are tried strictly in this order."""
    return {"targets": [target(key, tier=tier) for tier, key in enumerate(keys)]} | model


def snapshot(written: dict[str, Any], version: int = 1) -> Snapshot:
    """Load and compile a config as a file would be."""
    return compile_snapshot(load_config(json.dumps(written)), version)


def active(written: dict[str, Any], version: int = 1, missing: Iterable[str] = ()) -> Active:
    """Make an applied version; the cluster of provider `a` is `a-cluster`."""
    compiled = snapshot(written, version)
    pairs = [(provider, policy) for provider in compiled.providers for policy in compiled.policies]
    return Active(compiled, {pair: f"{pair[0]}-cluster" for pair in pairs}, frozenset(missing))


def gateway(written: dict[str, Any] | None = None, draw: float = 0.5, **more: Any) -> Gateway:
    """Make a gateway that serves a config, its health engine new; every random draw is `draw`."""
    made = Gateway(HealthEngine(lambda: draw), lambda: draw)
    if written is not None:
        made.activate(active(written, **more))
    return made


def trip(made: Gateway, key: TargetKey, now: float = NOW, kind: ErrorClass = ErrorClass.RATE_LIMITED) -> None:
    """Let one attempt fail so that health takes its target or account out."""
    assert made.active is not None
    cooldown = made.active.snapshot.policies["default"].cooldown
    made.health.end(made.health.begin(key, now), Failure(kind, 429), now, cooldown)


def headers(path: str = CHAT, method: str = "POST", **more: str) -> RequestHeaders:
    """Send a request's headers; `_` in a keyword stands for `-`."""
    found = {":method": method, ":path": path, "x-request-id": REQUEST_ID}
    found |= {name.replace("_", "-"): value for name, value in more.items()}
    return RequestHeaders(found, end_of_stream=method == "GET")


def body(model: str = "big", **more: Any) -> RequestBody:
    """Send a request's body."""
    return RequestBody(json.dumps({"model": model, "messages": []} | more).encode())


def routed(made: Gateway, now: float = NOW, path: str = CHAT, **more: Any) -> RequestState:
    """Let a request arrive and return the state it starts with."""
    exchange = RouteExchange(made)
    exchange.handle(headers(path), now)
    exchange.handle(body(**more), now)
    return made.requests.by_id[REQUEST_ID].state


def keys(planned: Iterable[Planned | PlanStep]) -> list[TargetKey]:
    """Return who is tried, in order."""
    return [step.key for step in planned]


def served(made: Gateway, state: RequestState, now: float = NOW + 1) -> None:
    """Let Envoy report that the present attempt went well."""
    step = state.plan[state.attempt - 1]
    attempt_logged(made, AttemptLogged(state.id, step.cluster, 200, frozenset(), 0.1, 0.5), now)
