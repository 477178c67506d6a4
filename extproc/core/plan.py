"""Chooses, for one request, which targets may serve it and in which order.

Pure: a snapshot, a view of health and a ticket in, an ordered list out, so that the same evidence always gives the
same plan (`explain` replays it). Chooses only; counting attempts, time and budgets is `retry.py`'s.

Order: the requested model's tiers, lowest first, then each fallback model's, one level deep. Inside a tier the first
place goes by weight times healthy share, the others follow the same draw. Unhealthy targets are left out with a
reason; when that leaves nothing, the policy's `when_all_down` decides. A half-open target is asked first or after all
others: only an attempt that starts at once can be its single probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from extproc.config.snapshot import Protocol, ResolvedModel, Snapshot, Target, TargetKey
from extproc.core.health import HEALTHY, View
from extproc.core.outcome import RouteMode

Viewer = Callable[[TargetKey], View]

# Irrational steps: successive tickets fall evenly over [0, 1), so that weights hold over any short run.
# One for each place of the order: a shared one would send all of a failed target's traffic to one other.
_PICK_STEPS = ((math.sqrt(5) - 1) / 2, math.sqrt(3) - 1, math.sqrt(7) - 2, math.sqrt(11) - 3, math.sqrt(13) - 3)
_SPILL_STEP = math.sqrt(2) - 1

MEMO_LIMIT = 4096
"""Names behind a glob come from callers and must not fill the memory."""
MEMO_SNAPSHOTS = 4

_Candidates = tuple[tuple[ResolvedModel, Target, TargetKey], ...]

AT_LIMIT: Final = "at_limit"
"""Why a target is skipped that is well, but whose account has as many attempts under way as it may."""


class Candidate(NamedTuple):
    """A target considered for a request, under the public model it belongs to."""

    key: TargetKey
    public_model: str
    target: Target
    view: View


class Planned(NamedTuple):
    """One place in the plan, with the route mode if it serves (same-target retries keep the first's)."""

    key: TargetKey
    public_model: str
    mode: RouteMode
    probe: bool = False


class Skipped(NamedTuple):
    """A target that was left out, and why."""

    key: TargetKey
    public_model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered choices for one request; `planned` is empty when nothing may be tried."""

    planned: tuple[Planned, ...]
    skipped: tuple[Skipped, ...]


class _Memo(NamedTuple):
    """What follows from a snapshot alone, worked out once."""

    snapshot: Snapshot
    candidates: dict[tuple[object, ...], _Candidates]
    fixed: dict[tuple[object, ...], Plan | None]


_memos: dict[int, _Memo] = {}


def plan_request(
    snapshot: Snapshot,
    requested: ResolvedModel,
    protocol: Protocol,
    view: Viewer,
    ticket: int,
    *,
    prefer: TargetKey | None = None,
) -> Plan:
    """Plan a new request: the model's own targets, then its fallback models'.

    `ticket` is a counter that spreads successive requests over weights; `prefer` is the session's own target, which
    goes first while it is fully healthy.
    """
    fixed = _fixed_plan(snapshot, requested, protocol)
    if fixed is not None and prefer is None and all(view(planned.key) is HEALTHY for planned in fixed.planned):
        return fixed
    return _plan_afresh(snapshot, requested, protocol, view, ticket, prefer)


def _fixed_plan(snapshot: Snapshot, requested: ResolvedModel, protocol: Protocol) -> Plan | None:
    """Return the plan for when all targets are healthy, None when weights or a lack of targets have a part in it."""
    asked = (requested.name, id(requested.entry), protocol)
    memo = _memo_of(snapshot).fixed
    if asked in memo:
        return memo[asked]
    if len(memo) >= MEMO_LIMIT:
        memo.clear()
    found = candidates(snapshot, requested, requested.entry.fallback, protocol)
    tiers = {(resolved.name, target.tier) for resolved, target, _ in found}
    drawn = not found or len(tiers) < len(found)
    plan = None if drawn else _plan_afresh(snapshot, requested, protocol, lambda key: HEALTHY, 0, None)
    memo[asked] = plan
    return plan


def _plan_afresh(
    snapshot: Snapshot,
    requested: ResolvedModel,
    protocol: Protocol,
    view: Viewer,
    ticket: int,
    prefer: TargetKey | None,
) -> Plan:
    eligible, skipped = _consider(snapshot, requested, requested.entry.fallback, protocol, view)
    own = [c for c in eligible if c.public_model == requested.name]
    own_all = own + _own_skipped(skipped, requested.name)
    if not eligible:
        return _all_down(snapshot, requested, skipped)
    first, *rest = _ordered(eligible, ticket, prefer)
    ordered = [first, *_probes_last(rest)]
    calm = not skipped and all(c.view.share >= 1.0 for c in eligible)
    first_choice_lost = not calm and _ideal_is_skipped(snapshot, requested, protocol, ticket, view, first)
    several = len(own_all) > 1
    planned = tuple(
        Planned(c.key, c.public_model, _mode(index, c, requested.name, several, first_choice_lost), c.view.probe)
        for index, c in enumerate(ordered)
    )
    return Plan(planned + _full_last(skipped, requested.name), tuple(skipped))


def plan_rest(
    snapshot: Snapshot,
    requested: ResolvedModel,
    protocol: Protocol,
    view: Viewer,
    ticket: int,
    tried: Iterable[TargetKey],
    *,
    context: bool = False,
) -> tuple[Planned, ...]:
    """Plan what may still be tried after failures; `context` asks for the context_fallback models only."""
    names = requested.entry.context_fallback if context else requested.entry.fallback
    eligible, skipped = _consider(snapshot, requested, names, protocol, view, own=not context)
    done = frozenset(tried)
    left = [c for c in eligible if c.key not in done and not c.view.probe]
    probes = [c for c in eligible if c.key not in done and c.view.probe]
    return tuple(
        Planned(c.key, c.public_model, _later_mode(c.public_model, requested.name), c.view.probe)
        for c in _ordered(left, ticket, None, len(done)) + _ordered(probes, ticket, None, len(done))
    ) + _full_last([s for s in skipped if s.key not in done], requested.name)


def _full_last(skipped: list[Skipped], requested: str) -> tuple[Planned, ...]:
    """Put accounts at their limit behind all others: Envoy follows a plan without asking, and one end is enough."""
    return tuple(
        Planned(s.key, s.public_model, _later_mode(s.public_model, requested)) for s in skipped if s.reason == AT_LIMIT
    )


def _later_mode(public_model: str, requested: str) -> RouteMode:
    return RouteMode.PROVIDER_FAILOVER if public_model == requested else RouteMode.MODEL_FALLBACK


def candidates(
    snapshot: Snapshot,
    requested: ResolvedModel,
    names: Iterable[str],
    protocol: Protocol,
    *,
    own: bool = True,
) -> _Candidates:
    """Return every target that speaks `protocol`, model by model, tier by tier; a target is named once."""
    asked = (requested.name, id(requested.entry), tuple(names), protocol, own)
    memo = _memo_of(snapshot).candidates
    found = memo.get(asked)
    if found is None:
        if len(memo) >= MEMO_LIMIT:
            memo.clear()
        found = memo[asked] = tuple(_candidates(snapshot, requested, asked[2], protocol, own=own))
    return found


def _memo_of(snapshot: Snapshot) -> _Memo:
    """Return what was worked out from one snapshot alone; it is held, so that its id stays its own."""
    held = _memos.get(id(snapshot))
    if held is None:
        while len(_memos) >= MEMO_SNAPSHOTS:
            del _memos[next(iter(_memos))]
        held = _memos[id(snapshot)] = _Memo(snapshot, {}, {})
    return held


def _candidates(
    snapshot: Snapshot, requested: ResolvedModel, names: Iterable[str], protocol: Protocol, *, own: bool
) -> Iterable[tuple[ResolvedModel, Target, TargetKey]]:
    seen: set[TargetKey] = set()
    models = [requested] if own else []
    models += [resolved for name in names if (resolved := snapshot.resolve(name)) is not None]
    for resolved in models:
        for target in sorted(resolved.entry.targets, key=lambda t: t.tier):
            key = TargetKey(target.provider, resolved.upstream_model(target))
            if key not in seen and snapshot.providers[target.provider].protocol == protocol:
                seen.add(key)
                yield resolved, target, key


def _consider(
    snapshot: Snapshot,
    requested: ResolvedModel,
    names: Iterable[str],
    protocol: Protocol,
    view: Viewer,
    *,
    own: bool = True,
) -> tuple[list[Candidate], list[Skipped]]:
    eligible: list[Candidate] = []
    skipped: list[Skipped] = []
    for resolved, target, key in candidates(snapshot, requested, names, protocol, own=own):
        seen = view(key)
        if seen.eligible:
            eligible.append(Candidate(key, resolved.name, target, seen))
        else:
            skipped.append(Skipped(key, resolved.name, seen.reason or seen.state.value))
    return eligible, skipped


def _own_skipped(skipped: list[Skipped], name: str) -> list[Skipped]:
    return [s for s in skipped if s.public_model == name]


def _ordered(eligible: list[Candidate], ticket: int, prefer: TargetKey | None, place: int = 0) -> list[Candidate]:
    """Order candidates group by group; a group is one tier of one model."""
    groups: list[list[Candidate]] = []
    for candidate in eligible:
        same = groups and (
            groups[-1][0].public_model == candidate.public_model and groups[-1][0].target.tier == candidate.target.tier
        )
        if same:
            groups[-1].append(candidate)
        else:
            groups.append([candidate])
    ordered = [c for group in groups for c in _by_weight(group, ticket, place)]
    leader = _leader(groups, ordered, ticket, prefer)
    if leader is not None and ordered[0] is not leader:
        ordered.remove(leader)
        ordered.insert(0, leader)
    return ordered


def _by_weight(group: list[Candidate], ticket: int, place: int) -> list[Candidate]:
    if len(group) == 1:
        return group
    left = list(group)
    ordered: list[Candidate] = []
    while left:
        draw = ticket * _PICK_STEPS[(place + len(ordered)) % len(_PICK_STEPS)] % 1.0
        total = sum(c.target.weight * c.view.share for c in left)
        mark = draw * total
        for candidate in left:
            mark -= candidate.target.weight * candidate.view.share
            if mark < 0:
                break
        left.remove(candidate)
        ordered.append(candidate)
    return ordered


def _probes_last(ordered: list[Candidate]) -> list[Candidate]:
    """Put half-open targets behind all others: a place that is not the first is in many plans at the same time."""
    return [c for c in ordered if not c.view.probe] + [c for c in ordered if c.view.probe]


def _leader(
    groups: list[list[Candidate]], ordered: list[Candidate], ticket: int, prefer: TargetKey | None
) -> Candidate | None:
    """Return who goes first: the session's own target, else the first group that keeps its full share."""
    if prefer is not None:
        for candidate in ordered:
            own = candidate.public_model == ordered[0].public_model
            if own and candidate.key == prefer and candidate.view.share >= 1.0 and not candidate.view.probe:
                return candidate
    spill = ticket * _SPILL_STEP % 1.0
    position = 0
    for group in groups:
        share = max(c.view.share for c in group)
        if share >= 1.0 or spill < share:
            return ordered[position]
        spill = (spill - share) / (1.0 - share)
        position += len(group)
    return None


def _ideal_is_skipped(
    snapshot: Snapshot,
    requested: ResolvedModel,
    protocol: Protocol,
    ticket: int,
    view: Viewer,
    first: Candidate,
) -> bool:
    """Tell whether the first place would have gone to another target, had that one been healthy."""
    own = [
        Candidate(key, resolved.name, target, View.healthy())
        for resolved, target, key in candidates(snapshot, requested, (), protocol)
    ]
    if not own:
        return False
    ideal = _ordered(own, ticket, None)[0].key
    if ideal == first.key:
        return False
    seen = view(ideal)
    return not seen.eligible or seen.share < 1.0


def _mode(index: int, candidate: Candidate, requested: str, several: bool, rerouted: bool) -> RouteMode:
    if index > 0 or candidate.public_model != requested:
        return _later_mode(candidate.public_model, requested)
    if rerouted:
        return RouteMode.HEALTH_REROUTE
    return RouteMode.BALANCED if several else RouteMode.DIRECT


def _all_down(snapshot: Snapshot, requested: ResolvedModel, skipped: list[Skipped]) -> Plan:
    """Leave the choice of the least bad to the caller, who holds the health engine."""
    policy = snapshot.policies[requested.entry.policy]
    if policy.when_all_down == "fail":
        return Plan((), tuple(skipped))
    return Plan(tuple(Planned(s.key, s.public_model, RouteMode.LAST_RESORT) for s in skipped), tuple(skipped))
