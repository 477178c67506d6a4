"""The admin gRPC API's answers: what this instance runs, health and orders, requests and their stories.

Owns what each call does; the form of the answers is `admin_messages.py`'s, the sockets are `admin_server.py`'s.
Invariants: nothing here blocks the event loop (the ledger is read in threads); every order, refused ones included, is
handed to the journal that brings it into the audit; one that holds is saved before that.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

import grpc
import orjson

from extproc import __version__
from extproc.admin_messages import health_row, health_rows, masked, query_of, request_row
from extproc.admin_tls import certificate_name
from extproc.config.compile import compile_snapshot
from extproc.config.errors import ConfigErrors
from extproc.config.load import load_config
from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.body import MODEL_NAME_LIMIT, fault_of_name
from extproc.core.gateway import Gateway
from extproc.core.health_state import Subject
from extproc.core.story import Replay, Story, explain_json, replay
from extproc.core.telling import Teller
from extproc.ledger import Ledger
from extproc.ledger_file import UNREADABLE
from extproc.ledger_reader import LIST_LIMIT, LedgerReader, UnreadableLedger
from extproc.orders import OrderJournal
from extproc.store_calls import StoreCalls
from extproc.versions import HealthOrder, OrderAct, VersionArchive, Wanted
from extproc.wire.pb import admin_pb2 as pb

FOLLOW_POLL_S = 0.3
FLUSH_WAIT_S = 1.0
OPEN = "open"
"""Outcome of a request that is still under way."""
UNTOLD = "The store cannot be reached: the audit has this entry as soon as it can be."
UNNAMED = "unnamed"
_LIMIT_NAME_CHARS = 200
_LIMIT_REASON_CHARS = 2000
_LIMIT_EXPIRY_S = 10 * 365 * 86400.0
_ACTS: dict[int, OrderAct] = {
    pb.HEALTH_ACTION_DOWN: "health_down",
    pb.HEALTH_ACTION_DRAIN: "health_drain",
    pb.HEALTH_ACTION_RESTORE: "health_restore",
}

Context = grpc.aio.ServicerContext[Any, Any]
_P = ParamSpec("_P")
_T = TypeVar("_T")


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
        self,
        gateway: Gateway,
        ledger: Ledger,
        journal: OrderJournal,
        archive: VersionArchive,
        status: Callable[[], InstanceStatus],
        save_health: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._journal = journal
        self._archive = archive
        self._calls = StoreCalls()
        self._ledger = ledger
        self._reader = LedgerReader(ledger.path)
        self._status = status
        self._save_health = save_health
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
            requests_open=len(self._gateway.requests.by_id),
            ledger=ledger,
            **asdict(status),
        )

    async def list_health(self, _request: pb.ListHealthRequest, _context: Context) -> pb.ListHealthReply:
        """List every provider account and target."""
        now = self._clock()
        return pb.ListHealthReply(rows=[health_row(row, now) for row in health_rows(self._gateway, now)])

    async def set_health(self, request: pb.SetHealthRequest, context: Context) -> pb.HealthRow:
        """Carry out an operator's order and return what became of its subject."""
        now = self._clock()
        subject = self._subject(request.subject)
        order = _order_of(request, certificate_name(context.auth_context()), now)
        if order.refused is None and subject is None:
            order = replace(
                order, refused=f"{order.subject!r} is neither a provider nor one of its targets (provider/model)."
            )
        if order.refused is None and subject is not None:
            kinds = {"health_down": "down", "health_drain": "drain"}
            self._gateway.order(subject, kinds.get(order.act), order.actor, order.reason, order.expires_at, now)
            # Whoever was told that it holds may count on it after a crash, too.
            await self._save_health()
        in_audit = await self._journal.record(order)
        if order.refused is not None:
            told = order.refused if in_audit else f"{order.refused} {UNTOLD}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, told)
        row = health_row(next(row for row in health_rows(self._gateway, now) if row.subject == subject), now)
        row.in_audit = in_audit
        return row

    async def list_requests(self, request: pb.ListRequestsRequest, context: Context) -> AsyncIterator[pb.RequestRow]:
        """Stream past requests and, when asked, the new ones as they end."""
        query = query_of(request)
        await self._flushed()
        last = await _read(context, self._reader.last_seq)
        entries = await _read(context, self._reader.entries, query)
        # A request that ended between the two looks is among the entries already.
        last = max([last, *(entry.seq for entry in entries)])
        for entry in reversed(entries) if request.follow else entries:
            yield request_row(entry)
        while request.follow:
            await asyncio.sleep(FOLLOW_POLL_S)
            newest = await _read(context, self._reader.last_seq)
            fresh = await _read(context, self._reader.entries, replace(query, after=last, limit=LIST_LIMIT))
            for entry in fresh:
                yield request_row(entry)
            last = max([newest, *(entry.seq for entry in fresh)]) if len(fresh) < LIST_LIMIT else fresh[-1].seq

    async def explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainReply:
        """Tell one request's story and plan it again."""
        await self._flushed()
        story = await _read(context, self._reader.find, request.request_id) or self._open(request.request_id)
        if story is None:
            kept = self._ledger.bounds
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"The ledger has no request {request.request_id!r}; it keeps {kept.max_rows} requests "
                f"for at most {kept.max_age_s / 86400:g} days.",
            )
        if story.outcome == UNREADABLE:
            told = f"The ledger's row of request {request.request_id!r} was changed and cannot be read."
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, told)
        again = await self._planned_again(story, self._gateway.snapshot(story.version))
        return pb.ExplainReply(json=orjson.dumps(explain_json(story, again)).decode())

    async def get_snapshot(self, _request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotReply:
        """Return the active config, masked."""
        active = self._gateway.active
        if active is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "No config is active yet.")
        snapshot = active.snapshot
        text = orjson.dumps(masked(snapshot), option=orjson.OPT_SORT_KEYS).decode()
        return pb.GetSnapshotReply(version=snapshot.version, digest=snapshot.digest, json=text)

    async def _planned_again(self, story: Story, snapshot: Snapshot | None) -> Replay:
        """Plan a request again; a version that left memory is read from the store."""
        if snapshot is not None:
            return await asyncio.to_thread(replay, story, snapshot)
        number = story.version
        try:
            found = await self._calls.make(partial(self._archive.version, number))
        except OSError as error:
            return replay(story, None, f"version {number} is not in memory, and the store did not give it: {error}")
        if found is None:
            return replay(story, None, f"version {number} is neither in memory nor in the store")
        return await asyncio.to_thread(_planned_under, story, found)

    async def _flushed(self) -> None:
        await asyncio.to_thread(self._ledger.flush, FLUSH_WAIT_S)

    def _open(self, request_id: str) -> Story | None:
        record = self._gateway.requests.by_id.get(request_id)
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


def _planned_under(story: Story, version: Wanted) -> Replay:
    try:
        snapshot = compile_snapshot(load_config(version.content, f"version {version.number}"), version.number)
    except ConfigErrors:
        return replay(story, None, f"version {version.number} is in the store, but this release does not accept it")
    return replay(story, snapshot)


async def _read(context: Context, question: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Ask the ledger; one that cannot be read ends the call."""
    try:
        return await asyncio.to_thread(question, *args, **kwargs)
    except UnreadableLedger as unreadable:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(unreadable))


def _order_of(request: pb.SetHealthRequest, certificate: str | None, now: float) -> HealthOrder:
    """Return the order with what refuses it; over TCP the certificate's name is the actor, whatever is claimed."""
    claimed = _printable(request.owner, _LIMIT_NAME_CHARS)
    actor = claimed if certificate is None else _printable(certificate, _LIMIT_NAME_CHARS)
    return HealthOrder(
        id=uuid.uuid4().hex,
        at=now,
        act=_ACTS.get(request.action, "health_order"),
        actor=actor or UNNAMED,
        named_by="claim" if certificate is None else "certificate",
        subject=_printable(request.subject, _LIMIT_NAME_CHARS),
        reason=_printable(request.reason, _LIMIT_REASON_CHARS),
        expires_at=now + request.expires_in_s if _ends_in_time(request) else None,
        refused=_fault_of(request, actor),
    )


def _fault_of(request: pb.SetHealthRequest, actor: str) -> str | None:
    if request.action not in _ACTS:
        return "The action must be drain, down or restore."
    if not actor:
        return "An order needs an owner, so that others know whom to ask: a name with it, or in the certificate."
    # A provider that serves any model takes any text for one, and every transition of it is logged.
    model = request.subject.partition("/")[2]
    if len(model) > MODEL_NAME_LIMIT or fault_of_name(model) is not None:
        return (
            "The subject's model must be one line of visible characters, without spaces at its ends, "
            f"and at most {MODEL_NAME_LIMIT} of them."
        )
    if request.action == pb.HEALTH_ACTION_RESTORE:
        return None
    if not request.reason.strip():
        return "An order needs a reason, so that others know what it waits for."
    if request.HasField("expires_in_s") and not _ends_in_time(request):
        return "The expiry must be above 0 and below ten years."
    return None


def _ends_in_time(request: pb.SetHealthRequest) -> bool:
    """Whether there is an end, and one that is a date."""
    return request.HasField("expires_in_s") and 0 < request.expires_in_s < _LIMIT_EXPIRY_S


def _printable(text: str, limit: int) -> str:
    """Return text that every database and terminal can hold."""
    return "".join(char if char.isprintable() else " " for char in text).strip()[:limit]
