"""How many attempts each provider account has under way, and which accounts are at their limit.

Pure counting, on the path of every attempt. It steers the planner away from a full account; it refuses nobody: Envoy
ends a request that overflows its circuit breaker without another try, so the next target must be chosen before that.
"""

from __future__ import annotations

from collections.abc import Iterable

from extproc.config.snapshot import Provider


class InFlight:
    """Attempts under way by provider account; `full` names the accounts that have as many as they may."""

    def __init__(self) -> None:
        self.full: set[str] = set()
        self._counts: dict[str, int] = {}
        self._limits: dict[str, int] = {}

    def bound(self, providers: Iterable[Provider]) -> None:
        """Take over the limits of a version: connections, and requests that may wait for one."""
        self._limits = {one.name: one.max_connections + one.max_pending for one in providers}
        self.full = {name for name, count in self._counts.items() if self._is_full(name, count)}

    def begin(self, provider: str) -> None:
        """Count an attempt that starts."""
        count = self._counts[provider] = self._counts.get(provider, 0) + 1
        if self._is_full(provider, count):
            self.full.add(provider)

    def end(self, provider: str) -> None:
        """Count an attempt no longer; to be called once for each `begin`."""
        count = self._counts[provider] - 1
        if count:
            self._counts[provider] = count
        else:
            del self._counts[provider]
        if provider in self.full and not self._is_full(provider, count):
            self.full.remove(provider)

    def count(self, provider: str) -> int:
        """Return how many attempts an account has under way."""
        return self._counts.get(provider, 0)

    def _is_full(self, provider: str, count: int) -> bool:
        limit = self._limits.get(provider)
        return limit is not None and count >= limit
