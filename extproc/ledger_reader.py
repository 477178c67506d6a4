"""Questions about past requests, answered from the ledger's file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
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


class LedgerReader:
    """Reads the ledger, opening the file for each question; blocks, so not for the event loop.

    Each question may raise sqlite3.Error, for a file that is no ledger any more.
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

    def _open(self) -> _Opened:
        return _Opened(self._path)


class _Opened:
    """A read-only connection for one question; None when there is no readable ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> sqlite3.Connection | None:
        with suppress(sqlite3.Error):
            database = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
            try:
                database.execute("select 1 from requests limit 1").fetchone()
            except sqlite3.Error:
                database.close()
            else:
                database.row_factory = sqlite3.Row
                # A row that somebody changed may hold bytes that are no text.
                database.text_factory = lambda raw: raw.decode("utf-8", "replace")
                self._database = database
        return self._database

    def __exit__(self, *_: object) -> None:
        if self._database is not None:
            self._database.close()


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
