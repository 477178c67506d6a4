"""The story of one request as values: what was considered, tried and decided, and what the caller got.

Owns the shape, its JSON form and `replay`, which runs the pure planner again under the recorded evidence. Built by
`telling.py`; stored and printed by others. Invariant: nothing in a story comes from a prompt, an answer's text, a key,
a token or a header value, but for the short `name=value` evidence of failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.endpoints import ENDPOINTS
from extproc.core.health import View
from extproc.core.health_state import State
from extproc.core.outcome import RouteMode
from extproc.core.plan import plan_request

SERVED = "served"
FAILED = "failed"
"""The caller got an error: a provider's, or one of our own after attempts."""
REFUSED = "refused"
"""The caller got an error of our own before any attempt."""
BROKEN = "broken"
"""The caller got the beginning of an answer."""
ABORTED = "aborted"
"""The caller left."""
LOST = "lost"
"""Envoy never told how it ended."""
OUTCOMES = (SERVED, FAILED, REFUSED, BROKEN, ABORTED, LOST)
GOOD_OUTCOMES = frozenset({SERVED, ABORTED})
"""Outcomes that are nobody's failure."""

UNRESOLVED = "unresolved"
"""Class of an attempt that ended without a verdict."""


class Considered(NamedTuple):
    """A target that was considered, and how health saw it at that moment; `until` is epoch seconds.

    `evidence` is what that view rests on, as `name=value`: values and the thresholds they are measured against.
    """

    target: TargetKey
    public_model: str
    tier: int
    weight: int
    view: View
    evidence: tuple[str, ...] = ()

    @property
    def reason(self) -> str | None:
        """Why it was out, or in with less than its full share."""
        view = self.view
        if view.eligible and view.share >= 1.0 and not view.probe:
            return None
        return view.reason or view.state.value


class Chosen(NamedTuple):
    """One place of the first plan."""

    target: TargetKey
    public_model: str
    mode: str


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt; times are epoch seconds, `error_class` is None for a success, `next` says what followed and why."""

    n: int
    target: TargetKey
    cluster: str
    started: float
    duration_s: float | None
    error_class: str | None
    status: int | None
    evidence: tuple[str, ...] = ()
    next: str | None = None
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """One request from arrival to end; `digest` names the content of its config version."""

    id: str
    arrived: float
    version: int
    digest: str
    client: str
    endpoint: str
    kind: str
    policy: str
    model: str
    outcome: str
    status: int
    error: str | None
    route_mode: str
    served_by: str
    served_model: str
    flags: tuple[str, ...]
    duration_s: float | None
    first_byte_s: float | None
    request_bytes: int
    response_bytes: int
    ticket: int | None = None
    prefer: TargetKey | None = None
    pinned: bool = False
    candidates: tuple[Considered, ...] = ()
    plan: tuple[Chosen, ...] = ()
    attempts: tuple[Tried, ...] = ()
    attempt_count: int = 0
    classes: tuple[str, ...] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)


class Replay(NamedTuple):
    """Whether planning again gave the same plan, None when that could not be tried.

    `differs` says what was not the same, `not_run` why it could not be tried.
    """

    same: bool | None
    differs: str | None = None
    not_run: str | None = None


def replay(story: Story, snapshot: Snapshot | None, gone: str | None = None) -> Replay:
    """Plan a request again under its recorded version and evidence and compare.

    Without a snapshot, `gone` says why there is none.
    """
    missing = _not_replayable(story, snapshot, gone)
    if missing is not None or snapshot is None or story.ticket is None:
        return Replay(None, not_run=missing)
    requested = snapshot.resolve(story.model)
    if requested is None:
        return Replay(False, f"version {snapshot.version} has no model {story.model}")
    seen = {candidate.target: candidate.view for candidate in story.candidates}
    protocol = ENDPOINTS[story.endpoint].protocol
    unseen: list[TargetKey] = []

    def view(key: TargetKey) -> View:
        if key not in seen:
            unseen.append(key)
        return seen.get(key, View.healthy())

    again = plan_request(snapshot, requested, protocol, view, story.ticket, prefer=story.prefer)
    if unseen:
        return Replay(False, f"{unseen[0]} was not among the recorded candidates")
    planned = tuple(Chosen(p.key, p.public_model, p.mode.value) for p in again.planned)
    policy = snapshot.policies.get(story.policy)
    return _compare(story, planned if policy is None else planned[: policy.attempts])


def _not_replayable(story: Story, snapshot: Snapshot | None, gone: str | None) -> str | None:
    if story.ticket is None or story.endpoint not in ENDPOINTS:
        return "no plan was recorded for this request"
    if not story.digest:
        return f"version {story.version} had left memory before this request ended, its candidates with it"
    if snapshot is None:
        return gone or f"version {story.version} is no longer at hand here"
    if snapshot.digest != story.digest:
        return f"version {story.version} here has other content than the one this request was planned with"
    return None


def _compare(story: Story, again: tuple[Chosen, ...]) -> Replay:
    recorded = story.plan
    if story.pinned:
        known = {candidate.target for candidate in story.candidates}
        wrong = next((chosen.target for chosen in recorded if chosen.target not in known), None)
        return Replay(wrong is None, None if wrong is None else f"{wrong} was pinned but is no target of this model")
    if again and again[0].mode == RouteMode.LAST_RESORT:
        # Which of them is the least bad is health's word of that moment, and recorded as the choice.
        strange = next((chosen for chosen in recorded if chosen not in again), None)
        return Replay(strange is None, None if strange is None else f"planned again without {strange.target}")
    for place, (old, new) in enumerate(zip(recorded, again, strict=False), 1):
        if old != new:
            return Replay(
                False, f"place {place} was {old.target} ({old.mode}), planned again {new.target} ({new.mode})"
            )
    if len(recorded) != len(again):
        return Replay(False, f"{len(recorded)} places were planned, planned again {len(again)}")
    return Replay(True, None)


def view_to_json(view: View) -> dict[str, Any]:
    """Return a view's fields under their names."""
    return {
        "state": view.state.value,
        "eligible": view.eligible,
        "share": view.share,
        "probe": view.probe,
        "until": view.until,
        "reason": view.reason,
    }


def candidates_to_json(candidates: tuple[Considered, ...]) -> list[dict[str, Any]]:
    """Return candidates in the form in which `candidates_from_json` reads them back."""
    return [
        {
            "target": list(c.target),
            "public_model": c.public_model,
            "tier": c.tier,
            "weight": c.weight,
            **view_to_json(c.view),
            "evidence": list(c.evidence),
        }
        for c in candidates
    ]


def candidates_from_json(entries: list[dict[str, Any]]) -> tuple[Considered, ...]:
    """Read back what `candidates_to_json` wrote."""
    return tuple(
        Considered(
            TargetKey(*entry["target"]),
            entry["public_model"],
            entry["tier"],
            entry["weight"],
            View(
                State(entry["state"]),
                entry["eligible"],
                entry["share"],
                entry["probe"],
                entry["until"],
                entry["reason"],
            ),
            # Rows of earlier releases have none.
            tuple(entry.get("evidence", ())),
        )
        for entry in entries
    )


def attempts_to_json(attempts: tuple[Tried, ...]) -> list[dict[str, Any]]:
    """Return attempts in the form in which `attempts_from_json` reads them back."""
    return [
        {
            "n": a.n,
            "target": list(a.target),
            "cluster": a.cluster,
            "started": a.started,
            "duration_s": a.duration_s,
            "class": a.error_class,
            "status": a.status,
            "evidence": list(a.evidence),
            "next": a.next,
            "first_token_s": a.first_token_s,
        }
        for a in attempts
    ]


def attempts_from_json(entries: list[dict[str, Any]]) -> tuple[Tried, ...]:
    """Read back what `attempts_to_json` wrote."""
    return tuple(
        Tried(
            entry["n"],
            TargetKey(*entry["target"]),
            entry["cluster"],
            entry["started"],
            entry["duration_s"],
            entry["class"],
            entry["status"],
            tuple(entry["evidence"]),
            entry["next"],
            entry["first_token_s"],
        )
        for entry in entries
    )


def explain_json(story: Story, again: Replay) -> dict[str, Any]:
    """Return the object that `explain --json` prints; times in milliseconds from arrival."""
    return {
        "request_id": story.id,
        "config_version": story.version,
        "config_digest": story.digest,
        "route_mode": story.route_mode,
        "served_by": story.served_by or None,
        "model": story.model,
        "served_model": story.served_model or None,
        "client": story.client,
        "endpoint": story.endpoint,
        "kind": story.kind,
        "policy": story.policy,
        "arrived": story.arrived,
        "outcome": story.outcome,
        "status": story.status,
        "error": story.error,
        "flags": list(story.flags),
        "duration_ms": _ms(story.duration_s),
        "first_byte_ms": _ms(story.first_byte_s),
        "request_bytes": story.request_bytes,
        "response_bytes": story.response_bytes,
        "tokens": dict(story.tokens),
        "ticket": story.ticket,
        "session_target": str(story.prefer) if story.prefer else None,
        "pinned": story.pinned,
        "candidates": [
            {
                "target": str(c.target),
                "eligible": c.view.eligible,
                "reason": c.reason,
                "evidence": list(c.evidence),
                "public_model": c.public_model,
                "tier": c.tier,
                "weight": c.weight,
                "state": c.view.state.value,
                "share": c.view.share,
                "probe": c.view.probe,
                "until": c.view.until,
            }
            for c in story.candidates
        ],
        "plan": [{"target": str(p.target), "public_model": p.public_model, "mode": p.mode} for p in story.plan],
        "attempts": [
            {
                "n": a.n,
                "target": str(a.target),
                "class": a.error_class,
                "status": a.status,
                "start_ms": _ms(a.started - story.arrived),
                "duration_ms": _ms(a.duration_s),
                "first_token_ms": _ms(a.first_token_s),
                "evidence": list(a.evidence),
                "next": a.next,
            }
            for a in story.attempts
        ],
        "replay": again._asdict(),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
