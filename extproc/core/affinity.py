"""Keeps a session on one target, for prompt caches: its first request's, until another target serves.

A session is bound when a request of it is planned, as the next may come before Envoy tells who served this one. For the
same reason a request moves its session only while that is bound as it was when the request was planned: else requests
that follow each other closely would move it back and forth. Holds hashes of session values, never the values, and a
bounded number of them; a binding lapses when it was not used for its time to live.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extproc.config.snapshot import Affinity, TargetKey

LIMIT = 100_000


@dataclass(slots=True, eq=False)
class Binding:
    """A session's target until then, epoch seconds; another target is another binding."""

    key: TargetKey
    until: float


class AffinityTable:
    """Session -> target, least recently used out first."""

    def __init__(self) -> None:
        self._bindings: OrderedDict[bytes, Binding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bindings)

    def find(self, session: bytes, now: float) -> TargetKey | None:
        """Return the target a session is bound to."""
        found = self._live(session, now)
        return None if found is None else found.key

    def planned(self, session: bytes, key: TargetKey, now: float, ttl_s: float) -> Binding:
        """Return the binding of a session of which a request was planned; to `key` when it has none."""
        return self._live(session, now) or self._bind(session, key, now + ttl_s)

    def served(self, session: bytes, key: TargetKey, now: float, ttl_s: float, seen: Binding | None) -> None:
        """Keep a session on the target that served a request of it; `seen` is its binding when that was planned."""
        found = self._live(session, now)
        if found is not None and found.key == key:
            found.until = max(found.until, now + ttl_s)
            self._bindings.move_to_end(session)
        elif found is None or found is seen:
            self._bind(session, key, now + ttl_s)

    def _live(self, session: bytes, now: float) -> Binding | None:
        found = self._bindings.get(session)
        if found is not None and found.until <= now:
            del self._bindings[session]
            return None
        return found

    def _bind(self, session: bytes, key: TargetKey, until: float) -> Binding:
        made = self._bindings[session] = Binding(key, until)
        self._bindings.move_to_end(session)
        while len(self._bindings) > LIMIT:
            self._bindings.popitem(last=False)
        return made


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
