"""A glob's model name is the caller's own text, comes back in a header and is logged: none writes a line of its own."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import orjson
import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, provider
from tests.support.http1 import Call
from tests.support.wall import Wall

PATH = "/v1/chat/completions"
SECOND = "\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-evil: 1\r\n\r\nevil"
LONGEST = 256


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall) -> Gateway:
    """Offer every name to one provider."""
    config = {
        "schema": 1,
        "providers": {"primary": provider(module_primary, "PRIMARY_KEY")},
        "models": {"any-*": {"targets": [{"provider": "primary", "model": "*"}]}},
    }
    return module_gateway_factory(config)


def everything(gateway: Gateway, model: str) -> bytes:
    """Ask for a model and return every byte that comes back until the connection ends."""
    body = orjson.dumps({"model": model, "messages": []})
    head = f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


INJECTIONS = {
    "CR LF": "any-\r\nx-evil: 1",
    "CR": "any-\rx-evil: 1",
    "LF": "any-\nx-evil: 1",
    "NUL": "any-\x00x-evil: 1",
    "DEL": "any-\x7fx-evil: 1",
    "NEL": "any-\x85x-evil: 1",
    "LINE SEPARATOR": "any-\u2028x-evil: 1",
    "a second response": "any-" + "a" * (LONGEST - 4 - len(SECOND)) + SECOND,
}


@pytest.mark.parametrize("model", INJECTIONS.values(), ids=INJECTIONS)
def test_a_name_with_a_line_of_its_own_is_refused(shared: Shared, model: str) -> None:
    """One answer comes back, without the caller's line; no provider sees anything of it."""
    answer = everything(shared.gateway, model)

    assert answer.startswith(b"HTTP/1.1 400")
    assert 1 == answer.count(b"HTTP/1.1 ")
    assert b"evil" not in answer
    assert b'"code":"bad_request"' in answer
    assert 0 == shared.primary.count()
    assert 200 == shared.gateway.chat("any-other").status


@pytest.mark.parametrize("path", ["/v1/models/any-%0d%0ax-evil:%201", "/v1/models/any-\udcff", "/v1/models/any-\x85"])
def test_the_name_in_a_path_writes_no_line_either(shared: Shared, path: str) -> None:
    with Call(shared.gateway.url + "/", timeout_s=10) as call:
        call.send_raw(f"GET {path} HTTP/1.1\r\nhost: gateway\r\n\r\n".encode("utf-8", "surrogateescape"))
        status = call.read_head()

    assert status in (200, 400)
    assert "x-evil" not in [name for name, _ in call.headers]


def test_the_longest_name_is_told_whole(shared: Shared) -> None:
    model = "any-" + "a" * (LONGEST - 4)

    assert f"primary/{model}" == shared.gateway.chat(model).header("x-gateway-served-by")


@pytest.mark.parametrize("model", ["any-größe", "any-模型", "any-😀 mini"])
def test_a_name_beyond_ascii_comes_back_as_the_bytes_it_was_sent_as(shared: Shared, model: str) -> None:
    """UTF-8 in a value is opaque bytes to HTTP (RFC 9110, 5.5): Envoy hands it on, and clients take it."""
    body: dict[str, Any] = {"model": model, "messages": []}
    raw = shared.gateway.chat(model).header("x-gateway-served-by")
    client = httpx.post(shared.gateway.url + PATH, json=body, trust_env=False)

    assert raw is not None
    assert f"primary/{model}" == raw.encode("latin-1").decode()
    assert f"primary/{model}" == client.headers["x-gateway-served-by"]


@pytest.mark.parametrize("model", ['any-"x', "any-\\", "any-%REQ(x)%", 'any-","status":0,"x":"', "any-größe 😀"])
def test_the_log_has_a_name_as_it_was_sent(shared: Shared, model: str) -> None:
    line = shared.gateway.logged(shared.gateway.chat(model))

    assert (model, model, 200) == (line["model"], line["served_model"], line["status"])
