"""Rows of the ledger that somebody changed: each is told, or said to be unreadable, and no reader breaks on it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from configctl.live_render import request_cells, story_lines
from configctl.live_shapes import of_request
from extproc.admin import AdminService
from extproc.core.story import Story
from extproc.ledger import Ledger
from extproc.ledger_file import COLUMNS, INSERT, UNREADABLE, open_ledger, row_of
from extproc.wire.pb import admin_pb2 as pb
from tests.support.stories import NOW, Scene, whole_story
from tests.unit.test_admin import Aborted, Archive, Call, Journal

HOSTILE = "\x1b[2J\r\nFAKE\u202e\x9b31m"
TARGET = {"target": ["first", "big-1"], "public_model": "big", "tier": 0, "weight": 3, "evidence": []}
VIEW = {"state": "healthy", "eligible": True, "share": 1.0, "probe": False, "until": None, "reason": None}
TRIED = {"n": 1, "target": ["first", "big-1"], "cluster": "c", "started": NOW, "duration_s": 1.0, "class": None}
TRIED |= {"status": 200, "evidence": [], "next": None, "first_token_s": None}
UNTOLD = "The ledger's row of request 'r' was changed and cannot be read."
VALUES: dict[str, Any] = {
    "text": HOSTILE,
    "null": None,
    "big": 1e308,
    "infinite": float("inf"),
    "negative": -1,
    "huge": 2**63 - 1,
    "bytes": b"\xff\xfe",
    "deep": "[" * 5000,
    "json null": "null",
    "json number": "5",
    "json list": "[[5, null, {}]]",
    "json object": json.dumps({"a": HOSTILE}),
    "plan": '[[["first"], {}, 5, null]]',
    "candidate": json.dumps([TARGET | VIEW | {"share": 0}]),
    "candidate without a share": json.dumps([TARGET | VIEW | {"share": None}]),
    "candidate until never": json.dumps([TARGET | VIEW | {"until": 1e308}]),
    "candidate of a list": json.dumps([TARGET | VIEW | {"target": [["first"], {}]}]),
    "attempt": json.dumps([TRIED | {"started": 1e308}]),
    "attempt of words": json.dumps([dict.fromkeys(TRIED, HOSTILE) | {"evidence": [HOSTILE]}]),
    "attempt of nothing": json.dumps([dict.fromkeys(TRIED)]),
}


@pytest.fixture(scope="module")
def story() -> Story:
    """Tell one whole story."""
    return whole_story()


@pytest.fixture
def behind(tmp_path: Path, story: Story) -> Iterator[sqlite3.Connection]:
    """Open a ledger of one row behind the gateway's back."""
    with closing(open_ledger(tmp_path / "requests.db")) as database:
        database.execute("pragma synchronous=off")
        database.execute(INSERT, row_of(story))
        database.commit()
        yield database


@pytest.fixture
def service(tmp_path: Path) -> AdminService:
    made: Any = AdminService
    ledger = Ledger(tmp_path / "requests.db", lambda: NOW)
    status = save_health = lambda: None
    service: AdminService = made(Scene().gateway, ledger, Journal(), Archive(), status, save_health, lambda: NOW)
    return service


def listed(service: AdminService, **query: Any) -> list[pb.RequestRow]:
    """Ask for requests as `configctl requests` does."""
    context: Any = Call()

    async def ask() -> list[pb.RequestRow]:
        return [row async for row in service.list_requests(pb.ListRequestsRequest(**query), context)]

    return asyncio.run(ask())


def explained(service: AdminService) -> str:
    """Ask for the story as `configctl explain` does, down to its lines; of an unreadable one its sentence."""
    context: Any = Call()
    try:
        reply = asyncio.run(service.explain(pb.ExplainRequest(request_id="r"), context))
    except Aborted as aborted:
        if (grpc.StatusCode.FAILED_PRECONDITION, UNTOLD) != aborted.args:
            raise
        return UNTOLD
    return "\n".join(line for line, _ in story_lines(json.loads(reply.json)))


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "id"])
def test_any_value_in_any_column_is_told_or_said_to_be_unreadable(
    behind: sqlite3.Connection, service: AdminService, column: str
) -> None:
    for value in VALUES.values():
        for shown in ("?", "CAST(? AS TEXT)"):
            behind.execute(f"UPDATE requests SET {column} = {shown}", (value,))  # noqa: S608 - our own columns
            behind.commit()
            (row,) = listed(service)
            request_cells(of_request(row))
            assert (UNREADABLE == row.outcome) is (UNTOLD == explained(service)), (value, shown)


@pytest.mark.parametrize(("column", "value"), [("arrived", 1e308), ("attempts", "5"), ("status", -1), ("model", b"x")])
def test_an_unreadable_row_is_listed_by_its_id(
    behind: sqlite3.Connection, service: AdminService, column: str, value: object
) -> None:
    behind.execute(f"UPDATE requests SET {column} = ?", (value,))  # noqa: S608 - our own columns
    behind.commit()

    (row,) = listed(service)
    assert ("r", UNREADABLE, None) == ((told := of_request(row))["request_id"], told["outcome"], told["arrived"])
    assert UNTOLD == explained(service)


def test_an_id_that_is_no_text_is_none(behind: sqlite3.Connection, service: AdminService) -> None:
    behind.execute("UPDATE requests SET id = ?", (b"\xff",))
    behind.commit()

    assert [("", UNREADABLE)] == [(row.request_id, row.outcome) for row in listed(service)]


def test_classes_that_are_no_json_are_no_class(behind: sqlite3.Connection, service: AdminService) -> None:
    behind.execute("UPDATE requests SET classes = '['")
    behind.commit()

    assert [] == listed(service, error_class="timeout")


def test_a_ledger_that_cannot_be_read_is_a_sentence(behind: sqlite3.Connection, service: AdminService) -> None:
    behind.execute("ALTER TABLE requests RENAME COLUMN model TO other")
    behind.commit()

    for ask in (listed, explained):
        with pytest.raises(Aborted, match=r"The ledger cannot be read: .*: no such column: model\.'"):
            ask(service)
