"""How the first `serve` of a gateway hands what it claimed to its supervisor: one message, with the lock in it.

The first `serve` checks and claims because it has the config's model and the database in its process anyway; a
supervisor without them starts in half the time and takes half the memory. Owns the message. Invariant: the lock is the
supervisor's from the moment it has the message, whatever becomes of `serve`, because a lock of flock(2) belongs to all
who hold its open file.
"""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass

from extproc.settings import Address, StartError

_LIMIT_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a gateway may use: its addresses, with ports chosen, and how clients speak to it."""

    listen: Address
    metrics: Address
    admin: Address | None
    scheme: str


def hand_over(descriptor: int, claimed: Claimed, lock: int) -> None:
    """Send the message; StartError when the supervisor is gone."""
    addresses = {"listen": claimed.listen, "metrics": claimed.metrics, "admin": claimed.admin}
    message = json.dumps(addresses | {"scheme": claimed.scheme}).encode()
    with socket.socket(fileno=descriptor) as channel:
        try:
            socket.send_fds(channel, [message], [lock])
        except OSError as error:
            raise StartError(f"The supervisor has ended: {error.strerror}.") from None


async def take_over(channel: socket.socket) -> tuple[Claimed, int] | None:
    """Wait for the message and return it with the lock's descriptor; None when `serve` ended without one."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(channel, arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(channel)
    message, locks, _, _ = socket.recv_fds(channel, _LIMIT_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    if not message or not locks:
        return None
    told = json.loads(message)
    admin = Address(*told["admin"]) if told["admin"] else None
    return Claimed(Address(*told["listen"]), Address(*told["metrics"]), admin, told["scheme"]), locks[0]
