"""Keeps a session on the target that last served it, for prompt caches.

Holds hashes of session values, never the values, and a bounded number of them; a binding lapses when it was not used
for its time to live.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from extproc.config.snapshot import Affinity, TargetKey

LIMIT = 100_000


class AffinityTable:
    """Session -> target, least recently used out first."""

    def __init__(self) -> None:
        self._bindings: OrderedDict[bytes, tuple[TargetKey, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bindings)

    def find(self, session: bytes, now: float) -> TargetKey | None:
        """Return the target a session is bound to."""
        found = self._bindings.get(session)
        if found is None:
            return None
        if found[1] <= now:
            del self._bindings[session]
            return None
        return found[0]

    def bind(self, session: bytes, key: TargetKey, until: float) -> None:
        """Bind a session to the target that served it, until `until`."""
        self._bindings[session] = (key, until)
        self._bindings.move_to_end(session)
        while len(self._bindings) > LIMIT:
            self._bindings.popitem(last=False)


def session_of(
    affinity: Affinity | None, model: str, headers: Mapping[str, str], fields: Mapping[str, Any]
) -> bytes | None:
    """Return what stands for a request's session, None when it names none."""
    if affinity is None:
        return None
    value = headers.get(affinity.header) if affinity.header else fields.get(affinity.body or "")
    if not isinstance(value, str) or not value:
        return None
    return hashlib.blake2b(f"{model}\n{value}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
