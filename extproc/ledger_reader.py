"""Questions about past requests, answered from the ledger's file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from extproc.core.story import Story
from extproc.ledger_file import BUSY_TIMEOUT_S, COLUMNS, story_of

LIST_LIMIT = 1_000


@dataclass(frozen=True, slots=True)
class Query:
    """Which requests to list: newest first, or with `after` those written later, oldest first."""

    limit: int = 50
    failed: bool = False
    model: str | None = None
    client: str | None = None
    served_by: str | None = None
    error_class: str | None = None
    since: float | None = None
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One story with its place in the ledger."""

    seq: int
    story: Story


class UnreadableLedger(Exception):  # noqa: N818 - its text is what the operator reads
    """There is a ledger, but it cannot be read."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"The ledger cannot be read: {path}: {why}.")


class LedgerReader:
    """Reads the ledger, opening the file for each question; blocks, so not for the event loop.

    A file that is not there yet is an empty ledger; what else keeps a question from its answer is `UnreadableLedger`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, request_id: str) -> Story | None:
        """Return one request's story, None when it is not in the ledger."""
        rows = list(self._select("where id = ?", [request_id]))
        return rows[0].story if rows else None

    def entries(self, query: Query) -> list[Entry]:
        """Return the entries a query asks for."""
        where, values = _where(query)
        order = "order by seq" if query.after is not None else "order by seq desc"
        limit = max(1, min(query.limit, LIST_LIMIT))
        return list(self._select(f"{where} {order} limit {limit}", values))

    def last_seq(self) -> int:
        """Return the newest entry's place, 0 when there is none."""
        with self._open() as database:
            if database is None:
                return 0
            (newest,) = database.execute("select coalesce(max(seq), 0) from requests").fetchone()
            return int(newest)

    def count(self) -> int:
        """Return how many requests the ledger holds."""
        with self._open() as database:
            return 0 if database is None else int(database.execute("select count(*) from requests").fetchone()[0])

    def _select(self, rest: str, values: list[Any]) -> Iterator[Entry]:
        with self._open() as database:
            if database is None:
                return
            # The words of the statement are our own; whatever a caller asks for is bound as a value.
            statement = f"select seq, {', '.join(COLUMNS)} from requests {rest}"  # noqa: S608  # nosec B608
            for row in database.execute(statement, values):
                yield Entry(row["seq"], story_of(row))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """Open the file read-only for one question; None when no request was ever written."""
        if not _is_there(self._path):
            yield None
            return
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)) as database:
                database.row_factory = sqlite3.Row
                # A row that somebody changed may hold bytes that are no text.
                database.text_factory = lambda raw: raw.decode("utf-8", "replace")
                made = database.execute("select 1 from sqlite_master where name = 'requests'").fetchone()
                yield database if made else None
        except sqlite3.Error as error:
            raise UnreadableLedger(self._path, error) from None


def _is_there(path: Path) -> bool:
    """Tell a file that is missing from one that may not be seen."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UnreadableLedger(path, error.strerror) from None
    if not S_ISREG(found.st_mode):
        # SQLite would say that the disk has a fault.
        raise UnreadableLedger(path, "it is no file")
    return True


def _where(query: Query) -> tuple[str, list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    if query.failed:
        conditions.append("failed")
    for column, wanted in (("model", query.model), ("client", query.client), ("served_by", query.served_by)):
        if wanted is not None:
            conditions.append(f"{column} = ?")
            values.append(wanted)
    if query.error_class is not None:
        conditions.append(
            "exists (select 1 from json_each(case when json_valid(classes) then classes else '[]' end) where value = ?)"
        )
        values.append(query.error_class)
    if query.since is not None:
        conditions.append("arrived >= ?")
        values.append(query.since)
    if query.after is not None:
        conditions.append("seq > ?")
        values.append(query.after)
    return f"where {' and '.join(conditions)}" if conditions else "", values
