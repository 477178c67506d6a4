"""Watches the gateway and feeds metrics and ledger: each request and attempt once, where the truth about it is known.

An attempt counts when it gets its verdict (the judge's, else Envoy's), a request when Envoy reports its end, so that
aborted requests and streams count too; its story goes to the ledger once all of its attempts are known. Questions
about the gateway itself (`/healthz`, `/readyz`, the model list) are not requests in this sense.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from prometheus_client import Counter, Histogram

from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.endpoints import HEALTH_PATH, MODELS_PATH, READY_PATH, Kind
from extproc.core.exchange import Action, Event, Exchange, RequestHeaders, Respond, RouteTo
from extproc.core.feedback import ABORT_FLAGS, RequestLogged
from extproc.core.gateway import Gateway
from extproc.core.outcome import RouteMode
from extproc.core.records import AttemptRecord, Evidence, RequestRecord
from extproc.core.request_state import RequestState
from extproc.core.story import SERVED, Story
from extproc.core.telling import Teller, class_of
from extproc.ledger import Ledger
from extproc.metrics import NONE, OTHER, TOKEN_TYPES, Metrics, class_label, code_label, mode_label, reason_label

log = logging.getLogger(__name__)

SERIES_KEPT = 4_096
_STREAMED = frozenset({Kind.STREAM.value, Kind.STREAM_UNGUARDED.value})
_MOVED = frozenset({RouteMode.HEALTH_REROUTE, RouteMode.PROVIDER_FAILOVER, RouteMode.MODEL_FALLBACK})


class StorySink(Protocol):
    """Where finished stories go."""

    def add(self, story: Story) -> None:
        """Take a story in; never blocks."""
        ...


class _Series(NamedTuple):
    """What requests of one kind are counted in: looked up once, as labels are costly."""

    requests: Counter
    seconds: Histogram
    first_token: Histogram | None
    target: tuple[str, str]
    tokens: dict[str, Counter]


class Telemetry:
    """The gateway's observer; `version` returns the snapshot of a version number, None when it is gone."""

    def __init__(self, metrics: Metrics, sink: StorySink, version: Callable[[int], Snapshot | None]) -> None:
        self._metrics = metrics
        self._sink = sink
        self._version = version
        self._teller = Teller()
        self._bounds = metrics.bounds
        self._requests: dict[tuple[str, str, str, str, int], _Series] = {}
        self._attempts: dict[tuple[TargetKey, str | None], Counter] = {}
        self._clients: dict[tuple[str, int], Counter] = {}

    def attempt_settled(self, attempt: AttemptRecord, state: RequestState) -> None:
        """Count an attempt by its verdict."""
        self._forget_old_series()
        wanted = (attempt.step.key, class_of(attempt))
        counter = self._attempts.get(wanted)
        if counter is None:
            key, error_class = wanted
            labels = (self._bounds.provider(key.provider), self._bounds.upstream(key), class_label(error_class))
            counter = self._attempts[wanted] = self._metrics.attempts.labels(*labels)
        counter.inc()

    def request_logged(self, request: RequestLogged) -> None:
        """Count a request by what its caller got."""
        if is_about_the_gateway(request.path):
            return
        self._forget_old_series()
        told = request.told
        wanted = (
            told.get("model", ""),
            told.get("served_model", ""),
            told.get("served_by", ""),
            told.get("route_mode", ""),
            request.status,
        )
        series = self._requests.get(wanted)
        if series is None:
            series = self._requests[wanted] = self._series_of(*wanted)
        series.requests.inc()
        self._count_client(told.get("client", ""), request.status)
        series.seconds.observe(request.duration_s)
        if request.flags & ABORT_FLAGS:
            self._metrics.client_aborts.inc()
        if series.first_token is not None and request.first_byte_s is not None and told.get("kind") in _STREAMED:
            series.first_token.observe(request.first_byte_s)
        for kind, count in request.tokens.items():
            if kind in series.tokens:
                series.tokens[kind].inc(count)
            elif kind in TOKEN_TYPES:
                counter = series.tokens[kind] = self._metrics.tokens.labels(*series.target, kind)
                counter.inc(count)

    def _count_client(self, name: str, status: int) -> None:
        counter = self._clients.get((name, status))
        if counter is None:
            labels = (self._bounds.client(name), code_label(status))
            counter = self._clients[name, status] = self._metrics.client_requests.labels(*labels)
        counter.inc()

    def _series_of(self, model: str, served_model: str, served_by: str, mode: str, status: int) -> _Series:
        metrics, bounds = self._metrics, self._bounds
        mode = mode_label(mode)
        served = mode != RouteMode.NONE
        target = _target(served_by) if served else None
        provider = NONE if target is None else bounds.provider(target.provider)
        model, by = bounds.model(model), bounds.model(served_model) if served else NONE
        return _Series(
            metrics.requests.labels(model, by, provider, mode, code_label(status)),
            metrics.request_seconds.labels(model),
            metrics.first_token_seconds.labels(model, provider) if served else None,
            (provider, NONE if target is None else bounds.upstream(target)),
            {},
        )

    def _forget_old_series(self) -> None:
        """Begin anew when another version bounds the labels, or callers' names have filled the tables."""
        if self._bounds is not self._metrics.bounds or len(self._requests) + len(self._attempts) > SERIES_KEPT:
            self._bounds = self._metrics.bounds
            self._requests.clear()
            self._attempts.clear()
            self._clients.clear()

    def request_closed(
        self, record: RequestRecord | None, request: RequestLogged | None, refused: Evidence | None, now: float
    ) -> None:
        """Send a request's story to the ledger, and count what only the whole of it tells."""
        if request is not None and record is None and is_about_the_gateway(request.path):
            return
        evidence = refused if record is None else record.evidence
        number = evidence.version if evidence is not None else _version(request)
        story = self._teller.tell(record, request, refused, self._version(number), now)
        if len(story.attempts) > 1:
            self._metrics.failover_seconds.observe(story.attempts[-1].started - story.attempts[0].started)
        if story.outcome == SERVED and story.route_mode in _MOVED:
            self._count_move(story)
        self._sink.add(story)

    def _count_move(self, story: Story) -> None:
        bounds = self._metrics.bounds
        left, reason = _moved_from(story)
        served = _target(story.served_by)
        if served is not None:
            source = OTHER if left is None else bounds.target(left)
            self._metrics.fallbacks.labels(source, bounds.target(served), reason_label(reason)).inc()


def publish_readings(metrics: Metrics, gateway: Gateway, ledger: Ledger) -> None:
    """Publish the numbers that gateway and ledger keep themselves."""
    metrics.read(
        "gateway_retry_budget_denied_total",
        "Attempts at a provider account that the retry budget refused.",
        lambda: gateway.budget_denied,
    )
    metrics.read(
        "gateway_unexpected_messages_total",
        "Messages from Envoy that no exchange expected.",
        lambda: gateway.unexpected_messages,
    )
    metrics.read("gateway_ledger_rows_total", "Rows written to the ledger, one a request.", lambda: ledger.written)
    metrics.read("gateway_ledger_dropped_total", "Requests that the ledger could not record.", lambda: ledger.dropped)
    metrics.read("gateway_ledger_waiting", "Requests that wait to be written.", lambda: ledger.waiting, counter=False)


class TimedExchange:
    """An exchange whose deciding is timed: from the first event to the answer, without the waits between events.

    Questions about the gateway itself are not: probes would be most of what is told.
    """

    def __init__(self, exchange: Exchange, observe: Callable[[float], None]) -> None:
        self._exchange = exchange
        self._observe = observe
        self._spent_s = 0.0
        self._timed = True

    def __repr__(self) -> str:
        return repr(self._exchange)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Pass an event on."""
        if isinstance(event, RequestHeaders):
            self._timed = not is_about_the_gateway(event.headers.get(":path", ""))
        began = time.perf_counter()
        actions = self._exchange.handle(event, now)
        self._spent_s += time.perf_counter() - began
        if self._timed and actions and isinstance(actions[0], RouteTo | Respond):
            self._observe(self._spent_s)
        return actions

    def closed(self, now: float) -> None:
        """Pass the end of the stream on."""
        self._exchange.closed(now)


def is_about_the_gateway(target: str) -> bool:
    """Tell whether a request for this path, with or without a query, asked about the gateway itself."""
    path = target.partition("?")[0]
    return path in (HEALTH_PATH, READY_PATH, MODELS_PATH) or path.startswith(MODELS_PATH + "/")


def _moved_from(story: Story) -> tuple[TargetKey | None, str | None]:
    """Return the target that would have served, and why it did not."""
    failed = next((tried for tried in story.attempts if tried.error_class is not None), None)
    if failed is not None:
        return failed.target, failed.error_class
    for candidate in story.candidates:
        if candidate.reason is not None:
            return candidate.target, candidate.reason
    return None, None


def _target(served_by: str) -> TargetKey | None:
    provider, slash, model = served_by.partition("/")
    return TargetKey(provider, model) if slash else None


def _version(request: RequestLogged | None) -> int:
    text = request.told.get("version", "") if request is not None else ""
    return int(text) if text.isdecimal() else 0
