"""What one instance hears from its config store and tells it, whether the store is there or not.

Owns which version is wanted as far as known, verdicts that wait for a store that is away, and the word to the operator
about that. Invariant: a store that is away costs nothing but news; a verdict is told once, in order, late if need be.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from extproc.store_calls import StoreCalls
from extproc.versions import Identity, Report, VersionSource, Wanted

log = logging.getLogger(__name__)


class StoreLine:
    """The way to the store; `error` says why it could not be reached when it was last needed."""

    def __init__(self, source: VersionSource, on_wanted: Callable[[int], None]) -> None:
        self.wanted: Identity | None = None
        self.error: str | None = None
        self._source = source
        self._on_wanted = on_wanted
        self._calls = StoreCalls()
        self._untold: deque[Callable[[], None]] = deque()

    async def ask(self) -> Wanted | None:
        """Return the version that every instance should run; None when there is none or the store is away."""
        try:
            wanted = await self._calls.make(self._source.wanted)
        except OSError as error:
            self._is_away(error)
            return None
        self.error = None
        if wanted is not None and wanted.identity != self.wanted:
            self.wanted = wanted.identity
            self._on_wanted(wanted.number)
        return wanted

    async def report(self, report: Report) -> None:
        """Tell a heartbeat; one that nobody hears is not told again."""
        await self._tell(lambda: self._source.report(report))

    async def applied(self, version: Identity) -> None:
        """Tell that a version is live here, now or when the store is back: the history has it from nobody else."""
        await self._judge(lambda: self._source.applied(version))

    async def refused(self, version: Identity, reason: str) -> None:
        """Tell that a version is refused here, now or when the store is back."""
        await self._judge(lambda: self._source.refused(version, reason))

    async def catch_up(self) -> None:
        """Tell the verdicts that wait, while the store answers."""
        while self._untold and self.error is None and await self._tell(self._untold[0]):
            self._untold.popleft()

    async def leave(self) -> None:
        """Tell that this instance is gone."""
        with suppress(OSError):
            await self._calls.make(self._source.leave)

    async def _judge(self, verdict: Callable[[], None]) -> None:
        self._untold.append(verdict)
        await self.catch_up()

    async def _tell(self, call: Callable[[], None]) -> bool:
        try:
            await self._calls.make(call)
        except OSError as error:
            self._is_away(error)
            return False
        return True

    def _is_away(self, error: OSError) -> None:
        """Tell the operator once, whichever call finds it out."""
        if self.error is None:
            log.warning("the config store cannot be reached: %s", error)
        self.error = f"the config store cannot be reached: {error}"
