"""A provider's base URL: its parts, and whether its literal host may be contacted.

Owns the SSRF rules that need no DNS, and the address lists that the connect-time rules in Envoy are made
of. Leaves names to DNS: what they resolve to is judged when Envoy connects.
Invariant: `str(parse_base_url(text))` is normal: equal places give equal text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

Verdict = Literal["public", "private", "forbidden"]
_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

FORBIDDEN_NETWORKS = (
    "0.0.0.0/8",  # unspecified
    "169.254.0.0/16",  # link-local, cloud metadata
    "100.100.100.200/32",  # cloud metadata
    "168.63.129.16/32",  # cloud metadata
    "192.0.0.192/32",  # cloud metadata
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
    "::/128",  # unspecified
    "fe80::/10",  # link-local
    "ff00::/8",  # multicast
    "fd00:ec2::254/128",  # cloud metadata
    "fd20:ce::254/128",  # cloud metadata
)
PRIVATE_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",  # carrier-grade NAT
    "::1/128",
    "fc00::/7",  # unique local
    "fec0::/10",  # site-local, deprecated
)
_FORBIDDEN_NAMES = ("metadata.google.internal", "metadata.goog", "metadata", "instance-data")
_PRIVATE_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*", re.ASCII)
_DEFAULT_PORT: dict[str, int] = {"http": 80, "https": 443}
_EMBEDDING_TEXTS = (("64:ff9b::/96", 0), ("::/96", 0), ("2002::/16", 80))
_EMBEDDING = tuple((ip_network(net), shift) for net, shift in _EMBEDDING_TEXTS)


class BaseUrl(NamedTuple):
    """The parts of a base URL; `host` is lower case and an IPv6 address stands without brackets."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path_prefix: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORT[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path_prefix}"


def parse_base_url(text: str) -> BaseUrl:
    """Take a base URL apart; ValueError says what to write, without the URL: it may hold a password."""
    if any(char.isspace() or not char.isprintable() or char == "\\" for char in text):
        raise ValueError("must be a URL without spaces, backslashes or control characters")
    if "?" in text:
        raise ValueError("must not have a query; put parameters under `query`")
    if "#" in text:
        raise ValueError("must not have a fragment; remove the # and what follows")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("must be a URL such as https://api.example.com/v1") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("must start with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password; use api_key")
    if not parts.hostname or port == 0 or parts.netloc.endswith(":"):
        raise ValueError("must name a host and, if any, a port from 1 to 65535: https://api.example.com:8443/v1")
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    host = _parse_host(parts.hostname, bracketed="[" in parts.netloc)
    return BaseUrl(scheme, host, port or _DEFAULT_PORT[scheme], _parse_prefix(parts.path))


def judge_host(host: str) -> Verdict:
    """Say whether a literal host may be contacted always, on private networks only, or never."""
    address = _address(host)
    if address is not None:
        return _judge_address(address)
    if host in _FORBIDDEN_NAMES:
        return "forbidden"
    return "private" if host in _PRIVATE_NAMES or host.endswith(".localhost") else "public"


@cache
def denied_networks(*, allow_private: bool) -> tuple[str, ...]:
    """Return every network that no connection may go to, whatever DNS says; IPv6 forms of IPv4 networks included."""
    plain = FORBIDDEN_NETWORKS if allow_private else FORBIDDEN_NETWORKS + PRIVATE_NETWORKS
    return plain + tuple(form for text in plain if ":" not in text for form in _embedded_forms(IPv4Network(text)))


def _embedded_forms(network: IPv4Network) -> Iterator[str]:
    """Yield the IPv6 networks whose traffic goes to an IPv4 network: mapped, NAT64, compatible, 6to4."""
    address, length = int(network.network_address), network.prefixlen
    for text, shift in (("::ffff:0:0/96", 0), *_EMBEDDING_TEXTS):
        outer = IPv6Network(text)
        # Not the compatible form of 0.0.0.0/8: it would hold ::1, which is loopback and has its own line.
        if int(outer.network_address) or address:
            yield str(IPv6Network((int(outer.network_address) | address << shift, outer.prefixlen + length)))


def _parse_host(host: str, *, bracketed: bool) -> str:
    host = host.lower()
    if bracketed or ":" in host:
        address = _address(host)
        if not bracketed or not isinstance(address, IPv6Address) or address.scope_id:
            raise ValueError("must have an IPv6 address in brackets without a zone: http://[2001:db8::1]:8080")
        host = str(address)
    else:
        labels = host.split(".")
        if _NUMBER_LABEL.fullmatch(labels[-1]):
            if _address(host) is None:
                raise ValueError("must have an IPv4 address as four plain decimal numbers: 203.0.113.7")
        elif len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
            raise ValueError("must have a host of letters, digits, dots and dashes (other scripts as xn--)")
    if judge_host(host) == "forbidden":
        raise ValueError("names a link-local, metadata, multicast or unspecified address, which is refused always")
    return host


def _parse_prefix(path: str) -> str:
    prefix = path[:-1] if path.endswith("/") else path
    if not _PATH.fullmatch(prefix) or any(
        step in (".", "..") for step in prefix.lower().replace("%2e", ".").split("/")
    ):
        raise ValueError("must have a plain path such as /v1, without empty, `.` or `..` parts")
    return prefix


def _address(host: str) -> _Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _judge_address(address: _Address) -> Verdict:
    if _within(address, FORBIDDEN_NETWORKS):
        return "forbidden"
    if _within(address, PRIVATE_NETWORKS):
        return "private"
    inner = _embedded(address)
    return "public" if inner is None else _judge_address(inner)


def _within(address: _Address, networks: tuple[str, ...]) -> bool:
    return any(address in network for network in _parsed(networks))


@cache
def _parsed(networks: tuple[str, ...]) -> tuple[_Network, ...]:
    return tuple(map(ip_network, networks))


def _embedded(address: _Address) -> IPv4Address | None:
    """Return the IPv4 address that traffic to an IPv6 address really goes to, if any."""
    if isinstance(address, IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    for network, shift in _EMBEDDING:
        if address in network:
            return IPv4Address((int(address) >> shift) & 0xFFFFFFFF)
    return None
