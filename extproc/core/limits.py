"""What each client may ask of this instance: requests a minute, and requests at one time.

Pure: time comes in as a value. A bucket holds one minute's allowance and fills by passed time, so a client may send its
minute's requests at once and then has to wait. The number under way is told by the caller, who knows the requests.

Envoy tells of a request's end a moment after the client has its answer, so a request beyond the limit may wait for that
moment: as many of a client as it may have under way, with so many bytes of all clients together.
"""

from __future__ import annotations

import math
from collections import Counter

from extproc.config.snapshot import Client
from extproc.core.errors import GatewayError

MINUTE_S = 60.0
BUSY_RETRY_AFTER_S = 1
PLACE_WAIT_S = 0.15
"""Envoy tells of an end within 50 ms (`buffer_flush_interval`); a busy machine takes longer."""
WAITING_LIMIT_BYTES = 64 * 1024 * 1024


class ClientLimits:
    """The buckets of all clients, by name."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}
        self._under_way: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._waiting_bytes = 0

    def take(self, client: Client, now: float) -> GatewayError | None:
        """Take one request out of a client's minute; the refusal says when the next one fits."""
        rate = client.requests_per_minute
        if rate is None:
            return None
        left, at = self._buckets.get(client.name, (float(rate), now))
        left = min(float(rate), left + max(0.0, now - at) * rate / MINUTE_S)
        # Sums of floats fall a hair short of what they stand for; a caller who waited as told must fit.
        if left < 1.0 - 1e-9:
            self._buckets[client.name] = (left, max(at, now))
            wait_s = math.ceil((1.0 - left) * MINUTE_S / rate)
            return _refusal(f"This client may send {rate} requests a minute; try again shortly.", wait_s)
        self._buckets[client.name] = (max(0.0, left - 1.0), max(at, now))
        return None

    def busy(self, client: Client) -> GatewayError | None:
        """Refuse a request of a client that has as many under way as it may."""
        limit = client.concurrent_requests
        if limit is None or self.under_way(client.name) < limit:
            return None
        return _refusal(f"This client may have {limit} requests under way at one time.", BUSY_RETRY_AFTER_S)

    def wait(self, client: Client, size_bytes: int) -> bool:
        """Let a request with a body of that size wait for a place, if there is room; `waited` ends it."""
        if self._waiting[client.name] >= (client.concurrent_requests or 0):
            return False
        if self._waiting_bytes + size_bytes > WAITING_LIMIT_BYTES:
            return False
        self._waiting[client.name] += 1
        self._waiting_bytes += size_bytes
        return True

    def waited(self, client: Client, size_bytes: int) -> None:
        """Take note that a request waits no longer; to be called once for each `wait` that was granted."""
        self._waiting_bytes -= size_bytes
        self._waiting[client.name] -= 1
        if not self._waiting[client.name]:
            del self._waiting[client.name]

    def begin(self, client: str) -> None:
        """Count a request that is under way from now on."""
        self._under_way[client] += 1

    def end(self, client: str) -> None:
        """Count a request no longer."""
        self._under_way[client] -= 1
        if self._under_way[client] <= 0:
            del self._under_way[client]

    def under_way(self, client: str) -> int:
        """Return how many requests of a client are under way."""
        return self._under_way.get(client, 0)


def _refusal(message: str, wait_s: int) -> GatewayError:
    return GatewayError("client_rate_limited", message, None, (("retry-after", str(max(1, wait_s))),))
