"""The HTTP surface around the endpoints: health, model list, identity, and the headers that may cross the gateway."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support import http1
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.wall import Behaviour, Wall, answer, error, ok, rate_limited, silence

TOKEN_A, TOKEN_B = "gw-planted-client-a", "gw-planted-client-b"
INTERNAL = ("x-gateway-", "x-envoy-", "x-forwarded-")
TOLD = {"x-gateway-route-mode", "x-gateway-served-by", "x-gateway-attempts", "x-gateway-config-version"}
"""The internal headers that callers may see."""


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Offer the demonstration's models and some that a test may trip."""
    config = two_providers(module_primary, module_fallback)
    config["providers"] |= {"sick": provider(module_primary), "picky": provider(module_primary)}
    config["models"] |= {
        "sickly": {"targets": [{"provider": "sick", "model": "s"}]},
        "nursed": {"targets": [{"provider": "sick", "model": "s"}], "fallback": ["demo-fallback"]},
        "picky": {"targets": [{"provider": "picky", "model": "p"}], "fallback": ["demo-fallback"]},
        "any-*": {"targets": [{"provider": "primary", "model": "*"}]},
    }
    return module_gateway_factory(config)


def internal_headers(headers: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> set[str]:
    return {name for name, _ in headers if name.startswith(INTERNAL)}


# -- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status"), [("/healthz", "alive"), ("/readyz", "ready")])
def test_health_is_told_as_json(shared: Shared, path: str, status: str) -> None:
    """By the gateway alone: no provider is asked."""
    reply = shared.gateway.wait_until(
        lambda: (reply := shared.gateway.get(path)).status == 200 and reply, f"{path} to be well"
    )
    assert reply

    assert (200, "application/json", {"status": status}) == (reply.status, reply.header("content-type"), reply.json)
    assert ("none", "0") == (reply.header("x-gateway-route-mode"), reply.header("x-gateway-attempts"))
    assert 0 == shared.primary.count()


def test_readyz_says_yes_from_the_moment_the_gateway_says_ready(gateway_factory: GatewayFactory, wall: Wall) -> None:
    """A load balancer and the line on stdout must not disagree."""
    gateway = gateway_factory(two_providers(wall, wall))

    assert 200 == gateway.get("/readyz").status


# -- models ----------------------------------------------------------------------------------------------------------


def test_the_model_list_has_every_public_name(shared: Shared) -> None:
    """OpenAI's list object; patterns stand for no name; upstream names are not shown."""
    reply = shared.gateway.get("/v1/models")

    assert (200, "application/json") == (reply.status, reply.header("content-type"))
    assert "list" == reply.json["object"]
    names = {model["id"] for model in reply.json["data"]}
    assert {"demo-primary", "demo-fallback", "sickly", "nursed", "picky"} == names
    assert all("model" == model["object"] and isinstance(model["created"], int) for model in reply.json["data"])
    assert 0 == shared.primary.count()


@pytest.mark.parametrize("name", ["demo-primary", "any-thing", "any-org/m:x", "any-\u00e9"])
def test_one_model_can_be_asked_for(shared: Shared, name: str) -> None:
    """By its name, or by a name that a pattern stands for, escaped as the SDKs escape it."""
    reply = shared.gateway.get(f"/v1/models/{quote(name, safe='')}")

    assert (200, name, "model", True) == (
        reply.status,
        reply.json["id"],
        reply.json["object"],
        reply.json["available"],
    )


def test_an_unknown_model_is_not_found(shared: Shared) -> None:
    """404 in the envelope."""
    reply = shared.gateway.get("/v1/models/nobody")

    assert (404, "model_not_found", "model") == (
        reply.status,
        reply.json["error"]["code"],
        reply.json["error"]["param"],
    )


def test_a_cooling_model_is_not_available(shared: Shared) -> None:
    """`available` follows health: of the model alone, and of one whose fallback can serve."""
    shared.primary.script(rate_limited(retry_after=60))
    assert 429 == shared.gateway.chat("sickly").status

    listed = {model["id"]: model["available"] for model in shared.gateway.get("/v1/models").json["data"]}

    assert {"sickly": False, "nursed": True, "demo-primary": True}.items() <= listed.items()
    assert shared.gateway.get("/v1/models/sickly").json["available"] is False


# -- what is not served ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/unknown"),
        ("POST", "/v1/unknown"),
        ("POST", "/v1/files"),
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/chat/completions"),
        ("PUT", "/v1/embeddings"),
        ("POST", "/v1/models"),
        ("DELETE", "/v1/models/demo-primary"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completionsx"),
        ("POST", "/chat/completions"),
        ("GET", "/metrics"),
        ("GET", "/stats"),
        ("GET", "/config_dump"),
    ],
)
def test_other_paths_and_methods_are_unsupported(shared: Shared, method: str, path: str) -> None:
    """404 unsupported_endpoint in the envelope, and no provider sees it."""
    body = b'{"model":"demo-primary"}' if method in ("POST", "PUT") else b""

    reply = http1.request(shared.gateway.url + path, method, body=body)

    assert (404, "application/json", "none") == (
        reply.status,
        reply.header("content-type"),
        reply.header("x-gateway-route-mode"),
    )
    assert "unsupported_endpoint" == reply.json["error"]["code"]
    assert 0 == shared.primary.count()


def test_a_path_with_dots_or_double_slashes_is_normal_first(shared: Shared) -> None:
    """What Envoy routes and what Python decides about is the same path."""
    body = {"model": "demo-primary", "messages": []}

    replies = [shared.gateway.post(path, body) for path in ("/v1//chat/completions", "/v1/x/../chat/completions")]

    assert [200, 200] == [reply.status for reply in replies]
    assert ["/v1/chat/completions"] * 2 == [seen.path for seen in shared.primary.requests]


# -- request ids -----------------------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id_of_the_gateways_own(shared: Shared) -> None:
    """Whatever the answer; a client's own id is not used."""
    mine = {"x-request-id": "mine-0123456789"}
    gateway = shared.gateway
    replies = [gateway.get(path, headers=mine) for path in ("/healthz", "/readyz", "/v1/models", "/nothing")]
    bodies = (b"{}", b"no json", b'{"model":"nobody"}', b'{"model":"demo-primary"}')
    replies += [gateway.post("/v1/chat/completions", body=body, headers=mine) for body in bodies]
    shared.primary.script(error(400))
    replies.append(gateway.post("/v1/chat/completions", {"model": "demo-primary"}, headers=mine))
    shared.primary.script(ok())
    replies.append(gateway.post("/v1/chat/completions", {"model": "demo-primary", "stream": True}, headers=mine))

    ids = [reply.header("x-request-id") for reply in replies]

    assert all(ids), [(reply.status, reply.headers) for reply in replies]
    assert len(ids) == len(set(ids))
    assert mine["x-request-id"] not in ids


def test_the_provider_sees_the_id_that_the_caller_gets(shared: Shared) -> None:
    """One id joins the caller's, the provider's and our own records, over all attempts."""
    shared.primary.script(error(503))

    reply = shared.gateway.post(
        "/v1/chat/completions", {"model": "picky", "messages": []}, headers={"x-request-id": "mine"}
    )

    seen = [wall.requests[0].header("x-request-id") for wall in (shared.primary, shared.fallback)]
    assert [reply.header("x-request-id")] * 2 == seen


# -- internal headers ------------------------------------------------------------------------------------------------

STEERING = {
    "x-gateway-retry": "1",
    "x-gateway-target": "fallback/demo-fallback-upstream",
    "x-gateway-route-mode": "pinned",
    "x-gateway-policy": "none",
    "x-gateway-role": "judge",
    "x-envoy-max-retries": "7",
    "x-envoy-retry-on": "5xx,retriable-4xx,retriable-status-codes",
    "x-envoy-retriable-status-codes": "400",
    "x-envoy-retriable-header-names": "content-type",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-upstream-rq-per-try-timeout-ms": "1",
    "x-envoy-expected-rq-timeout-ms": "1",
    "x-envoy-attempt-count": "9",
    "x-envoy-original-path": "/other",
    "x-envoy-decorator-operation": "x",
    "x-envoy-force-trace": "1",
    "x-forwarded-for": "10.0.0.1",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "example.com",
    "forwarded": "for=10.0.0.1",
    "x-real-ip": "10.0.0.1",
    "via": "1.1 example",
}


@pytest.mark.parametrize("behaviour", [silence(0.1), error(400)], ids=["slow 200", "400"])
def test_a_clients_internal_headers_steer_nothing(shared: Shared, behaviour: Behaviour) -> None:
    """One attempt, no timeout, no other target: the answer is what it would have been without them."""
    shared.primary.script(behaviour)

    reply = shared.gateway.post("/v1/chat/completions", {"model": "demo-primary", "messages": []}, headers=STEERING)

    assert (400 if behaviour.name == "error 400" else 200) == reply.status
    assert "1" == reply.header("x-gateway-attempts")
    assert (1, 0) == (shared.primary.count(), shared.fallback.count())


def test_no_internal_header_reaches_a_provider(shared: Shared) -> None:
    """Neither the client's nor Envoy's own, in no attempt."""
    shared.primary.script(error(503))

    shared.gateway.post("/v1/chat/completions", {"model": "picky", "messages": []}, headers=STEERING)

    for wall in (shared.primary, shared.fallback):
        (seen,) = wall.requests
        assert set() == internal_headers(seen.headers)
        assert [None, None, None] == [seen.header(name) for name in ("forwarded", "x-real-ip", "via")]


def test_no_answer_says_what_software_gave_it(shared: Shared) -> None:
    """The provider's answers, our own, and Envoy's to what is no request: neither a product nor a version."""
    shared.primary.script(answer(headers={"server": "uvicorn/0.1"}))
    replies = [
        shared.gateway.chat(),
        shared.gateway.chat("nobody-knows"),
        shared.gateway.get("/healthz"),
        shared.gateway.get("/elsewhere"),
        shared.gateway.get("/v1/models"),
        shared.gateway.get("/v1/models%2f"),
        shared.gateway.get("/healthz", headers={"x_y": "1"}),
    ]

    assert [200, 404, 200, 404, 200, 404, 400] == [reply.status for reply in replies]
    assert {"gateway"} == {reply.header("server") for reply in replies}
    told = [f"{reply.headers} {reply.body!r}".lower() for reply in replies]
    assert [] == [text for text in told for name in ("envoy", "uvicorn", "ai-model-gateway") if name in text]


PLANTED = {
    "x-gateway-retry": "1",
    "x-gateway-retry-after": "1",
    "x-gateway-served-by": "evil/evil",
    "x-gateway-route-mode": "direct",
    "x-gateway-attempts": "99",
    "x-gateway-config-version": "99",
    "x-gateway-secret": "1",
    "x-envoy-retriable-header-names": "x",
    "x-envoy-upstream-service-time": "5",
    "x-envoy-ratelimited": "true",
    "x-envoy-overloaded": "true",
    "x-envoy-immediate-health-check-fail": "true",
}


@pytest.mark.parametrize(
    ("behaviour", "stream"),
    [
        (ok(headers=PLANTED), False),
        (ok(headers=PLANTED), True),
        (answer(201, {"object": "list", "data": []}, PLANTED), False),
        (answer(400, {"error": {"message": "no"}}, PLANTED), False),
        (answer(422, {"error": {"message": "no"}}, PLANTED), True),
    ],
    ids=["200", "200 stream", "201", "400", "422 stream"],
)
def test_a_providers_internal_headers_drive_nothing_and_stay_here(
    shared: Shared, behaviour: Behaviour, stream: bool
) -> None:
    """A planted x-gateway-retry starts no attempt; planted values reach no caller."""
    shared.primary.script(behaviour)

    reply = shared.gateway.chat("demo-primary", stream=stream)

    values = dict(reply.headers)
    assert internal_headers(reply.headers) <= TOLD
    assert ("1", "1") == (values["x-gateway-attempts"], values["x-gateway-config-version"])
    assert values.get("x-gateway-served-by") != "evil/evil"
    assert len(reply.headers) == len(values), "a header came twice"
    assert 1 == shared.primary.count()
    assert 0 == shared.fallback.count()


def test_a_providers_ordinary_headers_reach_the_caller(shared: Shared) -> None:
    """Rate limits, processing time and whatever else it says about its answer."""
    sent = {"x-ratelimit-remaining-requests": "59", "openai-processing-ms": "12", "openai-version": "2020-10-01"}
    shared.primary.script(ok(headers=sent))

    reply = shared.gateway.chat("demo-primary")

    assert sent == {name: reply.header(name) for name in sent}


# -- clients ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Start a gateway that knows two clients."""

    def digest(token: str) -> str:
        return hashlib.sha256(token.encode()).hexdigest()

    clients = [
        {"name": "team-a", "token_sha256": digest(TOKEN_A), "models": ["demo-p*"]},
        {"name": "team-b", "token_sha256": digest(TOKEN_B)},
    ]
    return module_gateway_factory(two_providers(module_primary, module_fallback) | {"clients": clients})


CHAT = {"model": "demo-primary", "messages": []}
BAD_TOKENS: list[dict[str, str]] = [
    {},
    {"authorization": "Bearer"},
    {"authorization": "Bearer wrong"},
    {"authorization": f"Basic {TOKEN_A}"},
    {"authorization": TOKEN_A},
    {"authorization": f"Bearer {TOKEN_A}x"},
    {"x-api-key": "wrong"},
    {"api-key": TOKEN_A},
]


@pytest.mark.parametrize("headers", BAD_TOKENS, ids=[str(headers) for headers in BAD_TOKENS])
def test_without_a_known_token_nothing_is_served(guarded: Gateway, shared: Shared, headers: dict[str, str]) -> None:
    """401 in OpenAI's envelope, for endpoints and the model list alike."""
    replies = [
        guarded.post("/v1/chat/completions", CHAT, headers=headers),
        guarded.get("/v1/models", headers=headers),
        guarded.get("/v1/models/demo-primary", headers=headers),
    ]

    assert [(401, "invalid_api_key", "authentication_error")] * 3 == [
        (reply.status, reply.json["error"]["code"], reply.json["error"]["type"]) for reply in replies
    ]
    assert 0 == shared.primary.count()


def test_an_unknown_token_is_refused_in_anthropics_envelope(guarded: Gateway, shared: Shared) -> None:
    """On /v1/messages."""
    reply = guarded.post("/v1/messages", CHAT, headers={"x-api-key": "wrong"})

    assert (401, "error", "authentication_error") == (reply.status, reply.json["type"], reply.json["error"]["type"])
    assert {"type", "message"} == reply.json["error"].keys()


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {TOKEN_A}"}, {"authorization": f"bearer {TOKEN_A}"}, {"x-api-key": TOKEN_A}],
    ids=["Bearer", "bearer", "x-api-key"],
)
def test_a_known_token_is_served(guarded: Gateway, shared: Shared, headers: dict[str, str]) -> None:
    """In OpenAI's header or Anthropic's."""
    assert 200 == guarded.post("/v1/chat/completions", CHAT, headers=headers).status
    assert 1 == shared.primary.count()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_model_of_others_is_not_allowed(guarded: Gateway, shared: Shared, path: str) -> None:
    """403 in the envelope of the endpoint."""
    body: dict[str, Any] = {"model": "demo-fallback", "messages": []}

    reply = guarded.post(path, body, headers={"x-api-key": TOKEN_A})

    assert (403, "permission_error") == (reply.status, reply.json["error"]["type"])
    if path == "/v1/messages":
        assert "error" == reply.json["type"]
    else:
        assert "model_not_allowed" == reply.json["error"]["code"]
    assert 0 == shared.fallback.count()


@pytest.mark.parametrize(
    ("token", "names"), [(TOKEN_A, {"demo-primary"}), (TOKEN_B, {"demo-primary", "demo-fallback"})], ids=["a", "b"]
)
def test_the_model_list_is_the_clients_own(guarded: Gateway, shared: Shared, token: str, names: set[str]) -> None:
    """Other clients' models are not listed, and asking for one by name says not found."""
    headers = {"authorization": f"Bearer {token}"}

    listed = {model["id"] for model in guarded.get("/v1/models", headers=headers).json["data"]}
    status = guarded.get("/v1/models/demo-fallback", headers=headers).status

    assert names == listed
    assert (200 if "demo-fallback" in names else 404) == status


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_token(guarded: Gateway, shared: Shared, path: str) -> None:
    """Load balancers have none."""
    assert 200 == guarded.get(path).status


def test_the_access_log_names_the_client(guarded: Gateway, shared: Shared) -> None:
    """By its name, never by its token."""
    reply = guarded.post("/v1/chat/completions", CHAT, headers={"authorization": f"Bearer {TOKEN_B}"})

    assert "team-b" == guarded.logged(reply)["client"]
