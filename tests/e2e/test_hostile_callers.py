"""What hostile callers can send through real Envoy: each gets a documented answer, and nothing else is disturbed."""

from __future__ import annotations

import resource
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, two_providers
from tests.support.http1 import Call
from tests.support.wall import Wall, ok

PATH = "/v1/chat/completions"
READER_STOPS_S = 0.5
BODY = b'{"model":"demo-primary","messages":[]}'


def raw(gateway: Gateway, data: bytes, timeout_s: float = 5.0) -> bytes:
    """Send bytes as they are and return all that comes back until the connection ends or is silent."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=timeout_s) as connection:
        connection.sendall(data)
        got = bytearray()
        while b"\r\n\r\n" not in got and (piece := _receive(connection)):
            got += piece
        return bytes(got)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except (TimeoutError, ConnectionError):
        return b""


def head(*lines: str, first: str = f"POST {PATH} HTTP/1.1") -> bytes:
    return "\r\n".join([first, "host: gateway", "content-type: application/json", *lines, "", ""]).encode("latin-1")


SMUGGLED = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head("content-length: 4", "transfer-encoding: chunked") + b"0\r\n\r\n" + SMUGGLED, id="CL.TE"),
        pytest.param(head("transfer-encoding: chunked", "content-length: 60") + b"0\r\n\r\n" + SMUGGLED, id="TE.CL"),
        pytest.param(head("content-length: 5", "content-length: 6") + b"{}{}{}", id="two lengths"),
        pytest.param(head("content-length: 5, 6") + b"{}{}{}", id="a list of lengths"),
        pytest.param(head("content-length: -1") + b"{}", id="a negative length"),
        pytest.param(head("content-length: 0x10") + b"{}" * 8, id="a hexadecimal length"),
        pytest.param(head("content-length: 99999999999999999999") + b"{}", id="a length beyond 64 bits"),
        pytest.param(head("transfer-encoding: xchunked") + b"0\r\n\r\n", id="another encoding"),
        pytest.param(head("transfer-encoding: chunked, identity") + b"0\r\n\r\n", id="two encodings"),
        pytest.param(head("transfer-encoding : chunked") + b"0\r\n\r\n", id="a space before the colon"),
        pytest.param(head("transfer-encoding:\x0bchunked") + b"0\r\n\r\n", id="a control character before the value"),
        pytest.param(head("transfer-encoding: chunked") + b"-1\r\nx\r\n0\r\n\r\n", id="a negative chunk"),
        pytest.param(head("transfer-encoding: chunked") + b"FFFFFFFFFFFFFFFFF\r\nx", id="an endless chunk"),
        pytest.param(head("x-a: b\x00c", "content-length: 2") + b"{}", id="NUL in a header"),
        pytest.param(head("x-a: b\rc: d", "content-length: 2") + b"{}", id="a bare CR"),
        pytest.param(head("x_y: 1", "content-length: 2") + b"{}", id="an underscore in a name"),
        pytest.param(head(" folded: 1", "content-length: 2") + b"{}", id="a folded line"),
        pytest.param(head("content-length: 2", first=f"POST {PATH} HTTP/9.9") + b"{}", id="another version"),
        pytest.param(head("content-length: 2", first=f"POST  {PATH} HTTP/1.1") + b"{}", id="two spaces"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 64, id="TLS in the clear"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64, id="broken HTTP/2"),
    ],
)
def test_a_request_that_two_readers_might_read_differently_is_refused(shared: Shared, data: bytes) -> None:
    """No provider sees anything of it, and the next caller is served."""
    answer = raw(shared.gateway, data)

    assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 501") or not answer.startswith(b"HTTP/1.1")
    assert 0 == len(shared.primary.requests) + len(shared.fallback.requests)
    assert 200 == shared.gateway.chat().status


@pytest.mark.parametrize("path", [f"{PATH}%2f..%2fmodels", "/v1/%5cchat", f"/v1/../..{PATH}/../../secret", "//v1//x"])
def test_a_path_in_disguise_reaches_no_provider(shared: Shared, path: str) -> None:
    answer = raw(shared.gateway, head(f"content-length: {len(BODY)}", first=f"POST {path} HTTP/1.1") + BODY)

    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404")
    assert [] == shared.primary.requests


def test_a_path_with_dots_is_the_path_it_means(shared: Shared) -> None:
    """Normalised once, before anything decides."""
    first = f"POST /v1/x/..//chat/completions HTTP/1.1"  # noqa: F541
    answer = raw(shared.gateway, head(f"content-length: {len(BODY)}", first=first) + BODY)

    assert answer.startswith(b"HTTP/1.1 200")
    assert [PATH] == [seen.path for seen in shared.primary.requests]


@pytest.mark.parametrize(
    ("lines", "status"),
    [([f"x-big: {'x' * 70_000}"], b"431"), ([f"x-{n}: 1" for n in range(200)], b"431")],
    ids=["64 KiB", "128 headers"],
)
def test_headers_beyond_the_limits_are_refused(shared: Shared, lines: list[str], status: bytes) -> None:
    answer = raw(shared.gateway, head(*lines, f"content-length: {len(BODY)}") + BODY)

    assert b"HTTP/1.1 " + status == answer[:12]
    assert [] == shared.primary.requests


def test_a_body_that_comes_one_byte_at_a_time_is_served_and_disturbs_nobody(shared: Shared) -> None:
    with Call(shared.gateway.url + PATH) as slow:
        slow.send_raw(head(f"content-length: {len(BODY)}"))
        for byte in BODY:
            slow.send_raw(bytes([byte]))
            if byte == ord(":"):
                assert 200 == shared.gateway.chat().status
            time.sleep(0.01)
        assert 200 == slow.read_head()


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_caller_who_pauses_has_its_whole_answer(shared: Shared, connection: str) -> None:
    """Whether or not the connection ends with it."""
    shared.primary.script(ok("x" * (8 << 20)))
    with Call(shared.gateway.url + PATH, receive_bytes=4096) as call:
        call.send("POST", {"content-type": "application/json", "connection": connection}, BODY)
        assert 200 == call.read_head()
        threading.Event().wait(READER_STOPS_S)
        assert 8 << 20 < sum(len(piece) for piece in call.pieces())
        assert "clean" == call.reply().ended


def test_headers_that_never_end_are_given_up(shared: Shared) -> None:
    """The slow-loris: 15 seconds for a head, then 408 or the end of the connection."""
    with socket.create_connection(("127.0.0.1", shared.gateway.port), timeout=30) as loris:
        loris.sendall(f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\n".encode())
        began = time.monotonic()
        answer = _receive(loris)
        took_s = time.monotonic() - began

    assert answer[:12] in (b"", b"HTTP/1.1 408")
    assert 10 < took_s < 25


def test_thousands_of_idle_connections_disturb_nobody(gateway_factory: GatewayFactory, primary: Wall) -> None:
    """As many as this process may open, up to 10,000."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(10_000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 400), hard))
    gateway = gateway_factory(two_providers(primary, primary))
    try:
        with ExitStack() as idle:
            for _ in range(wanted):
                idle.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=10))
            replies = [gateway.chat() for _ in range(5)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert [200] * 5 == [reply.status for reply in replies]
    assert max(reply.seconds for reply in replies) < 2.0
