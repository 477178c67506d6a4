"""Envoy's gRPC streams on a bare asyncio protocol: as few steps as possible between its bytes and a session.

Owns sockets, calls and their timers; HTTP/2 is h2.py's, gRPC's message framing grpc_messages.py's. For a local,
trusted Envoy only: no TLS, no authentication but the socket's mode, and no defence against a client that means harm
beyond bounds on what it can make us hold.

Invariants: what one read brought is answered by one write; a call's session is closed exactly once; no timer
outlives its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from extproc.transport import frames as f
from extproc.transport.callers import Callers, process_of
from extproc.transport.frames import GrpcStatus
from extproc.transport.grpc_messages import Messages, RefusedError, framed
from extproc.transport.h2 import Connection, Data, Gone, Opened
from extproc.transport.header_blocks import Fields, KnownBlocks
from extproc.transport.outbox import Stream
from extproc.transport.service import (
    ACCESS_LOG,
    ACCESS_LOG_METHOD,
    EXT_PROC,
    EXT_PROC_METHOD,
    Clock,
    Output,
    Served,
    Service,
)

METHOD_PATH = f"/{EXT_PROC}/{EXT_PROC_METHOD}"
LOG_PATH = f"/{ACCESS_LOG}/{ACCESS_LOG_METHOD}"
STREAM_LIMIT = 10_000
"""Calls on one connection; Envoy opens another connection for more."""
READ_BYTES = 256 * 1024
_WRITE_BUFFER_BYTES = 4 * 1024 * 1024

_HEADERS = f.header_block(f.GRPC_HEADERS)
_OK = f.header_block(f.status_fields(GrpcStatus.OK))
_ONLY_GRPC = f.header_block(((":status", "415"),))
_STATUS_FIELDS: tuple[tuple[str, str], ...] = (*f.GRPC_HEADERS, ("grpc-accept-encoding", "identity"))


class FastServer:
    """Serves methods, by their paths, on one address, a `unix:` path or host:port.

    `message_limit_bytes` bounds one gRPC message; for ext_proc it must exceed the largest request body. `callers`
    counts the connections of several servers together.
    """

    def __init__(
        self,
        address: str,
        services: Mapping[str, Service],
        clock: Clock,
        message_limit_bytes: int,
        callers: Callers | None = None,
    ) -> None:
        self.callers = callers
        self.services = services
        self.clock = clock
        self.message_limit_bytes = message_limit_bytes
        self.known_blocks = KnownBlocks()
        self.peers: set[Peer] = set()
        self._address = address
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Bind and begin to serve; raises OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        path = self._address.removeprefix("unix:")
        if path != self._address:
            self._server = await loop.create_unix_server(lambda: Peer(self), path, backlog=1024)
        else:
            host, _, port = self._address.rpartition(":")
            self._server = await loop.create_server(lambda: Peer(self), host.strip("[]"), int(port))

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls and give running ones `grace_s` to end."""
        if self._server is None:
            return
        self._server.close()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + grace_s
        for peer in self.peers:
            peer.go_away()
        while any(peer.busy for peer in self.peers) and loop.time() < give_up_at:  # noqa: ASYNC110 - once a life
            await asyncio.sleep(0.01)
        for peer in list(self.peers):
            peer.close()
        await asyncio.sleep(0)


class Peer(asyncio.BufferedProtocol):
    """One connection of Envoy; it reads into one buffer, as a fresh one costs 13 us of page faults for each read."""

    def __init__(self, server: FastServer) -> None:
        self.server = server
        self._loop = asyncio.get_running_loop()
        self._http = Connection(server.known_blocks, STREAM_LIMIT)
        self.outbox = self._http.outbox
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._process: int | None = None
        """Whose connection it is, once a call came."""
        self._ended_by_us = False

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is needed")
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.server.peers.add(self)
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next read goes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Handle whatever one read brought, then write once."""
        for event in self._http.receive(data):
            stream = event.stream
            if isinstance(event, Opened):
                self._open(stream, event.fields)
            call = stream.owner
            if not isinstance(call, Call):
                continue
            if isinstance(event, Data):
                call.on_data(event.chunk, end=event.end)
            elif isinstance(event, Gone):
                call.close()
            elif event.end:
                call.on_data(b"", end=True)
        self.flush()
        if self._http.failed:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End every call."""
        self.server.peers.discard(self)
        self._end_calls()
        if self.server.callers is not None and self._process is not None:
            self.server.callers.left(self._process, ended_by_us=self._ended_by_us)

    def pause_writing(self) -> None:
        """Hold DATA back, and take nothing that would need an answer."""
        self.outbox.paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on where the socket stopped us."""
        self.outbox.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self.flush()

    # -- calls ---------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether calls are under way."""
        return bool(self.outbox.streams)

    def flush(self) -> None:
        """Write what can be written."""
        transport, outbox = self._transport, self.outbox
        if transport is not None:
            while out := outbox.take():
                transport.write(out)
                if not outbox.waiting:
                    return

    def go_away(self) -> None:
        """Take no more calls."""
        self._http.go_away()
        self.flush()

    def close(self) -> None:
        """Close the connection; what was written before still leaves, if the peer reads at all."""
        self._end_calls()
        self._ended_by_us = True
        if self._transport is not None:
            if self.outbox.paused:
                self._transport.abort()
            else:
                self._transport.close()

    def _end_calls(self) -> None:
        for stream in list(self.outbox.streams.values()):
            self.outbox.forget(stream)
            if isinstance(stream.owner, Call):
                stream.owner.close()

    def _open(self, stream: Stream, fields: Fields) -> None:
        outbox, callers = self.outbox, self.server.callers
        if self._process is None and callers is not None and self._transport is not None:
            self._process = process_of(self._transport)
            callers.came(self._process)
        if not fields.get("content-type", "").startswith("application/grpc"):
            outbox.end(stream, _ONLY_GRPC)
            return
        service = self.server.services.get(fields[":path"])
        if service is None or fields[":method"] != "POST":
            self.refuse(stream, GrpcStatus.UNIMPLEMENTED, "This server has no such method.")
            return
        session = service(fields)
        if session is None:
            self.refuse(stream, GrpcStatus.INVALID_ARGUMENT, "unknown role")
        else:
            messages = Messages(self.server.message_limit_bytes, fields.get("grpc-encoding", "identity"))
            stream.owner = Call(self, stream, session, messages, self._loop)

    def refuse(self, stream: Stream, status: GrpcStatus, sentence: str) -> None:
        """Answer a call with nothing but a status."""
        self.outbox.end(stream, f.header_block((*_STATUS_FIELDS, *f.status_fields(status, sentence))))


class Call:
    """One stream: its session, its messages and its one timer."""

    __slots__ = ("_answered", "_due_at", "_handle", "_loop", "_messages", "_peer", "_session", "_stream")

    def __init__(
        self, peer: Peer, stream: Stream, session: Served, messages: Messages, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._peer = peer
        self._stream = stream
        self._session: Served | None = session
        self._messages = messages
        self._loop = loop
        self._answered = False
        self._handle: asyncio.TimerHandle | None = None
        self._due_at = 0.0

    def on_data(self, chunk: bytes, *, end: bool) -> None:
        """Take a piece of the request stream."""
        session = self._session
        if session is None:
            return
        try:
            for message in self._messages.feed(chunk):
                self._carry_out(session.on_message(message))
                if self._session is None:
                    return
            if end:
                self._messages.finish()
        except RefusedError as refusal:
            self._finish(refusal.status, refusal.sentence)
            return
        if end:
            self._finish(GrpcStatus.OK)

    def close(self) -> None:
        """Take note that the stream is over."""
        session, self._session = self._session, None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if session is not None:
            session.on_closed()

    def _carry_out(self, output: Output) -> None:
        for message in output.messages:
            if not self._answered:
                self._answered = True
                self._peer.outbox.send_headers(self._stream, _HEADERS)
            self._peer.outbox.send_data(self._stream, framed(message))
        if output.abort is not None:
            self._finish(GrpcStatus.ABORTED, output.abort)
        elif output.close:
            self._finish(GrpcStatus.OK)
        elif self._session is not None and (self._session.timer_at is not None):
            self._arm(self._session.timer_at)

    def _finish(self, status: GrpcStatus, sentence: str = "") -> None:
        if not self._answered:
            self._peer.refuse(self._stream, status, sentence)
        elif status is GrpcStatus.OK:
            self._peer.outbox.end(self._stream, _OK)
        else:
            self._peer.outbox.end(self._stream, f.header_block(f.status_fields(status, sentence)))
        self.close()

    def _arm(self, due_at: float) -> None:
        """Have `_on_timer` called no later than due; a handle that is early looks again, so moving on costs nothing."""
        if self._handle is not None:
            if self._due_at <= due_at:
                return
            self._handle.cancel()
        self._due_at = due_at
        self._handle = self._loop.call_later(max(0.0, due_at - self._peer.server.clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._handle = None
        session = self._session
        if session is None or session.timer_at is None:
            return
        if session.timer_at > self._peer.server.clock():
            self._arm(session.timer_at)
            return
        self._carry_out(session.on_timer())
        self._peer.flush()
