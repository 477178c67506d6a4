"""The listener through which `serve` checks providers: a Unix socket, so that Envoy adds keys and TLS as always.

Only there when some provider asks for active checks. A check names its cluster in a header; credentials and internal
headers are dropped and injected by the cluster's own chain, as for any request.
"""

from __future__ import annotations

from extproc.config.snapshot import Snapshot
from extproc.envoy_config.resource import EnvoyPaths, Json, any_of, extension
from extproc.wire import names

LISTENER = "gateway-checks"
_SOCKET_MODE = 0o600


def checks_listener(snapshot: Snapshot, paths: EnvoyPaths) -> Json | None:
    """Return the listener, None when no provider is checked."""
    if not any(provider.health_check for provider in snapshot.providers.values()):
        return None
    return any_of(
        "envoy.config.listener.v3.Listener",
        name=LISTENER,
        address={"pipe": {"path": str(paths.checks_socket), "mode": _SOCKET_MODE}},
        filter_chains=[{"filters": [_http_connection_manager()]}],
    )


def _http_connection_manager() -> Json:
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster_header": names.H_CHECK_CLUSTER, "auto_host_rewrite": True, "timeout": "60s"},
    }
    return extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=LISTENER,
        route_config={
            "name": LISTENER,
            "virtual_hosts": [
                {
                    "name": LISTENER,
                    "domains": ["*"],
                    # The first attempt of anything skips the attempt filter, which knows only planned requests.
                    "include_request_attempt_count": True,
                    "routes": [route],
                }
            ],
        },
        http_filters=[
            extension(
                "envoy.filters.http.router",
                "envoy.extensions.filters.http.router.v3.Router",
                suppress_envoy_headers=True,
            )
        ],
    )
