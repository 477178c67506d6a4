"""Notices that an Envoy which was started anew does not have all of the version that it should run.

Owns when Envoy is asked, which costs it a walk over its statistics: after its start, and while something is missing.
What is asked, and how it is mended, is `envoy_files.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable

from extproc.envoy_config.render import Rendered
from extproc.envoy_files import EnvoyFiles

_SLACK_S = 1.0


class EnvoyWatch:
    """The present Envoy as far as it was looked at; `refusal` has its words about what it does not run."""

    def __init__(self, files: EnvoyFiles, clock: Callable[[], float]) -> None:
        self._files = files
        self._clock = clock
        self._seen_at: float | None = None
        self.refusal: str | None = None

    async def look(self, live: Rendered, active: Rendered) -> None:
        """Look at an Envoy that may have started since, or that lacked something. Raises EnvoyAway."""
        uptime_s = await self._files.uptime_s()
        now = self._clock()
        # An Envoy tells whole seconds; one that has run for longer than that was there the last time.
        may_be_new = self._seen_at is None or uptime_s <= now - self._seen_at + _SLACK_S
        if may_be_new or self.refusal is not None:
            # Whoever is away now is looked at when he is back, however long he has run then.
            self._seen_at = None
            self.refusal = await self._files.refusal(live, active)
        self._seen_at = now
