"""The admin API's messages: what the gateway knows, in the form in which it is answered.

Pure. Invariant: no key, token or prompt is ever answered; in a config, token digests and the values of static headers
and queries are hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from extproc.config.snapshot import Snapshot
from extproc.core.gateway import Gateway
from extproc.core.health import Row
from extproc.core.health_state import View
from extproc.ledger_reader import Entry, Query
from extproc.wire.pb import admin_pb2 as pb

DEFAULT_LIMIT = 50
MASK = "***"


def health_rows(gateway: Gateway, now: float) -> list[Row]:
    """Return every provider account and target; one whose key is missing is out for that reason, as in planning."""
    missing = gateway.active.missing_keys if gateway.active else frozenset()
    without_key = View.ineligible("missing_key")
    return [
        row._replace(view=without_key) if _provider_of(row) in missing else row for row in gateway.health.states(now)
    ]


def _provider_of(row: Row) -> str:
    return row.subject if isinstance(row.subject, str) else row.subject.provider


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


def health_row(row: Row, now: float) -> pb.HealthRow:
    """Describe one provider account or target."""
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


def query_of(request: pb.ListRequestsRequest) -> Query:
    """Return what a request asks the ledger for."""
    return Query(
        limit=request.limit or DEFAULT_LIMIT,
        failed=request.failed,
        model=request.model or None,
        client=request.client or None,
        served_by=request.served_by or None,
        error_class=request.error_class or None,
        since=request.since if request.HasField("since") else None,
    )


def request_row(entry: Entry) -> pb.RequestRow:
    """Describe one past request."""
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
