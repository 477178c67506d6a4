"""The retry budget: how many attempts may pile onto a provider that just failed.

Counts in buckets of one second over the last ten. Pure: time comes in as a value. It covers same-target tries and
second tries at the same provider account; the first move to another account is never asked about, and what Envoy must
try on its way there is counted without being asked about.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 10
FLOOR_PER_S = 3


class RetryBudget:
    """A share of recent requests, never below `FLOOR_PER_S` a second."""

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque()
        self._requests = 0
        self._spent = 0

    def request(self, now: float) -> None:
        """Count a request of a caller."""
        self._bucket(now)[1] += 1
        self._requests += 1

    def take(self, share: float, now: float) -> bool:
        """Take one try out of the budget; False when nothing is left."""
        bucket = self._bucket(now)
        if self._spent >= max(FLOOR_PER_S * WINDOW_S, share * self._requests):
            return False
        bucket[2] += 1
        self._spent += 1
        return True

    def overdraw(self, now: float) -> None:
        """Count a try that nobody may refuse: those that may be refused have to make up for it."""
        self._bucket(now)[2] += 1
        self._spent += 1

    def _bucket(self, now: float) -> list[int]:
        second = int(now)
        while self._buckets and self._buckets[0][0] <= second - WINDOW_S:
            _, requests, spent = self._buckets.popleft()
            self._requests -= requests
            self._spent -= spent
        if not self._buckets or self._buckets[-1][0] < second:
            self._buckets.append([second, 0, 0])
        return self._buckets[-1]
