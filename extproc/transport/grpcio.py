"""The ext_proc and access-log services on grpcio's asyncio server, each on its own address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from extproc.transport.callers import UNKNOWN, Callers
from extproc.transport.service import (
    ACCESS_LOG,
    ACCESS_LOG_METHOD,
    EXT_PROC,
    EXT_PROC_METHOD,
    LOG_MESSAGE_LIMIT_BYTES,
    Clock,
    ExchangeFactory,
    LogSession,
    LogSinkFactory,
    Output,
    Session,
)
from extproc.wire import names

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it


class _Server:
    """One method on one address, a `unix:` path or host:port."""

    def __init__(
        self,
        address: str,
        service: str,
        method: str,
        handler: grpc.RpcMethodHandler[bytes, bytes],
        message_limit_bytes: int,
    ) -> None:
        self._address = address
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", message_limit_bytes),
                ("grpc.max_send_message_length", message_limit_bytes),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))

    async def start(self) -> None:
        """Bind and begin to serve; raises RuntimeError when the address cannot be had."""
        if self._server.add_insecure_port(self._address) == 0:
            raise RuntimeError(f"cannot listen on {self._address}")
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new streams and give running ones `grace_s` to end."""
        await self._server.stop(grace_s)


class LogServer(_Server):
    """Serves the access-log service; its streams stand for Envoy's connections, which grpcio does not show."""

    def __init__(
        self, address: str, log_sink: LogSinkFactory, on_fault: Callable[[], None], callers: Callers | None = None
    ) -> None:
        super().__init__(
            address,
            ACCESS_LOG,
            ACCESS_LOG_METHOD,
            grpc.stream_unary_rpc_method_handler(self._logs),
            LOG_MESSAGE_LIMIT_BYTES,
        )
        self._log_sink = log_sink
        self._on_fault = on_fault
        self._callers = callers
        self._stopping = False

    async def stop(self, grace_s: float) -> None:
        """Refuse new streams and give running ones `grace_s` to end."""
        self._stopping = True
        await super().stop(grace_s)

    async def _logs(self, requests: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        session, aborted = LogSession(self._log_sink(), self._on_fault), False
        if self._callers is not None:
            self._callers.came(UNKNOWN)
        try:
            async for message in requests:
                output = session.on_message(message)
                if output.abort is not None:
                    aborted = True
                    await context.abort(grpc.StatusCode.ABORTED, output.abort)
        finally:
            if self._callers is not None:
                self._callers.left(UNKNOWN, ended_by_us=aborted or self._stopping)
        return b""


class GrpcioServer(_Server):
    """Serves ext_proc.

    `message_limit_bytes` bounds one gRPC message; it must exceed the largest request body.
    """

    def __init__(
        self,
        address: str,
        factory: ExchangeFactory,
        clock: Clock,
        on_fault: Callable[[], None],
        message_limit_bytes: int,
    ) -> None:
        super().__init__(
            address,
            EXT_PROC,
            EXT_PROC_METHOD,
            grpc.stream_stream_rpc_method_handler(self._process),
            message_limit_bytes,
        )
        self._factory = factory
        self._clock = clock
        self._on_fault = on_fault

    async def _process(self, requests: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        exchange = self._factory(metadata.get(names.G_ROLE, ""), metadata.get(names.G_CLUSTER, ""))
        if exchange is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unknown role")
        else:
            session = Session(exchange, self._clock, self._on_fault)
            try:
                await self._converse(session, context)
            finally:
                session.on_closed()

    async def _converse(self, session: Session, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        read: asyncio.Future[Any] | None = None
        try:
            while True:
                # A read cannot be cancelled without ending the stream, so one that outlives a timer is kept.
                read = read or asyncio.ensure_future(context.read())
                if not await self._arrived(read, session):
                    output = session.on_timer()
                else:
                    message, read = read.result(), None
                    if message is _EOF:
                        return
                    output = session.on_message(message)
                if await self._write(output, context):
                    return
        finally:
            if read is not None:
                read.cancel()

    async def _arrived(self, read: asyncio.Future[Any], session: Session) -> bool:
        """Wait for a message or the session's timer; True when the message was first."""
        if session.timer_at is None:
            await read
            return True
        done, _ = await asyncio.wait({read}, timeout=max(0.0, session.timer_at - self._clock()))
        return bool(done)

    async def _write(self, output: Output, context: grpc.aio.ServicerContext[bytes, bytes]) -> bool:
        for message in output.messages:
            await context.write(message)
        if output.abort is not None:
            await context.abort(grpc.StatusCode.ABORTED, output.abort)
        return output.close
