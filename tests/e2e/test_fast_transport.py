"""The fast transport against gRPC's own client, on a Unix socket: an independent opinion of our HTTP/2."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from extproc.core.exchange import (
    Abort,
    Action,
    CancelTimer,
    Close,
    Event,
    Exchange,
    Part,
    Pass,
    ReleaseBody,
    RequestBody,
    ResponseBody,
    SetTimer,
    TimerFired,
    Trailers,
)
from extproc.transport.fast import LOG_PATH, METHOD_PATH, FastServer
from extproc.transport.service import ext_proc_service, log_service
from extproc.wire.ext_proc import Request, Response

LIMIT_BYTES = 8 << 20
METADATA = (("x-gateway-role", "route"), ("x-gateway-cluster", "some-cluster"))


class Echo:
    """Sends response bodies back; `bad` aborts, `slow` answers by timer, request bodies end the exchange."""

    def __init__(self) -> None:
        self.ends = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, ResponseBody):
            if event.chunk == b"bad":
                return [ReleaseBody(b"last words", False), Abort("it is bad: 100 %")]
            if event.chunk == b"slow":
                # Moved on twice: only the last time counts.
                return [SetTimer(30), SetTimer(0.05)]
            return [ReleaseBody(event.chunk, event.end_of_stream)]
        if isinstance(event, TimerFired):
            return [ReleaseBody(b"at last", False), CancelTimer()]
        if isinstance(event, RequestBody):
            return [Pass(Part.REQUEST_BODY), Close()]
        return [Pass(event.part)] if isinstance(event, Trailers) else []

    def closed(self, now: float) -> None:
        self.ends += 1


class Stage:
    """A server and a channel to it."""

    def __init__(self, server: FastServer, channel: grpc.aio.Channel, echo: Echo) -> None:
        self.server = server
        self.channel = channel
        self.echo = echo
        self.asked: list[tuple[str, str]] = []
        self.logged: list[bytes] = []

    def call(self, path: str = METHOD_PATH, **options: object) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        """Open a call; options are those of grpcio."""
        return self.channel.stream_stream(path)(**({"metadata": METADATA} | options))  # type: ignore[arg-type,call-arg]


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as folder:
        address = f"unix:{Path(folder) / 's'}"
        echo = Echo()

        def factory(role: str, cluster: str) -> Exchange | None:
            scene.asked.append((role, cluster))
            return echo if role == "route" else None

        services = {
            METHOD_PATH: ext_proc_service(factory, time.monotonic, lambda: None),
            LOG_PATH: log_service(lambda: scene.logged.append, lambda: None),
        }
        server = FastServer(address, services, time.monotonic, LIMIT_BYTES)
        await server.start()
        options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            scene = Stage(server, channel, echo)
            yield scene
        await server.stop(1)


def body(chunk: bytes, *, end: bool = False) -> bytes:
    request = Request()
    request.response_body.body = chunk
    request.response_body.end_of_stream = end
    return request.SerializeToString()


def chunk_of(message: object) -> bytes:
    assert isinstance(message, bytes)
    return Response.FromString(message).response_body.response.body_mutation.streamed_response.body


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), stage() as one:
            await scene(one)

    asyncio.run(run())


def test_messages_go_to_and_fro_and_a_half_close_ends_in_status_ok() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call()
        for number in range(200):
            await call.write(body(b"%d" % number))
            assert b"%d" % number == chunk_of(await call.read())
        await call.done_writing()
        assert grpc.aio.EOF is await call.read()  # type: ignore[attr-defined]
        assert grpc.StatusCode.OK is await call.code()
        assert (1, [("route", "some-cluster")]) == (stage.echo.ends, stage.asked)

    play(scene)


def test_logs_are_taken_in_order_and_not_answered() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call(LOG_PATH)
        for number in range(20):
            await call.write(b"%d" % number * 5000)
        await call.done_writing()
        assert grpc.aio.EOF is await call.read()  # type: ignore[attr-defined]
        assert grpc.StatusCode.OK is await call.code()
        assert [b"%d" % number * 5000 for number in range(20)] == stage.logged

    play(scene)


def test_the_server_may_end_a_call_first() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call()
        request = Request()
        request.request_body.body = b"{}"
        await call.write(request.SerializeToString())
        assert "request_body" == Response.FromString(await call.read()).WhichOneof("response")  # type: ignore[arg-type]
        assert grpc.aio.EOF is await call.read()  # type: ignore[attr-defined]
        assert grpc.StatusCode.OK is await call.code()

    play(scene)


@pytest.mark.parametrize("size_bytes", [0, 1, 16379, 16380, 65531, 5_000_000])
def test_bodies_of_any_size_come_back_whole(size_bytes: int) -> None:
    """5 MB is beyond every window of a new connection, in both directions."""

    async def scene(stage: Stage) -> None:
        call = stage.call()
        for _ in range(3):
            await call.write(body(b"x" * size_bytes))
            assert size_bytes == len(chunk_of(await call.read()))
        call.cancel()

    play(scene)


def test_two_hundred_calls_at_once_do_not_mix() -> None:
    async def scene(stage: Stage) -> None:
        async def one(number: int) -> None:
            call = stage.call()
            for step in range(5):
                said = b"%d-%d" % (number, step) * (1 + number * 20)
                await call.write(body(said))
                assert said == chunk_of(await call.read())
            await call.done_writing()
            assert grpc.StatusCode.OK is await call.code()

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(one(number))
        assert 200 == stage.echo.ends

    play(scene)


def test_an_abort_has_its_status_and_sentence_after_what_was_said_before() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call()
        await call.write(body(b"bad"))
        assert b"last words" == chunk_of(await call.read())
        assert grpc.StatusCode.ABORTED is await call.code()
        assert "it is bad: 100 %" == await call.details()

    play(scene)


def test_a_timer_speaks_without_being_asked() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call()
        await call.write(body(b"slow"))
        assert b"at last" == chunk_of(await call.read())
        call.cancel()

    play(scene)


@pytest.mark.parametrize(
    ("path", "metadata", "status"),
    [
        ("/some.Other/Method", METADATA, grpc.StatusCode.UNIMPLEMENTED),
        (METHOD_PATH, (("x-gateway-role", "stranger"),), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_is_not_served_is_refused(
    path: str, metadata: tuple[tuple[str, str], ...], status: grpc.StatusCode
) -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call(path, metadata=metadata)
        assert status is await call.code()

    play(scene)


def test_compressed_messages_are_refused_as_unimplemented() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call(compression=grpc.Compression.Gzip)
        await call.write(body(b"x" * 5000))
        assert grpc.StatusCode.UNIMPLEMENTED is await call.code()

    play(scene)


def test_a_message_above_the_limit_is_refused() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call()
        await call.write(body(b"x" * (LIMIT_BYTES + 1)))
        assert grpc.StatusCode.RESOURCE_EXHAUSTED is await call.code()

    play(scene)


def test_a_cancelled_call_is_closed_once() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call()
        await call.write(body(b"hello"))
        await call.read()
        call.cancel()
        while not stage.echo.ends:  # noqa: ASYNC110 - the server offers no signal
            await asyncio.sleep(0.01)
        await stage.server.stop(0)
        assert 1 == stage.echo.ends

    play(scene)


def test_a_drain_lets_running_calls_finish() -> None:
    async def scene(stage: Stage) -> None:
        call = stage.call()
        await call.write(body(b"first"))
        await call.read()
        stopping = asyncio.ensure_future(stage.server.stop(10))
        await asyncio.sleep(0.1)
        await call.write(body(b"second"))
        assert b"second" == chunk_of(await call.read())
        await call.done_writing()
        assert grpc.StatusCode.OK is await call.code()
        await stopping

    play(scene)
