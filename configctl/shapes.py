"""The JSON that `--json` prints, one function a shape; scripts may rely on every key.

Times are ISO 8601 in UTC with milliseconds; a digest is lower-case hex; what does not apply is null.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from configctl.changes import Report
    from configctl.commands import Checked, ClientKey, Status, Verified
    from configctl.diff import Change
    from configctl.preview import Preview
    from configctl.records import AuditEntry, Conflict, Instance, NothingToPublish, Version
    from configctl.waiting import Verdict
    from extproc.config.errors import ConfigErrors

Json = dict[str, Any]


def of_time(seconds: float) -> str:
    """Write epoch seconds as `2026-01-31T12:00:00.000Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def of_valid(checked: Checked) -> Json:
    """`validate`: `{valid: true, digest, models: [name], providers: [name], errors: []}`."""
    snapshot = checked.snapshot
    return {
        "valid": True,
        "digest": snapshot.digest,
        "models": list(snapshot.models),
        "providers": list(snapshot.providers),
        "errors": [],
    }


def of_invalid(errors: ConfigErrors) -> Json:
    """Any verb with a bad file: `{valid: false, errors: [{path, where, reason}]}`; `where` is `file:line` or null."""
    return {"valid": False, "errors": [asdict(error) for error in errors.errors]}


def of_changes(changes: tuple[Change, ...]) -> list[Json]:
    """`diff`: `[{path, kind, before, after}]`; `kind` is added, removed, changed or reordered."""
    return [asdict(change) for change in changes]


def of_preview(preview: Preview) -> Json:
    """`preview`.

    `{gained: [name], lost: [name], candidates: [{model, protocol, before, after, skipped}],
    findings: [{code, path, sentence, advice}], resources: [{kind, name, change}], health_known}`; `before` and `after`
    are `[{target, public_model, mode}]` (`before` is null for a new model), `skipped` is `[{target, reason}]`.
    """
    return asdict(preview)


def of_version(version: Version) -> Json:
    """Shape of `current`, and of a version everywhere else.

    `{number, parent, digest, author, message, created_at, kind, rollback_of, outcome, outcome_reason}`.
    """
    fields = asdict(version)
    del fields["content"]
    return fields | {"created_at": of_time(version.created_at)}


def of_history(versions: tuple[Version, ...], active: int | None) -> list[Json]:
    """`history`: a list of versions as in `current`, newest first, each with `active: bool`."""
    return [of_version(version) | {"active": version.number == active} for version in versions]


def of_shown(version: Version) -> Json:
    """`show N`: a version as in `current`, with `content`, which is itself a config file."""
    return of_version(version) | {"content": version.config}


def of_status(status: Status, now: float) -> Json:
    """`status`, besides `gateway` (see live_shapes, or null) and `store_error` (a sentence or null).

    `{active: version or null, instances: [instance]}`; both are empty when there is a `store_error`.
    """
    return {
        "active": of_version(status.active) if status.active else None,
        "instances": [of_instance(instance, now) for instance in status.instances],
    }


def of_instance(instance: Instance, now: float) -> Json:
    """One gateway.

    `{id, hostname, pid, live, wanted, applied, since, heartbeat_at, error, missing_keys: [text]}`; `since` is when
    `applied` became what it is, `error` is why `wanted` was refused; a missing key is
    `openai (env OPENAI_API_KEY is not set)`.
    """
    times = {"since": of_time(instance.since), "heartbeat_at": of_time(instance.heartbeat_at)}
    return asdict(instance) | times | {"live": instance.is_live(now), "missing_keys": list(instance.missing_keys)}


def of_entry(entry: AuditEntry) -> Json:
    """`audit`, a list of these: `{seq, at, actor, act, version, refused, detail, prev_hash, hash}`.

    `detail` is an object, or the raw text where somebody broke it.
    """
    try:
        detail: Any = entry.details
    except ValueError:
        detail = entry.detail
    return asdict(entry) | {"at": of_time(entry.at), "detail": detail, "refused": bool(entry.refused)}


def of_verified(verified: Verified) -> Json:
    """`audit verify`: `{whole: bool, entries, versions, head, broken: [{what, reason}]}`."""
    return {"whole": not verified.broken} | asdict(verified)


def of_report(report: Report) -> Json:
    """`publish` and `rollback` that made a version.

    `{result: "published", version, outcome, instances: [{instance, hostname, answer, reason, after_s}], gone: [id],
    superseded_by, returned_to}`; `outcome` is applied, failed, silent, superseded, no_gateway, not_waited or
    interrupted; `answer` is applied, failed or silent; `gone` were silent before; `returned_to` is the number wanted
    after a refusal, 0 for none.
    """
    returned = report.returned
    to = None
    if returned is not None:
        to = returned.to.number if returned.to else 0
    return {
        "result": "published",
        "version": of_version(report.version),
        "outcome": report.outcome,
        "instances": [_of_verdict(verdict) for verdict in report.verdicts.answers],
        "gone": [instance.id for instance in report.verdicts.gone],
        "superseded_by": report.verdicts.superseded_by,
        "returned_to": to,
    }


def of_nothing(answer: NothingToPublish) -> Json:
    """`publish` and `rollback` of what is active already: `{result: "nothing_to_publish", version}`."""
    return {"result": "nothing_to_publish", "version": of_version(answer.active)}


def of_conflict(conflict: Conflict) -> Json:
    """`publish` and `rollback` that came too late: `{result: "conflict", expected, active: version or null}`."""
    active = of_version(conflict.active) if conflict.active else None
    return {"result": "conflict", "expected": conflict.expected, "active": active}


def of_key(key: ClientKey) -> Json:
    """`key new`: `{token, token_sha256}`; the token is shown this once."""
    return asdict(key)


def of_digest(digest: str) -> Json:
    """`key hash`: `{token_sha256}`."""
    return {"token_sha256": digest}


def _of_verdict(verdict: Verdict) -> Json:
    return asdict(verdict)
