"""The state that all exchanges of one process share: the active version, health, and the requests under way.

Owns: which snapshot a request gets, plans made from live health, and the charging of each attempt exactly once (by
the judge when the attempt was answered, by the access log when it was silent or good). Leaves message shapes to
`wire` and time to the caller. Invariant: what is remembered of requests is bounded in number, time and size, whatever
Envoy's log fails to tell. Not thread-safe: one event loop.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from extproc.config.snapshot import Policy, Provider, ResolvedModel, Snapshot, TargetKey
from extproc.core.affinity import AffinityTable
from extproc.core.budget import RetryBudget
from extproc.core.endpoints import ENDPOINTS, upstream_path
from extproc.core.health import HEALTHY, HealthEngine, Subject, Success, Transition, View
from extproc.core.in_flight import InFlight
from extproc.core.limits import ClientLimits
from extproc.core.outcome import Failure, RouteMode
from extproc.core.plan import AT_LIMIT, Plan, Planned, plan_request, plan_rest
from extproc.core.records import AttemptRecord, Evidence, Nobody, Observer, RequestRecord
from extproc.core.request_state import PlanStep, RequestState

if TYPE_CHECKING:
    pass

RECORD_LIMIT = 100_000
REFUSED_LIMIT = 10_000
GONE_LIMIT = 10_000
RECORD_MAX_AGE_S = 3600.0 * 2
REPORT_GRACE_S = 10.0
"""How long after a request's own log entry those of its attempts may still come."""
COUNTED_MAX_AGE_S = 600.0
"""How long after its request arrived an attempt counts as under way: its entry in Envoy's log may be lost."""
FULL = View.ineligible(AT_LIMIT)
KEPT_VERSIONS = 16


@dataclass(frozen=True, slots=True)
class Active:
    """A snapshot together with what applying it found out.

    `clusters` maps (provider, policy) to the Envoy cluster that carries it; `missing_keys` names providers whose key
    reference led nowhere, which makes their targets ineligible.
    """

    snapshot: Snapshot
    clusters: Mapping[tuple[str, str], str]
    missing_keys: frozenset[str] = frozenset()


class Gateway:
    """Shared state of one extproc process."""

    def __init__(
        self,
        health: HealthEngine,
        draw: Callable[[], float],
        on_transition: Callable[[Transition], None] = lambda transition: None,
    ) -> None:
        self.health = health
        self.draw = draw
        self.records: OrderedDict[str, RequestRecord] = OrderedDict()
        self._reported: deque[tuple[float, str]] = deque()
        self.budget = RetryBudget()
        self.budget_denied = 0
        self.limits = ClientLimits()
        self.in_flight = InFlight()
        self.affinity = AffinityTable()
        self.unexpected_messages = 0
        self.observer: Observer = Nobody()
        self.refused: OrderedDict[str, Evidence] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()
        """Requests that ended before their time: an exchange of theirs may still be on its way to us."""
        self.accepted = False
        """Whether Envoy has accepted the active version; `/readyz` says so."""
        self._on_transition = on_transition
        self._active: Active | None = None
        self._versions: OrderedDict[int, Active] = OrderedDict()
        self._tickets: dict[str, int] = {}

    # -- versions ------------------------------------------------------------------------------------------------

    @property
    def active(self) -> Active | None:
        """The version new requests are pinned to."""
        return self._active

    def activate(self, active: Active) -> None:
        """Make a version the one for new requests; earlier ones stay readable for requests under way."""
        self._versions[active.snapshot.version] = active
        while len(self._versions) > KEPT_VERSIONS:
            self._versions.popitem(last=False)
        self._active = active
        self.in_flight.bound(active.snapshot.providers.values())

    def policy_of(self, state: RequestState, active: Active) -> Policy:
        """Return a request's policy; its model's, when the version that stands in for its own has none of that name."""
        policies = active.snapshot.policies
        own = policies.get(state.policy)
        if own is not None:
            return own
        requested = active.snapshot.resolve(state.model)
        return policies[requested.entry.policy if requested else "default"]

    def version(self, number: int) -> Active | None:
        """Return the version a request is pinned to, or the active one when it is long gone."""
        return self._versions.get(number, self._active)

    def snapshot(self, number: int) -> Snapshot | None:
        """Return exactly the version asked for, None when it is no longer here."""
        found = self._versions.get(number)
        return None if found is None else found.snapshot

    # -- planning ------------------------------------------------------------------------------------------------

    def view(self, active: Active, now: float) -> Callable[[TargetKey], View]:
        """Return how health looks at each target right now, missing keys included."""
        missing, view = active.missing_keys, self.health.view
        if not missing:
            return lambda key: view(key, now)
        return lambda key: View.ineligible("missing_key") if key.provider in missing else view(key, now)

    def _roomy(self, view: Callable[[TargetKey], View]) -> Callable[[TargetKey], View]:
        """Return a view in which a well target may not be used either while its account is at its limit."""
        full = self.in_flight.full

        def roomy(key: TargetKey) -> View:
            found = view(key)
            return FULL if found.eligible and key.provider in full else found

        return roomy

    def ticket(self, model: str) -> int:
        """Return the next ticket of a model: successive requests spread over its weights."""
        ticket = self._tickets.get(model, 0)
        self._tickets[model] = ticket + 1
        return ticket

    def plan(
        self,
        active: Active,
        requested: ResolvedModel,
        endpoint: str,
        ticket: int,
        now: float,
        session: bytes | None = None,
        evidence: Callable[[Evidence], None] | None = None,
    ) -> Plan:
        """Plan a new request; when everything is down, keep only the least bad. `evidence` is told what it rests on.

        Accounts at their limit are passed over while anybody else can serve; otherwise Envoy decides about them.
        """
        protocol = ENDPOINTS[endpoint].protocol
        prefer = self.affinity.find(session, now) if session else None
        view = self.view(active, now)
        full = bool(self.in_flight.full)
        eyes = self._roomy(view) if full else view
        seen: dict[TargetKey, View] = {}

        def recorded(key: TargetKey) -> View:
            found = eyes(key)
            if found is not HEALTHY:
                seen[key] = found
            return found

        plan = plan_request(active.snapshot, requested, protocol, recorded, ticket, prefer=prefer)
        if full and (not plan.planned or plan.planned[0].mode is RouteMode.LAST_RESORT):
            eyes = view
            seen.clear()
            plan = plan_request(active.snapshot, requested, protocol, recorded, ticket, prefer=prefer)
        if evidence is not None:
            why = {key: self._why(key, found, active, now) for key, found in seen.items()}
            evidence(Evidence(requested, endpoint, ticket, active.snapshot.version, seen, prefer, why=why))
        if plan.planned and plan.planned[0].mode is RouteMode.LAST_RESORT:
            usable = [p for p in plan.planned if p.key.provider not in active.missing_keys]
            best = self.health.least_bad([p.key for p in usable], now) if usable else None
            return Plan(tuple(p for p in usable if p.key == best), plan.skipped)
        return plan

    def _why(self, key: TargetKey, found: View, active: Active, now: float) -> tuple[str, ...]:
        """Return what a view that is not plain healthy rests on."""
        if found is FULL:
            account = active.snapshot.providers[key.provider]
            under_way, limit = self.in_flight.count(key.provider), account.max_connections + account.max_pending
            return (f"under_way={under_way}", f"limit={limit}")
        return () if key.provider in active.missing_keys else self.health.evidence(key, now)

    def steps(
        self, active: Active, policy: Policy, endpoint: str, query: str, planned: tuple[Planned, ...]
    ) -> tuple[PlanStep, ...]:
        """Turn choices into attempts: cluster and path of each."""
        providers, clusters = active.snapshot.providers, active.clusters
        shape = ENDPOINTS[endpoint]
        return tuple(
            PlanStep(
                p.key.provider,
                p.key.model,
                p.public_model,
                clusters[p.key.provider, policy.name],
                upstream_path(providers[p.key.provider], shape, query),
                p.mode,
            )
            for p in planned
        )

    def rest(self, state: RequestState, active: Active, now: float, *, context: bool) -> tuple[PlanStep, ...]:
        """Plan what may follow the present attempt."""
        requested = active.snapshot.resolve(state.model)
        if requested is None or state.plan[0].mode is RouteMode.PINNED:
            return ()
        tried = {step.key for step in state.plan[: state.attempt]}
        view = self.view(active, now)

        def seen_by(eyes: Callable[[TargetKey], View]) -> tuple[Planned, ...]:
            return plan_rest(active.snapshot, requested, state.protocol, eyes, state.ticket, tried, context=context)

        planned = seen_by(self._roomy(view) if self.in_flight.full else view)
        policy = self.policy_of(state, active)
        room = max(0, policy.attempts - state.attempt)
        return self.steps(
            active, policy, state.endpoint, state.query, self._within_budget(planned, tried, active, now)[:room]
        )

    def may_pile_on(self, active: Active, now: float) -> bool:
        """Ask the retry budget for one more try at a provider account that just failed."""
        if self.budget.take(active.snapshot.server.retry_budget, now):
            return True
        self.budget_denied += 1
        return False

    def _within_budget(
        self, planned: tuple[Planned, ...], tried: set[TargetKey], active: Active, now: float
    ) -> tuple[Planned, ...]:
        """Without budget for it, skip the accounts that were already tried; the first move elsewhere is free."""
        accounts = {key.provider for key in tried}
        if not planned or planned[0].key.provider not in accounts or self.may_pile_on(active, now):
            return planned
        return tuple(p for p in planned if p.key.provider not in accounts)

    # -- attempts ------------------------------------------------------------------------------------------------

    def open_request(
        self, state: RequestState, now: float, session: bytes | None = None, evidence: Evidence | None = None
    ) -> None:
        """Remember a request whose first attempt is about to start."""
        self.budget.request(now)
        if state.id in self._gone:
            return
        record = RequestRecord(state, session, evidence=evidence, first_plan=state.plan, counted=True)
        self._remember(record, now)
        self.limits.begin(state.client)
        self.open_attempt(state, now)

    def _remember(self, record: RequestRecord, now: float) -> RequestRecord:
        while len(self.records) >= RECORD_LIMIT:
            self._forget(next(iter(self.records)), now)
        if (earlier := self.records.get(record.state.id)) is not None:
            self.ended(earlier)
        self.records[record.state.id] = record
        return record

    def refuse(self, request_id: str, evidence: Evidence) -> None:
        """Remember why a request had no plan until Envoy's log closes it."""
        while len(self.refused) >= REFUSED_LIMIT:
            self.refused.popitem(last=False)
        self.refused[request_id] = evidence

    def open_attempt(self, state: RequestState, now: float) -> None:
        """Remember that the state's present attempt starts now."""
        record = self.records.get(state.id)
        if record is None:
            if state.id in self._gone:
                return
            record = self._remember(RequestRecord(state, first=state.attempt), now)
        # The first error may be 64 KiB long, and metadata carries it.
        record.state = state if state.first_error is None else replace(state, first_error=None)
        step = state.step(state.attempt)
        if step is not None:
            record.attempts.append(AttemptRecord(step, self.health.begin(step.key, now), counted=True, started=now))
            self.in_flight.begin(step.provider)

    def attempt_held(self, state: RequestState, *, held: bool, first_token_s: float | None = None) -> None:
        """Remember whether the present attempt's answer is held back, and when its first output came."""
        attempt = _attempt(self.records.get(state.id), state.attempt)
        if attempt is not None:
            attempt.held = held
            attempt.first_token_s = first_token_s

    def decided(self, state: RequestState, attempt: int, what: str) -> None:
        """Remember what was decided after an attempt failed."""
        failed = _attempt(self.records.get(state.id), attempt)
        if failed is not None:
            failed.next = what

    def served(self, record: RequestRecord, attempt: AttemptRecord, now: float) -> None:
        """Bind the request's session to the target that served it."""
        active = self.version(record.state.version)
        if record.session is None or active is None:
            return
        requested = active.snapshot.resolve(record.state.model)
        affinity = requested.entry.affinity if requested else None
        if affinity is not None:
            self.affinity.bind(record.session, attempt.step.key, now + affinity.ttl_s)

    def attempt_failed(self, state: RequestState, failure: Failure, now: float) -> None:
        """Charge the present attempt, which was answered and understood."""
        record = self.records.get(state.id)
        attempt = _attempt(record, state.attempt)
        step = state.step(state.attempt)
        if attempt is None and step is not None and state.id not in self._gone:
            # Another process began it, or this one restarted since: the failure counts all the same.
            attempt = AttemptRecord(step, self.health.begin(step.key, now), started=state.started)
        if attempt is not None and not attempt.settled:
            self.settle(attempt, state, failure, now)

    def settle(
        self, attempt: AttemptRecord, state: RequestState, verdict: Failure | Success | None, now: float
    ) -> None:
        """Give an attempt its one verdict; None leaves health as it was."""
        if attempt.settled:
            return
        attempt.settled = True
        self._uncount(attempt)
        attempt.good = isinstance(verdict, Success)
        if isinstance(verdict, Failure):
            attempt.failure = verdict
        self.observer.attempt_settled(attempt, state)
        active = self.version(state.version)
        if active is None:
            return
        policy = self.policy_of(state, active)
        for transition in self.health.end(attempt.permit, verdict, now, policy.cooldown):
            self._on_transition(transition)

    def _uncount(self, attempt: AttemptRecord) -> None:
        if attempt.counted:
            attempt.counted = False
            self.in_flight.end(attempt.step.provider)

    def pace(self, key: TargetKey, until: float, now: float) -> None:
        """Keep a target out until its provider's allowance is whole again."""
        for transition in self.health.pace(key, until, now):
            self._on_transition(transition)

    def order(
        self, subject: Subject, kind: str | None, owner: str, reason: str, expires_at: float | None, now: float
    ) -> None:
        """Carry out an operator's order: `down`, `drain`, or None to restore."""
        if kind == "down":
            told = self.health.operator_down(subject, owner, reason, expires_at, now)
        elif kind == "drain":
            told = self.health.drain(subject, owner, reason, expires_at, now)
        else:
            told = self.health.restore(subject, now)
        for transition in told:
            self._on_transition(transition)

    def checked(self, provider: str, active: Active, now: float, *, passed: bool) -> None:
        """Take in an active check of a provider account."""
        cooldown = active.snapshot.policies["default"].cooldown
        for transition in self.health.checked(provider, now, cooldown, passed=passed):
            self._on_transition(transition)

    def provider(self, active: Active, name: str) -> Provider | None:
        """Return a provider of a version, None when the version has none of that name."""
        return active.snapshot.providers.get(name)

    def recovery_in(self, state: RequestState, active: Active, now: float) -> float | None:
        """Return seconds until a target of this request can serve again, None when unknown."""
        requested = active.snapshot.resolve(state.model)
        if requested is None:
            return None
        return self.recovery_of(requested, state.endpoint, active, now)

    def recovery_of(self, requested: ResolvedModel, endpoint: str, active: Active, now: float) -> float | None:
        """Return seconds until any target of a model can serve again, None when unknown."""
        protocol = ENDPOINTS[endpoint].protocol
        plan = plan_request(active.snapshot, requested, protocol, lambda key: View.healthy(), 0)
        at = self.health.recovery_time([p.key for p in plan.planned], now)
        return None if at is None else max(0.0, at - now)

    # -- the end of a request ------------------------------------------------------------------------------------

    def left(self, request_id: str) -> None:
        """Remember that Envoy ended a request early: nobody will report what a late message of it might begin."""
        while len(self._gone) >= GONE_LIMIT:
            self._gone.popitem(last=False)
        self._gone[request_id] = None

    def reported(self, record: RequestRecord, entries_due: int, now: float) -> None:
        """Take note that Envoy reported a request's end, and how many entries it writes for the attempts of it."""
        record.expected = entries_due
        self._reported.append((now, record.state.id))
        self.close_if_done(record.state.id, now)

    def ended(self, record: RequestRecord) -> None:
        """Count a request no longer as one of its client's; Envoy may report its attempts later."""
        if record.counted:
            record.counted = False
            self.limits.end(record.state.client)

    def close_if_done(self, request_id: str, now: float) -> None:
        """Forget a request once Envoy reported it and each of its attempts that has an entry of its own."""
        record = self.records.get(request_id)
        if record is not None and record.expected is not None and record.logged >= record.expected:
            self._forget(request_id, now)

    def sweep(self, now: float) -> None:
        """Forget requests whose end, or an attempt of which, was never reported; stop counting old attempts."""
        while self._reported and now - self._reported[0][0] > REPORT_GRACE_S:
            self._forget(self._reported.popleft()[1], now)
        for request_id, record in list(self.records.items()):
            age_s = now - record.state.arrived
            if age_s <= COUNTED_MAX_AGE_S:
                break
            for attempt in record.attempts:
                self._uncount(attempt)
            if age_s > RECORD_MAX_AGE_S:
                self._forget(request_id, now)

    def _forget(self, request_id: str, now: float) -> None:
        record = self.records.pop(request_id, None)
        if record is None:
            return
        self.ended(record)
        for attempt in record.attempts:
            self.settle(attempt, record.state, None, now)
        self.observer.request_closed(record, record.request, None, now)


def _attempt(record: RequestRecord | None, number: int) -> AttemptRecord | None:
    index = -1 if record is None else number - record.first
    return record.attempts[index] if record is not None and 0 <= index < len(record.attempts) else None
