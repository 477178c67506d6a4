"""`extproc up`: one supervisor over two children, `extproc serve` and Envoy.

Owns the order of the start, the restarts, the drain and the `ready` line. Rendering, traffic and config are
`serve`'s. Invariants: nothing starts before every check has passed; each child is restarted alone, so Envoy
outlives a crash of `serve` and answers 503 meanwhile; provider keys in the environment reach `serve` and
never Envoy; when this module returns, no child runs. Should the supervisor be killed, Envoy ends by its
tether and `serve` because it watches its parent.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from extproc import envoy_admin
from extproc.child import Child, keep_running, tether
from extproc.config.snapshot import Snapshot
from extproc.data_dir import DataDir
from extproc.envoy_binary import ENVOY_BIN_ENV, envoy_environ, find_envoy, require_envoy
from extproc.preflight import claim_port, load_snapshot, refuse_open_door
from extproc.restart import Backoff
from extproc.settings import STORE_ENV, SUPERVISED_ENV, Address, StartError, UpSettings

START_TIMEOUT_S = 20.0
STOP_GRACE_S = 5.0
ACTIVE_REQUESTS = "http.gateway.downstream_rq_active"
"""Envoy's gauge of requests that are under way on the gateway's listener."""
READY = "gateway_ready"
"""The name of that metric, as `metrics.py` has it, written again because importing that costs a start."""

_POLL_S = 0.02
_DRAIN_POLL_S = 0.05
# More than one: a request that had arrived before the drain may not have been counted yet, and the access log
# needs a moment to leave Envoy.
_QUIET_POLLS = 2
_LOG_LINES = 15
# How long Envoy lets connections of a *replaced* listener live: a publish must not cut a long stream. It has
# nothing to do with --drain, at the end of which the process ends.
_LISTENER_DRAIN_S = 3600


class _StopRequested(Exception):  # noqa: N818 - not an error
    """A signal came before the gateway was ready."""


def run_up(settings: UpSettings, prepare: Callable[[DataDir], Snapshot]) -> int:
    """Run the whole gateway until a signal; returns the exit code, raises StartError or ConfigErrors.

    `prepare` makes the store ready, under the lock of the data directory, and returns the version about to run.
    """
    envoy = find_envoy(settings.envoy, settings.environ)
    require_envoy(envoy)
    doors = (settings.listen, settings.metrics_listen)
    if settings.config is not None:
        # Before anything is written: a bad file leaves no trace.
        refuse_open_door(load_snapshot(settings.config), doors)
    data_dir = DataDir(settings.data_dir)
    data_dir.create()
    with data_dir.lock_exclusive():
        snapshot = prepare(data_dir)
        refuse_open_door(snapshot, doors)
        listen = claim_port(settings.listen, "--listen")
        metrics = claim_port(settings.metrics_listen, "--metrics-listen")
        if listen == metrics:
            raise StartError(f"--listen and --metrics-listen both name {listen}: give each its own port.")
        settings = _with_admin_port(settings, (listen, metrics))
        scheme = "https" if snapshot.server.tls_cert_file else "http"
        supervisor = Supervisor(
            serve=Child("extproc serve", serve_argv(settings, listen, metrics), serve_environ(settings, envoy)),
            envoy=Child(
                "Envoy",
                tether(envoy_argv(envoy, data_dir, settings.concurrency)),
                envoy_environ(settings.environ),
                data_dir.envoy_log,
            ),
            data_dir=data_dir,
            listen=listen,
            metrics=metrics,
            drain_s=settings.drain_s,
            ready_line=(
                f"ready {scheme}://{listen} metrics http://{metrics}{_admin_shown(settings)} "
                f"data {_shown(settings.data_dir)}"
            ),
        )
        return asyncio.run(supervisor.run())


def serve_argv(settings: UpSettings, listen: Address, metrics: Address) -> list[str]:
    """Return the command of the `serve` child."""
    argv = [sys.executable, "-m", "extproc", "serve", "--data-dir", str(settings.data_dir)]
    argv += ["--listen", str(listen), "--metrics-listen", str(metrics)]
    argv += ["--transport", settings.transport]
    admin = settings.admin
    if admin is not None:
        argv += ["--admin-listen", str(admin.address), "--admin-cert", str(admin.cert)]
        argv += ["--admin-key", str(admin.key), "--admin-client-ca", str(admin.client_ca)]
    return argv


def _with_admin_port(settings: UpSettings, taken: tuple[Address, ...]) -> UpSettings:
    """Return the settings with the admin API's port chosen; raises StartError when it cannot be had."""
    if settings.admin is None:
        return settings
    address = claim_port(settings.admin.address, "--admin-listen")
    if address in taken:
        raise StartError(f"--admin-listen names {address} as another option does: give each its own port.")
    return replace(settings, admin=replace(settings.admin, address=address))


def _admin_shown(settings: UpSettings) -> str:
    return f" admin {settings.admin.address}" if settings.admin is not None else ""


def serve_environ(settings: UpSettings, envoy: Path) -> dict[str, str]:
    """Return the environment of `serve`: ours, that it has a supervisor, its Envoy, and its store.

    The store's URL may hold a password, which the process list must not show.
    """
    return {**settings.environ, SUPERVISED_ENV: "1", ENVOY_BIN_ENV: str(envoy), STORE_ENV: settings.store}


def envoy_argv(envoy: Path, data_dir: DataDir, concurrency: int) -> list[str]:
    """Return Envoy's command; `immediate`: every answer during a drain says `connection: close`."""
    argv = [str(envoy), "-c", str(data_dir.bootstrap), "--concurrency", str(concurrency)]
    argv += ["--disable-hot-restart", "--log-level", "warning", "--drain-strategy", "immediate"]
    # An operator reads the access log while an incident runs: Envoy's default would show lines up to 10 s late.
    argv += ["--file-flush-interval-msec", "500"]
    return [*argv, "--drain-time-s", str(_LISTENER_DRAIN_S)]


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
        await self._launch(self._serve)
        await self._until(self._serve_is_ready, self._serve)
        await self._launch(self._envoy)
        await self._until(self._envoy_is_ready, self._envoy)
        await self._until(self._is_accepted, self._serve)

    async def _launch(self, child: Child) -> None:
        try:
            await child.start()
        except OSError as error:
            raise StartError(f"{child.name} cannot be started: {error.strerror}.") from None

    async def _until(self, is_ready: Callable[[], Awaitable[bool]], child: Child) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not await is_ready():
            if self._stop.is_set():
                raise _StopRequested
            if not child.running:
                raise StartError(_with_log(f"{child.name} ended while starting ({child.how_it_ended()}).", child))
            if time.monotonic() > give_up_at:
                raise StartError(_with_log(f"{child.name} was not ready within {START_TIMEOUT_S:g} s.", child))
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
            active = await self._active_requests()
            quiet_polls = quiet_polls + 1 if active == 0 else 0
            if self._envoy.exit_code is not None:
                say("the drain was cut short, and so were requests that were still running.")
                return False
            if active != 0 and time.monotonic() >= give_up_at:
                say(f"cutting the requests that are still running: {'unknown' if active is None else active}.")
                return False
            await asyncio.sleep(_DRAIN_POLL_S)
        return True

    async def _active_requests(self) -> int | None:
        pattern = f"^{ACTIVE_REQUESTS.replace('.', '[.]')}$"
        try:
            value = (await envoy_admin.stats(self._data_dir.envoy_admin_socket, pattern)).get(ACTIVE_REQUESTS, 0)
        except envoy_admin.AdminError:
            return None
        return value if isinstance(value, int) else None


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
