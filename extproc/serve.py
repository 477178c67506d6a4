"""`extproc serve`: one process beside Envoy that decides, judges and keeps health.

Owns the order of the start (version, files for Envoy, sockets) and of the end, and the background tasks, all of which
belong to one TaskGroup. Which version runs is the agent's.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from extproc.admin import AdminService, InstanceStatus
from extproc.admin_messages import health_rows
from extproc.admin_server import AdminServer
from extproc.agent import Agent
from extproc.checks import check_provider
from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.attempt import AttemptExchange
from extproc.core.exchange import Exchange
from extproc.core.feedback import AttemptLogged, attempt_logged, request_logged
from extproc.core.gateway import Gateway
from extproc.core.health import HealthEngine, Transition
from extproc.core.judge import JudgeExchange
from extproc.core.route import RouteExchange
from extproc.data_dir import DataDir
from extproc.envoy_binary import find_envoy
from extproc.envoy_config.named_files import why_unusable
from extproc.envoy_config.render import Rendered, render
from extproc.envoy_config.resource import MIB, EnvoyPaths
from extproc.envoy_config.secrets import Secrets, read_secrets
from extproc.envoy_files import EnvoyFiles, Refused
from extproc.health_file import load_health, save_health
from extproc.ledger import Ledger, bounds_of
from extproc.metrics import Metrics
from extproc.orders import OrderJournal
from extproc.preflight import refuse_open_door
from extproc.render import envoy_paths, listen_of
from extproc.settings import ServeSettings, StartError
from extproc.telemetry import Telemetry, TimedExchange, publish_readings
from extproc.transport.callers import Callers
from extproc.transport.fast import LOG_PATH, METHOD_PATH, FastServer
from extproc.transport.grpcio import GrpcioServer, LogServer
from extproc.transport.service import LOG_MESSAGE_LIMIT_BYTES, ext_proc_service, log_service
from extproc.versions import InstanceStore
from extproc.wire import names
from extproc.wire.access_log import LogDecoder

log = logging.getLogger(__name__)

TICK_S = 0.25
HEALTH_SAVE_S = 2.0
STOP_GRACE_S = 2.0
SWITCH_INTERVAL_S = 0.0005
"""How long another thread (ledger, metrics page, keys) may keep the interpreter from the requests: a tenth of Python's
own default, which the event loop would pay at each of a request's messages."""
SOCKET_MODE = 0o600
# Above the largest max_body a config may ask for; Envoy's buffers are what bounds a message.
MESSAGE_LIMIT_BYTES = 1040 * MIB


def wall_clock() -> float:
    """Return epoch seconds that never jump back: the time of this import plus what has passed, sleep included."""
    return _EPOCH_OFFSET_S + time.clock_gettime(time.CLOCK_BOOTTIME)


# Not the monotonic clock: it stands still while a machine sleeps, and providers name their resets by the date.
_EPOCH_OFFSET_S = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def run_serve(settings: ServeSettings, source: InstanceStore) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code, raises StartError."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    data_dir = DataDir(settings.data_dir)
    data_dir.create()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Read before anything that takes long, so that a supervisor that ends meanwhile is noticed.
    return asyncio.run(_Serve(settings, data_dir, source).run(os.getppid()))


class _Serve:
    """One run of the services."""

    def __init__(self, settings: ServeSettings, data_dir: DataDir, source: InstanceStore) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._source = source
        # Jitter and weights want spread, not secrecy.
        self._draw = random.Random().random  # noqa: S311 - jitter and weights want spread, not secrecy
        self._health = HealthEngine(self._draw)
        self._metrics = Metrics(
            lambda: health_rows(self._gateway, wall_clock()),
            lambda: len(self._gateway.requests.by_id),
            lambda: self._gateway.accepted,
        )
        self._gateway = Gateway(self._health, self._draw, self._on_transition)
        self._ledger = Ledger(data_dir.requests_db, wall_clock)
        self._gateway.requests.observer = Telemetry(self._metrics, self._ledger, self._gateway.snapshot)
        publish_readings(self._metrics, self._gateway, self._ledger)
        self._started_at, self._applied_at = wall_clock(), 0.0
        self._health_changed = False
        self._saving = asyncio.Lock()
        self._checked: dict[str, asyncio.Task[None]] = {}
        self._journal = OrderJournal(data_dir.untold_orders, source)
        self._callers = Callers(wall_clock, self._on_envoy_gone)
        paths = envoy_paths(data_dir, settings.environ)
        self._agent = Agent(
            self._gateway,
            EnvoyFiles(data_dir, paths, find_envoy_or_none(settings.envoy, settings.environ), settings.environ),
            source,
            _InstanceRenderer(settings, paths),
            data_dir.last_good,
            wall_clock,
            self,
        )
        self._metrics.config_store_up.set_function(lambda: float(self._agent.store_answers))

    async def run(self, parent: int) -> int:
        """Serve until told to stop, or until `parent` is gone when it supervises us."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if not await self._agent.boot():
            # It has told of a refusal, and who repairs it must not wait for an answer of ours.
            await self._agent.leave()
            raise StartError(f"No version can be started: {self._agent.report.error or 'none was published yet'}.")
        load_health(self._data_dir.health_state, self._health, wall_clock())
        service = AdminService(
            self._gateway, self._ledger, self._journal, self._source, self._status, self._save_health, wall_clock
        )
        admin = AdminServer(self._data_dir.admin_socket, service, self._settings.admin)
        await admin.start()
        self._ledger.start()
        servers = self._servers()
        for path, server in servers.items():
            path.unlink(missing_ok=True)
            await server.start()
            path.chmod(SOCKET_MODE)
        stop_metrics = self._serve_metrics()
        # What is there now stays, so the collector need not look at it again while requests come and go.
        gc.collect()
        gc.freeze()
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._keep_time(stop, tasks, parent)),
                    tasks.create_task(self._agent.run()),
                    tasks.create_task(self._journal.run()),
                ]
                await stop.wait()
                for task in (*background, *self._checked.values()):
                    task.cancel()
        finally:
            # The logs last: they tell how the requests ended.
            for server in reversed(servers.values()):
                await server.stop(STOP_GRACE_S)
            await admin.stop(0)
            stop_metrics()
            await self._save_health()
            await asyncio.to_thread(self._ledger.close)
            # The store last: it may take its time, and what is only here is safe by now.
            await self._agent.leave()
        return 0

    # -- what the agent tells ------------------------------------------------------------------------------------

    def wanted(self, number: int) -> None:
        """Show which version the store wants."""
        self._metrics.config_version.labels("wanted").set(number)

    def applied(self, snapshot: Snapshot) -> None:
        """Keep the health of targets that are still there, and show the version."""
        self._health.retain(target_keys(snapshot))
        self._metrics.config_version.labels("applied").set(snapshot.version)
        self._metrics.bound_by(snapshot)
        self._ledger.bounds = bounds_of(snapshot.telemetry)
        self._applied_at = wall_clock()

    def refused(self, number: int) -> None:
        """Count a refused version."""
        self._metrics.config_apply_failures.inc()

    def _status(self) -> InstanceStatus:
        report = self._agent.report
        return InstanceStatus(
            started_at=self._started_at,
            ready=self._gateway.accepted,
            wanted_version=report.wanted or 0,
            applied_version=report.applied or 0,
            applied_at=self._applied_at,
            last_error=report.error or "",
        )

    # -- services ------------------------------------------------------------------------------------------------

    def _servers(self) -> dict[Path, LogServer | FastServer | GrpcioServer]:
        """Return the services by socket; ext_proc last, as its socket says that all is up."""
        logs, extproc = self._data_dir.logs_socket, self._data_dir.extproc_socket
        on_fault = self._metrics.faults.inc
        if self._settings.transport == "grpcio":
            return {
                logs: LogServer(f"unix:{logs}", self._log_reader, on_fault, self._callers),
                extproc: GrpcioServer(f"unix:{extproc}", self._exchange, wall_clock, on_fault, MESSAGE_LIMIT_BYTES),
            }
        log_services = {LOG_PATH: log_service(self._log_reader, on_fault)}
        services = {METHOD_PATH: ext_proc_service(self._exchange, wall_clock, on_fault)}
        return {
            logs: FastServer(f"unix:{logs}", log_services, wall_clock, LOG_MESSAGE_LIMIT_BYTES, self._callers),
            extproc: FastServer(f"unix:{extproc}", services, wall_clock, MESSAGE_LIMIT_BYTES, self._callers),
        }

    def _log_reader(self) -> LogReader:
        return LogReader(self._gateway)

    def _on_envoy_gone(self, others_since: float) -> None:
        lost = self._gateway.requests.lose(others_since, wall_clock())
        if lost:
            log.warning("Envoy has ended without a word of %d requests: they count as lost", lost)

    def _exchange(self, role: str, cluster: str) -> Exchange | None:
        if role == names.ROLE_ROUTE:
            return TimedExchange(RouteExchange(self._gateway), self._metrics.decision_seconds.observe)
        if role == names.ROLE_JUDGE:
            return JudgeExchange(self._gateway, cluster)
        if role == names.ROLE_ATTEMPT:
            return AttemptExchange(self._gateway, cluster)
        return None

    def _serve_metrics(self) -> Callable[[], None]:
        try:
            return self._metrics.serve(self._settings.metrics_listen)
        except OSError as error:
            address = self._settings.metrics_listen
            raise StartError(f"Cannot listen on {address} for metrics: {error.strerror}.") from None

    def _on_transition(self, transition: Transition) -> None:
        self._metrics.on_transition(transition)
        self._health_changed = True
        log.info(
            "%s is %s (was %s), reason %s",
            transition.subject,
            transition.new,
            transition.old,
            transition.reason or "none",
        )

    # -- time ----------------------------------------------------------------------------------------------------

    async def _keep_time(self, stop: asyncio.Event, tasks: asyncio.TaskGroup, parent: int) -> None:
        """Let time pass for health and records, save health, check providers, and end with the supervisor."""
        saved = wall_clock()
        while True:
            self._check_providers(tasks)
            await asyncio.sleep(TICK_S)
            now = wall_clock()
            for transition in self._health.elapse(now):
                self._on_transition(transition)
            self._gateway.requests.sweep(now)
            if self._health_changed or now - saved >= HEALTH_SAVE_S:
                self._health_changed, saved = False, now
                await self._save_health()
            if self._settings.supervised and os.getppid() != parent:
                stop.set()

    async def _save_health(self) -> None:
        """Save health as it is when its turn comes, so that no older state is written last."""
        async with self._saving:
            await asyncio.to_thread(save_health, self._data_dir.health_state, self._health.dump())

    def _check_providers(self, tasks: asyncio.TaskGroup) -> None:
        """Start a check for each provider that the active version wants checked; a check ends by itself."""
        active = self._gateway.active
        for name, provider in active.snapshot.providers.items() if active else ():
            running = self._checked.get(name)
            if provider.health_check and (running is None or running.done()):
                check = check_provider(self._gateway, name, self._data_dir.checks_socket, wall_clock, self._draw)
                self._checked[name] = tasks.create_task(check)


class _InstanceRenderer:
    """Renders versions for this instance's addresses, paths and environment."""

    def __init__(self, settings: ServeSettings, paths: EnvoyPaths) -> None:
        self._settings = settings
        self._paths = paths

    def render(self, snapshot: Snapshot) -> Rendered:
        """Return every document; raises Refused."""
        settings = self._settings
        try:
            refuse_open_door(snapshot, (settings.listen, settings.metrics_listen))
        except StartError as refusal:
            raise Refused(str(refusal)) from None
        with _readable_certificate():
            return render(snapshot, listen_of(settings.listen), self._paths, settings.environ)

    def read_secrets(self, snapshot: Snapshot) -> Secrets:
        """Return the secrets as they are now; raises Refused."""
        with _readable_certificate():
            return read_secrets(snapshot, self._settings.environ)


@contextmanager
def _readable_certificate() -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        reason = error.reason or "not PEM, or a key with a password"
        raise Refused(f"server.tls: cert_file and key_file cannot be used together: {reason}.") from None
    except OSError as error:
        raise Refused(f"server.tls: {error.filename} {why_unusable(error)}.") from None


class LogReader:
    """Feeds one access-log stream into the gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._decoder = LogDecoder()

    def __call__(self, message: bytes) -> None:
        """Take one message."""
        now = wall_clock()
        for event in self._decoder.decode(message):
            if isinstance(event, AttemptLogged):
                attempt_logged(self._gateway, event, now)
            else:
                request_logged(self._gateway, event, now)


def find_envoy_or_none(flag: str | None, environ: Mapping[str, str]) -> Path | None:
    """Return the Envoy binary that judges versions before they go live, None where there is none beside us."""
    try:
        return find_envoy(flag, environ)
    except StartError:
        log.warning("no Envoy binary here: versions are not validated before Envoy reads them")
        return None


def target_keys(snapshot: Snapshot) -> set[TargetKey]:
    """Return every target of a snapshot; `*` stands for the names that callers of a glob may send."""
    return {
        TargetKey(target.provider, model.name if target.model == "*" and not model.is_glob else target.model)
        for model in snapshot.models.values()
        for target in model.targets
    }
