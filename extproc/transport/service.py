"""The seam between streams and the gateway: what a transport needs to know to serve ext_proc and access logs.

A transport reads messages, calls a session's `on_message` and `on_timer`, writes what they return and keeps the
one timer. It knows nothing of gateways. Unexpected exceptions are caught here, once: counted, logged without values,
and mapped to a broken exchange, which Envoy answers with the documented 503.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from extproc.core.exchange import Abort, Action, CancelTimer, Close, Event, Exchange, SetTimer, TimerFired
from extproc.wire import names
from extproc.wire.encoded import serialize
from extproc.wire.ext_proc import Request, decode

log = logging.getLogger(__name__)

ExchangeFactory = Callable[[str, str], Exchange | None]
"""(role, cluster) -> a new exchange; None when the role is not ours."""
LogSinkFactory = Callable[[], Callable[[bytes], None]]
"""Makes, for one stream, what takes its serialized StreamAccessLogsMessages."""
Clock = Callable[[], float]

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
EXT_PROC_METHOD = "Process"
ACCESS_LOG = "envoy.service.accesslog.v3.AccessLogService"
ACCESS_LOG_METHOD = "StreamAccessLogs"
LOG_MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024
"""Envoy sends what gathered in 50 ms, headers included."""


@dataclass(slots=True)
class Output:
    """What to do after a message: messages to write in order, then maybe end the stream."""

    messages: list[bytes]
    close: bool = False
    abort: str | None = None


class Served(Protocol):
    """One stream of any service; `timer_at` is when `on_timer` is due."""

    timer_at: float | None

    def on_message(self, message: bytes) -> Output:
        """Handle one message from Envoy."""
        ...

    def on_timer(self) -> Output:
        """Handle the timer running out."""
        ...

    def on_closed(self) -> None:
        """Take note that the stream ended, whoever ended it."""
        ...


Service = Callable[[Mapping[str, str]], Served | None]
"""Makes the session of a new stream from its headers; None refuses it."""


def ext_proc_service(factory: ExchangeFactory, clock: Clock, on_fault: Callable[[], None]) -> Service:
    """Return the service of Envoy's ext_proc filters."""

    def serve(fields: Mapping[str, str]) -> Session | None:
        exchange = factory(fields.get(names.G_ROLE, ""), fields.get(names.G_CLUSTER, ""))
        return None if exchange is None else Session(exchange, clock, on_fault)

    return serve


def log_service(log_sink: LogSinkFactory, on_fault: Callable[[], None]) -> Service:
    """Return the service that takes Envoy's access logs."""
    return lambda fields: LogSession(log_sink(), on_fault)


class LogSession:
    """One stream of access logs: nothing is answered."""

    def __init__(self, sink: Callable[[bytes], None], on_fault: Callable[[], None]) -> None:
        self._sink = sink
        self._on_fault = on_fault
        self.timer_at: float | None = None

    def on_message(self, message: bytes) -> Output:
        """Hand the message on; a fault ends the stream, and Envoy opens another."""
        try:
            self._sink(message)
        except Exception as error:
            return _fault(error, self, self._on_fault)
        return Output([])

    def on_timer(self) -> Output:
        """Do nothing: no timer is ever asked for."""
        return Output([])

    def on_closed(self) -> None:
        """Nothing is held."""


class Session:
    """One ext_proc stream: bytes in, bytes out; `timer_at` is when `on_timer` is due, in the clock's seconds."""

    def __init__(self, exchange: Exchange, clock: Clock, on_fault: Callable[[], None]) -> None:
        self._exchange = exchange
        self._clock = clock
        self._on_fault = on_fault
        self.timer_at: float | None = None

    def on_message(self, message: bytes) -> Output:
        """Handle one message from Envoy."""
        try:
            return self._handle(decode(Request.FromString(message)))
        except Exception as error:
            return _fault(error, self._exchange, self._on_fault)

    def on_timer(self) -> Output:
        """Handle the timer running out."""
        self.timer_at = None
        try:
            return self._handle(TimerFired())
        except Exception as error:
            return _fault(error, self._exchange, self._on_fault)

    def on_closed(self) -> None:
        """Take note that the stream ended, whoever ended it."""
        try:
            self._exchange.closed(self._clock())
        except Exception as error:
            _fault(error, self._exchange, self._on_fault)

    def _handle(self, event: Event) -> Output:
        now = self._clock()
        output = Output([])
        for action in self._exchange.handle(event, now):
            self._carry_out(action, output, now)
        return output

    def _carry_out(self, action: Action, output: Output, now: float) -> None:
        if isinstance(action, SetTimer):
            self.timer_at = now + action.seconds
        elif isinstance(action, CancelTimer):
            self.timer_at = None
        elif isinstance(action, Close):
            output.close = True
        elif isinstance(action, Abort):
            output.abort = action.reason
        else:
            message = serialize(action)
            if message is not None:
                output.messages.append(message)


def _fault(error: Exception, where_in: object, on_fault: Callable[[], None]) -> Output:
    on_fault()
    # An exception's text may quote a request, so only its type and where it happened are logged.
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    log.error("unhandled %s in %r at %s", type(error).__name__, where_in, where)
    return Output([], abort="internal error")
