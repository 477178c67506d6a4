"""Notices that an Envoy which was started anew does not have all of the version that it should run.

Owns when Envoy is asked, which costs it a walk over its statistics: after its start, and while something is missing.
What is asked, and how it is mended, is `envoy_files.py`'s.
"""

from __future__ import annotations

from extproc.envoy_config.render import Rendered
from extproc.envoy_files import EnvoyFiles


class EnvoyWatch:
    """The present Envoy as far as it was looked at; `refusal` has its words about what it does not run."""

    def __init__(self, files: EnvoyFiles) -> None:
        self._files = files
        self._uptime_s: int | None = None
        self.refusal: str | None = None

    async def look(self, live: Rendered, active: Rendered) -> None:
        """Look at an Envoy that was started since, or that lacked something; not twice a second. Raises EnvoyAway."""
        uptime_s = await self._files.uptime_s()
        if self._uptime_s is None or uptime_s <= self._uptime_s or self.refusal is not None:
            # Whoever is away now is looked at when he is back, however long he has run then.
            self._uptime_s = None
            self.refusal = await self._files.refusal(live, active)
        self._uptime_s = uptime_s
