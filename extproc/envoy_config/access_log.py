"""Envoy's logs: one JSON line a request in a file, and entries over gRPC for each request and each attempt."""

from __future__ import annotations

from extproc.core.reset_times import LIMIT_HEADERS
from extproc.envoy_config.resource import MIB, EnvoyPaths, Json, extension
from extproc.wire import names
from extproc.wire.access_log import REQUEST_HEADERS_LOGGED

BUFFER_BYTES = MIB


def request_logs(paths: EnvoyPaths) -> list[Json]:
    """Return the listener's loggers."""
    return [_file_log(paths), _grpc_log(names.LOG_REQUESTS, [*REQUEST_HEADERS_LOGGED, *LIMIT_HEADERS])]


def attempt_log() -> Json:
    """Return the router's logger of upstream attempts.

    A good answer has no entry here: the request's own tells it all.
    """
    unusual = [_status("LE", 199), _status("GE", 300), {"response_flag_filter": {}}]
    return _grpc_log(names.LOG_ATTEMPTS, []) | {"filter": {"or_filter": {"filters": unusual}}}


def _file_log(paths: EnvoyPaths) -> Json:
    def known(key: str) -> str:
        return _metadata(f"['{names.METADATA}']['{key}']")

    # Never gateway.private: the first error may quote a prompt.
    line = {
        "time": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(:METHOD)%",
        "endpoint": known(names.M_ENDPOINT),
        "kind": known(names.M_KIND),
        "client": known(names.M_CLIENT),
        "policy": known(names.M_POLICY),
        "model": known(names.M_MODEL),
        # What the caller was told: metadata still holds the plan when Envoy answered by itself.
        "route_mode": f"%RESP({names.H_ROUTE_MODE})%",
        "served_by": f"%RESP({names.H_SERVED_BY})%",
        "served_model": known(names.M_SERVED_MODEL),
        "classes": known(names.M_CLASSES),
        # Not Envoy's own count, which includes the visit to the end of a plan.
        "attempts": known(names.M_ATTEMPT),
        "version": known(names.M_VERSION),
        "status": "%RESPONSE_CODE%",
        "error": known(names.M_ERROR),
        "flags": "%RESPONSE_FLAGS%",
        "duration_ms": "%DURATION%",
        "first_byte_ms": "%RESPONSE_DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "tokens": _metadata(f"['{names.METADATA_USAGE}']"),
    }
    return extension(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=str(paths.access_log),
        log_format={"json_format": line},
    )


def _metadata(place: str) -> str:
    """Return the operator that logs metadata as what it is: text, number, list or object, null when there is none.

    DYNAMIC_METADATA logs the same at four times the CPU (docs/envoy.md section 10).
    """
    return f"%TYPED_CEL(metadata.filter_metadata{place})%"


def _status(op: str, value: int) -> Json:
    """Return a filter that compares an entry's status; no answer at all is status 0."""
    # Envoy wants the name of a runtime setting that could change the value; none of this name is ever set.
    comparison = {"op": op, "value": {"default_value": value, "runtime_key": "gateway.attempts_logged"}}
    return {"status_code_filter": {"comparison": comparison}}


def _grpc_log(name: str, response_headers: list[str]) -> Json:
    return extension(
        "envoy.access_loggers.http_grpc",
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        common_config={
            "log_name": name,
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": names.CLUSTER_LOGS}},
            "buffer_flush_interval": "0.05s",
            # Time alone cuts the log: by Envoy's 16 KiB a busy gateway would send hundreds of messages a second.
            "buffer_size_bytes": BUFFER_BYTES,
        },
        additional_response_headers_to_log=response_headers,
    )
