from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from extproc import envoy_admin
from extproc.envoy_admin import AdminAnswer, AdminError, parse_answer

Result = TypeVar("Result")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def against(answer: bytes, act: Callable[[Path], Awaitable[Result]], socket: Path) -> tuple[Result, bytes]:
    """Run `act` against a one-shot admin interface; returns its result and the request head it sent."""

    async def session() -> tuple[Result, bytes]:
        heard: list[bytes] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            writer.close()

        async with await asyncio.start_unix_server(handle, str(socket)):
            return await act(socket), heard[0]

    return asyncio.run(session())


def test_a_chunked_answer_is_put_together() -> None:
    assert parse_answer(CHUNKED + b"4\r\nLIVE\r\n1\r\n\n\r\n0\r\n\r\n") == AdminAnswer(200, b"LIVE\n")


def test_an_answer_with_a_length_is_read_as_it_is() -> None:
    assert parse_answer(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno") == AdminAnswer(503, b"no")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        CHUNKED,
        CHUNKED + b"4\r\nLI",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx",
    ],
)
def test_a_cut_answer_is_an_error(raw: bytes) -> None:
    with pytest.raises(AdminError, match="closed the connection"):
        parse_answer(raw)


def test_the_uptime_is_of_the_process(tmp_path: Path) -> None:
    body = b'{"state":"LIVE","uptime_current_epoch":"71s","uptime_all_epochs":"90s"}'
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + body

    assert 71 == against(answer, envoy_admin.uptime_s, tmp_path / "s")[0]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"uptime_current_epoch": "soon"}'])
def test_an_uptime_that_cannot_be_read_is_an_error(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(AdminError, match="did not say since when"):
        against(b"HTTP/1.1 200 OK\r\n\r\n" + body, envoy_admin.uptime_s, tmp_path / "s")


def test_statistics_hold_numbers_and_texts_and_no_histograms(tmp_path: Path) -> None:
    body = b'{"stats":[{"name":"a.b","value":3},{"name":"v","value":"7"},{"histograms":{}}]}'
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + body

    found, request = against(answer, lambda socket: envoy_admin.stats(socket, "^a[.]b$"), tmp_path / "s")

    assert found == {"a.b": 3, "v": "7"}
    assert request.startswith(b"GET /stats?format=json&filter=%5Ea%5B.%5Db%24 HTTP/1.1\r\n")


def test_statistics_that_are_not_json_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="cannot be read"):
        against(b"HTTP/1.1 200 OK\r\n\r\nhello", lambda socket: envoy_admin.stats(socket, "x"), tmp_path / "s")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nLIVE\n", True),
        (b"HTTP/1.1 503 No\r\n\r\nPRE_INITIALIZING\n", False),
        (b"", False),
    ],
)
def test_only_live_is_ready(tmp_path: Path, answer: bytes, expected: bool) -> None:
    assert expected == against(answer, envoy_admin.ready, tmp_path / "s")[0]


def test_a_refused_act_is_an_error(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 405 No\r\n\r\nno"

    with pytest.raises(AdminError, match="answered 405 to POST /drain_listeners"):
        against(answer, lambda socket: envoy_admin.post(socket, "/drain_listeners"), tmp_path / "s")


def test_an_absent_socket_is_an_error_and_not_ready(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="cannot be reached"):
        asyncio.run(envoy_admin.get(tmp_path / "none", "/ready"))
    assert asyncio.run(envoy_admin.ready(tmp_path / "none")) is False


def test_silence_ends_with_the_timeout(tmp_path: Path) -> None:
    async def session() -> None:
        handled = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            handled.set()

        async with await asyncio.start_unix_server(silent, str(tmp_path / "s")):
            try:
                await envoy_admin.get(tmp_path / "s", "/ready", timeout_s=0.01)
            finally:
                await handled.wait()

    with pytest.raises(AdminError, match=r"did not answer GET /ready in 0\.01 s"):
        asyncio.run(session())
