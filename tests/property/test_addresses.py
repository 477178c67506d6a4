"""The connect-time networks say of every address what the validate-time judge says."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from extproc.config.base_url import FORBIDDEN_NETWORKS, PRIVATE_NETWORKS, denied_networks, judge_host

NETWORKS = [ip_network(text) for text in FORBIDDEN_NETWORKS + PRIVATE_NETWORKS]
DENIED = {allow: [ip_network(text) for text in denied_networks(allow_private=allow)] for allow in (False, True)}


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """Draw an address in, at the edge of, or just outside a listed network, plain or embedded in an IPv6 one."""
    network = draw(st.sampled_from(NETWORKS))
    edge = draw(st.sampled_from([int(network.network_address), int(network.broadcast_address)]))
    value = max(0, edge + draw(st.integers(-2, 2)))
    if network.version == 6:
        return str(IPv6Address(min(value, 2**128 - 1)))
    inner = min(value, 2**32 - 1)
    outer = draw(st.sampled_from([None, 0xFFFF << 32, int(IPv6Address("64:ff9b::")), 0]))
    if outer is None:
        return str(IPv4Address(inner))
    return str(IPv6Address(outer | inner))


@given(addresses() | st.ip_addresses().map(str))
@example("::1")
@example("::ffff:169.254.169.254")
@example("2002:a9fe:a9fe::1")
def test_an_address_is_denied_when_connecting_exactly_when_it_would_be_refused_as_a_literal(address: str) -> None:
    verdict = judge_host(address)
    # ::2 to ::ff:ffff stand for 0.0.0.0/8 in a form that nothing routes; a network of them would hold ::1.
    assume(":" not in address or not 1 < int(ip_address(address)) < 1 << 24)
    found = {allow: any(ip_address(address) in network for network in DENIED[allow]) for allow in DENIED}
    assert {False: verdict != "public", True: verdict == "forbidden"} == found


@pytest.mark.parametrize("public", ["8.8.8.8", "2606:4700::1111", "100.128.0.1", "172.32.0.1"])
def test_public_addresses_are_open(public: str) -> None:
    assert not any(ip_address(public) in network for network in DENIED[False])
