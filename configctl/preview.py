"""What a config would change for callers and for Envoy, before anybody publishes it.

Pure: two snapshots and a view of health in, effects out. No key is read. The order shown is that of a first request
(ticket 0); where weights share a tier, other requests start elsewhere in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from extproc.config.lint import Finding, find_dead_policy
from extproc.config.snapshot import Model, Protocol, ResolvedModel, Snapshot, TargetKey
from extproc.core.health import View
from extproc.core.plan import Plan, plan_request
from extproc.envoy_config.checks import checks_listener
from extproc.envoy_config.clusters import provider_clusters
from extproc.envoy_config.filters import secret_name
from extproc.envoy_config.listener import listener
from extproc.envoy_config.resource import EnvoyPaths, Json, Listen, content_hash
from extproc.envoy_config.routes import route_configuration
from extproc.envoy_config.secrets import listener_secret_name
from extproc.envoy_config.tracing import collector_cluster

Health = Callable[[TargetKey], View]

_ANY_LISTEN = Listen("127.0.0.1", 18080)
_ROOT = Path("/gateway")
_ANY_PATHS = EnvoyPaths(
    cds=_ROOT / "cds.json",
    rds=_ROOT / "rds.json",
    lds=_ROOT / "lds.json",
    sds=_ROOT / "sds",
    access_log=_ROOT / "access.log",
    admin_socket=_ROOT / "admin.sock",
    checks_socket=_ROOT / "checks.sock",
    extproc=str(_ROOT / "extproc.sock"),
    logs=str(_ROOT / "logs.sock"),
    ca_file=_ROOT / "ca.pem",
)


@dataclass(frozen=True, slots=True)
class Place:
    """One place in a model's order: who, under which public model, and the route mode if it serves."""

    target: str
    public_model: str
    mode: str


@dataclass(frozen=True, slots=True)
class Skip:
    """A target that health leaves out now, and why."""

    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """Who would serve a model, in order; `before` is None for a model that is not in the active version."""

    model: str
    protocol: Protocol
    before: tuple[Place, ...] | None
    after: tuple[Place, ...]
    skipped: tuple[Skip, ...]


@dataclass(frozen=True, slots=True)
class ResourceChange:
    """One Envoy resource that would come, go or change."""

    kind: Literal["listener", "route", "cluster", "secret"]
    name: str
    change: Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class Preview:
    """Everything a publish would bring about."""

    gained: tuple[str, ...]
    lost: tuple[str, ...]
    candidates: tuple[Candidates, ...]
    findings: tuple[Finding, ...]
    resources: tuple[ResourceChange, ...]
    health_known: bool
    """False: no gateway was asked, every target is taken as healthy."""


def preview_snapshot(active: Snapshot | None, proposed: Snapshot, health: Health | None = None) -> Preview:
    """Compare a proposed snapshot with the active one; without `health` every target counts as healthy."""
    view = health or _all_healthy
    before = active.models if active else {}
    return Preview(
        gained=tuple(name for name in proposed.models if name not in before),
        lost=tuple(name for name in before if name not in proposed.models),
        candidates=tuple(_candidates(active, proposed, view)),
        findings=find_dead_policy(proposed),
        resources=changed_resources(active, proposed),
        health_known=health is not None,
    )


def changed_resources(active: Snapshot | None, proposed: Snapshot) -> tuple[ResourceChange, ...]:
    """Return what Envoy would be given anew; clusters are named by their content, so they come and go."""
    before = dict(_resources(active)) if active else {}
    after = dict(_resources(proposed))
    found: list[ResourceChange] = []
    for kind, name in sorted(before.keys() | after.keys()):
        if (kind, name) not in before:
            found.append(ResourceChange(kind, name, "added"))
        elif (kind, name) not in after:
            found.append(ResourceChange(kind, name, "removed"))
        elif before[kind, name] != after[kind, name]:
            found.append(ResourceChange(kind, name, "changed"))
    return tuple(found)


_ResourceKey = tuple[Literal["listener", "route", "cluster", "secret"], str]


def _resources(snapshot: Snapshot) -> Iterator[tuple[_ResourceKey, str]]:
    """Yield every resource with the hash of its content; secrets by the name of their reference alone."""
    for one in (listener(snapshot, _ANY_LISTEN, _ANY_PATHS), checks_listener(snapshot, _ANY_PATHS)):
        if one is not None:
            yield ("listener", one["name"]), content_hash(one)
    for cluster in (*provider_clusters(snapshot, _ANY_PATHS)[1], collector_cluster(snapshot, _ANY_PATHS)):
        if cluster is not None:
            yield ("cluster", cluster["name"]), ""
    for route in _routes(snapshot):
        yield ("route", route["name"]), content_hash(route)
    for provider in snapshot.providers.values():
        if provider.api_key is not None:
            yield ("secret", secret_name(provider.name, provider.api_key, provider.auth_prefix)), ""
    if snapshot.server.tls_cert_file and snapshot.server.tls_key_file:
        yield ("secret", listener_secret_name(snapshot.server.tls_cert_file, snapshot.server.tls_key_file)), ""


def _routes(snapshot: Snapshot) -> Iterator[Json]:
    for host in route_configuration(snapshot)["virtual_hosts"]:
        yield from host["routes"]


def _candidates(active: Snapshot | None, proposed: Snapshot, view: Health) -> Iterator[Candidates]:
    for model in proposed.models.values():
        for protocol in _protocols(proposed, model):
            plan = _plan(proposed, model, protocol, view)
            old = active.models.get(model.name) if active else None
            before = _places(_plan(active, old, protocol, view)) if active and old else None
            skipped = tuple(Skip(str(skip.key), skip.reason) for skip in plan.skipped)
            yield Candidates(model.name, protocol, before, _places(plan), skipped)


def _protocols(snapshot: Snapshot, model: Model) -> tuple[Protocol, ...]:
    """Return the protocols a model's own targets speak."""
    spoken: Mapping[Protocol, None] = {snapshot.providers[target.provider].protocol: None for target in model.targets}
    return tuple(spoken)


def _plan(snapshot: Snapshot, model: Model, protocol: Protocol, view: Health) -> Plan:
    return plan_request(snapshot, ResolvedModel(model.name, model), protocol, view, ticket=0)


def _places(plan: Plan) -> tuple[Place, ...]:
    return tuple(Place(str(place.key), place.public_model, place.mode.value) for place in plan.planned)


def _all_healthy(_key: TargetKey) -> View:
    return View.healthy()
