"""The request ledger: one row a request in `requests.db`, written by a thread of its own.

Owns what waits to be written and the bounds of the file. Invariants: `add` never blocks and never raises; at most
`QUEUE_ROWS` rows wait, what comes on top is dropped and counted; the file keeps at most `max_rows` rows and none older
than `max_age_s`; a disk that is slow, full or gone costs rows, never a request; a file that another program locks costs
none while there is room to wait.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from extproc.config.snapshot import Telemetry as SnapshotTelemetry
from extproc.core.story import Story
from extproc.ledger_file import INSERT, open_ledger, row_of

log = logging.getLogger(__name__)

QUEUE_ROWS = 10_000
BATCH_ROWS = 500
FLUSH_S = 0.25
REOPEN_S = 5.0
PRUNE_S = 10.0
PRUNE_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class LedgerBounds:
    """How much the ledger keeps; the defaults are the config's."""

    max_rows: int = 1_000_000
    max_age_s: float = 30 * 86400.0


def bounds_of(telemetry: SnapshotTelemetry) -> LedgerBounds:
    """Return the bounds that a config asks for."""
    return LedgerBounds(telemetry.ledger_max_rows, telemetry.ledger_max_age_s)


class Ledger:
    """Takes stories in and writes them when the disk is ready; `bounds` may change at any time, `close` ends it."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.bounds = LedgerBounds()
        self.written = 0
        self._overflowed = 0
        self._failed = 0
        self._clock = clock
        self._queue: deque[Story] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, story: Story) -> None:
        """Take a story in, or count it as dropped when too many wait."""
        if len(self._queue) >= QUEUE_ROWS:
            self._overflowed += 1
            return
        self._queue.append(story)

    @property
    def dropped(self) -> int:
        """How many rows were lost: too many waited, or the disk refused them."""
        return self._overflowed + self._failed

    @property
    def waiting(self) -> int:
        """How many rows are not written yet."""
        return len(self._queue)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was taken in is written; False when time was up. Not for the event loop."""
        give_up_at = time.monotonic() + timeout_s
        while self.waiting:
            if time.monotonic() > give_up_at or not self._thread.is_alive():
                return False
            self._wake.set()
            time.sleep(0.005)
        return True

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, as far as time allows, and end."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # -- the writer's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        complained = False
        while True:
            try:
                with closing(open_ledger(self.path)) as database:
                    complained = False
                    if self._write_until_closed(database):
                        return
                log.warning("the request ledger %s was removed or replaced: its place is taken by a new one", self.path)
                continue
            except Exception as error:
                # Whatever it is, requests go on. The text of an error that is not the file's might quote a value.
                said = error if isinstance(error, sqlite3.Error | OSError) else type(error).__name__
                if not complained:
                    log.error("the request ledger %s cannot be written: %s", self.path, said)
                complained = True
                _set_aside_if_broken(self.path, error)
            if self._closing.wait(REOPEN_S):
                return

    def _write_until_closed(self, database: sqlite3.Connection) -> bool:
        """Write until told to end; False when the file is no longer the one that was opened."""
        pruned_at, opened = float("-inf"), _identity(self.path)
        while True:
            closing_now = self._closing.is_set()
            while self._queue and opened == _identity(self.path):
                self._write_batch(database)
            if opened != _identity(self.path):
                return False
            if self._clock() - pruned_at >= PRUNE_S:
                pruned_at = self._clock()
                prune(database, self.bounds, pruned_at)
            if closing_now:
                return True
            self._wake.wait(FLUSH_S)
            self._wake.clear()

    def _write_batch(self, database: sqlite3.Connection) -> None:
        # Rows leave the queue once their fate is known; nobody else takes any.
        batch = [self._queue[place] for place in range(min(BATCH_ROWS, len(self._queue)))]
        try:
            with database:
                # A generator: the interpreter is free for requests between any two rows.
                database.executemany(INSERT, (row_of(story) for story in batch))
        except BaseException as error:
            if not _is_locked(error):
                self._failed += len(batch)
                self._forget(len(batch))
            raise
        self.written += len(batch)
        self._forget(len(batch))

    def _forget(self, rows: int) -> None:
        for _ in range(rows):
            self._queue.popleft()


def prune(database: sqlite3.Connection, bounds: LedgerBounds, now: float) -> None:
    """Delete what is too old or too much, in steps that leave readers room."""
    (newest,) = database.execute("select coalesce(max(seq), 0) from requests").fetchone()
    doomed = (
        (
            "delete from requests where seq in (select seq from requests where seq <= ? limit ?)",
            newest - bounds.max_rows,
        ),
        (
            "delete from requests where seq in (select seq from requests where arrived < ? limit ?)",
            now - bounds.max_age_s,
        ),
    )
    for statement, limit in doomed:
        while True:
            with database:
                deleted = database.execute(statement, (limit, PRUNE_ROWS)).rowcount
            if deleted < PRUNE_ROWS:
                break


def _is_locked(error: BaseException) -> bool:
    """Tell whether another program has the file just now, so that the same rows can be written later."""
    # The lowest byte of an extended code is its kind.
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of its name: SQLite goes on writing to one that was removed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _set_aside_if_broken(path: Path, error: Exception) -> None:
    """Move away a file that is no ledger of ours, so that new requests are recorded again."""
    if type(error) is sqlite3.DatabaseError and path.is_file():
        with suppress(OSError):
            path.replace(path.with_name(f"{path.name}.broken"))
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
