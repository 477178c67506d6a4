"""A tiny DNS server on loopback, and an Envoy that asks it: tests decide what a provider's name resolves to.

Owns: A and AAAA answers over UDP for the names it was told; every other question gets an empty answer.
Leaves to others: everything DNS can do beyond that. No file of the machine is touched: Envoy is started through a
script that merges the resolver's address into its bootstrap.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from extproc.envoy_binary import find_envoy

_A, _AAAA = 1, 28
_TTL_S = 1


class Names:
    """Answers questions for `hosts` (name -> address) until closed; a context manager."""

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self.hosts = dict(hosts)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5)
        self._socket.close()

    def envoy(self, folder: Path) -> Path:
        """Write and return a script that is Envoy with this server as its resolver."""
        resolver = {"socket_address": {"address": "127.0.0.1", "port_value": self.port, "protocol": "UDP"}}
        cares: dict[str, Any] = {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [resolver],
        }
        extra = {"typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": cares}}
        script = folder / "envoy"
        script.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --version) exec {find_envoy(None, os.environ)} "$@";; esac\n'
            f"exec {find_envoy(None, os.environ)} \"$@\" --config-yaml '{json.dumps(extra)}'\n"
        )
        script.chmod(0o755)
        return script

    def _serve(self) -> None:
        while True:
            question, peer = self._socket.recvfrom(4096)
            if not question:
                return
            self._socket.sendto(answer(question, self.hosts), peer)


def answer(question: bytes, hosts: Mapping[str, str]) -> bytes:
    """Return the reply to one query of one question."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    kind = struct.unpack_from("!H", question, at + 1)[0]
    asked = question[12 : at + 5]
    text = hosts.get(".".join(labels).lower())
    address = ipaddress.ip_address(text) if text else None
    fits = address is not None and kind == (_A if address.version == 4 else _AAAA)
    record = b""
    if fits and address is not None:
        record = struct.pack("!HHHIH", 0xC00C, kind, 1, _TTL_S, len(address.packed)) + address.packed
    return question[:2] + struct.pack("!HHHHH", 0x8580, 1, int(fits), 0, 0) + asked + record
