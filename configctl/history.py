"""The rules of versions and audit, pure: what an act makes of a history, and whether a history is whole.

Owns compare-and-set, numbering, the way back and the hash chain. Leaves transactions to `store.py`: it reads a `Head`,
asks here what to write and writes exactly that.

Invariants: numbers and audit sequence count up by one; a new version's parent is the active version; every act writes
one audit entry, refused ones included ("nothing to publish" and a change declined when asked are no acts); an entry's
hash covers all its fields and its predecessor's hash; every field of a version is told by some entry, so that no change
of a version goes unseen while the chain is whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from configctl.records import (
    EMPTY,
    Act,
    AuditEntry,
    Changed,
    Conflict,
    Kind,
    NoSuchVersion,
    NothingToPublish,
    Outcome,
    Published,
    Returned,
    Version,
    canonical,
)

GENESIS = "0" * 64
"""The predecessor's hash of the first entry."""

Find = Callable[[int], Version | None]

_ResultT_co = TypeVar("_ResultT_co", covariant=True)


class Head(NamedTuple):
    """What an act needs to know of the history so far."""

    active: Version | None
    last_number: int
    last_seq: int
    last_hash: str

    @property
    def number(self) -> int | None:
        """The active version's number."""
        return self.active.number if self.active else None


NOTHING = Head(None, 0, 0, GENESIS)


class Request(NamedTuple):
    """Who asks for an act, why and when; `expect` is the number that must be active (EMPTY: none), None for any."""

    author: str
    message: str
    expect: int | None
    now: float


class Planned(NamedTuple, Generic[_ResultT_co]):
    """What to answer and write: at most one new version, at most one entry, and the active number afterwards."""

    result: _ResultT_co
    active: int | None
    version: Version | None = None
    entry: AuditEntry | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """The first thing of its sort that is not as it was written: `what` is `audit entry 7` or `version 3`."""

    what: str
    reason: str


def plan_publish(
    head: Head, content: bytes, digest: str, request: Request
) -> Planned[Published | NothingToPublish | Conflict]:
    """Decide about a publish: a new version, nothing to do, or a conflict."""
    if (conflict := _conflict(head, "publish", request)) is not None:
        return conflict
    if head.active is not None and changes_nothing(head.active, digest):
        return Planned(NothingToPublish(head.active), head.number)
    return _new_version(head, "publish", content, digest, None, request)


def plan_rollback(
    head: Head, find: Find, to: int | None, request: Request
) -> Planned[Published | NothingToPublish | Conflict | NoSuchVersion | Changed]:
    """Decide about a rollback to version `to`; None means the one that was active before the active one."""
    if (conflict := _conflict(head, "rollback", request)) is not None:
        return conflict
    old = version_before(head.active, find) if to is None else find(to)
    if old is None or head.active is None:
        detail = {"message": request.message, "reason": "no such version", "to": to}
        entry = chained(head, "rollback", request.author, None, detail, request.now, refused=True)
        return Planned(NoSuchVersion(to), head.number, entry=entry)
    if not old.is_as_published:
        detail = {"message": request.message, "reason": "changed since it was published", "to": old.number}
        entry = chained(head, "rollback", request.author, None, detail, request.now, refused=True)
        return Planned(Changed(old.number), head.number, entry=entry)
    if changes_nothing(head.active, old.digest):
        return Planned(NothingToPublish(head.active), head.number)
    return _new_version(head, "rollback", old.content, old.digest, old.number, request)


def plan_return(
    head: Head, find: Find, number: int, reason: str, actor: str, now: float
) -> Planned[Returned | Conflict]:
    """Decide about going back from a refused version to its nearest ancestor that did not fail."""
    if head.active is None or head.active.number != number:
        return Planned(Conflict(number, head.active), head.number)
    ancestor = find(head.active.parent) if head.active.parent is not None else None
    while ancestor is not None and ancestor.outcome == "failed":
        ancestor = find(ancestor.parent) if ancestor.parent is not None else None
    to = ancestor.number if ancestor else None
    entry = chained(head, "return", actor, number, {"reason": reason, "to": to}, now)
    return Planned(Returned(number, ancestor), to, entry=entry)


def plan_outcome(
    head: Head, version: Version, outcome: Literal["applied", "failed"], reason: str | None, actor: str, now: float
) -> AuditEntry | None:
    """Return the entry of a verdict, None when it changes nothing: a failure outweighs, the first one stays."""
    if version.outcome == "failed" or version.outcome == outcome:
        return None
    return chained(head, outcome, actor, version.number, {"reason": reason}, now)


def changes_nothing(active: Version, digest: str) -> bool:
    """Tell whether a publish is needless; a version that failed is tried again when somebody publishes it again."""
    return active.digest == digest and active.outcome != "failed"


def version_before(version: Version | None, find: Find) -> Version | None:
    """Return the nearest ancestor with another content that did not fail, None when there is none."""
    ancestor = version
    while ancestor is not None and version is not None and ancestor.parent is not None:
        ancestor = find(ancestor.parent)
        if ancestor is not None and ancestor.outcome != "failed" and ancestor.digest != version.digest:
            return ancestor
    return None


def chained(
    head: Head,
    act: Act,
    actor: str,
    version: int | None,
    detail: Mapping[str, Any],
    now: float,
    *,
    refused: bool = False,
) -> AuditEntry:
    """Return the entry that follows `head`."""
    text = canonical(dict(detail)).decode()
    entry = AuditEntry(head.last_seq + 1, float(now), actor, act, version, text, int(refused), head.last_hash, "")
    return _hashed(entry)


def entry_hash(entry: AuditEntry) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of every field but `hash`."""
    fields = {
        "seq": entry.seq,
        "at": entry.at,
        "actor": entry.actor,
        "act": entry.act,
        "version": entry.version,
        "detail": entry.detail,
        "refused": entry.refused,
        "prev_hash": entry.prev_hash,
    }
    return hashlib.sha256(canonical(fields)).hexdigest()


def verify_chain(
    entries: Iterable[AuditEntry], versions: Sequence[Version], active: int | None, last_hash: str
) -> tuple[Broken, ...]:
    """Return what is not as it was written: the first broken audit entry, and every version that differs.

    `active` and `last_hash` are what the store believes; a chain that was cut at its end is known by them.
    """
    told = _Told()
    broken = _first_broken(entries, last_hash, told)
    if broken is not None:
        # What a broken chain tells of versions is worth nothing; their content can still be checked.
        return (broken, *_differing(versions, None))
    found = [*_differing(versions, told.versions)]
    # By text: whoever chained the entries anew may have given a version any name.
    missing = sorted(told.versions.keys() - {version.number for version in versions}, key=str)
    found += [Broken(f"version {number}", "was published and is missing") for number in missing]
    if told.active != active:
        found.append(Broken("active version", f"is {active or 'none'}, the audit says {told.active or 'none'}"))
    return tuple(found)


def _first_broken(entries: Iterable[AuditEntry], last_hash: str, told: _Told) -> Broken | None:
    """Follow the chain and hear what it tells, up to the first entry that is not as it was written."""
    previous, seq = GENESIS, 0
    for seq, entry in enumerate(entries, start=1):
        if (reason := _why_broken(entry, seq, previous)) is not None:
            return Broken(f"audit entry {seq}", reason)
        told.add(entry)
        previous = entry.hash
    if previous == last_hash:
        return None
    return Broken(f"audit entry {seq + 1}", "is missing at the end of the chain, or the chain's end was changed")


def _differing(versions: Iterable[Version], told: Mapping[int, Mapping[str, Any]] | None) -> Iterator[Broken]:
    for version in versions:
        if (reason := _why_differs(version, told)) is not None:
            yield Broken(f"version {version.number}", reason)


def _conflict(head: Head, act: Act, request: Request) -> Planned[Conflict] | None:
    number = head.number or EMPTY
    if request.expect is None or request.expect == number:
        return None
    detail = {"active": number, "expected": request.expect, "message": request.message, "reason": "conflict"}
    entry = chained(head, act, request.author, None, detail, request.now, refused=True)
    return Planned(Conflict(request.expect, head.active), head.number, entry=entry)


def _new_version(
    head: Head, kind: Kind, content: bytes, digest: str, rollback_of: int | None, request: Request
) -> Planned[Published]:
    version = Version(
        number=head.last_number + 1,
        parent=head.number,
        digest=digest,
        content=content,
        author=request.author,
        message=request.message,
        created_at=float(request.now),
        kind=kind,
        rollback_of=rollback_of,
    )
    entry = chained(head, kind, request.author, version.number, _recorded(version), request.now)
    return Planned(Published(version), version.number, version, entry)


def _recorded(version: Version) -> dict[str, Any]:
    """Return what the audit entry of a new version tells of it, besides number, author and time."""
    return {
        "digest": version.digest,
        "message": version.message,
        "parent": version.parent,
        "rollback_of": version.rollback_of,
    }


def _hashed(entry: AuditEntry) -> AuditEntry:
    return AuditEntry(
        entry.seq,
        entry.at,
        entry.actor,
        entry.act,
        entry.version,
        entry.detail,
        entry.refused,
        entry.prev_hash,
        entry_hash(entry),
    )


def _why_broken(entry: AuditEntry, seq: int, previous: str) -> str | None:
    if entry.seq != seq:
        return f"is missing; entry {entry.seq} stands in its place"
    if entry.prev_hash != previous:
        return "does not follow the entry before it"
    try:
        if entry_hash(entry) != entry.hash:
            return "was changed: its hash does not fit its content"
        _ = entry.details
    except (ValueError, TypeError):
        return "was changed: it cannot be read"
    return None


class _Told:
    """What the audit entries say about versions, replayed."""

    def __init__(self) -> None:
        self.active: int | None = None
        self.versions: dict[int, dict[str, Any]] = {}

    def add(self, entry: AuditEntry) -> None:
        if entry.refused or entry.version is None:
            return
        details = dict(entry.details)
        if entry.act in ("publish", "rollback"):
            fresh: dict[str, Outcome | str | None] = {"outcome": "pending", "outcome_reason": None}
            self.versions[entry.version] = {
                **details,
                **fresh,
                "author": entry.actor,
                "created_at": entry.at,
                "kind": entry.act,
            }
            self.active = entry.version
        elif entry.act == "return":
            self.active = details.get("to")
        elif entry.version in self.versions:
            self.versions[entry.version] |= {"outcome": entry.act, "outcome_reason": details.get("reason")}


def _why_differs(version: Version, told: Mapping[int, Mapping[str, Any]] | None) -> str | None:
    """Say what of a version is not as recorded; without `told` only the content can be checked."""
    if not version.is_as_published:
        return "was changed: its digest does not fit its content"
    if told is None:
        return None
    record = told.get(version.number)
    if record is None:
        return "was never published, says the audit"
    changed = [name for name, value in record.items() if getattr(version, name, None) != value]
    return f"was changed: {', '.join(sorted(changed))} is not what the audit says" if changed else None
