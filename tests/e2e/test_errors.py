"""Every error that the gateway makes itself: status, code, exact shape in both envelopes, and valid JSON always."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from extproc.core.errors import CODES
from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.http1 import Call, Reply
from tests.support.told import all_told, id_of
from tests.support.wall import Behaviour, Wall, answer, error, html_200, rate_limited, silence

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
MAX_BODY_BYTES = 64 * 1024
KIB = 1024


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Take only small bodies, and give up soon."""
    config = two_providers(module_primary, module_fallback)
    config["server"] = {"max_body": "64KiB"}
    config["policies"] = {"quick": {"first_byte_timeout": "300ms", "when_all_down": "fail", "same_target": {"max": 0}}}
    claude = provider(module_primary, "PRIMARY_KEY", protocol="anthropic")
    config["providers"] |= {"claude": claude, "rests": provider(module_primary), "claude-rests": claude}
    config["providers"]["strange"] = provider(module_primary)
    config["providers"]["gone"] = provider(module_primary, base_url="http://127.0.0.1:1/v1")
    config["providers"]["claude-gone"] = config["providers"]["gone"] | {"protocol": "anthropic"}
    names = {"alone": ("primary", "claude"), "rests": ("rests", "claude-rests"), "gone": ("gone", "claude-gone")}
    config["models"] |= {
        name: {"targets": [{"provider": one, "model": name} for one in providers], "policy": "quick"}
        for name, providers in names.items()
    }
    patient = {"same_target": {"max": 0}, "cooldown": {"consecutive": 100, "min_requests": 100}}
    config["policies"] |= {"patient": patient, "hurried": patient | {"max_duration": "700ms"}}
    for name, policy in (("hurried", "hurried"), ("rescued", "patient")):
        targets = [{"provider": one, "model": name, "tier": tier} for tier, one in enumerate(("strange", "fallback"))]
        config["models"][name] = {"targets": targets, "policy": policy}
    config["models"]["odd"] = {"targets": [{"provider": one, "model": "odd"} for one in ("strange", "claude")]}
    config["models"]["odd"]["policy"] = "patient"
    return module_gateway_factory(config)


@pytest.fixture(scope="module", autouse=True)
def half_a_head(module_gateway: Gateway) -> Iterator[Call]:
    """Begin a request and leave its head unfinished; the module's last test sees what becomes of it."""
    with Call(module_gateway.url, timeout_s=30) as call:
        call.send_raw(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        yield call


def assert_error(reply: Reply, code: str, protocol: str = "openai", param: str | None = None) -> None:
    """Check status, headers and the exact envelope of an error of the gateway's own."""
    status, openai_type, anthropic_type = CODES[code]
    assert (status, "application/json", "clean") == (reply.status, reply.header("content-type"), reply.ended)
    assert str(len(reply.body)) == reply.header("content-length")
    message = reply.json["error"]["message"]
    assert isinstance(message, str)
    assert message.endswith(".")
    if protocol == "openai":
        error: dict[str, Any] = {"message": message, "type": openai_type, "param": param, "code": code}
        assert {"error": error} == reply.json
    else:
        assert {"type": "error", "error": {"type": anthropic_type, "message": message}} == reply.json


def assert_own_headers(reply: Reply) -> None:
    """Check what every answer to a request that Envoy could parse has."""
    assert "none" == reply.header("x-gateway-route-mode")
    assert reply.header("x-request-id")
    assert reply.header("x-gateway-served-by") is None
    assert reply.header("x-gateway-attempts") is not None
    assert "1" == reply.header("x-gateway-config-version")


both = pytest.mark.parametrize(("path", "protocol"), [(CHAT, "openai"), (MESSAGES, "anthropic")], ids=["chat", "msgs"])

BAD_JSON: dict[str, bytes] = {
    "words": b"hello",
    "cut": b'{"model":"demo-primary"',
    "trailing garbage": b'{"model":"demo-primary"} x',
    "two documents": b'{"model":"demo-primary"}{"model":"demo-primary"}',
    "trailing comma": b'{"model":"demo-primary",}',
    "comment": b'{"model":"demo-primary"/* x */}',
    "single quotes": b"{'model':'demo-primary'}",
    "not a number": b'{"model":"demo-primary","x":NaN}',
    "not utf-8": b'{"model":"demo-primary","x":"\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"model":"demo-primary"}',
    "array": b'[{"model":"demo-primary"}]',
    "string": b'"demo-primary"',
    "null": b"null",
    "number": b"1",
    "deep": b'{"model":"demo-primary","x":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "white space": b"  \n ",
    "empty": b"",
    "form": b"model=demo-primary",
}
TWICE: dict[str, bytes] = {
    "twice": b'{"model":"demo-primary","model":"demo-fallback"}',
    "twice the same": b'{"model":"demo-primary","model":"demo-primary"}',
    "escaped": b'{"model":"demo-primary","mod\\u0065l":"demo-fallback"}',
    "escaped first": b'{"\\u006dodel":"demo-fallback","x":{"model":"y"},"model":"demo-primary"}',
}
NO_MODEL: dict[str, bytes] = {
    "absent": b'{"messages":[]}',
    "empty object": b"{}",
    "null": b'{"model":null}',
    "number": b'{"model":4}',
    "object": b'{"model":{"name":"demo-primary"}}',
    "empty name": b'{"model":""}',
    "only inside": b'{"metadata":{"model":"demo-primary"}}',
    "other case": b'{"Model":"demo-primary"}',
    "endless name": b'{"model":"' + b"x" * 1000 + b'"}',
}


@both
@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
def test_what_is_not_a_json_object_is_refused(shared: Shared, body: bytes, path: str, protocol: str) -> None:
    """invalid_json, and no provider sees it."""
    reply = shared.gateway.post(path, body=body)

    assert_error(reply, "invalid_json", protocol)
    assert_own_headers(reply)
    assert (0, 0) == (shared.primary.count(), shared.fallback.count())


@both
@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE)
def test_two_model_keys_are_refused(shared: Shared, body: bytes, path: str, protocol: str) -> None:
    """We would read one and the provider perhaps the other."""
    reply = shared.gateway.post(path, body=body)

    assert_error(reply, "invalid_json", protocol, "model")
    assert (0, 0) == (shared.primary.count(), shared.fallback.count())


@both
@pytest.mark.parametrize("body", NO_MODEL.values(), ids=NO_MODEL)
def test_a_body_must_name_its_model(shared: Shared, body: bytes, path: str, protocol: str) -> None:
    """missing_model, with the parameter's name."""
    reply = shared.gateway.post(path, body=body)

    assert_error(reply, "missing_model", protocol, "model")
    assert_own_headers(reply)


@both
@pytest.mark.parametrize("name", ["nobody", 'a"b\\c{}', "<script>", "\u00e9\U0001f600", "%REQ(x)%", "x" * 200])
def test_an_unknown_model_is_not_found(shared: Shared, name: str, path: str, protocol: str) -> None:
    """Correct JSON whatever the name holds."""
    reply = shared.gateway.post(path, {"model": name})

    assert_error(reply, "model_not_found", protocol, "model")
    assert_own_headers(reply)


@pytest.mark.parametrize(
    "path", ["/v1/unknown", '/v1/"%22', "/v1/%0A", "/v1/%7B%22", "/v1/%FF", "/v1/chat%2Fcompletions", "/" + "x" * 5000]
)
def test_an_unknown_path_is_unsupported(shared: Shared, path: str) -> None:
    """Correct JSON whatever the path holds."""
    reply = shared.gateway.post(path, {"model": "demo-primary"})

    assert_error(reply, "unsupported_endpoint")
    assert_own_headers(reply)


# -- sizes -----------------------------------------------------------------------------------------------------------


def padded(size_bytes: int) -> bytes:
    body = b'{"model":"alone","x":"'
    return body + b"x" * (size_bytes - len(body) - 2) + b'"}'


def send_chunked(gateway: Gateway, path: str, body: bytes, chunk_bytes: int = 16 * KIB) -> Reply:
    """Send a body without telling its length first."""
    pieces = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
    with Call(gateway.url) as call:
        call.send_raw(head.encode() + b"transfer-encoding: chunked\r\n\r\n" + encoded)
        call.read_head()
        assert list(call.pieces())
        return call.reply()


@both
def test_a_body_of_the_limit_is_taken(shared: Shared, path: str, protocol: str) -> None:
    """Exactly max_body, with and without a length."""
    body = padded(MAX_BODY_BYTES)

    replies = [shared.gateway.post(path, body=body), send_chunked(shared.gateway, path, body)]

    assert [200, 200] == [reply.status for reply in replies]
    assert MAX_BODY_BYTES == len(shared.primary.requests[1].body)


@both
def test_a_longer_body_is_too_large(shared: Shared, path: str, protocol: str) -> None:
    """One byte more is refused, with and without a length."""
    body = padded(MAX_BODY_BYTES + 1)

    for reply in (shared.gateway.post(path, body=body), send_chunked(shared.gateway, path, body)):
        assert_error(reply, "request_too_large", protocol)
        assert_own_headers(reply)
    assert 0 == shared.primary.count()


def test_a_length_beyond_the_limit_is_refused_before_its_body(shared: Shared) -> None:
    """The caller is told at once, not after sending 10 GB."""
    with Call(shared.gateway.url + CHAT, timeout_s=5) as call:
        call.send_raw(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n{")
        assert 413 == call.read_head()
        assert list(call.pieces())
        assert_error(call.reply(), "request_too_large")


@both
def test_a_chunked_body_beyond_envoys_buffer_is_too_large_too(shared: Shared, path: str, protocol: str) -> None:
    """Where Envoy itself refuses, the words are the same; the caller may see the connection end instead."""
    with Call(shared.gateway.url, timeout_s=10) as call:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        call.send_raw(head.encode())
        try:
            for _ in range(80):
                call.send_raw(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
        except ConnectionError:
            pass
        assert 413 == call.read_head()
        for _ in call.pieces():
            pass
        assert_error(call.reply(), "request_too_large", protocol)


def test_huge_headers_are_refused(shared: Shared) -> None:
    """431, before there is a request to speak of."""
    reply = shared.gateway.get("/v1/models", headers={f"x-{number}": "v" * 8000 for number in range(20)})

    assert_error(reply, "headers_too_large")


# -- HTTP that is not ------------------------------------------------------------------------------------------------

MALFORMED: dict[str, bytes] = {
    "no colon": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
    "space in name": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nbad name: 1\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "length and chunks": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "underscore": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx_gateway_target: 1\r\n\r\n",
    "raw utf-8 in the path": b"GET /v1/\xc3\xa9 HTTP/1.1\r\nhost: x\r\n\r\n",
    "not HTTP": b"hello\r\n\r\n",
}


def test_http_1_0_is_told_what_is_missing(shared: Shared) -> None:
    """As of nginx's `proxy_pass` without `proxy_http_version`."""
    with Call(shared.gateway.url, timeout_s=5) as call:
        call.send_raw(b"GET /v1/models HTTP/1.0\r\nhost: x\r\n\r\n")
        assert 400 == call.read_head()
        for _ in call.pieces():
            pass
        reply = call.reply()
    assert_error(reply, "bad_request")
    assert "HTTP/1.1" in reply.json["error"]["message"]
    assert ("0", "none") == (reply.header("x-gateway-attempts"), reply.header("x-gateway-route-mode"))


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_malformed_http_is_a_bad_request(shared: Shared, sent: bytes) -> None:
    """400 in the envelope, although there may be no request to log."""
    with Call(shared.gateway.url, timeout_s=5) as call:
        call.send_raw(sent)
        assert 400 == call.read_head()
        for _ in call.pieces():
            pass
        reply = call.reply()
    assert_error(reply, "bad_request")
    assert ("0", "none") == (reply.header("x-gateway-attempts"), reply.header("x-gateway-route-mode"))
    assert 0 == shared.primary.count()


# -- providers that cannot -------------------------------------------------------------------------------------------


def told_classes(gateway: Gateway, reply: Reply) -> tuple[str, ...]:
    """Return the classes of a request's failed attempts as ledger and `explain` tell them."""
    gateway.logged(reply)
    told = all_told(gateway, [reply])[id_of(reply)]
    assert told.row.classes == told.explained.classes
    return told.row.classes


def endless_json() -> Behaviour:
    """Answer 72 MiB of JSON without a length."""
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    return Behaviour("endless_json", lambda _: [head, *[piece] * 72])


@both
def test_a_silent_provider_is_a_timeout(shared: Shared, path: str, protocol: str) -> None:
    """504 upstream_timeout."""
    shared.primary.script(silence())

    reply = shared.gateway.post(path, {"model": "alone"})

    assert_error(reply, "upstream_timeout", protocol)
    assert_own_headers(reply)
    assert ("1", "false") == (reply.header("x-gateway-attempts"), reply.header("x-should-retry"))


def test_a_request_that_lasts_too_long_is_a_timeout(shared: Shared) -> None:
    """Of `max_duration`; the attempt under way is one that timed out, not one whose caller left."""
    shared.primary.script(silence())

    reply = shared.gateway.post(CHAT, {"model": "hurried"})

    assert_error(reply, "upstream_timeout")
    assert_own_headers(reply)
    assert ("1", "false") == (reply.header("x-gateway-attempts"), reply.header("x-should-retry"))
    assert ("timeout",) == told_classes(shared.gateway, reply)


def test_a_request_that_lasts_too_long_after_an_error_ends_with_that(shared: Shared) -> None:
    """The first meaningful one, as ever; its bytes as they came."""
    shared.primary.script(error(503, message="zu viel L\u00e4rm", headers={"retry-after": "7"}))
    shared.fallback.script(silence())

    reply = shared.gateway.post(CHAT, {"model": "hurried"})

    assert (503, "zu viel L\u00e4rm", "application/json") == (
        reply.status,
        reply.json["error"]["message"],
        reply.header("content-type"),
    )
    assert_own_headers(reply)
    assert ("2", "false", "7") == tuple(map(reply.header, ("x-gateway-attempts", "x-should-retry", "retry-after")))


@both
def test_a_refusing_provider_is_a_failed_connection(shared: Shared, path: str, protocol: str) -> None:
    """502 upstream_connect_failed."""
    reply = shared.gateway.post(path, {"model": "gone"})

    assert_error(reply, "upstream_connect_failed", protocol)
    assert_own_headers(reply)


@both
def test_a_page_instead_of_an_answer_is_a_bad_answer(shared: Shared, path: str, protocol: str) -> None:
    """502 upstream_bad_answer."""
    shared.primary.script(html_200())

    reply = shared.gateway.post(path, {"model": "alone"})

    assert_error(reply, "upstream_bad_answer", protocol)
    assert_own_headers(reply)


def test_a_change_of_protocols_that_nobody_asked_for_is_a_bad_answer(shared: Shared) -> None:
    """502 upstream_bad_answer, or the next target's answer."""
    shared.primary.script(answer(101, b"", {"connection": "upgrade", "upgrade": "other"}))

    alone, rescued = (shared.gateway.post(CHAT, {"model": model}) for model in ("odd", "rescued"))

    assert_error(alone, "upstream_bad_answer")
    assert_own_headers(alone)
    assert (200, "2") == (rescued.status, rescued.header("x-gateway-attempts"))


@both
def test_a_compressed_error_that_is_too_large_to_keep_has_its_status_and_our_words(
    shared: Shared, path: str, protocol: str
) -> None:
    """Of its first 64 KiB nobody could read anything."""
    packed = gzip.compress(os.urandom(200 * KIB))
    shared.primary.script(answer(500, packed, {"content-encoding": "gzip", "x-ratelimit-limit-requests": "9"}))

    reply = shared.gateway.post(path, {"model": "odd"})

    headers = [reply.header(name) for name in ("content-type", "content-encoding", "x-ratelimit-limit-requests")]
    assert (500, ["application/json", None, "9"]) == (reply.status, headers)
    assert "compressed error" in reply.json["error"]["message"]
    assert (protocol == "anthropic") == (reply.json.get("type") == "error")
    assert_own_headers(reply)


@both
def test_an_answer_that_is_too_large_to_hold_is_a_bad_answer(shared: Shared, path: str, protocol: str) -> None:
    """502 upstream_bad_answer; without a length nobody can know before it is held."""
    shared.primary.script(endless_json())

    reply = shared.gateway.post(path, {"model": "odd"})

    assert_error(reply, "upstream_bad_answer", protocol)
    assert_own_headers(reply)
    assert ("bad_answer",) == told_classes(shared.gateway, reply)


@both
def test_a_resting_model_has_no_healthy_target(shared: Shared, path: str, protocol: str) -> None:
    """503 no_healthy_target with the time of recovery, 60 s at most."""
    shared.primary.script(rate_limited(retry_after=500))
    assert 429 == shared.gateway.post(path, {"model": "rests"}).status

    reply = shared.gateway.post(path, {"model": "rests"})

    assert_error(reply, "no_healthy_target", protocol)
    assert_own_headers(reply)
    assert ("60", "false") == (reply.header("retry-after"), reply.header("x-should-retry"))
    assert 1 == shared.primary.count()


# -- a gateway that cannot -------------------------------------------------------------------------------------------


@both
def test_while_extproc_stands_still_the_gateway_is_unavailable(shared: Shared, path: str, protocol: str) -> None:
    """503 gateway_unavailable after Envoy's patience of 5 s, and service as soon as it goes on."""
    shared.gateway.pause_extproc()
    try:
        reply = shared.gateway.post(path, {"model": "alone"})
    finally:
        shared.gateway.resume_extproc()

    assert_error(reply, "gateway_unavailable", protocol)
    assert ("0", "none") == (reply.header("x-gateway-attempts"), reply.header("x-gateway-route-mode"))
    assert 0 == shared.primary.count()
    assert 200 == shared.gateway.chat("demo-primary").status


def test_a_head_that_never_ends_is_a_request_timeout(shared: Shared, half_a_head: Call) -> None:
    """408, begun when the module began; runs last."""
    began = time.monotonic()

    assert 408 == half_a_head.read_head()
    for _ in half_a_head.pieces():
        pass

    assert time.monotonic() - began < 20
    assert_error(half_a_head.reply(), "request_timeout")
