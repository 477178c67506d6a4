"""The JSON that the verbs on a running gateway print; scripts may rely on every key.

Times are ISO 8601 in UTC with milliseconds, durations milliseconds; what does not apply is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from configctl.shapes import of_time

if TYPE_CHECKING:
    from extproc.wire.pb import admin_pb2 as pb

Json = dict[str, Any]


def of_health(row: pb.HealthRow) -> Json:
    """Describe one subject of `health list`.

    `{subject, kind: provider|target, state, eligible, share, reason, until, streak, order: {kind, owner, reason,
    expires_at} | null}`.
    """
    order = None
    if row.HasField("order"):
        order = {
            "kind": row.order.kind,
            "owner": row.order.owner,
            "reason": row.order.reason,
            "expires_at": of_time(row.order.expires_at) if row.order.HasField("expires_at") else None,
        }
    return {
        "subject": row.subject,
        "kind": "provider" if row.is_provider else "target",
        "state": row.state,
        "eligible": row.eligible,
        "share": row.share,
        "reason": row.reason or None,
        "until": of_time(row.until) if row.HasField("until") else None,
        "streak": row.streak,
        "order": order,
    }


def of_request(row: pb.RequestRow) -> Json:
    """Describe one request of `requests`; with `--follow` there is one a line.

    Of a row that somebody changed, outcome `unreadable`, there is the id alone.
    """
    return {
        "request_id": row.request_id,
        "arrived": of_time(row.arrived) if row.arrived else None,
        "endpoint": row.endpoint,
        "client": row.client,
        "model": row.model,
        "outcome": row.outcome,
        "status": row.status,
        "error": row.error or None,
        "route_mode": row.route_mode,
        "served_by": row.served_by or None,
        "attempts": row.attempts,
        "classes": list(row.classes),
        "duration_ms": _rounded(row.duration_ms) if row.HasField("duration_ms") else None,
        "first_byte_ms": _rounded(row.first_byte_ms) if row.HasField("first_byte_ms") else None,
        "input_tokens": row.input_tokens if row.HasField("input_tokens") else None,
        "output_tokens": row.output_tokens if row.HasField("output_tokens") else None,
        "config_version": row.config_version,
    }


def of_instance(status: pb.StatusReply) -> Json:
    """Describe an instance: the live part of `status`.

    `{pid, software_version, started_at, ready, wanted_version, applied_version, applied_at, digest, last_error,
    missing_keys, requests_open, ledger: {written, dropped, waiting}}`.
    """
    return {
        "pid": status.pid,
        "software_version": status.software_version,
        "started_at": of_time(status.started_at),
        "ready": status.ready,
        "wanted_version": status.wanted_version or None,
        "applied_version": status.applied_version or None,
        "applied_at": of_time(status.applied_at) if status.applied_at else None,
        "digest": status.digest,
        "last_error": status.last_error or None,
        "missing_keys": list(status.missing_keys),
        "requests_open": status.requests_open,
        "ledger": {
            "written": status.ledger.written,
            "dropped": status.ledger.dropped,
            "waiting": status.ledger.waiting,
        },
    }


def _rounded(value: float) -> float:
    return round(value, 3)
