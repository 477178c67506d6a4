"""The ledger writes each story once, keeps its bounds, and never makes anybody wait."""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from extproc import ledger as ledger_module
from extproc import ledger_file
from extproc.config.compile import compile_snapshot
from extproc.core.story import Story
from extproc.ledger import BATCH_ROWS, QUEUE_ROWS, Ledger, LedgerBounds, bounds_of, prune
from extproc.ledger_file import open_ledger, row_of
from extproc.ledger_reader import LedgerReader, Query, UnreadableLedger
from tests.support.stories import NOW, whole_story
from tests.unit.config.build import SMALL, load

BOUNDS = LedgerBounds(1_000_000, 1e9)
Start = Callable[..., Ledger]


@pytest.fixture(scope="module")
def story() -> Story:
    """Tell one whole story."""
    return whole_story(flags=frozenset({"local_reset"}))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ledgers that are closed at the end."""
    started: list[Ledger] = []

    def make(path: Path = tmp_path / "requests.db", bounds: LedgerBounds = BOUNDS) -> Ledger:
        made = Ledger(path, lambda: NOW)
        made.bounds = bounds
        made.start()
        started.append(made)
        return made

    yield make
    for one in started:
        one.close()


def reader(ledger: Ledger) -> LedgerReader:
    """Read a ledger after all that it took in is written."""
    assert ledger.flush(10)
    return LedgerReader(ledger.path)


def ids(found: LedgerReader, **query: Any) -> list[str]:
    """Return the ids that a query finds."""
    return [entry.story.id for entry in found.entries(Query(**query))]


def test_what_went_in_comes_out(start: Start, story: Story) -> None:
    ledger = start()
    ledger.add(story)
    assert story == reader(ledger).find("r")


def test_an_unknown_request_is_none(start: Start, story: Story) -> None:
    ledger = start()
    ledger.add(story)
    assert reader(ledger).find("other") is None


def test_each_request_without_an_id_has_a_row(start: Start, story: Story) -> None:
    ledger = start()
    for _ in range(3):
        ledger.add(replace(story, id=""))
    assert ["", "", ""] == ids(reader(ledger))


def test_the_file_is_private(start: Start, story: Story) -> None:
    ledger = start()
    ledger.add(story)
    reader(ledger)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in ledger.path.parent.glob("requests.db*")}
    assert {0o600} == set(modes.values())


def test_lists_newest_first(start: Start, story: Story) -> None:
    ledger = start()
    for name in "abc":
        ledger.add(replace(story, id=name))
    assert ["c", "b"] == ids(reader(ledger), limit=2)


def test_follows_oldest_first(start: Start, story: Story) -> None:
    ledger = start()
    for name in "abc":
        ledger.add(replace(story, id=name))
    found = reader(ledger)
    (first,) = [entry.seq for entry in found.entries(Query()) if entry.story.id == "a"]
    assert ["b", "c"] == ids(found, after=first)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"failed": True}, ["bad"]),
        ({"model": "small"}, ["small"]),
        ({"client": "team"}, ["team"]),
        ({"served_by": "x/y"}, ["x"]),
        ({"error_class": "timeout"}, ["bad"]),
        ({"since": NOW + 50}, ["late"]),
    ],
)
def test_finds_what_is_asked_for(start: Start, story: Story, query: dict[str, Any], expected: list[str]) -> None:
    ledger = start()
    ledger.add(replace(story, id="bad", outcome="failed", classes=("overloaded", "timeout")))
    ledger.add(replace(story, id="small", model="small"))
    ledger.add(replace(story, id="team", client="team"))
    ledger.add(replace(story, id="x", served_by="x/y"))
    ledger.add(replace(story, id="late", arrived=NOW + 60))
    assert expected == ids(reader(ledger), **query)


def test_keeps_the_newest_rows(start: Start, story: Story) -> None:
    ledger = start()
    for number in range(30):
        ledger.add(replace(story, id=str(number)))
    found = reader(ledger)
    with closing(open_ledger(ledger.path)) as database:
        prune(database, LedgerBounds(10, 1e9), NOW)
    assert [str(number) for number in range(29, 19, -1)] == ids(found)


def test_keeps_nothing_older_than_allowed(start: Start, story: Story) -> None:
    ledger = start()
    ledger.add(replace(story, id="old", arrived=NOW - 100))
    ledger.add(replace(story, id="new", arrived=NOW - 10))
    found = reader(ledger)
    with closing(open_ledger(ledger.path)) as database:
        prune(database, LedgerBounds(10, 50.0), NOW)
    assert ["new"] == ids(found)


@pytest.mark.parametrize(
    ("section", "expected"),
    [({}, ["3", "2", "1", "0"]), ({"max_rows": 2}, ["3", "2"]), ({"max_age": "150s"}, ["3", "2", "1"])],
)
def test_keeps_as_much_as_the_config_says(
    start: Start, story: Story, section: dict[str, Any], expected: list[str]
) -> None:
    ledger = start()
    for number in range(4):
        ledger.add(replace(story, id=str(number), arrived=NOW - 200 + 51 * number))
    found = reader(ledger)
    config = SMALL | {"telemetry": {"ledger": section}}
    with closing(open_ledger(ledger.path)) as database:
        prune(database, bounds_of(compile_snapshot(load(config), 1).telemetry), NOW)
    assert expected == ids(found)


def test_prunes_by_itself(start: Start, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "PRUNE_S", 0.0)
    ledger = start(bounds=LedgerBounds(3, 1e9))
    for number in range(10):
        ledger.add(replace(story, id=str(number)))
    found = reader(ledger)
    ledger.close()
    assert ["9", "8", "7"] == ids(found)


def test_a_restart_goes_on_where_it_was(start: Start, story: Story) -> None:
    first = start()
    first.add(replace(story, id="a"))
    first.close()
    second = start()
    second.add(replace(story, id="b"))
    assert ["b", "a"] == ids(reader(second))


def test_what_waits_at_the_end_is_written(start: Start, story: Story) -> None:
    ledger = start()
    for number in range(700):
        ledger.add(replace(story, id=str(number)))
    ledger.close()
    assert (700, 0) == (LedgerReader(ledger.path).count(), ledger.waiting)


def test_a_slow_disk_makes_nobody_wait_and_what_does_not_fit_is_counted(
    start: Start, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer hangs in its first batch; all others are taken in or dropped at once."""
    go_on = threading.Event()

    def slow(told: Story) -> tuple[Any, ...]:
        go_on.wait(20)
        return row_of(told)

    monkeypatch.setattr(ledger_module, "row_of", slow)
    ledger = start()
    extra = 1500
    began = time.perf_counter()
    for number in range(QUEUE_ROWS + extra):
        ledger.add(replace(story, id=str(number)))
    spent_s = time.perf_counter() - began
    dropped = ledger.dropped
    go_on.set()
    assert ledger.flush(20)
    assert spent_s < 2.0
    assert extra - BATCH_ROWS <= dropped <= extra
    assert QUEUE_ROWS + extra == ledger.written + ledger.dropped


def test_a_place_that_cannot_be_written_costs_rows_and_nothing_else(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "REOPEN_S", 0.01)
    ledger = Ledger(tmp_path / "nowhere" / "requests.db", lambda: NOW)
    ledger.start()
    for _ in range(QUEUE_ROWS + 7):
        ledger.add(story)
    assert 7 == ledger.dropped
    assert not ledger.flush(0.1)
    (tmp_path / "nowhere").mkdir()
    assert ledger.flush(10)
    ledger.close()
    assert 1 == len([record for record in caplog.records if "cannot be written" in record.message])


def test_a_file_that_is_no_ledger_is_set_aside(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "REOPEN_S", 0.01)
    path = tmp_path / "requests.db"
    path.write_bytes(b"this is no database, but somebody's letter" * 100)
    ledger = Ledger(path, lambda: NOW)
    ledger.start()
    ledger.add(story)
    assert ledger.flush(10)
    ledger.close()
    assert story == LedgerReader(path).find("r")
    assert path.with_name("requests.db.broken").read_bytes().startswith(b"this is no database")


def test_a_batch_that_the_disk_refuses_is_counted(start: Start, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "REOPEN_S", 0.01)
    failures = [sqlite3.OperationalError("disk I/O error")]

    def refusing(told: Story) -> tuple[Any, ...]:
        if failures:
            raise failures.pop()
        return row_of(told)

    monkeypatch.setattr(ledger_module, "row_of", refusing)
    ledger = start()
    ledger.add(replace(story, id="lost"))
    assert ledger.flush(10)
    ledger.add(replace(story, id="kept"))
    assert ["kept"] == ids(reader(ledger))
    assert (1, 1) == (ledger.written, ledger.dropped)


def test_rows_wait_while_another_program_locks_the_file(
    start: Start, story: Story, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(ledger_module, "REOPEN_S", 0.01)
    monkeypatch.setattr(ledger_module, "prune", lambda *_: None)
    ledger = start()
    ledger.add(replace(story, id="first"))
    reader(ledger)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("begin immediate")
        for name in "abc":
            ledger.add(replace(story, id=name))
        give_up_at = time.monotonic() + 10
        while "locked" not in caplog.text and time.monotonic() < give_up_at:
            ledger.flush(0.01)
        assert (0, 3) == (ledger.dropped, ledger.waiting)
        other.execute("rollback")
    assert ["c", "b", "a", "first"] == ids(reader(ledger))
    assert (4, 0) == (ledger.written, ledger.dropped)


def test_a_file_that_was_removed_is_begun_anew(start: Start, story: Story, caplog: pytest.LogCaptureFixture) -> None:
    ledger = start()
    ledger.add(replace(story, id="gone"))
    reader(ledger)
    for path in ledger.path.parent.glob("requests.db*"):
        path.unlink()
    ledger.add(replace(story, id="new"))
    assert ["new"] == ids(reader(ledger))
    assert 1 == len([record for record in caplog.records if "was removed or replaced" in record.message])


def test_without_a_file_there_is_nothing_to_read(tmp_path: Path) -> None:
    found = LedgerReader(tmp_path / "requests.db")
    assert (None, [], 0, 0) == (found.find("r"), found.entries(Query()), found.last_seq(), found.count())


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "it is no file"), (b"somebody's letter, and no database" * 100, "file is not a database")],
    ids=["a directory", "a letter"],
)
def test_what_cannot_be_read_is_not_taken_for_an_empty_ledger(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "requests.db"
    path.mkdir() if content is None else path.write_bytes(content)
    found = LedgerReader(path)
    questions = (lambda: found.find("r"), lambda: found.entries(Query()), found.last_seq, found.count)
    for question in questions:
        with pytest.raises(UnreadableLedger) as refused:
            question()
        assert f"The ledger cannot be read: {path}: {why}." == str(refused.value)


def test_a_ledger_whose_tables_are_not_made_yet_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    path.touch()
    assert [] == LedgerReader(path).entries(Query())
