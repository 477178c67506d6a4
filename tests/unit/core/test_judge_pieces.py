"""The judge never answers a body that Envoy has not sent: Envoy takes such a piece for a fault and ends the request."""

from __future__ import annotations

import orjson

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.core.exchange import (
    Action,
    ReleaseBody,
    ReleaseHeaders,
    RequestBody,
    RequestHeaders,
    ResponseBody,
    ResponseHeaders,
    RouteTo,
    SetTimer,
)
from extproc.core.gateway import Active, Gateway
from extproc.core.health import HealthEngine
from extproc.core.judge import JudgeExchange
from extproc.core.request_state import RequestState
from extproc.core.route import RouteExchange

CONFIG = {
    "schema": 1,
    "providers": {
        "a": {"base_url": "http://127.0.0.1:9/v1", "allow_private_network": True},
        "b": {"base_url": "http://127.0.0.1:10/v1", "allow_private_network": True},
    },
    "models": {"m": {"targets": [{"provider": "a", "model": "m"}, {"provider": "b", "model": "m", "tier": 1}]}},
}


def routed(**policy: object) -> tuple[Gateway, RequestState]:
    """Return a gateway and the state of a request on its way to the first of two targets."""
    config = CONFIG | ({"policies": {"default": policy}} if policy else {})
    snapshot = compile_snapshot(load_config(orjson.dumps(config).decode()), version=1)
    gateway = Gateway(HealthEngine(lambda: 0.5), lambda: 0.5)
    gateway.activate(Active(snapshot, {(name, "default"): name for name in snapshot.providers}))
    route = RouteExchange(gateway)
    route.handle(RequestHeaders({":path": "/v1/chat/completions", ":method": "POST", "x-request-id": "1"}, False), 1.0)
    body = b'{"model": "m", "stream": true}' if policy else b'{"model": "m"}'
    action = route.handle(RequestBody(body), 1.0)[0]
    assert isinstance(action, RouteTo)
    return gateway, action.state


def spoken(actions: list[Action]) -> list[Action]:
    """Return what goes to Envoy, without timers."""
    return [action for action in actions if isinstance(action, ReleaseHeaders | ReleaseBody)]


def test_headers_that_pass_before_any_body_pass_alone() -> None:
    judge = JudgeExchange(Gateway(HealthEngine(lambda: 0.5), lambda: 0.5), "a")
    assert [ReleaseHeaders()] == spoken(judge.handle(ResponseHeaders(200, {}, False, None), 1.0))
    assert [ReleaseBody(b"x", True)] == spoken(judge.handle(ResponseBody(b"x", True), 1.0))


def test_a_retry_decided_by_headers_owes_one_piece_to_the_first_of_the_body() -> None:
    gateway, state = routed()
    judge = JudgeExchange(gateway, "a")
    (headers,) = spoken(judge.handle(ResponseHeaders(200, {"content-type": "text/html"}, False, state), 1.1))
    assert isinstance(headers, ReleaseHeaders)
    assert headers.retry
    assert [ReleaseBody(b"", False)] == spoken(judge.handle(ResponseBody(b"<html>", False), 1.1))
    assert [] == spoken(judge.handle(ResponseBody(b"</html>", True), 1.1))


def test_a_retry_decided_by_the_body_brings_its_piece_along() -> None:
    gateway, state = routed()
    judge = JudgeExchange(gateway, "a")
    assert [] == spoken(judge.handle(ResponseHeaders(503, {}, False, state), 1.1))
    headers, piece = spoken(judge.handle(ResponseBody(b"{}", True), 1.1))
    assert isinstance(headers, ReleaseHeaders)
    assert (True, ReleaseBody(b"", False)) == (headers.retry, piece)


def test_a_stream_that_nobody_guards_is_timed_by_envoy_alone() -> None:
    """Its route's idle timer is the longer of the two limits; one of ours would cut a late first token."""
    gateway, state = routed(stream_guard="off")
    judge = JudgeExchange(gateway, "a")
    headers = ResponseHeaders(200, {"content-type": "text/event-stream"}, False, state)
    actions = judge.handle(headers, 1.1) + judge.handle(ResponseBody(b"data: {}\n\n", False), 1.2)
    assert [] == [action for action in actions if isinstance(action, SetTimer)]
