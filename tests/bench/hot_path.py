"""Where the microseconds of one routed request go inside extproc, without Envoy: `python -m tests.bench.hot_path`.

Plays the bytes that Envoy sends for one request, again and again, into the real transport, exchanges, log reader,
telemetry and ledger rows of one process, and reports CPU time for each stage. `--profile` prints the functions that
cost most.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import count
from typing import Any, cast

import orjson
from hpack import Encoder

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.core.exchange import Exchange, RouteTo
from extproc.core.feedback import RequestLogged, request_logged
from extproc.core.gateway import Active, Gateway
from extproc.core.health import HealthEngine
from extproc.core.judge import JudgeExchange
from extproc.core.route import RouteExchange
from extproc.core.story import Story
from extproc.ledger_file import row_of
from extproc.metrics import Metrics
from extproc.telemetry import Telemetry, TimedExchange
from extproc.transport import frames as f
from extproc.transport.fast import METHOD_PATH, FastServer, Peer
from extproc.transport.grpc_messages import framed
from extproc.transport.service import ext_proc_service
from extproc.wire import names
from extproc.wire.access_log import LogDecoder
from extproc.wire.ext_proc import Request, encode
from extproc.wire.pb import als_pb2

CLUSTER = "primary-0123456789"
CONFIG = {
    "schema": 1,
    "providers": {
        "primary": {"base_url": "http://127.0.0.1:9/v1", "allow_private_network": True},
        "fallback": {"base_url": "http://127.0.0.1:10/v1", "allow_private_network": True},
    },
    "models": {
        "demo-primary": {
            "targets": [{"provider": "primary", "model": "demo-primary-upstream"}],
            "fallback": ["demo-fallback"],
        },
        "demo-fallback": {"targets": [{"provider": "fallback", "model": "demo-fallback-upstream"}]},
    },
}
HEADERS = {
    ":authority": "127.0.0.1:18080",
    ":path": "/v1/chat/completions",
    ":method": "POST",
    ":scheme": "http",
    "user-agent": "OpenAI/Python 2.8.1",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "content-type": "application/json",
    "x-stainless-lang": "python",
    "x-stainless-package-version": "2.8.1",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "CPython",
    "authorization": "Bearer sk-0123456789",
    "x-stainless-retry-count": "0",
    "content-length": "2048",
    "x-forwarded-for": "127.0.0.1",
    "x-forwarded-proto": "http",
}


class _Sink(asyncio.Transport):
    """Takes what the server writes and counts it."""

    written = 0

    def write(self, data: Any) -> None:
        self.written += len(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def close(self) -> None: ...


class _Stories(list[Story]):
    """Keeps what the ledger would write."""

    def add(self, story: Story) -> None:
        self.append(story)


class Scene:
    """One process's gateway, and the bytes that Envoy would send it."""

    def __init__(self, body_bytes: int) -> None:
        snapshot = compile_snapshot(load_config(orjson.dumps(CONFIG).decode()), version=1)
        health = HealthEngine(lambda: 0.5)
        self.gateway = Gateway(health, lambda: 0.5)
        clusters = {(name, policy): CLUSTER for name in snapshot.providers for policy in snapshot.policies}
        self.gateway.activate(Active(snapshot, clusters))
        self.gateway.accepted = True
        self.stories = _Stories()
        self._metrics = Metrics(lambda: (), lambda: 0, lambda: True)
        self._metrics.bound_by(snapshot)
        self.gateway.requests.observer = Telemetry(self._metrics, self.stories, self.gateway.snapshot)
        service = ext_proc_service(self._exchange, time.monotonic, self._fault)
        self._server = FastServer("unix:unused", {METHOD_PATH: service}, time.monotonic, 1 << 28)
        self._block = Encoder().encode(
            [
                (":method", "POST"),
                (":path", METHOD_PATH),
                (":scheme", "http"),
                ("content-type", "application/grpc"),
                (names.G_ROLE, names.ROLE_ROUTE),
            ]
        )
        self.body = orjson.dumps({"model": "demo-primary", "messages": [{"role": "user", "content": ""}]})
        self.body = self.body.replace(b'""', b'"%s"' % (b"x" * max(0, body_bytes - len(self.body))))
        self._ids = count(1)
        self._decoder = LogDecoder()

    def _exchange(self, role: str, cluster: str) -> Exchange | None:
        if role == names.ROLE_ROUTE:
            return TimedExchange(RouteExchange(self.gateway), self._metrics.decision_seconds.observe)
        return JudgeExchange(self.gateway, cluster)

    def _fault(self) -> None:
        raise AssertionError("a session failed")

    def peer(self) -> Peer:
        """Return a connection that has been greeted."""
        peer = Peer(self._server)
        peer.connection_made(_Sink())
        peer.data_received(f.PREFACE + f.settings_frame({f.Setting.INITIAL_WINDOW_SIZE: f.LARGEST_WINDOW}))
        peer.data_received(f.frame(f.SETTINGS, f.ACK, 0) + f.window_update(0, 1 << 30))
        first = f.TABLE_EMPTIED + self._block
        peer.data_received(f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, first))
        return peer

    def headers_message(self, number: int) -> bytes:
        """Return the first message of a route stream."""
        request = Request()
        for name, value in (HEADERS | {"x-request-id": request_id(number)}).items():
            request.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        return request.SerializeToString()

    def body_message(self) -> bytes:
        """Return the second."""
        request = Request()
        request.request_body.body = self.body
        request.request_body.end_of_stream = True
        return request.SerializeToString()

    def routed(self, first: int, n: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield what two reads bring for each of n requests: the stream with its headers, then the body."""
        body = framed(self.body_message())
        for number in range(first, first + n):
            stream_id = 2 * number + 1
            opening = f.frame(f.HEADERS, f.END_HEADERS, stream_id, self._block)
            yield (
                opening + f.frame(f.DATA, 0, stream_id, framed(self.headers_message(number))),
                _in_frames(stream_id, body) + f.window_update(0, 8192),
            )

    def log_message(self, first: int, n: int) -> bytes:
        """Return what Envoy's log says of n requests under way; their attempts are good and have no entries."""
        requests = als_pb2.StreamAccessLogsMessage()
        requests.identifier.log_name = names.LOG_REQUESTS
        for number in range(first, first + n):
            state = self.gateway.requests.by_id[request_id(number)].state
            entry = requests.http_logs.log_entry.add()
            common = entry.common_properties
            # What the route answer wrote, and what Envoy read from the provider's.
            route_answer = encode(RouteTo(state, 1, state.plan[0].path, None))
            for namespace, value in route_answer.dynamic_metadata.fields.items() if route_answer else ():
                common.metadata.filter_metadata[namespace].CopyFrom(value.struct_value)
            tokens = common.metadata.filter_metadata[names.METADATA_USAGE].fields
            tokens[names.U_INPUT].number_value, tokens[names.U_OUTPUT].number_value = 500.0, 20.0
            common.upstream_cluster = CLUSTER
            common.upstream_request_attempt_count = 1
            common.start_time.seconds = 1_700_000_000
            common.duration.nanos = 3_000_000
            common.time_to_first_upstream_tx_byte.nanos = 900_000
            common.time_to_last_upstream_tx_byte.nanos = 1_000_000
            common.time_to_first_upstream_rx_byte.nanos = 2_000_000
            common.time_to_last_upstream_rx_byte.nanos = 2_100_000
            common.time_to_first_downstream_tx_byte.nanos = 2_500_000
            common.response_flags.SetInParent()
            entry.request.request_id = request_id(number)
            entry.request.path = "/v1/chat/completions"
            entry.request.request_body_bytes = len(self.body)
            entry.response.response_code.value = 200
            answer = entry.response.response_headers
            answer[names.H_ROUTE_MODE], answer[names.H_SERVED_BY] = state.plan[0].mode, str(state.plan[0].key)
            answer[names.H_ATTEMPTS] = "1"
        return requests.SerializeToString()

    def take_log(self, message: bytes, now: float) -> None:
        """Take it in, as the log reader does."""
        for event in self._decoder.decode(message):
            if isinstance(event, RequestLogged):
                request_logged(self.gateway, event, now)


def request_id(number: int) -> str:
    """Return an id as long as Envoy's."""
    return f"{number:08x}-9ff9-4283-9988-9615735b1694"


def _in_frames(stream_id: int, data: bytes) -> bytes:
    pieces = range(0, len(data), 16384)
    return b"".join(f.frame(f.DATA, 0, stream_id, data[at : at + 16384]) for at in pieces)


def measure(n: int, body_bytes: int, profile: cProfile.Profile | None = None) -> dict[str, float]:
    """Return CPU microseconds a request: taking it in, the log of its end, and its row of the ledger."""
    scene = Scene(body_bytes)
    return asyncio.run(_measured(scene, n, profile))


async def _measured(scene: Scene, n: int, profile: cProfile.Profile | None) -> dict[str, float]:
    peer = scene.peer()
    batch = 100
    spent: dict[str, list[float]] = {"headers": [], "body": [], "log": [], "rows": []}
    for first in range(1, n + 1, batch):
        reads = list(scene.routed(first, batch))
        gc.collect()
        if profile is not None:
            profile.enable()
        began = time.process_time()
        for read, _ in reads:
            peer.data_received(read)
        headers_done = time.process_time()
        for _, read in reads:
            peer.data_received(read)
        bodies_done = time.process_time()
        if profile is not None:
            profile.disable()
        message = scene.log_message(first, batch)
        if profile is not None:
            profile.enable()
        log_came = time.process_time()
        scene.take_log(message, time.monotonic())
        log_done = time.process_time()
        for story in scene.stories:
            row_of(story)
        spent["headers"].append(headers_done - began)
        spent["body"].append(bodies_done - headers_done)
        spent["log"].append(log_done - log_came)
        spent["rows"].append(time.process_time() - log_done)
        if profile is not None:
            profile.disable()
        scene.stories.clear()
    if scene.gateway.requests.by_id:
        raise AssertionError("requests were not closed")
    peer.close()
    return {stage: statistics.median(seconds) / batch * 1e6 for stage, seconds in spent.items()}


def main() -> int:
    """Print the stages."""
    parser = argparse.ArgumentParser(prog="hot_path", description="CPU a request inside extproc, without Envoy")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--body", type=int, default=2048, help="bytes of a request body")
    parser.add_argument("--profile", action="store_true", help="print the functions that cost most")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    stages = measure(options.n, options.body, profile)
    for stage, us in (stages | {"all": sum(stages.values())}).items():
        sys.stdout.write(f"{stage:8s} {us:7.1f} us\n")
    if profile is not None:
        pstats.Stats(profile, stream=cast("Any", sys.stdout)).sort_stats("tottime").print_stats(40)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
