"""The config store as a gateway instance sees it; implements `extproc.versions.InstanceStore`.

Owns the translation of the store's faults to OSError and the identity of the instance; everything else is the store's.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from configctl.records import EMPTY, Published, Version
from configctl.refusals import StoreError
from extproc.config.compile import canonical_json, compile_snapshot, digest
from extproc.config.errors import ConfigErrors
from extproc.config.load import parse_config_file
from extproc.config.model import GatewayConfig
from extproc.config.snapshot import Snapshot
from extproc.config.stored import compile_stored
from extproc.settings import StartError
from extproc.versions import HealthOrder, Identity, Report, Wanted, read_last_good

if TYPE_CHECKING:
    from configctl.store import Store


class StoreSource:
    """One instance's view of a store; `instance` names it in `configctl status`.

    The store is opened when it is first needed, so that a gateway starts without it.
    """

    def __init__(self, url: str, instance: str) -> None:
        self._url = url
        self._instance = instance
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._last: Wanted | None = None

    def wanted(self) -> Wanted | None:
        """Return the version that every instance should run."""
        with self._open() as store:
            active = store.active_identity()
            if active is None:
                return None
            if self._last is None or self._last.identity != active:
                self._last = _wanted(store.version(active[0]))
            return self._last

    def version(self, number: int) -> Wanted | None:
        """Return a version whatever became of it."""
        with self._open() as store:
            return _wanted(store.version(number))

    def report(self, report: Report) -> None:
        """Record a heartbeat."""
        refused = report.error if report.refused is not None and report.refused == report.wanted else None
        with self._open() as store:
            store.report(
                self._instance,
                hostname=socket.gethostname(),
                pid=os.getpid(),
                wanted=report.wanted,
                applied=report.applied,
                error=refused,
                missing_keys=report.missing_keys,
                now=store.now(),
            )

    def applied(self, version: Identity) -> None:
        """Record that this instance runs a version, if the store has it."""
        self._mark(version, "applied", None)

    def refused(self, version: Identity, reason: str) -> None:
        """Record that this instance refused a version, if the store has it."""
        self._mark(version, "failed", reason)

    def _mark(self, version: Identity, outcome: Literal["applied", "failed"], reason: str | None) -> None:
        number, own = version
        with self._open() as store:
            held = store.version(number)
            # The verdict may be on a version of the store that was here before this one.
            if held is not None and held.digest == own:
                store.mark_outcome(number, outcome, reason, actor=self._instance, now=time.time())

    def ordered(self, order: HealthOrder) -> None:
        """Write an operator's order about this instance's health into the audit."""
        detail = {
            "gateway": self._instance,
            "named_by": order.named_by,
            "subject": order.subject,
            "message": order.reason or None,
            "expires_at": _iso(order.expires_at),
            "outcome": "done" if order.refused is None else "refused",
            "reason": order.refused,
        }
        with self._open() as store:
            refused = order.refused is not None
            store.record(order.act, order.actor, detail, order.at, refused=refused, own_id=order.id)

    def leave(self) -> None:
        """Take this instance off the list: it stops in good order."""
        with suppress(OSError), self._open() as store:
            try:
                store.leave(self._instance)
            finally:
                store.close()

    @contextmanager
    def _open(self) -> Iterator[Store]:
        # Here and not above: a gateway that restarts under traffic serves first and opens its store then.
        from configctl.store import Store

        try:
            with self._opening:
                if self._store is None:
                    _refuse_missing(self._url)
                    self._store = Store.open(self._url)
                store = self._store
            yield store
        except StoreError as error:
            raise OSError(str(error)) from None


def prepare(url: str, config: Path | None, last_good: Path, author: str) -> tuple[Snapshot, str | None]:
    """Return what an instance is about to run, and a note for the operator.

    A config file goes into an empty store as version 1; one that differs from the active version is only reported.
    Without the store, or with an active version that cannot be used, it is the last good version. Raises ConfigErrors
    for a file that does not compile, StartError when there is nothing to run.
    """
    from configctl.store import Store

    saved = read_last_good(last_good)
    parsed = parse_config_file(config) if config else None
    if parsed:
        compile_snapshot(parsed, 1)
    try:
        if saved is not None:
            _refuse_missing(
                url, f", though a gateway ran here before: bring it back, or remove {last_good} to begin anew"
            )
        with Store.open(url) as store:
            active = store.active()
            if active is None and parsed and config:
                active = _publish_first(store, parsed, f"first version, from {config.name}", author)
    except StoreError as error:
        if saved is None:
            raise StartError(f"{error} There is no version from an earlier run to start with either.") from None
        return _last(saved, f"{error} ")
    if active is None:
        raise StartError("There is no config to serve: name a file with --config, or publish one with configctl.")
    try:
        snapshot = compile_stored(active.number, active.digest, active.content.decode())
    except ConfigErrors as errors:
        if saved is None:
            raise
        return _last(saved, f"{errors}\n")
    if parsed and config and active.digest != digest(parsed):
        return snapshot, (
            f"{config} differs from the active version {active.number} and is not applied: "
            f"`configctl diff {config}` shows how, `configctl publish {config} -m MESSAGE` makes it active."
        )
    return snapshot, None


def _last(saved: Wanted, why: str) -> tuple[Snapshot, str]:
    snapshot = compile_stored(saved.number, saved.digest, saved.content)
    return snapshot, f"{why}Starting with version {saved.number}, the last that ran here."


def _wanted(version: Version | None) -> Wanted | None:
    return None if version is None else Wanted(version.number, version.digest, version.content.decode())


def _refuse_missing(url: str, advice: str = "") -> None:
    """Raise StoreError for a SQLite file that is not there: a new one would be empty, and so undo what it held."""
    from configctl.engine import parse_store_url, sqlite_path

    path = sqlite_path(parse_store_url(url))
    if path is not None and not path.exists():
        raise StoreError(f"The store {path} is not there{advice}.")


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _publish_first(store: Store, parsed: GatewayConfig, message: str, author: str) -> Version | None:
    content, own = canonical_json(parsed), digest(parsed)
    done = store.publish(content, own, author=author, message=message, expect=EMPTY, now=time.time())
    # Another instance of the fleet may have been first.
    return done.version if isinstance(done, Published) else store.active()
