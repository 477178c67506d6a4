"""The admin gRPC API on a Unix socket: what this instance runs, health and orders, requests and their stories.

Owns the mapping between the API's messages and the gateway's values; the socket's mode (0600) is its only door.
Invariants: nothing here blocks the event loop (the ledger is read in threads); no key, token or prompt is ever
answered, since none is kept.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import orjson

from extproc import __version__
from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.gateway import Gateway
from extproc.core.health import Row
from extproc.core.health_state import Subject
from extproc.core.story import Story, explain_json, replay
from extproc.core.telling import Teller
from extproc.ledger import Ledger
from extproc.ledger_reader import LIST_LIMIT, Entry, LedgerReader, Query
from extproc.wire.pb import admin_pb2 as pb

SERVICE = "gateway.v1.Admin"
SOCKET_MODE = 0o600
DEFAULT_LIMIT = 50
FOLLOW_POLL_S = 0.3
FLUSH_WAIT_S = 1.0
OPEN = "open"
"""Outcome of a request that is still under way."""
MASK = "***"

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """What `serve` knows of itself; 0 and "" mean not yet or none."""

    started_at: float
    ready: bool
    wanted_version: int
    applied_version: int
    applied_at: float
    last_error: str


class AdminService:
    """Answers the API's calls."""

    def __init__(
        self, gateway: Gateway, ledger: Ledger, status: Callable[[], InstanceStatus], clock: Callable[[], float]
    ) -> None:
        self._gateway = gateway
        self._ledger = ledger
        self._reader = LedgerReader(ledger.path)
        self._status = status
        self._clock = clock

    async def status(self, _request: pb.StatusRequest, _context: Context) -> pb.StatusReply:
        """Say what this instance runs."""
        status, active = self._status(), self._gateway.active
        ledger = pb.LedgerStatus(
            written=self._ledger.written, dropped=self._ledger.dropped, waiting=self._ledger.waiting
        )
        return pb.StatusReply(
            software_version=__version__,
            pid=os.getpid(),
            digest=active.snapshot.digest if active else "",
            missing_keys=sorted(active.missing_keys) if active else [],
            requests_open=len(self._gateway.records),
            ledger=ledger,
            **asdict(status),
        )

    async def list_health(self, _request: pb.ListHealthRequest, _context: Context) -> pb.ListHealthReply:
        """List every provider account and target."""
        now = self._clock()
        return pb.ListHealthReply(rows=[_health_row(row, now) for row in self._gateway.health.states(now)])

    async def set_health(self, request: pb.SetHealthRequest, context: Context) -> pb.HealthRow:
        """Carry out an operator's order and return what became of its subject."""
        now = self._clock()
        subject = self._subject(request.subject)
        if subject is None:
            await _refuse(
                context, f"{request.subject!r} is neither a provider nor one of its targets (provider/model)."
            )
        fault = _fault_of(request)
        if fault is not None:
            await _refuse(context, fault)
        expires_at = now + request.expires_in_s if request.HasField("expires_in_s") else None
        kinds = {pb.HEALTH_ACTION_DOWN: "down", pb.HEALTH_ACTION_DRAIN: "drain"}
        self._gateway.order(subject or "", kinds.get(request.action), request.owner, request.reason, expires_at, now)
        row = next(row for row in self._gateway.health.states(now) if row.subject == subject)
        return _health_row(row, now)

    async def list_requests(self, request: pb.ListRequestsRequest, _context: Context) -> AsyncIterator[pb.RequestRow]:
        """Stream past requests and, when asked, the new ones as they end."""
        query = _query(request)
        await self._flushed()
        last = await asyncio.to_thread(self._reader.last_seq)
        entries = await asyncio.to_thread(self._reader.entries, query)
        for entry in reversed(entries) if request.follow else entries:
            yield _request_row(entry)
        while request.follow:
            await asyncio.sleep(FOLLOW_POLL_S)
            newest = await asyncio.to_thread(self._reader.last_seq)
            fresh = await asyncio.to_thread(self._reader.entries, replace(query, after=last, limit=LIST_LIMIT))
            for entry in fresh:
                yield _request_row(entry)
            last = max([newest, *(entry.seq for entry in fresh)]) if len(fresh) < LIST_LIMIT else fresh[-1].seq

    async def explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainReply:
        """Tell one request's story and plan it again."""
        await self._flushed()
        story = await asyncio.to_thread(self._reader.find, request.request_id) or self._open(request.request_id)
        if story is None:
            kept = self._ledger.bounds
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"The ledger has no request {request.request_id!r}; it keeps {kept.max_rows} requests "
                f"for at most {kept.max_age_s / 86400:g} days.",
            )
        again = replay(story, self._gateway.snapshot(story.version))
        return pb.ExplainReply(json=orjson.dumps(explain_json(story, again)).decode())

    async def get_snapshot(self, _request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotReply:
        """Return the active config, masked."""
        active = self._gateway.active
        if active is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "No config is active yet.")
        snapshot = active.snapshot
        text = orjson.dumps(masked(snapshot), option=orjson.OPT_SORT_KEYS).decode()
        return pb.GetSnapshotReply(version=snapshot.version, digest=snapshot.digest, json=text)

    async def _flushed(self) -> None:
        await asyncio.to_thread(self._ledger.flush, FLUSH_WAIT_S)

    def _open(self, request_id: str) -> Story | None:
        record = self._gateway.records.get(request_id)
        if record is None:
            return None
        snapshot = self._gateway.snapshot(record.state.version)
        return replace(Teller().tell(record, record.request, None, snapshot, self._clock()), outcome=OPEN)

    def _subject(self, text: str) -> Subject | None:
        active = self._gateway.active
        provider, slash, model = text.partition("/")
        if active is None or provider not in active.snapshot.providers:
            return None
        if not slash:
            return provider
        key = TargetKey(provider, model)
        models = active.snapshot.models.values()
        known = {TargetKey(target.provider, target.model) for entry in models for target in entry.targets}
        return key if model and (key in known or TargetKey(provider, "*") in known) else None


class AdminServer:
    """Serves the API on a Unix socket."""

    def __init__(self, path: Path, service: AdminService) -> None:
        self._path = path
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        methods = {
            "Status": _unary(service.status, pb.StatusRequest),
            "ListHealth": _unary(service.list_health, pb.ListHealthRequest),
            "SetHealth": _unary(service.set_health, pb.SetHealthRequest),
            "ListRequests": grpc.unary_stream_rpc_method_handler(
                service.list_requests, pb.ListRequestsRequest.FromString, _serialized
            ),
            "Explain": _unary(service.explain, pb.ExplainRequest),
            "GetSnapshot": _unary(service.get_snapshot, pb.GetSnapshotRequest),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    async def start(self) -> None:
        """Bind and begin to serve; raises RuntimeError when the socket cannot be had."""
        self._path.unlink(missing_ok=True)
        if self._server.add_insecure_port(f"unix:{self._path}") == 0:
            raise RuntimeError(f"cannot listen on {self._path}")
        await self._server.start()
        self._path.chmod(SOCKET_MODE)

    async def stop(self, grace_s: float) -> None:
        """End; running calls have `grace_s`."""
        await self._server.stop(grace_s)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def masked(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as plain data; token digests and the values of static headers and queries are hidden."""
    providers = {
        name: {
            **_plain(provider),
            "headers": {header: MASK for header, _ in provider.headers},
            "query": {key: MASK for key, _ in provider.query},
        }
        for name, provider in snapshot.providers.items()
    }
    clients = None
    if snapshot.clients is not None:
        clients = [{**_plain(c), "token_sha256": [MASK for _ in c.token_sha256]} for c in snapshot.clients]
    return {
        "version": snapshot.version,
        "digest": snapshot.digest,
        "providers": providers,
        "models": {name: _plain(model) for name, model in snapshot.models.items()},
        "policies": {name: _plain(policy) for name, policy in snapshot.policies.items()},
        "clients": clients,
        "server": _plain(snapshot.server),
        "telemetry": _plain(snapshot.telemetry),
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, frozenset | set):
        return sorted(value)
    return value


def _unary(call: Callable[[Any, Context], Any], request: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(call, request.FromString, _serialized)


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


async def _refuse(context: Context, sentence: str) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, sentence)


def _fault_of(request: pb.SetHealthRequest) -> str | None:
    if request.action == pb.HEALTH_ACTION_RESTORE:
        return None
    if request.action not in (pb.HEALTH_ACTION_DOWN, pb.HEALTH_ACTION_DRAIN):
        return "The action must be drain, down or restore."
    if not request.owner.strip() or not request.reason.strip():
        return "An order needs an owner and a reason, so that others know whom to ask."
    if request.HasField("expires_in_s") and not 0 < request.expires_in_s < 10 * 365 * 86400:
        return "The expiry must be above 0 and below ten years."
    return None


def _health_row(row: Row, now: float) -> pb.HealthRow:
    view, operator = row.view, row.operator
    made = pb.HealthRow(
        subject=str(row.subject),
        is_provider=isinstance(row.subject, str),
        state=view.state.value,
        eligible=view.eligible,
        share=view.share,
        reason=view.reason or "",
        until=view.until,
        streak=row.streak,
    )
    if operator is not None and operator.holds(now):
        order = pb.Order(
            kind=operator.kind, owner=operator.owner, reason=operator.reason, expires_at=operator.expires_at
        )
        made.order.CopyFrom(order)
    return made


def _query(request: pb.ListRequestsRequest) -> Query:
    return Query(
        limit=request.limit or DEFAULT_LIMIT,
        failed=request.failed,
        model=request.model or None,
        client=request.client or None,
        served_by=request.served_by or None,
        error_class=request.error_class or None,
        since=request.since if request.HasField("since") else None,
    )


def _request_row(entry: Entry) -> pb.RequestRow:
    story = entry.story
    return pb.RequestRow(
        seq=entry.seq,
        request_id=story.id,
        arrived=story.arrived,
        client=story.client,
        model=story.model,
        outcome=story.outcome,
        status=story.status,
        error=story.error or "",
        route_mode=story.route_mode,
        served_by=story.served_by,
        attempts=story.attempt_count,
        classes=story.classes,
        duration_ms=None if story.duration_s is None else story.duration_s * 1000,
        first_byte_ms=None if story.first_byte_s is None else story.first_byte_s * 1000,
        input_tokens=story.tokens.get("input"),
        output_tokens=story.tokens.get("output"),
        config_version=story.version,
        endpoint=story.endpoint,
    )
