"""Three providers, three ways to carry a key, every order of failover: nobody receives what is another's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import permutations
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, provider
from tests.support.wall import Behaviour, Wall, error, html_200, reset

TOKEN = "gw-planted-caller-token"
KEYS = {name: f"sk-planted-{name}-0123456789" for name in ("bearer", "azure", "vendor")}
AUTH = {
    "bearer": {"header": "authorization", "prefix": "Bearer "},
    "azure": {"header": "api-key", "prefix": ""},
    "vendor": {"header": "x-vendor-token", "prefix": "Key "},
}
ORDERS = ["-".join(order) for order in permutations(KEYS)]
FAULTS = {"503": error(503), "reset": reset(), "html": html_200()}
CALLERS_OWN = {
    "authorization": f"Bearer {TOKEN}",
    "x-api-key": "planted-a",
    "api-key": "planted-b",
    "x-vendor-token": "planted-c",
    "cookie": "planted-d",
    "proxy-authorization": "planted-e",
    "x-goog-api-key": "planted-f",
    "x-gateway-retry": "planted-g",
    "x-envoy-max-retries": "0",
    "x-forwarded-host": "planted-h",
}


class Scene(NamedTuple):
    gateway: Gateway
    walls: dict[str, Wall]


@pytest.fixture(scope="module")
def scene(module_gateway_factory: GatewayFactory) -> Iterator[Scene]:
    """Start three providers, each with its own path, header and key, and one model for each order of them."""
    with Wall() as bearer, Wall() as azure, Wall() as vendor:
        walls = {"bearer": bearer, "azure": azure, "vendor": vendor}
        providers: dict[str, Any] = {}
        for name, wall in walls.items():
            made = provider(
                wall,
                f"{name.upper()}_KEY",
                auth=AUTH[name],
                query={"of": name},
                headers={f"x-account-{name}": f"account-{name}"},
            )
            providers[name] = made | {"base_url": f"{wall.url.removesuffix('/v1')}/{name}/v1"}
        models = {
            order: {
                "targets": [
                    {"provider": name, "model": f"m-{name}", "tier": tier} for tier, name in enumerate(order.split("-"))
                ]
            }
            for order in ORDERS
        }
        patient = {"cooldown": {"consecutive": 1000, "min_requests": 100_000}, "same_target": {"max": 0}}
        config = {"schema": 1, "providers": providers, "models": models, "policies": {"default": patient}}
        config["clients"] = [{"name": "team", "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
        environment = {f"{name.upper()}_KEY": key for name, key in KEYS.items()}
        yield Scene(module_gateway_factory(config, environment=environment), walls)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("order", ORDERS)
def test_each_provider_receives_its_own_and_nothing_else(scene: Scene, order: str, fault: str, stream: bool) -> None:
    """Key, header, host, path, query and model are its own; the caller's token and headers end at the gateway."""
    first, second, third = order.split("-")
    faults: dict[str, Behaviour] = {first: FAULTS[fault], second: FAULTS[fault]}
    for name, wall in scene.walls.items():
        wall.reset()
        if name in faults:
            wall.script(faults[name])

    body = {"model": order, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    reply = scene.gateway.post("/v1/chat/completions", body, headers=CALLERS_OWN)

    assert (200, f"{third}/m-{third}") == (reply.status, reply.header("x-gateway-served-by"))
    for name, wall in scene.walls.items():
        (seen,) = wall.requests
        auth = AUTH[name]
        assert f"{auth['prefix']}{KEYS[name]}" == seen.header(auth["header"])
        assert (f"127.0.0.1:{wall.port}", f"/{name}/v1/chat/completions?of={name}", f"m-{name}") == (
            seen.header("host"),
            seen.path,
            seen.wish("model"),
        )
        text = (seen.head + seen.body).decode("latin-1")
        others = [other for other in KEYS if other != name]
        foreign = (
            [KEYS[other] for other in others]
            + [f"{sign}{other}" for other in others for sign in ("/", "account-")]
            + [TOKEN]
        )
        foreign += [f"127.0.0.1:{scene.walls[other].port}" for other in others]
        assert [] == [word for word in foreign if word in text]
        internal = [key for key, _ in seen.headers if key.startswith(("x-gateway-", "x-envoy-", "x-forwarded-"))]
        assert [] == internal
        assert [] == [value for _, value in seen.headers if value.startswith("planted-")]
    sent = repr(reply.headers)
    assert [] == [key for key in KEYS.values() if key in sent]
