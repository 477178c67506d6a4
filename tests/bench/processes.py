"""What a process cost: CPU seconds and peak memory from /proc, and Envoys that the benchmark starts itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from extproc.envoy_binary import find_envoy
from tests.support.ports import free_port, release_port

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "upstream",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello " * 20}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520},
    }
)
BUSY = json.dumps({"error": {"message": "busy", "type": "requests", "param": None, "code": "busy"}})
TOO_LONG = json.dumps(
    {"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}}
)


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process with all its threads, 0 when it is gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S
    return 0.0


def peak_rss_mb(pid: int) -> float:
    """Return the largest resident set a process ever had, in MB."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


@contextmanager
def envoy(config: dict[str, Any], port: int, concurrency: int) -> Iterator[int]:
    """Run an Envoy until the end of the block; yields its pid once its port answers."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        path = Path(folder) / "envoy.json"
        path.write_text(json.dumps(config))
        argv = [str(find_envoy(None, os.environ)), "-c", str(path), "--concurrency", str(concurrency)]
        argv += ["--disable-hot-restart", "--log-level", "error"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            wait_for(port, process)
            yield process.pid
        finally:
            process.terminate()
            process.wait(20)


def wait_for(port: int, process: subprocess.Popen[bytes], within_s: float = 20) -> None:
    """Return once a process answers at a port; RuntimeError when it ended, or takes too long."""
    give_up_at = time.monotonic() + within_s
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > give_up_at:
            raise RuntimeError("an Envoy of the benchmark did not start")
        time.sleep(0.05)


@contextmanager
def fixed_provider(status: int = 200, body: str = ANSWER) -> Iterator[int]:
    """Run a provider that always gives one answer, as fast as can be; yields its port."""
    port = free_port()
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": status, "body": {"inline_string": body}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "application/json"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }
    # Without the buffer it would answer before it has read the body, and close.
    buffered = {
        "name": "buffer",
        "typed_config": {"@type": f"{_FILTERS}.buffer.v3.Buffer", "max_request_bytes": 64 << 20},
    }
    try:
        with envoy(_config(port, route, [buffered], []), port, 1):
            yield port
    finally:
        release_port(port)


@contextmanager
def plain_envoy(upstream_port: int, concurrency: int) -> Iterator[tuple[int, int]]:
    """Run an Envoy that only forwards; yields its port and pid."""
    port = free_port()
    try:
        with envoy(plain_config(port, upstream_port), port, concurrency) as pid:
            yield port, pid
    finally:
        release_port(port)


def plain_config(port: int, upstream_port: int) -> dict[str, Any]:
    """Return the configuration of an Envoy that only forwards."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(upstream_port)}}]}],
        },
    }
    return _config(port, route, [], [cluster])


def _config(
    port: int, route: dict[str, Any], filters: list[dict[str, Any]], clusters: list[dict[str, Any]]
) -> dict[str, Any]:
    router = {"name": "router", "typed_config": {"@type": f"{_FILTERS}.router.v3.Router"}}
    manager = {
        "@type": _HTTP,
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [*filters, router],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "front", "address": _address(port), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
