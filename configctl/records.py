"""What the store holds and what its acts answer, as frozen values.

Owns the types and the canonical JSON they are written and hashed in. How one follows another is `history.py`'s, where
they are kept is `store.py`'s. Times are epoch seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import orjson

Kind: TypeAlias = Literal["publish", "rollback"]
Outcome: TypeAlias = Literal["pending", "applied", "failed"]
Act: TypeAlias = Literal[
    "publish",
    "rollback",
    "return",
    "applied",
    "failed",
    "health_drain",
    "health_down",
    "health_restore",
    "health_order",
]
"""What an audit entry tells: the operator's two acts on versions, the way back after a refusal, the gateways' two
verdicts, and orders about health (the last one: an order that names none of the three, refused)."""

LIVE_WITHIN_S = 10.0
"""An instance is live while its last heartbeat is younger than this."""
EMPTY = 0
"""The number to expect where no version is active yet."""
_LEVELS = 32
"""Deeper than any config, and far from where writing JSON or YAML comes to its end."""


@dataclass(frozen=True, slots=True)
class Version:
    """One published version; nothing of it but its outcome ever changes."""

    number: int
    parent: int | None
    """The version that was active when this one was published."""
    digest: str
    content: bytes
    """The canonical JSON, itself a config file."""
    author: str
    message: str
    created_at: float
    kind: Kind
    rollback_of: int | None
    """For a rollback: the old version whose content this one has."""
    outcome: Outcome = "pending"
    outcome_reason: str | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """The content as a mapping, of whatever shape; ValueError when somebody broke it."""
        return _mapping(self.content)

    @property
    def is_as_published(self) -> bool:
        """Whether the content has the digest it was published with."""
        return hashlib.sha256(self.content).hexdigest() == self.digest


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One link of the audit chain; `hash` covers every other field."""

    seq: int
    at: float
    actor: str
    act: str
    version: int | None
    detail: str
    """Canonical JSON, kept as text so that the hash covers every byte of it."""
    refused: int
    """1 for an act that was refused, else 0."""
    prev_hash: str
    hash: str

    @property
    def details(self) -> Mapping[str, Any]:
        """The detail as a mapping; ValueError when somebody broke it."""
        return _mapping(self.detail)


@dataclass(frozen=True, slots=True)
class Instance:
    """One gateway as it last reported itself.

    `error` is set when, and only when, the instance refused the version it `wanted`; `applied` is what it serves.
    """

    id: str
    hostname: str
    pid: int
    wanted: int | None
    applied: int | None
    since: float
    """When `applied` became what it is."""
    heartbeat_at: float
    error: str | None
    missing_keys: tuple[str, ...]
    """Key references that lead nowhere, such as `openai (env OPENAI_API_KEY)`."""

    def is_live(self, now: float) -> bool:
        """Tell whether the last heartbeat is young enough to wait for this instance."""
        return now - self.heartbeat_at < LIVE_WITHIN_S


@dataclass(frozen=True, slots=True)
class Published:
    """A new version is active."""

    version: Version


@dataclass(frozen=True, slots=True)
class NothingToPublish:
    """The content is the active version's, which did not fail."""

    active: Version


@dataclass(frozen=True, slots=True)
class Conflict:
    """The active version is not the expected one; `active` is None where there is none."""

    expected: int
    active: Version | None


@dataclass(frozen=True, slots=True)
class Returned:
    """The wanted version went back from `number` to `to`; None where there is nothing to go back to."""

    number: int
    to: Version | None


@dataclass(frozen=True, slots=True)
class Changed:
    """The version to go back to is not what was published: somebody changed it in the store."""

    number: int


@dataclass(frozen=True, slots=True)
class NoSuchVersion:
    """There is no version to go back to; `number` is what was asked for, None for "the one before"."""

    number: int | None


def canonical(value: object) -> bytes:
    """Write plain data as compact JSON with sorted keys."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _mapping(text: str | bytes) -> Mapping[str, Any]:
    value = orjson.loads(text)
    if not isinstance(value, dict) or not _ends_within(_LEVELS, value):
        raise ValueError("is not a JSON object that somebody can read")
    return value


def _ends_within(levels: int, value: object) -> bool:
    if not isinstance(value, dict | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_ends_within(levels - 1, item) for item in items)
