"""Tells the story of a request from what this process remembers and what Envoy logged; either may be missing.

Pure. What Envoy says of the answer (status, route mode, times, bytes, tokens) wins over what was planned.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.endpoints import ENDPOINTS
from extproc.core.error_codes import CODES
from extproc.core.feedback import ABORT_FLAGS, AttemptLogged, RequestLogged
from extproc.core.health import View
from extproc.core.outcome import BROKEN_STREAMS, ErrorClass, RouteMode
from extproc.core.plan import candidates
from extproc.core.records import AttemptRecord, Evidence, RequestRecord
from extproc.core.request_state import PlanStep
from extproc.core.story import (
    ABORTED,
    BROKEN,
    FAILED,
    LOST,
    REFUSED,
    SERVED,
    UNRESOLVED,
    Chosen,
    Considered,
    Story,
    Tried,
)

SETTINGS_KEPT = 1_000
_WORDS = re.compile(r"[A-Za-z_.]{1,48}|[0-9]{1,6}")


class _Setting(NamedTuple):
    """What never changes between requests for one model of one version."""

    targets: tuple[tuple[TargetKey, str, int, int], ...]
    healthy: tuple[Considered, ...]
    digest: str


class Teller:
    """Builds stories; remembers the candidates of models in use, so that a healthy request costs little."""

    def __init__(self) -> None:
        self._settings: OrderedDict[tuple[int, str, str], _Setting] = OrderedDict()

    def tell(
        self,
        record: RequestRecord | None,
        request: RequestLogged | None,
        refused: Evidence | None,
        snapshot: Snapshot | None,
        now: float,
    ) -> Story:
        """Return the story of a request; `snapshot` is the version it was pinned to, None when that is gone."""
        told = request.told if request is not None else {}
        state = record.state if record is not None else None
        evidence = refused if record is None else record.evidence
        setting = self._setting(evidence, snapshot) if evidence is not None and snapshot is not None else None
        attempts = tuple(_tried(n, a) for n, a in enumerate(record.attempts, 1)) if record is not None else ()
        known, logged = _classes(attempts), request.classes if request is not None else ()
        served = request is not None and told.get("route_mode", "none") != RouteMode.NONE
        version = _whole(told.get("version")) if state is None else state.version
        return Story(
            id=state.id if state is not None else (request.request_id if request is not None else ""),
            arrived=state.arrived if state is not None else (request.at if request is not None else now),
            version=version,
            digest=snapshot.digest if snapshot is not None and snapshot.version == version else "",
            client=state.client if state is not None else told.get("client", ""),
            endpoint=state.endpoint if state is not None else told.get("endpoint", ""),
            kind=state.kind if state is not None else told.get("kind", ""),
            policy=state.policy if state is not None else told.get("policy", ""),
            model=state.model if state is not None else told.get("model", ""),
            outcome=outcome_of(request, attempts[-1].error_class if attempts else None),
            status=request.status if request is not None else 0,
            error=told.get("error") or None,
            route_mode=told.get("route_mode", RouteMode.NONE.value) or RouteMode.NONE.value,
            served_by=told.get("served_by", "") if served else "",
            served_model=told.get("served_model", "") if served else "",
            flags=tuple(sorted(request.flags)) if request is not None else (),
            duration_s=request.duration_s if request is not None else None,
            first_byte_s=request.first_byte_s if request is not None else None,
            request_bytes=request.request_bytes if request is not None else 0,
            response_bytes=request.response_bytes if request is not None else 0,
            ticket=evidence.ticket if evidence is not None else None,
            prefer=evidence.prefer if evidence is not None else None,
            pinned=evidence.pinned if evidence is not None else False,
            candidates=_considered(setting, evidence),
            plan=_plan(record.first_plan) if record is not None else (),
            attempts=attempts,
            attempt_count=max(len(attempts), _whole(told.get("attempts"))),
            # After a restart Envoy may know of failures that we do not; what it ends itself only we know.
            classes=known if len(known) >= len(logged) else logged,
            tokens=request.tokens if request is not None else {},
        )

    def _setting(self, evidence: Evidence, snapshot: Snapshot) -> _Setting | None:
        if snapshot.version != evidence.version:
            return None
        protocol = ENDPOINTS[evidence.endpoint].protocol
        place = (evidence.version, evidence.requested.name, protocol)
        found = self._settings.get(place)
        if found is not None and found.digest == snapshot.digest:
            return found
        requested = evidence.requested
        names = (
            (*requested.entry.fallback, *requested.entry.context_fallback)
            if evidence.pinned
            else requested.entry.fallback
        )
        targets = tuple(
            (key, resolved.name, target.tier, target.weight)
            for resolved, target, key in candidates(snapshot, requested, names, protocol)
        )
        setting = _Setting(targets, tuple(Considered(*one, View.healthy()) for one in targets), snapshot.digest)
        if evidence.pinned:
            return setting
        self._settings[place] = setting
        while len(self._settings) > SETTINGS_KEPT:
            self._settings.popitem(last=False)
        return setting


def outcome_of(request: RequestLogged | None, last_class: str | None) -> str:
    """Say in one word what the caller got; `last_class` is the class of the last attempt, None for a success."""
    if request is None:
        return LOST
    if request.flags & ABORT_FLAGS:
        return ABORTED
    if request.told.get("route_mode", RouteMode.NONE) == RouteMode.NONE:
        return FAILED if _whole(request.told.get("attempts")) > 0 else REFUSED
    if last_class in BROKEN_STREAMS:
        return BROKEN
    if 200 <= request.status < 400:
        return SERVED
    return FAILED


def class_of(attempt: AttemptRecord) -> str | None:
    """Return an attempt's class: None for a success, `unresolved` when nobody gave a verdict."""
    if attempt.failure is not None:
        return attempt.failure.error_class.value
    if attempt.good:
        return None
    return ErrorClass.CLIENT_ABORT.value if _was_left(attempt.logged) else UNRESOLVED


def _was_left(logged: AttemptLogged | None) -> bool:
    """Tell whether Envoy gave an attempt up because the caller had left: it has neither answer nor fault then."""
    return logged is not None and (bool(logged.flags & ABORT_FLAGS) or (logged.status == 0 and not logged.flags))


def _tried(n: int, attempt: AttemptRecord) -> Tried:
    logged, failure = attempt.logged, attempt.failure
    status = failure.status if failure is not None else None
    if status is None and logged is not None and (failure is None or failure.status is not None):
        status = logged.status or None
    return Tried(
        n,
        attempt.step.key,
        attempt.step.cluster,
        attempt.started,
        logged.duration_s if logged is not None else None,
        class_of(attempt),
        status,
        _safe(failure.evidence) if failure is not None else (),
        attempt.next,
        attempt.first_token_s,
    )


def _safe(evidence: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out codes that might be anything: those not in our table and with more than letters in them."""
    return tuple(fact if _is_safe(fact) else "code=other" for fact in evidence)


def _is_safe(fact: str) -> bool:
    name, _, value = fact.partition("=")
    return name != "code" or value.lower() in CODES or _WORDS.fullmatch(value) is not None


def _classes(attempts: Iterable[Tried]) -> tuple[str, ...]:
    return tuple(a.error_class for a in attempts if a.error_class is not None)


def _considered(setting: _Setting | None, evidence: Evidence | None) -> tuple[Considered, ...]:
    if setting is None or evidence is None:
        return ()
    if not evidence.seen:
        return setting.healthy
    healthy = View.healthy()
    seen, why = evidence.seen, evidence.why
    return tuple(Considered(*one, seen.get(one[0], healthy), why.get(one[0], ())) for one in setting.targets)


def _plan(steps: tuple[PlanStep, ...]) -> tuple[Chosen, ...]:
    return tuple(Chosen(step.key, step.public_model, step.mode.value) for step in steps)


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
