"""A fake OpenAI-compatible provider for the demonstration: answers, says 429 or falls silent, as it is told.

Owns an HTTP/1.1 server in its own thread and the record of what it was sent. It knows chat completions only,
plain and streamed, and needs nothing but the standard library, because it is installed with the gateway.
`python -m extproc.demo_provider` runs one by hand; with `--control` it takes orders and tells what it saw at
`/control`, for a demonstration whose parts run in containers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

CHUNK_PAUSE_S = 0.1
"""Between the pieces of a streamed answer, so that a reader can tell a stream from a buffered answer."""
CONTROL_PATH = "/control"
"""POST says how to behave, GET tells what was sent, DELETE forgets it."""
_HOST = "127.0.0.1"
_START_TIMEOUT_S = 10.0
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Behaviour(StrEnum):
    """What the provider does with a request."""

    ANSWER = "answer"
    """Answer, as a stream if the request asks for one."""
    RATE_LIMITED = "rate_limited"
    """429 with `Retry-After`."""
    SILENT = "silent"
    """Take the request and say nothing until the caller gives up."""
    STALLED = "stalled"
    """Begin a stream (200, the assistant's role, no word yet), then fall silent."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived; `at` is on the monotonic clock, header names are lower case."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"

    def as_json(self) -> dict[str, Any]:
        """Return this request for `/control`; what is no UTF-8 in the body is replaced."""
        return {"at": self.at, "path": self.path, "headers": self.headers, "body": self.body.decode(errors="replace")}

    @property
    def fields(self) -> dict[str, Any]:
        """The body's JSON object; empty when it is none."""
        with suppress(ValueError):
            fields = json.loads(self.body)
            return fields if isinstance(fields, dict) else {}
        return {}

    @property
    def model(self) -> str:
        """The model the request names."""
        return str(self.fields.get("model", ""))


class DemoProvider:
    """A provider; a context manager. `port` 0 takes a free one; `control` opens `/control` to everybody."""

    def __init__(self, words: str, *, host: str = _HOST, port: int = 0, control: bool = False) -> None:
        self.port = port
        self._host = host
        self._control = control
        self._words = words
        self._wanted: tuple[Behaviour, int] = (Behaviour.ANSWER, 0)
        self._seen: list[Seen] = []

    @property
    def url(self) -> str:
        """The base_url a config names."""
        return f"http://{self._host}:{self.port}/v1"

    @property
    def requests(self) -> Sequence[Seen]:
        """Everything it was sent, oldest first."""
        return tuple(self._seen)

    def behave(self, behaviour: Behaviour, retry_after_s: int = 0) -> None:
        """Say what to do with requests from now on; `retry_after_s` goes with RATE_LIMITED."""
        self._wanted = (behaviour, retry_after_s)

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="demo-provider", daemon=True)
        self._thread.start()
        self.port = started.result(_START_TIMEOUT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        with suppress(RuntimeError):  # its loop is gone already
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(_START_TIMEOUT_S)

    def _run(self, started: Future[int]) -> None:
        try:
            asyncio.run(self._serve(started))
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: Future[int]) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._on_connection, self._host, self.port)
        started.set_result(int(server.sockets[0].getsockname()[1]))
        await self._ended.wait()
        server.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    await self._on_request(await _read_request(reader), reader, writer)
        finally:
            writer.close()

    async def _on_request(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._control and seen.path == CONTROL_PATH:
            writer.write(self._obey(seen))
            await writer.drain()
            return
        behaviour, retry_after_s = self._wanted
        self._seen.append(seen)
        if behaviour in (Behaviour.SILENT, Behaviour.STALLED):
            if behaviour is Behaviour.STALLED:
                writer.write(_STREAM_HEAD + _chunk(_stream_events(seen.model, "")[0]))
            await reader.read(1)  # until the caller gives up
            raise ConnectionResetError
        if behaviour is Behaviour.RATE_LIMITED:
            writer.write(_rate_limited(retry_after_s))
        elif not seen.path.endswith("/chat/completions"):
            writer.write(_error(404, "unknown_url", "This provider serves chat completions only."))
        elif seen.fields.get("stream") is True:
            await self._stream(seen, writer)
        else:
            writer.write(_whole(200, _completion(seen.model, self._words)))
        await writer.drain()

    def _obey(self, order: Seen) -> bytes:
        if order.method == "DELETE":
            self._seen.clear()
        elif order.method == "POST":
            try:
                self.behave(Behaviour(order.fields["behaviour"]), int(order.fields.get("retry_after_s", 0)))
            except (LookupError, ValueError):
                return _error(400, "bad_order", "An order names a behaviour, and retry_after_s in whole seconds.")
        return _whole(200, {"requests": [seen.as_json() for seen in self._seen]})

    async def _stream(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(_STREAM_HEAD)
        for event in _stream_events(seen.model, self._words):
            writer.write(_chunk(event))
            await writer.drain()
            await asyncio.sleep(CHUNK_PAUSE_S)
        writer.write(b"0\r\n\r\n")


async def _read_request(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = start.split(" ", 2)
    return Seen(time.monotonic(), path, headers, body, method)


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _rate_limited(retry_after_s: int) -> bytes:
    return _error(
        429,
        "rate_limit_exceeded",
        "Rate limit reached for requests.",
        ("retry-after", str(retry_after_s)),
    )


def _error(status: int, code: str, message: str, *headers: tuple[str, str]) -> bytes:
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    return _whole(status, {"error": {"message": message, "type": kind, "param": None, "code": code}}, *headers)


def _whole(status: int, fields: Mapping[str, Any], *headers: tuple[str, str]) -> bytes:
    body = json.dumps(fields).encode()
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    head = f"HTTP/1.1 {status} .\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return (head + "".join(lines) + "\r\n").encode() + body


def _completion(model: str, words: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": words}
    usage = {"prompt_tokens": 5, "completion_tokens": len(words.split()), "total_tokens": 5 + len(words.split())}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {**_frame(model, "chat.completion"), "choices": [choice], "usage": usage}


def _stream_events(model: str, words: str) -> list[bytes]:
    deltas: list[dict[str, str]] = [
        {"role": "assistant", "content": ""},
        *({"content": f"{word} "} for word in words.split()),
    ]
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    frame = _frame(model, "chat.completion.chunk")
    events = [json.dumps({**frame, "choices": [choice]}) for choice in choices]
    return [f"data: {event}\n\n".encode() for event in (*events, "[DONE]")]


def _frame(model: str, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-demo", "object": kind, "created": 0, "model": model}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one provider until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m extproc.demo_provider", description="a fake provider")
    parser.add_argument("--host", default=_HOST, metavar="ADDRESS")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control", action="store_true", help=f"take orders at {CONTROL_PATH}, from anybody")
    parser.add_argument("--behaviour", type=Behaviour, choices=list(Behaviour), default=Behaviour.ANSWER)
    parser.add_argument("--retry-after", type=int, default=5, metavar="SECONDS")
    parser.add_argument("--words", default="Hello from a fake provider.")
    options = parser.parse_args(argv)
    with DemoProvider(options.words, host=options.host, port=options.port, control=options.control) as provider:
        provider.behave(options.behaviour, options.retry_after)
        sys.stdout.write(f"{provider.url} {options.behaviour}\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
