"""Where requests may go: the address a name resolves to is judged when Envoy connects, and redirects lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, two_providers
from tests.support.names import Names
from tests.support.wall import Wall, answer

HOST = "api.example.com"


@pytest.fixture
def names() -> Iterator[Names]:
    """Start a DNS server of the test's own."""
    with Names({HOST: "127.0.0.1"}) as started:
        yield started


def by_name(primary: Wall, fallback: Wall, **more: Any) -> dict[str, Any]:
    """Name the primary provider by a host name that DNS decides about."""
    config = two_providers(primary, fallback)
    port = primary.url.rpartition(":")[2]
    config["providers"]["primary"] |= {"base_url": f"http://{HOST}:{port}", "allow_private_network": False} | more
    return config


def started(gateway_factory: GatewayFactory, config: dict[str, Any], names: Names, folder: Path) -> Gateway:
    return gateway_factory(config, arguments=("--envoy", str(names.envoy(folder))))


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "100.100.100.200", "0.0.0.0", "::1"])  # noqa: S104 - resolved, not bound
def test_a_name_that_resolves_to_an_inside_address_gets_no_request(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, names: Names, tmp_path: Path, address: str
) -> None:
    """The request that meets it ends with a documented error, quickly; later ones are planned around the provider."""
    names.hosts[HOST] = address
    gateway = started(gateway_factory, by_name(primary, fallback), names, tmp_path)

    reply = gateway.chat()

    assert (502, "upstream_connect_failed", "none") == (
        reply.status,
        reply.json["error"]["code"],
        reply.header("x-gateway-route-mode"),
    )
    assert reply.seconds < 1.0
    gateway.wait_until(
        lambda: gateway.metric("gateway_cooldowns_total", reason="connection") == 1, "the provider's cooldown"
    )
    assert (200, "model_fallback") == ((later := gateway.chat()).status, later.header("x-gateway-route-mode"))
    assert [] == primary.requests


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "168.63.129.16"])
def test_metadata_addresses_are_refused_to_private_providers_too(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, names: Names, tmp_path: Path, address: str
) -> None:
    """`allow_private_network` opens private networks, never these."""
    names.hosts[HOST] = address
    gateway = started(gateway_factory, by_name(primary, fallback, allow_private_network=True), names, tmp_path)

    reply = gateway.chat()

    assert (502, "upstream_connect_failed") == (reply.status, reply.json["error"]["code"])
    assert reply.seconds < 1.0


def test_a_private_provider_is_reached_by_its_name(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, names: Names, tmp_path: Path
) -> None:
    """Or the tests above would prove nothing."""
    gateway = started(gateway_factory, by_name(primary, fallback, allow_private_network=True), names, tmp_path)

    assert (200, "direct") == ((reply := gateway.chat()).status, reply.header("x-gateway-route-mode"))
    assert HOST == (primary.requests[0].header("host") or "").partition(":")[0]


def test_a_name_that_does_not_resolve_fails_over_in_the_same_request(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, names: Names, tmp_path: Path
) -> None:
    """The endpoint that stands in for it is on loopback and is not mistaken for a forbidden address."""
    names.hosts.clear()
    gateway = started(gateway_factory, by_name(primary, fallback), names, tmp_path)

    assert (200, "2") == ((reply := gateway.chat()).status, reply.header("x-gateway-attempts"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(gateway: Gateway, primary: Wall, fallback: Wall, status: int) -> None:
    """A provider cannot send a request, and the key in it, somewhere else."""
    with Wall() as elsewhere:
        primary.script(answer(status, "", headers={"location": f"{elsewhere.url}/v1/chat/completions"}))

        reply = gateway.chat()

        assert [] == elsewhere.requests
    assert reply.header("location") is None or reply.status == status
