"""Everything Envoy needs for one snapshot, as documents; and the order in which they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from extproc.config.snapshot import Snapshot
from extproc.envoy_config.bootstrap import bootstrap
from extproc.envoy_config.checks import checks_listener
from extproc.envoy_config.clusters import provider_clusters
from extproc.envoy_config.listener import listener
from extproc.envoy_config.named_files import check_provider_tls
from extproc.envoy_config.resource import EnvoyPaths, Json, Listen, any_of
from extproc.envoy_config.routes import merge_routes, route_configuration
from extproc.envoy_config.secrets import read_secrets
from extproc.envoy_config.tracing import collector_cluster


@dataclass(frozen=True, slots=True)
class Rendered:
    """One snapshot's Envoy documents; `clusters` maps (provider, policy) to cluster names.

    `missing_keys` maps providers without a usable key to what is wrong with their reference.
    """

    bootstrap: Json
    cds: list[Json]
    rds: Json
    lds: list[Json]
    sds: Mapping[str, Json]
    clusters: Mapping[tuple[str, str], str]
    missing_keys: Mapping[str, str]


def render(snapshot: Snapshot, listen: Listen, paths: EnvoyPaths, environ: Mapping[str, str]) -> Rendered:
    """Return the documents of a snapshot; pure but for reading the files that it names.

    Raises ConfigErrors for TLS files that no Envoy could read, and what `read_secrets` raises.
    """
    check_provider_tls(snapshot)
    clusters, resources = provider_clusters(snapshot, paths)
    secrets = read_secrets(snapshot, environ)
    collector = collector_cluster(snapshot, paths)
    if collector is not None:
        resources.append(collector)
    return Rendered(
        bootstrap=bootstrap(paths),
        cds=[any_of("envoy.config.cluster.v3.Cluster", **cluster) for cluster in resources],
        rds=route_configuration(snapshot),
        lds=[one for one in (listener(snapshot, listen, paths), checks_listener(snapshot, paths)) if one],
        sds=secrets.files,
        clusters=clusters,
        missing_keys=secrets.missing_keys,
    )


def together(live: Sequence[Rendered]) -> Rendered:
    """Return the last version's documents with the clusters and routes of all, which their requests may still need."""
    clusters = {cluster["name"]: cluster for rendered in live for cluster in rendered.cds}
    return replace(
        live[-1],
        cds=[clusters[name] for name in sorted(clusters)],
        rds=merge_routes([rendered.rds for rendered in live]),
    )


def discovery(version: str, resources: Iterable[Json]) -> Json:
    """Return a DiscoveryResponse document, the form in which Envoy reads resources from a file."""
    return {"version_info": version, "resources": list(resources)}
