"""The state that all exchanges of one process share: the active version, health, and what plans are made from.

Owns: which snapshot a request gets, plans made from live health, and orders about health. Leaves message shapes to
`wire`, time to the caller, and the requests under way to `open_requests`. Not thread-safe: one event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from extproc.config.snapshot import Cooldown, Policy, Provider, ResolvedModel, Snapshot, TargetKey
from extproc.core.affinity import AffinityTable, Binding
from extproc.core.budget import RetryBudget
from extproc.core.endpoints import ENDPOINTS, upstream_path
from extproc.core.health import HEALTHY, HealthEngine, Subject, Transition, View
from extproc.core.in_flight import InFlight
from extproc.core.limits import ClientLimits
from extproc.core.open_requests import OpenRequests
from extproc.core.outcome import RouteMode
from extproc.core.plan import AT_LIMIT, Plan, Planned, plan_request, plan_rest
from extproc.core.records import AttemptRecord, Evidence, RequestRecord
from extproc.core.request_state import PlanStep, RequestState
from extproc.core.reset_times import exhausted_until

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
        self.budget = RetryBudget()
        self.budget_denied = 0
        self.limits = ClientLimits()
        self.in_flight = InFlight()
        self.requests = OpenRequests(health, self.limits, self.in_flight, self._cooldown_of, on_transition)
        self.affinity = AffinityTable()
        self.unexpected_messages = 0
        self.accepted = False
        """Whether Envoy has accepted the active version; `/readyz` says so."""
        self._on_transition = on_transition
        self._active: Active | None = None
        self._versions: OrderedDict[int, Active] = OrderedDict()
        self._tickets: dict[str, int] = {}

    # -- versions --------------------------------------------------------------------------------------------------

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

    def _cooldown_of(self, state: RequestState) -> Cooldown | None:
        active = self.version(state.version)
        return None if active is None else self.policy_of(state, active).cooldown

    def version(self, number: int) -> Active | None:
        """Return the version a request is pinned to, or the active one when it is long gone."""
        return self._versions.get(number, self._active)

    def snapshot(self, number: int) -> Snapshot | None:
        """Return exactly the version asked for, None when it is no longer here."""
        found = self._versions.get(number)
        return None if found is None else found.snapshot

    # -- planning --------------------------------------------------------------------------------------------------

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

    # -- health and sessions ---------------------------------------------------------------------------------------

    def bind(self, session: bytes | None, requested: ResolvedModel, first: TargetKey, now: float) -> Binding | None:
        """Return the binding of a request's session, made to the request's first target when it has none."""
        affinity = requested.entry.affinity
        if session is None or affinity is None:
            return None
        return self.affinity.planned(session, first, now, affinity.ttl_s)

    def served(self, record: RequestRecord, attempt: AttemptRecord, now: float) -> None:
        """Keep the request's session on the target that served it."""
        active = self.version(record.state.version)
        if record.session is None or active is None:
            return
        requested = active.snapshot.resolve(record.state.model)
        affinity = requested.entry.affinity if requested else None
        if affinity is not None:
            self.affinity.served(record.session, attempt.step.key, now, affinity.ttl_s, record.bound)

    def answered_well(
        self, state: RequestState, key: TargetKey, headers: Mapping[str, str], answered_at: float, now: float
    ) -> None:
        """Rest a target whose good answer, begun at `answered_at`, says that nothing is left of its allowance."""
        active = self.version(state.version)
        if active is None or not headers:
            return
        until = exhausted_until(headers, answered_at, self.policy_of(state, active).cooldown.cap_s)
        if until is not None:
            self.pace(key, until, now)

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
