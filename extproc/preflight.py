"""What is checked and claimed before anything listens, so that a gateway that cannot work says so at once.

Owns the checks on config, addresses and ports; the data directory and Envoy's binary check themselves. Every
fault is a StartError, or ConfigErrors with all faults of the config file.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from extproc.config.compile import compile_snapshot
from extproc.config.load import parse_config_file
from extproc.config.snapshot import Snapshot
from extproc.data_dir import DataDir
from extproc.handover import Claimed
from extproc.settings import Address, ServeSettings, StartError


@contextmanager
def claim(
    settings: ServeSettings, prepare: Callable[[DataDir], Snapshot], holder: int
) -> Iterator[tuple[Claimed, int]]:
    """Check everything, make the store ready and choose the ports; gives the lock's descriptor too, held meanwhile.

    `prepare` makes the store ready, under the lock of the data directory, and returns the version about to run; the
    lock names `holder` to a second gateway. Raises StartError or ConfigErrors.
    """
    doors = (settings.listen, settings.metrics_listen)
    if settings.config is not None:
        # Before anything is written: a bad file leaves no trace.
        refuse_open_door(load_snapshot(settings.config), doors)
    data_dir = DataDir(settings.data_dir)
    data_dir.create()
    with data_dir.lock_exclusive(holder) as lock:
        snapshot = prepare(data_dir)
        refuse_open_door(snapshot, doors)
        listen = claim_port(settings.listen, "--listen")
        metrics = claim_port(settings.metrics_listen, "--metrics-listen")
        if listen == metrics:
            raise StartError(f"--listen and --metrics-listen both name {listen}: give each its own port.")
        admin = _claim_admin_port(settings, (listen, metrics))
        yield Claimed(listen, metrics, admin, "https" if snapshot.server.tls_cert_file else "http"), lock


def load_snapshot(config: Path) -> Snapshot:
    """Load and compile the config file as version 1; raises ConfigErrors with every fault."""
    return compile_snapshot(parse_config_file(config), version=1)


def refuse_open_door(snapshot: Snapshot, addresses: Iterable[Address]) -> None:
    """Refuse to listen where other machines reach us while no client needs a token."""
    if snapshot.clients is not None:
        return
    for address in addresses:
        if not address.is_loopback:
            raise StartError(
                f"Refusing to listen on {address}: other machines can reach it and no client needs a token, "
                "so anybody could spend your provider keys. Add a clients section, or listen on loopback."
            )


def claim_port(address: Address, flag: str) -> Address:
    """Check that `address` can be listened on and return it, with a port chosen for port 0.

    `flag` is the option to name in the refusal.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As Envoy's listeners do: connections of an earlier run that linger in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise StartError(_why_not(address, flag, error)) from None
        return Address(address.host, probe.getsockname()[1])


def _claim_admin_port(settings: ServeSettings, taken: tuple[Address, ...]) -> Address | None:
    if settings.admin is None:
        return None
    address = claim_port(settings.admin.address, "--admin-listen")
    if address in taken:
        raise StartError(f"--admin-listen names {address} as another option does: give each its own port.")
    return address


def _why_not(address: Address, flag: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"The address {address} is in use, perhaps by another gateway or an Envoy that was left running: "
            f"stop that program, or choose another address with {flag}."
        )
    return f"Cannot listen on {address}: {error.strerror}. Choose another address with {flag}."
