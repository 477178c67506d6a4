"""Loopback ports that stay ours, also while nothing listens on them and other test processes pick theirs.

Owns the choice and its reservation: one record lock a port in a file that all test processes of this user
share, given back by the kernel when the process ends. Ports lie below Linux's ephemeral range, so that no
outgoing connection of a load test can take the port of a provider that is stopped for a moment.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
import threading
from pathlib import Path

FIRST_PORT, LAST_PORT = 20_000, 31_999
_mutex = threading.Lock()
_held: set[int] = set()
_lock_fds: list[int] = []  # opened once: closing any descriptor of the file would drop every lock


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is unused now and reserved for this process until it ends."""
    with _mutex:
        for port in random.SystemRandom().sample(range(FIRST_PORT, LAST_PORT + 1), k=LAST_PORT - FIRST_PORT + 1):
            if port not in _held and _lock(port):
                if _unused(port):
                    _held.add(port)
                    return port
                _unlock(port)
    raise OSError(f"no free port between {FIRST_PORT} and {LAST_PORT}")


def release_port(port: int) -> None:
    """Give a port from `free_port` back before the process ends."""
    with _mutex:
        if port in _held:
            _held.discard(port)
            _unlock(port)


def _lock_fd() -> int:
    if not _lock_fds:
        path = Path(tempfile.gettempdir()) / f"gateway-test-ports-{os.getuid()}.lock"
        _lock_fds.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return _lock_fds[0]


def _lock(port: int) -> bool:
    try:
        fcntl.lockf(_lock_fd(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _unlock(port: int) -> None:
    fcntl.lockf(_lock_fd(), fcntl.LOCK_UN, 1, port)


def _unused(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
