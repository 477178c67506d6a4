"""The process's Prometheus metrics and the address they are served on; docs/metrics.md says what each means.

Owns names, labels and buckets. Invariants: every label value comes from a snapshot or a closed set, `other` beyond;
recording never raises for odd input; counters are fed once for each request and attempt (`telemetry.py`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Lock, Thread
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import make_wsgi_app, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.health import Row, State, Transition
from extproc.core.outcome import ErrorClass, RouteMode
from extproc.settings import Address

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

READY: Final = "gateway_ready"
StateReader = Callable[[], Iterable[Row]]
Reading = Callable[[], float]

OTHER: Final = "other"
NONE: Final = "none"
SUCCESS: Final = "success"
LLM_BUCKETS_S: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
)
DECISION_BUCKETS_S: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)
TOKEN_TYPES: Final = frozenset({"input", "output", "cached", "cache_write", "reasoning"})
REASONS: Final = frozenset(error_class.value for error_class in ErrorClass) | {
    "paced",
    "slow",
    "recovering",
    "operator_down",
    "drained",
    "missing_key",
    "at_limit",
}
_CLASSES: Final = frozenset(error_class.value for error_class in ErrorClass) | {SUCCESS, "unresolved"}
_MODES: Final = frozenset(mode.value for mode in RouteMode)


class Bounds:
    """Turns names into label values that one snapshot bounds."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot
        self._targets: frozenset[TargetKey] = frozenset()
        self._clients = frozenset(one.name for one in (snapshot.clients if snapshot else None) or ())
        if snapshot is not None:
            entries = snapshot.models.values()
            self._targets = frozenset(TargetKey(t.provider, t.model) for entry in entries for t in entry.targets)

    def model(self, name: str) -> str:
        """Return the entry that serves a public name: a glob stands for all of its names."""
        if not name:
            return NONE
        resolved = self._snapshot.resolve(name) if self._snapshot is not None else None
        return OTHER if resolved is None else resolved.entry.name

    def provider(self, name: str) -> str:
        """Return a configured provider's name."""
        if not name:
            return NONE
        return name if self._snapshot is not None and name in self._snapshot.providers else OTHER

    def client(self, name: str) -> str:
        """Return a configured client's name; a caller who showed no token of one has none."""
        if not name:
            return NONE
        return name if name in self._clients else OTHER

    def upstream(self, key: TargetKey) -> str:
        """Return a target's model: `*` when the caller named it."""
        if key in self._targets:
            return key.model
        return "*" if TargetKey(key.provider, "*") in self._targets else OTHER

    def target(self, key: TargetKey) -> str:
        """Return `provider/model` of a target."""
        provider = self.provider(key.provider)
        return OTHER if provider == OTHER else f"{provider}/{self.upstream(key)}"

    def knows(self, key: TargetKey) -> bool:
        """Tell whether a target is written in the config, rather than named by callers behind a `*`."""
        return self._snapshot is None or key in self._targets


class Metrics:
    """Every metric of the process, in a registry of its own."""

    def __init__(self, states: StateReader, in_flight: Callable[[], int], ready: Callable[[], bool]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no type for it
        # Else a page that is asked for by name (`?name[]=`) lacks what has no name before it is read.
        self.registry = CollectorRegistry(support_collectors_without_names=True)
        self.bounds = Bounds(None)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_TargetStates(states, self))
        self._readings = _Readings()
        self.registry.register(self._readings)
        self.read(
            READY, "1 while a valid version is active and accepted by Envoy, as /readyz says.", ready, counter=False
        )
        self.read(
            "gateway_requests_in_flight",
            "Requests that have a plan and whose end Envoy has not reported yet.",
            in_flight,
            counter=False,
        )
        self._define_traffic()
        self._define_health()
        self._define_config()

    def _define_traffic(self) -> None:
        self.requests = self._counter(
            "gateway_requests_total",
            "Requests by what their callers got.",
            "model",
            "served_model",
            "provider",
            "route_mode",
            "code",
        )
        self.client_requests = self._counter(
            "gateway_client_requests_total", "Requests by the client that sent them.", "client", "code"
        )
        self.attempts = self._counter(
            "gateway_attempts_total", "Upstream attempts by verdict.", "provider", "model", "class"
        )
        self.request_seconds = self._histogram(
            "gateway_request_seconds", "Time from a request's arrival to its end.", LLM_BUCKETS_S, "model"
        )
        self.first_token_seconds = self._histogram(
            "gateway_first_token_seconds",
            "Time from a streamed request's arrival to its first byte for the caller.",
            LLM_BUCKETS_S,
            "model",
            "provider",
        )
        self.decision_seconds = self._histogram(
            "gateway_decision_seconds", "Time extproc spent deciding about one request.", DECISION_BUCKETS_S
        )
        self.failover_seconds = self._histogram(
            "gateway_failover_seconds", "Time lost to failed attempts of requests that had any.", LLM_BUCKETS_S
        )
        self.tokens = self._counter(
            "gateway_tokens_total", "Tokens that providers reported.", "provider", "model", "type"
        )
        self.client_aborts = self._counter(
            "gateway_client_aborts_total", "Requests whose caller left before the answer's end."
        )
        self.fallbacks = self._counter(
            "gateway_fallbacks_total",
            "Requests that another target served than the first choice.",
            "from",
            "to",
            "reason",
        )

    def _define_health(self) -> None:
        self.cooldowns = self._counter("gateway_cooldowns_total", "Cooldowns begun, by reason.", "reason")
        self.faults = self._counter(
            "gateway_internal_faults_total", "Unexpected exceptions caught while serving Envoy."
        )

    def _define_config(self) -> None:
        self.config_version = Gauge(
            "gateway_config_version", "Config version by kind.", ["kind"], registry=self.registry
        )
        self.config_apply_failures = self._counter(
            "gateway_config_apply_failures_total", "Versions that this instance refused."
        )
        self.config_store_up = Gauge(
            "gateway_config_store_up",
            "1 while the config store answers, 0 while nothing can be published.",
            registry=self.registry,
        )

    def _counter(self, name: str, summary: str, *labels: str) -> Counter:
        return Counter(name, summary, labels, registry=self.registry)

    def _histogram(self, name: str, summary: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, summary, labels, buckets=buckets, registry=self.registry)

    def bound_by(self, snapshot: Snapshot) -> None:
        """Take the label values from a snapshot from now on."""
        self.bounds = Bounds(snapshot)

    def read(self, name: str, summary: str, reading: Reading, *, counter: bool = True) -> None:
        """Publish a number that somebody else keeps, read at scrape time."""
        self._readings.add(name, summary, reading, counter=counter)

    def on_transition(self, transition: Transition) -> None:
        """Count a change of health."""
        if transition.new is State.COOLING:
            self.cooldowns.labels(reason_label(transition.reason)).inc()

    def serve(self, address: Address) -> Callable[[], None]:
        """Serve /metrics; returns the function that stops it."""
        server, thread = start_http_server(address.port, address.host, self.registry)
        server.set_app(_one_at_a_time(make_wsgi_app(self.registry)))

        def stop() -> None:
            ending = Thread(target=server.shutdown)
            ending.start()
            # It looks whether it shall end when somebody calls, otherwise only every half second.
            with suppress(OSError):
                socket.create_connection((address.host, server.server_port), timeout=1.0).close()
            ending.join()
            thread.join()
            server.server_close()

        return stop


def _one_at_a_time(app: WSGIApplication) -> WSGIApplication:
    """Render one page at a time: each costs the interpreter, which requests need too, and scrapers can wait."""
    lock = Lock()

    def locked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with lock:
            return app(environ, start_response)

    return locked


def reason_label(reason: str | None) -> str:
    """Return a reason of the closed set."""
    return reason if reason in REASONS else OTHER


def class_label(error_class: str | None) -> str:
    """Return an attempt's class of the closed set; None is a success."""
    if error_class is None:
        return SUCCESS
    return error_class if error_class in _CLASSES else OTHER


def mode_label(mode: str) -> str:
    """Return a route mode of the closed set."""
    return mode if mode in _MODES else NONE


def code_label(status: int) -> str:
    """Return a status as text; 0 is a request that got none."""
    return str(status) if status == 0 or 100 <= status <= 599 else OTHER


class _TargetStates(Collector):
    """Reads health at scrape time, so that no gauge is ever stale."""

    def __init__(self, states: StateReader, metrics: Metrics) -> None:
        self._states = states
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Tell the name alone, so that whoever asks for other metrics by name does not wait for these."""
        yield self._family()

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for row in self._states():
            if isinstance(row.subject, TargetKey) and not self._metrics.bounds.knows(row.subject):
                continue
            for state in State:
                family.add_metric([str(row.subject), state.value], float(state is row.view.state))
        yield family

    @staticmethod
    def _family() -> GaugeMetricFamily:
        summary = "1 for the state a target or provider account is in."
        return GaugeMetricFamily("gateway_target_state", summary, labels=["subject", "state"])


class _Readings(Collector):
    """Numbers that other parts keep."""

    def __init__(self) -> None:
        self._all: list[tuple[str, str, Reading, bool]] = []

    def add(self, name: str, summary: str, reading: Reading, *, counter: bool) -> None:
        self._all.append((name, summary, reading, counter))

    def collect(self) -> Iterator[Metric]:
        for name, summary, reading, counter in self._all:
            if counter:
                yield CounterMetricFamily(name, summary, value=reading())
            else:
                yield GaugeMetricFamily(name, summary, value=reading())
