"""Where requests may go: the address a name resolves to is judged when Envoy connects, and redirects lead nowhere.

Each case is a provider with a host name of its own, so that one gateway has them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, provider
from tests.support.http1 import Reply
from tests.support.names import Names
from tests.support.wall import Wall, answer

INSIDE = ("127.0.0.1", "169.254.169.254", "10.0.0.1", "100.100.100.200", "0.0.0.0", "::1")  # noqa: S104 - resolved, not bound
METADATA = ("169.254.169.254", "::ffff:169.254.169.254", "168.63.129.16")
REDIRECTS = (301, 302, 307, 308)
DOMAIN = "api.example.com"
UNKNOWN = "unknown"


def forbidden(address: str) -> str:
    """Name the model whose provider resolves to this address and may be on no private network."""
    return f"strict-{INSIDE.index(address)}"


def metadata(address: str) -> str:
    """Name the model whose provider resolves to this address and may be on a private network."""
    return f"private-{METADATA.index(address)}"


HOSTS = {
    **{f"{forbidden(address)}.{DOMAIN}": address for address in INSIDE},
    **{f"{metadata(address)}.{DOMAIN}": address for address in METADATA},
    f"local.{DOMAIN}": "127.0.0.1",
}


@pytest.fixture(scope="module")
def names() -> Iterator[Names]:
    """Start a DNS server of these tests' own."""
    with Names(HOSTS) as started:
        yield started


@pytest.fixture(scope="module")
def module_gateway(
    module_gateway_factory: GatewayFactory,
    module_primary: Wall,
    module_fallback: Wall,
    names: Names,
    tmp_path_factory: pytest.TempPathFactory,
) -> Gateway:
    """Start a gateway in which each model's provider has a name that DNS decides about, and falls back to `rescue`."""
    providers: dict[str, Any] = {"rescue": provider(module_fallback)}
    for name in [*(host.partition(".")[0] for host in HOSTS), UNKNOWN]:
        private = name.startswith(("private", "local"))
        base_url = f"http://{name}.{DOMAIN}:{module_primary.port}"
        providers[name] = {"base_url": base_url, "allow_private_network": private, "api_key": {"env": "PRIMARY_KEY"}}
    providers |= {f"redirect-{status}": provider(module_primary, "PRIMARY_KEY") for status in REDIRECTS}
    models: dict[str, Any] = {
        name: {"targets": [{"provider": name, "model": "upstream"}], "fallback": ["rescue"]} for name in providers
    }
    del models["rescue"]["fallback"]
    envoy = names.envoy(tmp_path_factory.mktemp("envoy"))
    config = {"schema": 1, "providers": providers, "models": models}
    return module_gateway_factory(config, arguments=("--envoy", str(envoy)))


def connect_failed(reply: Reply) -> bool:
    """Tell whether a request ended with the documented error, quickly."""
    assert (502, "upstream_connect_failed") == (reply.status, reply.json["error"]["code"])
    return reply.seconds < 1.0


@pytest.mark.parametrize("address", INSIDE)
def test_a_name_that_resolves_to_an_inside_address_gets_no_request(shared: Shared, address: str) -> None:
    """The request that meets it ends with a documented error, quickly; later ones are planned around the provider."""
    gateway, name = shared.gateway, forbidden(address)

    reply = gateway.chat(name)

    assert connect_failed(reply)
    assert "none" == reply.header("x-gateway-route-mode")
    cooling = [{"subject": subject, "state": "cooling"} for subject in (name, f"{name}/upstream")]
    gateway.wait_until(
        lambda: any(gateway.metric("gateway_target_state", **one) == 1 for one in cooling), "the provider's cooldown"
    )
    assert (200, "model_fallback") == ((later := gateway.chat(name)).status, later.header("x-gateway-route-mode"))
    assert [] == shared.primary.requests


@pytest.mark.parametrize("address", METADATA)
def test_metadata_addresses_are_refused_to_private_providers_too(shared: Shared, address: str) -> None:
    """`allow_private_network` opens private networks, never these."""
    assert connect_failed(shared.gateway.chat(metadata(address)))


def test_a_private_provider_is_reached_by_its_name(shared: Shared) -> None:
    """Or the tests above would prove nothing."""
    assert (200, "direct") == ((reply := shared.gateway.chat("local")).status, reply.header("x-gateway-route-mode"))
    assert f"local.{DOMAIN}" == (shared.primary.requests[0].header("host") or "").partition(":")[0]


def test_a_name_that_does_not_resolve_fails_over_in_the_same_request(shared: Shared) -> None:
    """The endpoint that stands in for it is on loopback and is not mistaken for a forbidden address."""
    assert (200, "2") == ((reply := shared.gateway.chat(UNKNOWN)).status, reply.header("x-gateway-attempts"))


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_is_not_followed(shared: Shared, status: int) -> None:
    """A provider cannot send a request, and the key in it, somewhere else."""
    with Wall() as elsewhere:
        shared.primary.script(answer(status, "", headers={"location": f"{elsewhere.url}/v1/chat/completions"}))

        reply = shared.gateway.chat(f"redirect-{status}")

        assert [] == elsewhere.requests
    assert reply.header("location") is None or reply.status == status
