"""What one run of `extproc` was asked to do, as frozen values, and the refusal that ends it.

Owns the settings of each verb and how an address is written. Reading argv and the environment is `cli`'s;
nothing below it looks at `os.environ`. Durations are float seconds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

STORE_ENV = "GATEWAY_STORE"
"""URL of the config store; the default is `store.db` in the data directory."""
SUPERVISED_ENV = "GATEWAY_SUPERVISED"
"""Set to `1` for a child of `extproc up`: the parent holds the lock, and the child ends with the parent."""
HANDOVER_ENV = "GATEWAY_HANDOVER"
"""Number of the descriptor on which `extproc up` waits for what its first `serve` claimed."""

Transport = Literal["fast", "grpcio"]
"""What serves Envoy's streams: our own HTTP/2 on asyncio, or grpcio."""


class StartError(Exception):
    """The run cannot start or go on; the message is a whole sentence for the operator, the exit code is 1."""


class Address(NamedTuple):
    """A TCP address to listen on; `host` is always an IP address, as Envoy's listeners need."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def reachable(self) -> Address:
        """The address a local caller connects to: loopback in place of a wildcard."""
        if not ipaddress.ip_address(self.host).is_unspecified:
            return self
        return Address("::1" if ":" in self.host else "127.0.0.1", self.port)


@dataclass(frozen=True, slots=True)
class AdminListen:
    """Where the admin API listens over TCP, by which certificate, and whose certificates it takes."""

    address: Address
    cert: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class UpSettings:
    """`extproc up`: the whole local gateway."""

    config: Path | None
    data_dir: Path
    listen: Address
    metrics_listen: Address
    envoy: str | None
    """What `--envoy` said; None leaves the choice to `find_envoy`."""
    concurrency: int
    drain_s: float
    environ: Mapping[str, str]
    store: str
    """URL of the config store."""
    transport: Transport = "fast"
    admin: AdminListen | None = None
    """None: the admin API is on its Unix socket only."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """`extproc serve`: the gRPC services and the files Envoy reads."""

    config: Path | None
    data_dir: Path
    listen: Address
    metrics_listen: Address
    envoy: str | None
    environ: Mapping[str, str]
    store: str
    supervised: bool
    """Whether `extproc up` is the parent: it holds the lock, and its end is ours."""
    transport: Transport = "fast"
    admin: AdminListen | None = None


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """`extproc render`: files for an Envoy that somebody else runs."""

    config: Path
    out: Path
    data_dir: Path
    listen: Address
    metrics_listen: Address
    environ: Mapping[str, str]


def parse_address(text: str) -> Address:
    """Read `HOST:PORT`, where HOST is an IP address (IPv6 in brackets) or `localhost`.

    Raises ValueError with a sentence. Port 0 means any free port.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address: write HOST:PORT, for example 127.0.0.1:18080.")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare == "localhost":
        return Address("127.0.0.1", int(port))
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address; Envoy listens on addresses, not names.") from None
    if ip.version == 6 and bare == host:
        raise ValueError(f"{text!r} is ambiguous: write an IPv6 address in brackets, for example [::1]:18080.")
    return Address(bare, int(port))
