"""The two acts that change what gateways serve: publish and rollback.

Owns their steps: propose (compile, compare), commit what was shown and nothing else, wait for the gateways' verdicts
and go back after a refusal. Leaves asking and printing to `cli.py`.
Invariant: a commit expects the very version the proposal was compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from configctl.commands import compile_version, readable, validate
from configctl.diff import Change, diff_contents
from configctl.history import changes_nothing, version_before
from configctl.records import EMPTY, Changed, Conflict, NoSuchVersion, NothingToPublish, Published, Returned, Version
from configctl.refusals import Refusal
from configctl.waiting import Verdicts, wait_for_verdicts
from extproc.config.errors import ConfigErrors

if TYPE_CHECKING:
    from configctl.store import Store

Outcome = Literal["applied", "failed", "silent", "superseded", "no_gateway", "not_waited", "interrupted"]
_AUDITED_ERRORS = 20


@dataclass(frozen=True, slots=True)
class Act:
    """Who acts, why, and what must be active for it; `expect` None means whatever is active now."""

    author: str
    message: str
    expect: int | None


@dataclass(frozen=True, slots=True)
class Proposal:
    """What would be published, compared with what is active."""

    verb: Literal["publish", "rollback"]
    content: bytes
    digest: str
    active: Version | None
    changes: tuple[Change, ...]
    target: Version | None = None
    """For a rollback: the version to go back to."""

    @property
    def expect(self) -> int:
        """The number that must still be active when this is committed."""
        return self.active.number if self.active else EMPTY


@dataclass(frozen=True, slots=True)
class Timing:
    """How the verdicts are waited for; `timeout_s` None: not at all."""

    timeout_s: float | None
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    progress: Callable[[Verdicts], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a published version."""

    version: Version
    outcome: Outcome
    verdicts: Verdicts
    returned: Returned | None = None
    """Set when a refusal sent the wanted version back."""


def propose_publish(store: Store, source: str, act: Act, now: float) -> Proposal | NothingToPublish | Conflict:
    """Compile a file and compare it; a file that the compiler refuses is audited and raises ConfigErrors."""
    try:
        checked = validate(source)
    except ConfigErrors as errors:
        _record_refusal(store, "publish", act, errors, source, now)
        raise
    active = store.active()
    if (conflict := _stale(store, "publish", act, active, now)) is not None:
        return conflict
    if active is not None and changes_nothing(active, checked.snapshot.digest):
        return NothingToPublish(active)
    changes = diff_contents(readable(active).content if active else None, checked.content)
    return Proposal("publish", checked.content, checked.snapshot.digest, active, changes)


def propose_rollback(store: Store, to: int | None, act: Act, now: float) -> Proposal | NothingToPublish | Conflict:
    """Find the version to go back to and compare it; raises Refusal, audited, when there is none or it was changed."""
    active = store.active()
    if (conflict := _stale(store, "rollback", act, active, now)) is not None:
        return conflict
    target = store.version(to) if to is not None else version_before(active, store.version)
    if target is None or active is None:
        store.refuse("rollback", act.author, "no such version", {"message": act.message, "to": to}, now)
        raise Refusal(_no_such_version(to))
    if not target.is_as_published:
        detail = {"message": act.message, "to": target.number}
        store.refuse("rollback", act.author, "changed since it was published", detail, now)
        raise Refusal(_changed(target.number))
    if changes_nothing(active, target.digest):
        return NothingToPublish(active)
    try:
        compile_version(target)
    except ConfigErrors as errors:
        _record_refusal(store, "rollback", act, errors, f"version {target.number}", now)
        raise
    changes = diff_contents(readable(active).content, target.content)
    return Proposal("rollback", target.content, target.digest, active, changes, target)


def refuse_unasked(store: Store, proposal: Proposal, act: Act, now: float) -> None:
    """Record a change that was refused because nobody could be asked; one that somebody declined is no act."""
    detail: dict[str, object] = {"message": act.message}
    if proposal.target is not None:
        detail["to"] = proposal.target.number
    store.refuse(proposal.verb, act.author, "nobody could be asked", detail, now)


def commit(store: Store, proposal: Proposal, act: Act, now: float) -> Published | NothingToPublish | Conflict:
    """Write what was proposed, if what it was compared with is still active."""
    if proposal.target is None:
        return store.publish(
            proposal.content,
            proposal.digest,
            author=act.author,
            message=act.message,
            expect=proposal.expect,
            now=now,
        )
    number = proposal.target.number
    answer = store.rollback(number, author=act.author, message=act.message, expect=proposal.expect, now=now)
    if isinstance(answer, NoSuchVersion):
        raise Refusal(_no_such_version(answer.number))
    if isinstance(answer, Changed):
        raise Refusal(_changed(answer.number))
    return answer


def await_verdicts(store: Store, version: Version, act: Act, timing: Timing, *, keep: bool) -> Report:
    """Wait for every live gateway; after a refusal the wanted version goes back, unless `keep`."""
    if timing.timeout_s is None:
        return Report(version, "not_waited", Verdicts((), ()))
    verdicts = wait_for_verdicts(
        store,
        version.number,
        timeout_s=timing.timeout_s,
        clock=timing.clock,
        sleep=timing.sleep,
        progress=timing.progress,
    )
    outcome = _outcome(verdicts)
    returned = None
    if outcome == "failed" and not keep:
        names = ", ".join(verdict.instance for verdict in verdicts.with_answer("failed"))
        answer = store.return_to_parent(version.number, f"refused by {names}", actor=act.author, now=timing.clock())
        returned = answer if isinstance(answer, Returned) else None
    return Report(store.version(version.number) or version, outcome, verdicts, returned)


def _outcome(verdicts: Verdicts) -> Outcome:
    if verdicts.with_answer("failed"):
        return "failed"
    if verdicts.superseded_by is not None:
        return "superseded"
    if verdicts.with_answer("silent"):
        return "silent"
    return "applied" if verdicts.answers else "no_gateway"


def _record_refusal(
    store: Store, verb: Literal["publish", "rollback"], act: Act, errors: ConfigErrors, source: str, now: float
) -> None:
    told = [str(error) for error in errors.errors[:_AUDITED_ERRORS]]
    detail = {"errors": told, "message": act.message, "source": source}
    store.refuse(verb, act.author, "the compiler refused it", detail, now)


def _stale(
    store: Store, verb: Literal["publish", "rollback"], act: Act, active: Version | None, now: float
) -> Conflict | None:
    """Refuse, audited, before anybody is asked about a comparison with the wrong version."""
    number = active.number if active else EMPTY
    if act.expect is None or act.expect == number:
        return None
    detail = {"active": number, "expected": act.expect, "message": act.message}
    store.refuse(verb, act.author, "conflict", detail, now)
    return Conflict(act.expect, active)


def _no_such_version(number: int | None) -> str:
    if number is None:
        return "There is no earlier version to roll back to: see `configctl history`."
    return f"There is no version {number} to roll back to: see `configctl history`."


def _changed(number: int) -> str:
    return (
        f"Version {number} was changed since it was published, its digest does not fit its content, so it is not "
        "published again: `configctl audit verify` names all that was changed. Go back to another version."
    )
