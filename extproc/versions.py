"""Where an instance learns which version it should run, and where it reports what became of it.

The seam between the agent and the config store: `configctl.store` implements it, tests use a list. Methods may block;
the agent calls them off its event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import orjson

Identity: TypeAlias = tuple[int, str]
"""Number and digest: a store that was restored or replaced may hold another content under a number that ran here."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A published version; `content` is canonical JSON, itself a loadable config file."""

    number: int
    digest: str
    content: str

    @property
    def identity(self) -> Identity:
        """What tells this version from others, those of another store included."""
        return self.number, self.digest


@dataclass(frozen=True, slots=True)
class Report:
    """What one instance says of itself with every heartbeat."""

    wanted: int | None
    applied: int | None
    """The version that runs here; None also where the wanted version has its number and another content."""
    refused: int | None = None
    error: str | None = None
    missing_keys: tuple[str, ...] = ()
    """Keys that cannot be used, and why, such as `openai (env OPENAI_API_KEY is not set)`; never a value."""


@dataclass(frozen=True, slots=True)
class HealthOrder:
    """What an operator asked of a target's or an account's health, carried out or refused, as the audit tells it."""

    id: str
    """Tells one order from the next, so that none is written twice."""
    at: float
    act: OrderAct
    actor: str
    named_by: Literal["certificate", "claim"]
    """Whether a certificate says who acts, or only the caller: on the Unix socket, whoever may open it."""
    subject: str
    reason: str
    expires_at: float | None
    refused: str | None
    """Why it was refused; None for one that was carried out."""


OrderAct: TypeAlias = Literal["health_drain", "health_down", "health_restore", "health_order"]
"""The last one is an order that names none of the three."""


class OrderLog(Protocol):
    """The audit as the admin API sees it."""

    def ordered(self, order: HealthOrder) -> None:
        """Write an order into the audit, once whatever the number of calls; OSError when it cannot be reached."""
        ...


class VersionArchive(Protocol):
    """The store as `explain` sees it."""

    def version(self, number: int) -> Wanted | None:
        """Return a version whatever became of it, None when there is none; OSError when it cannot be reached."""
        ...


class VersionSource(Protocol):
    """The store as the agent sees it; every method may raise OSError when the store cannot be reached."""

    def wanted(self) -> Wanted | None:
        """Return the version that every instance should run, None before the first publish."""
        ...

    def report(self, report: Report) -> None:
        """Record a heartbeat of this instance."""
        ...

    def applied(self, version: Identity) -> None:
        """Record that this instance runs a version, if the store has it."""
        ...

    def refused(self, version: Identity, reason: str) -> None:
        """Record that this instance refused a version, in Envoy's or the compiler's words, if the store has it."""
        ...

    def leave(self) -> None:
        """Say that this instance stops in good order; never raises."""
        ...


class InstanceStore(VersionSource, VersionArchive, OrderLog, Protocol):
    """All that a gateway has to do with the store."""


def read_last_good(path: Path) -> Wanted | None:
    """Return the version that last ran here, None when there is none to read."""
    try:
        saved = orjson.loads(path.read_bytes())
        return Wanted(int(saved["number"]), str(saved["digest"]), str(saved["content"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
