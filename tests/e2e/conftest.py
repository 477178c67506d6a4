"""Gateways and providers for the end-to-end tests; every gateway is stopped here and its logs are read here.

Function-scoped fixtures start afresh. Module-scoped ones (`module_*`, and `shared`, which empties the walls
before each test) save the second or two of a start, but keep the gateway's health state from test to test.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from tests.support.gateway import HURRY_S, Gateway, two_providers
from tests.support.wall import Wall

FIRST = (
    *("test_telemetry", "test_choosing", "test_compose", "test_publish"),
    *("test_fleet", "test_docs", "test_failure_semantics"),
    *("test_operations_doc", "test_failover", "test_load", "test_hostile_callers", "test_errors", "test_stream_breaks"),
    *("test_survival", "test_recovery", "test_up", "test_extproc_death", "test_lifecycle", "test_timers"),
)
"""The long files, those that compute beside those that wait, so that both cores have something to do all the time."""


class GatewayFactory(Protocol):
    """Starts a gateway that its fixture stops; keywords are those of `Gateway`."""

    def __call__(self, config: Mapping[str, Any], **options: Any) -> Gateway: ...


class Shared(NamedTuple):
    """A module's gateway between its two walls."""

    gateway: Gateway
    primary: Wall
    fallback: Wall


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything below this folder as e2e, and put the long files first: who begins last ends last."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the last lines of every running gateway to the report of a failed test."""
    report = yield
    if report.failed:
        for gateway in Gateway.live:
            report.sections.append((f"gateway on port {gateway.port}", gateway.logs(tail=100)))
    return report


@pytest.fixture
def primary() -> Iterator[Wall]:
    """Start the provider that requests go to first."""
    with Wall() as wall:
        yield wall


@pytest.fixture
def fallback() -> Iterator[Wall]:
    """Start the provider of the fallback model."""
    with Wall() as wall:
        yield wall


@pytest.fixture
def gateway_factory(request: pytest.FixtureRequest) -> Iterator[GatewayFactory]:
    """Start gateways for one test."""
    yield from _factory(noisy=request.node.get_closest_marker("noisy_logs") is not None)


@pytest.fixture(scope="module")
def module_gateway_factory(request: pytest.FixtureRequest) -> Iterator[GatewayFactory]:
    """Start gateways for the tests of one module."""
    yield from _factory(noisy=request.node.get_closest_marker("noisy_logs") is not None)


@pytest.fixture
def gateway(gateway_factory: GatewayFactory, primary: Wall, fallback: Wall) -> Gateway:
    """Start the demonstration's gateway, afresh, with the default policy."""
    return gateway_factory(two_providers(primary, fallback))


@pytest.fixture(scope="module")
def module_primary() -> Iterator[Wall]:
    """`primary` for a whole module."""
    with Wall() as wall:
        yield wall


@pytest.fixture(scope="module")
def module_fallback() -> Iterator[Wall]:
    """`fallback` for a whole module."""
    with Wall() as wall:
        yield wall


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Start one gateway for a whole module; a module that wants another config overrides this."""
    return module_gateway_factory(two_providers(module_primary, module_fallback))


@pytest.fixture
def shared(module_gateway: Gateway, module_primary: Wall, module_fallback: Wall) -> Shared:
    """Give the module's gateway, its walls empty and answering well."""
    module_primary.reset()
    module_fallback.reset()
    return Shared(module_gateway, module_primary, module_fallback)


def _factory(*, noisy: bool) -> Iterator[GatewayFactory]:
    started: list[Gateway] = []
    with ExitStack() as stack:

        def start(config: Mapping[str, Any], **options: Any) -> Gateway:
            gateway = stack.enter_context(Gateway(config, **options))
            started.append(gateway)
            return gateway

        yield start
        alarms = [] if noisy else _after_stop(started)
        logs = "\n".join(gateway.logs(tail=100) for gateway in started) if alarms else ""
    assert alarms == [], logs


def _after_stop(started: list[Gateway]) -> list[str]:
    """Stop the gateways, so that the end of their logs counts too, and return what should not be there."""
    lines: list[str] = []
    for gateway in started:
        gateway.stop(20, hurry_after_s=HURRY_S)
        lines += gateway.alarming_lines()
    return lines
