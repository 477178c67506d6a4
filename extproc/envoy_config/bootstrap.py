"""The bootstrap: what Envoy reads once, and the file sources from which it learns the rest."""

from __future__ import annotations

from extproc.envoy_config.clusters import static_clusters
from extproc.envoy_config.resource import HEAP_LIMIT_BYTES, MAX_CONNECTIONS, EnvoyPaths, Json, extension, file_source

ADMIN_SOCKET_MODE = 0o600
TRACE_FLUSH_MS = 1000


def bootstrap(paths: EnvoyPaths) -> Json:
    """Return the bootstrap configuration: the same for every version, because Envoy reads it only when it starts."""
    return {
        "node": {"id": "gateway", "cluster": "gateway"},
        "admin": {"address": {"pipe": {"path": str(paths.admin_socket), "mode": ADMIN_SOCKET_MODE}}},
        "static_resources": {"clusters": static_clusters(paths)},
        "dynamic_resources": {"cds_config": file_source(paths.cds), "lds_config": file_source(paths.lds)},
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {
                        # Envoy 1.40 crashes when a finished, guarded answer crosses a watermark (docs/envoy.md 4).
                        "envoy.reloadable_features.grpc_side_stream_flow_control": False,
                        # Who looks for the trace of a request that just failed finds it; by default that takes 5 s.
                        "tracing.opentelemetry.flush_interval_ms": TRACE_FLUSH_MS,
                    },
                }
            ]
        },
        "overload_manager": _overload_manager(),
        "stats_config": {"stats_matcher": {"exclusion_list": {"patterns": [{"prefix": "cluster.gateway-stop"}]}}},
    }


def _overload_manager() -> Json:
    def at(name: str, share: float) -> Json:
        trigger = {"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}
        return {"name": f"envoy.overload_actions.{name}", "triggers": [trigger]}

    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            extension(
                "envoy.resource_monitors.fixed_heap",
                "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=HEAP_LIMIT_BYTES,
            ),
            extension(
                "envoy.resource_monitors.global_downstream_max_connections",
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=MAX_CONNECTIONS,
            ),
        ],
        "actions": [at("shrink_heap", 0.9), at("stop_accepting_requests", 0.95)],
    }
