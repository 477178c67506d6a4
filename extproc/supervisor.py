"""`extproc up`: one supervisor over two children, `extproc serve` and Envoy.

Owns the order of the start, the restarts, the drain and the `ready` line. Rendering, traffic and config are
`serve`'s, and so are the checks before the start, whose model and database its process has anyway (`handover.py`).
Invariants: Envoy starts when every check has passed and `serve` is up; each child is restarted alone, so Envoy
outlives a crash of `serve` and answers 503 meanwhile; provider keys in the environment reach `serve` and
never Envoy; when this module returns, no child runs. Should the supervisor be killed, Envoy ends by its
tether and `serve` because it watches its parent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from extproc import envoy_admin
from extproc.child import Child, keep_running
from extproc.children import envoy_child, first_serve, serve_argv, serve_environ
from extproc.data_dir import DataDir
from extproc.envoy_binary import find_envoy, require_envoy
from extproc.handover import Claimed, take_over
from extproc.restart import Backoff
from extproc.settings import Address, StartError, UpSettings

START_TIMEOUT_S = 20.0
STOP_GRACE_S = 5.0
ACTIVE_REQUESTS = "http.gateway.downstream_rq_active"
"""Envoy's gauge of requests that are under way on the gateway's listener."""
BUFFERED_BYTES = "http.gateway.downstream_cx_tx_bytes_buffered"
"""Envoy's gauge of what its callers have not taken yet: to Envoy a request whose answer waits there is over."""
READY = "gateway_ready"
"""The name of that metric, as `metrics.py` has it, written again because importing that costs a start."""

_POLL_S = 0.02
_DRAIN_POLL_S = 0.05
# More than one: a request that had arrived before the drain may not have been counted yet, and the access log
# needs a moment to leave Envoy.
_QUIET_POLLS = 2
_LOG_LINES = 15


class _StopRequested(Exception):  # noqa: N818 - not an error
    """A signal came before the gateway was ready."""


def run_up(settings: UpSettings) -> int:
    """Run the whole gateway until a signal; returns the exit code, raises StartError."""
    envoy = find_envoy(settings.envoy, settings.environ)
    require_envoy(envoy)
    return asyncio.run(_run(settings, envoy))


async def _run(settings: UpSettings, envoy: Path) -> int:
    """Let the first `serve` check and claim, then supervise it and Envoy with what it claimed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        serve = first_serve(settings, envoy, theirs.fileno())
        _cancel_at_signals()
        try:
            await _launch(serve)
            theirs.close()
            taken = await take_over(ours)
        except asyncio.CancelledError:
            await serve.stop(STOP_GRACE_S)
            return 0
    if taken is None:
        return _refused(await serve.wait(), serve)
    claimed, lock = taken
    try:
        serve.start_next_as(serve_argv(settings, claimed), serve_environ(settings, envoy))
        return await _supervisor(settings, claimed, serve, envoy).run()
    finally:
        os.close(lock)


def _cancel_at_signals() -> None:
    """Let a signal end the start, until the supervisor has handlers of its own."""
    starting = asyncio.current_task()
    assert starting is not None  # noqa: S101 - tells the type checker
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, starting.cancel)


def _refused(exit_code: int, serve: Child) -> int:
    """Return how a start ends whose `serve` claimed nothing: it has said why, unless it was killed."""
    if exit_code < 0:
        raise StartError(f"{serve.name} ended while starting ({serve.how_it_ended()}).")
    return exit_code


def _supervisor(settings: UpSettings, claimed: Claimed, serve: Child, envoy: Path) -> Supervisor:
    data_dir = DataDir(settings.data_dir)
    admin = f" admin {claimed.admin}" if claimed.admin else ""
    return Supervisor(
        serve=serve,
        envoy=envoy_child(settings, envoy, data_dir),
        data_dir=data_dir,
        listen=claimed.listen,
        metrics=claimed.metrics,
        drain_s=settings.drain_s,
        ready_line=(
            f"ready {claimed.scheme}://{claimed.listen} metrics http://{claimed.metrics}{admin} "
            f"data {_shown(settings.data_dir)}"
        ),
    )


class Supervisor:
    """Starts the two children, keeps them running, and ends them in good order."""

    def __init__(
        self,
        *,
        serve: Child,
        envoy: Child,
        data_dir: DataDir,
        listen: Address,
        metrics: Address,
        drain_s: float,
        ready_line: str,
        backoff: Backoff | None = None,
    ) -> None:
        self._serve = serve
        self._envoy = envoy
        self._data_dir = data_dir
        self._listen = listen
        self._metrics = metrics
        self._drain_s = drain_s
        self._ready_line = ready_line
        self._backoff = backoff or Backoff()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Run until a signal; 0 after a clean drain, 1 if requests were cut, StartError if never ready."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        try:
            await self._start()
            _announce(self._ready_line)
            return await self._keep_until_stopped()
        except _StopRequested:
            return 0
        finally:
            await self._envoy.stop(STOP_GRACE_S)
            await self._serve.stop(STOP_GRACE_S)

    def request_stop(self) -> None:
        """Begin the drain; asked a second time, end everything at once."""
        if self._stop.is_set():
            self._envoy.kill()
            self._serve.kill()
        self._stop.set()

    async def _start(self) -> None:
        if self._serve.pid is None:
            await _launch(self._serve)
        await self._until(self._serve_is_ready, self._serve)
        await _launch(self._envoy)
        await self._until(self._envoy_is_ready, self._envoy)
        await self._until(self._is_accepted, self._serve, self._envoy, failing="did not take the version")

    async def _until(
        self, is_ready: Callable[[], Awaitable[bool]], *children: Child, failing: str = "was not ready"
    ) -> None:
        """Wait while the children run; after too long it is the last of them that fails."""
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not await is_ready():
            if self._stop.is_set():
                raise _StopRequested
            for child in children:
                if not child.running:
                    await child.wait()  # for its last words
                    raise StartError(_with_log(f"{child.name} ended while starting ({child.how_it_ended()}).", child))
            if time.monotonic() > give_up_at:
                raise StartError(
                    _with_log(f"{children[-1].name} {failing} within {START_TIMEOUT_S:g} s.", children[-1])
                )
            await asyncio.sleep(_POLL_S)

    async def _serve_is_ready(self) -> bool:
        # The child writes the bootstrap before it listens; the socket of an earlier run accepts nothing.
        if not self._data_dir.bootstrap.exists():
            return False
        return await _accepts(asyncio.open_unix_connection(str(self._data_dir.extproc_socket)))

    async def _envoy_is_ready(self) -> bool:
        if not await envoy_admin.ready(self._data_dir.envoy_admin_socket):
            return False
        return await _accepts(asyncio.open_connection(*self._listen.reachable))

    async def _is_accepted(self) -> bool:
        """Ask `serve` whether Envoy took the version, so that /readyz agrees with the `ready` line."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection(*self._metrics.reachable)
                try:
                    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                    return f"\n{READY} 1.0\n".encode() in await reader.read()
                finally:
                    writer.close()
        return False

    async def _keep_until_stopped(self) -> int:
        async with asyncio.TaskGroup() as tasks:
            keepers = [
                tasks.create_task(keep_running(child, say, time.monotonic, self._backoff))
                for child in (self._envoy, self._serve)
            ]
            await self._stop.wait()
            # serve is still restarted during the drain: running requests may need it.
            keepers[0].cancel()
            clean = await self._drain()
            keepers[1].cancel()
        return 0 if clean else 1

    async def _drain(self) -> bool:
        """Refuse new requests and wait for the running ones; tells whether none was cut."""
        if not self._envoy.running:
            return True
        say(f"draining: running requests have {self._drain_s:g} s to finish.")
        give_up_at = time.monotonic() + self._drain_s
        with suppress(envoy_admin.AdminError):
            await envoy_admin.post(self._data_dir.envoy_admin_socket, "/drain_listeners")
        quiet_polls = 0
        while quiet_polls < _QUIET_POLLS:
            left = await self._left()
            quiet_polls = 0 if left else quiet_polls + 1
            if self._envoy.exit_code is not None:
                say("the drain was cut short, and so were requests that were still running.")
                return False
            if left and time.monotonic() >= give_up_at:
                say(f"cutting {left}.")
                return False
            await asyncio.sleep(_DRAIN_POLL_S)
        return True

    async def _left(self) -> str:
        """Return what the drain still waits for, in words; nothing when there is nothing."""
        pattern = "|".join(f"^{name.replace('.', '[.]')}$" for name in (ACTIVE_REQUESTS, BUFFERED_BYTES))
        try:
            found = await envoy_admin.stats(self._data_dir.envoy_admin_socket, pattern)
        except envoy_admin.AdminError:
            return "the requests that are still running: unknown"
        if active := found.get(ACTIVE_REQUESTS, 0):
            return f"the requests that are still running: {active}"
        buffered = found.get(BUFFERED_BYTES, 0)
        return f"the answers that callers have not read to their end: {buffered} bytes" if buffered else ""


async def _launch(child: Child) -> None:
    try:
        await child.start()
    except OSError as error:
        raise StartError(f"{child.name} cannot be started: {error.strerror}.") from None


def say(sentence: str) -> None:
    """Tell the operator."""
    sys.stderr.write(f"extproc up: {sentence}\n")
    sys.stderr.flush()


def _announce(line: str) -> None:
    # Whoever started us may have closed the pipe after a look; the gateway runs all the same.
    with suppress(BrokenPipeError):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


async def _accepts(connecting: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> bool:
    try:
        async with asyncio.timeout(1.0):
            _, writer = await connecting
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _with_log(sentence: str, child: Child) -> str:
    words = child.last_words(_LOG_LINES)
    return f"{sentence} Its last words:\n{words}" if words else sentence


def _shown(data_dir: Path) -> str:
    return str(data_dir) if data_dir.is_absolute() else f"./{data_dir}"
