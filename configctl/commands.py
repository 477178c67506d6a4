"""What the verbs that only look do, one typed function per verb; `changes.py` has those that change something.

Leaves argv and printing to `cli.py`. The compiler and what previews need are imported when they are needed: most verbs
only read the store. Every function takes an open store and may raise StoreError, ConfigErrors or Refusal.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configctl.diff import Change, diff_contents
from configctl.refusals import Refusal
from extproc.config.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from configctl.history import Broken
    from configctl.preview import Health, Preview
    from configctl.records import AuditEntry, Instance, Version
    from configctl.store import Store
    from extproc.config.snapshot import Snapshot

STDIN = "-"
_STDIN_NAME = "stdin"
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Checked:
    """A config that the service's own loader and compiler accept."""

    source: str
    content: bytes
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Status:
    """The wanted version and every instance heard of within a day."""

    active: Version | None
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """What `audit verify` found; `broken` is empty for a whole history."""

    entries: int
    versions: int
    head: str | None
    """The last entry's hash: written down elsewhere, it proves the whole history up to here."""
    broken: tuple[Broken, ...]


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A fresh client token and the digest the config holds; the token itself is kept nowhere."""

    token: str
    token_sha256: str


def validate(source: str, *, version: int = 1) -> Checked:
    """Load and compile a file, or stdin for `-`; ConfigErrors holds everything that is wrong."""
    from extproc.config.compile import canonical_json, compile_snapshot
    from extproc.config.load import load_config, parse_config_file

    if source == STDIN:
        try:
            config = load_config(sys.stdin.buffer.read().decode("utf-8-sig"), _STDIN_NAME)
        except UnicodeDecodeError:
            raise ConfigErrors([ConfigError("", _STDIN_NAME, "is not UTF-8 text; send it as UTF-8")]) from None
    else:
        config = parse_config_file(Path(source))
    return Checked(source, canonical_json(config), compile_snapshot(config, version))


def compile_version(version: Version) -> Snapshot:
    """Compile a stored version with the compiler of today; ConfigErrors when that refuses it, or it was changed."""
    from extproc.config.stored import compile_stored

    return compile_stored(version.number, version.digest, version.content.decode())


def diff(store: Store, first: str | None, second: str | None) -> tuple[Change, ...]:
    """Compare two sides; one side is compared with the active version, none shows the active version's own change."""
    if first is None:
        active = store.active()
        parent = store.version(active.parent) if active is not None and active.parent is not None else None
        return diff_contents(_content(parent), _content(active))
    if second is None:
        return diff_contents(_content(store.active()), _side(store, first))
    return diff_contents(_side(store, first), _side(store, second))


def readable(version: Version) -> Version:
    """Return a version whose content can be compared and shown; raises Refusal."""
    try:
        _ = version.config
    except ValueError:
        raise Refusal(
            f"Version {version.number} was changed, its content cannot be read: "
            "`configctl audit verify` names all that was."
        ) from None
    return version


def preview(store: Store, source: str, health: Health | None = None) -> Preview:
    """Say what publishing a file would bring about."""
    from configctl.preview import preview_snapshot

    active = store.active()
    checked = validate(source, version=active.number + 1 if active else 1)
    return preview_snapshot(compile_version(active) if active else None, checked.snapshot, health)


def show(store: Store, number: int) -> Version:
    """Return one version."""
    version = store.version(number)
    if version is None:
        raise Refusal(f"There is no version {number}: see `configctl history`.")
    return readable(version)


def current(store: Store) -> Version:
    """Return the active version."""
    version = store.active()
    if version is None:
        raise Refusal("No version is published yet: publish one with `configctl publish FILE -m MESSAGE`.")
    return version


def status(store: Store, now: float) -> Status:
    """Return what is wanted and what every instance makes of it."""
    return Status(store.active(), store.instances(now))


def audit(store: Store, limit: int) -> tuple[AuditEntry, ...]:
    """Return the newest audit entries, newest first."""
    return store.audit_entries(limit)


def verify_audit(store: Store) -> Verified:
    """Recompute the chain and every version's digest."""
    broken = store.verify()
    held = store.tally()
    return Verified(held.entries, held.versions, held.head, broken)


def new_key() -> ClientKey:
    """Return a fresh client token with its digest."""
    token = f"gw-{secrets.token_urlsafe(_TOKEN_BYTES)}"
    return ClientKey(token, hash_key(token))


def hash_key(token: str) -> str:
    """Return what the config holds in a token's place."""
    return hashlib.sha256(token.strip().encode()).hexdigest()


def _side(store: Store, text: str) -> bytes:
    """Return the content of a version number, a file or stdin."""
    if text.isascii() and text.isdecimal():
        return show(store, int(text)).content
    return validate(text).content


def _content(version: Version | None) -> bytes | None:
    return readable(version).content if version is not None else None
