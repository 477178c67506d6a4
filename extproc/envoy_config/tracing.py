"""Traces: Envoy's OpenTelemetry tracer and the cluster of its collector, only there when `telemetry.otlp` is set.

Spans carry OpenTelemetry's GenAI attribute names and what the gateway decided; no header, body or query. The provider
is named as the conventions want it, by the protocol it speaks; `gateway.served_by` has the account. The caller's W3C
context goes on to the provider. A collector that is slow or gone loses spans and touches no request.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from urllib.parse import urlsplit

from extproc.config.snapshot import Snapshot
from extproc.envoy_config.resource import EnvoyPaths, Json, any_of, content_hash, extension, upstream_tls
from extproc.wire import names

SERVICE_NAME = "ai-model-gateway"
CLUSTER_PREFIX = "gateway-otlp"
DEFAULT_PORTS = {"http": 4317, "https": 443}
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_TAGS = (
    ("http.route", names.METADATA, names.M_ENDPOINT),
    ("gen_ai.operation.name", names.METADATA, names.M_OPERATION),
    ("gen_ai.provider.name", names.METADATA, names.M_PROTOCOL),
    ("gen_ai.request.model", names.METADATA, names.M_MODEL),
    ("gen_ai.response.model", names.METADATA, names.M_SERVED_MODEL),
    ("gen_ai.usage.input_tokens", names.METADATA_USAGE, names.U_INPUT),
    ("gen_ai.usage.output_tokens", names.METADATA_USAGE, names.U_OUTPUT),
    ("gateway.route_mode", names.METADATA, names.M_ROUTE_MODE),
    ("gateway.served_by", names.METADATA, names.M_SERVED_BY),
    ("gateway.config_version", names.METADATA, names.M_VERSION),
    ("gateway.client", names.METADATA, names.M_CLIENT),
)


def tracing(snapshot: Snapshot, paths: EnvoyPaths) -> Json | None:
    """Return the connection manager's `tracing`, None when no collector is configured."""
    cluster = collector_cluster(snapshot, paths)
    if cluster is None:
        return None
    return {
        "random_sampling": {"value": round(snapshot.telemetry.otlp_sample * 100, 4)},
        "spawn_upstream_span": True,
        # Envoy's own tag would have the query; the endpoint has a tag of its own.
        "max_path_tag_length": 0,
        "custom_tags": [_tag(*one) for one in _TAGS],
        "provider": extension(
            "envoy.tracers.opentelemetry",
            "envoy.config.trace.v3.OpenTelemetryConfig",
            grpc_service={"envoy_grpc": {"cluster_name": cluster["name"]}, "timeout": "0.5s"},
            service_name=SERVICE_NAME,
        ),
    }


def collector_cluster(snapshot: Snapshot, paths: EnvoyPaths) -> Json | None:
    """Return the collector's cluster, named by its content; None when no collector is configured."""
    endpoint = snapshot.telemetry.otlp_endpoint
    if endpoint is None:
        return None
    nameless = _cluster("", endpoint, paths)
    return _cluster(f"{CLUSTER_PREFIX}-{content_hash(nameless)}", endpoint, paths)


def _cluster(name: str, endpoint: str, paths: EnvoyPaths) -> Json:
    url = urlsplit(endpoint)
    host, port = url.hostname or "127.0.0.1", url.port or DEFAULT_PORTS.get(url.scheme, 4317)
    cluster: Json = {
        "name": name,
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}]}
            ],
        },
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: any_of(_HTTP_OPTIONS, explicit_http_config={"http2_protocol_options": {}})
        },
    }
    if url.scheme == "https":
        cluster["transport_socket"] = upstream_tls(host, str(paths.ca_file), ["h2"])
    return cluster


def _tag(tag: str, namespace: str, key: str) -> Json:
    return {
        "tag": tag,
        "metadata": {"kind": {"request": {}}, "metadata_key": {"key": namespace, "path": [{"key": key}]}},
    }
