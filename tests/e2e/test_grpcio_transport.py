"""The other transport, `--transport grpcio`: a slice of every kind of traffic through the real Envoy.

`make e2e-grpcio` runs all the end-to-end tests on it.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import grpc
import pytest

from extproc.transport.fast import LOG_PATH
from extproc.transport.grpcio import LogServer
from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, two_providers
from tests.support.wall import Wall, cut_short, error, ok, rate_limited, silence

SILENT = {"first_byte_timeout": "500ms", "first_token_timeout": "500ms"}
TOLERANT = {"consecutive": 1000, "failure_ratio": 1, "min_requests": 100_000}
TEXT = "a longer answer in many pieces"


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Start the demonstration's gateway on grpcio, and a model that waits as long as usual for an answer."""
    config = two_providers(module_primary, module_fallback, cooldown=TOLERANT, same_target={"max": 0}, **SILENT)
    config["policies"]["unhurried"] = {}
    config["models"]["unhurried"] = {"targets": config["models"]["demo-primary"]["targets"], "policy": "unhurried"}
    return module_gateway_factory(config, arguments=("--transport", "grpcio"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["503", "silence"])
def test_a_request_fails_over_on_grpcio(shared: Shared, fault: str, stream: bool) -> None:
    """Route, judge and attempt request, answered and silent failures, whole answers and streams."""
    shared.primary.script({"503": error(503), "silence": silence()}[fault])

    reply = shared.gateway.chat(stream=stream)

    assert (200, "clean") == (reply.status, reply.ended)
    assert ("model_fallback", "2") == (reply.header("x-gateway-route-mode"), reply.header("x-gateway-attempts"))


def test_a_stream_passes_the_judge_on_grpcio(shared: Shared) -> None:
    """A hundred events, released one by one."""
    shared.primary.script(ok(TEXT * 10, chunks=100))

    reply = shared.gateway.chat(stream=True)

    assert (200, "clean", TEXT * 10) == (reply.status, reply.ended, reply.text)


def test_a_stream_that_stops_without_its_end_is_broken_on_grpcio(shared: Shared) -> None:
    """The judge aborts its call, so that the caller sees no clean end."""
    shared.primary.script(cut_short(5, "clean", TEXT, 10, gap_s=0.0))

    reply = shared.gateway.chat(stream=True)

    assert (200, True) == (reply.status, reply.ended != "clean")


def test_a_large_body_passes_on_grpcio(shared: Shared) -> None:
    """Ten megabytes are one message, and a busy provider may need more than half a second to read them."""
    reply = shared.gateway.chat("unhurried", padding="x" * (10 << 20))

    assert (200, "clean") == (reply.status, reply.ended)


def test_access_logs_arrive_on_grpcio(shared: Shared) -> None:
    """Without them no request would be counted, and no limit that a good answer reports would be seen."""
    for _ in range(5):
        shared.gateway.chat("demo-fallback")

    def counted() -> bool:
        return shared.gateway.metric("gateway_requests_total", model="demo-fallback") == 5

    shared.gateway.wait_until(counted, "five requests in the metrics")


def test_a_killed_extproc_comes_back_on_grpcio(shared: Shared) -> None:
    """Envoy stays, connects again, and requests are decided as before."""
    envoy, killed = shared.gateway.pids().envoy, shared.gateway.kill_extproc()
    shared.gateway.wait_until(lambda: shared.gateway.pids().extproc not in (None, killed), "another extproc", 30)
    shared.gateway.wait_until(lambda: shared.gateway.chat().status == 200, "service", 30)
    shared.primary.script(rate_limited())

    assert "model_fallback" == shared.gateway.chat().header("x-gateway-route-mode")
    assert envoy == shared.gateway.pids().envoy


def test_a_fault_of_the_log_reader_is_counted_and_ends_its_stream() -> None:
    """As on the fast transport: the fault never goes unseen, and Envoy opens another stream."""
    faults: list[str] = []

    def broken(message: bytes) -> None:
        raise ValueError("not to be logged")

    async def scene() -> grpc.StatusCode:
        with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as folder:
            address = f"unix:{Path(folder) / 's'}"
            server = LogServer(address, lambda: broken, lambda: faults.append("fault"))
            await server.start()
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.stream_unary(LOG_PATH)()  # type: ignore[call-arg]  # the stubs want what has defaults
                await call.write(b"entry")
                code: grpc.StatusCode = await call.code()
            await server.stop(1)
            return code

    assert (grpc.StatusCode.ABORTED, ["fault"]) == (asyncio.run(scene()), faults)
