"""Versions whose content somebody changed in the store are compared and shown, or refused with a sentence."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configctl.changes import Act, propose_publish
from configctl.commands import diff, show
from configctl.refusals import Refusal
from configctl.render import print_changes, print_shown
from configctl.rows import RowError, read_entry
from configctl.shapes import of_changes, of_shown
from configctl.store import Store
from tests.unit.config.build import SMALL
from tests.unit.configctl.claims import publish

STEERING = "\x1b[2J\r\nFAKE\x85\x9b31m\u2028\u202e"
DEEP = '{"a":' * 200 + "1" + "}" * 200
FILE = "small.json"


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """Open a store of two versions after the second one's content was changed."""
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_text(json.dumps(SMALL))

    def change(content: str) -> Store:
        store = Store.open("sqlite:///store.db")
        publish(store, '{"models":{"a":{"targets":[{"model":"m","provider":"p"}]}}}')
        publish(store, '{"models":{}}')
        with sqlite3.connect("store.db") as behind:
            behind.execute("UPDATE versions SET content = ? WHERE number = 2", (content,))
        return store

    return change


@pytest.mark.parametrize("content", ["", "null", "5", "[]", "[" * 100_000, '{"a":' * 2000, DEEP, "{'a': 1}"])
@pytest.mark.parametrize(
    "read",
    [
        lambda store: show(store, 2),
        lambda store: diff(store, None, None),
        lambda store: diff(store, "1", "2"),
        lambda store: diff(store, FILE, None),
        lambda store: propose_publish(store, FILE, Act("ann", "why", None), 1.0),
    ],
    ids=["show", "diff", "diff 1 2", "diff FILE", "publish"],
)
def test_a_content_that_is_no_config_is_a_sentence(
    changed: Callable[[str], Store], content: str, read: Callable[[Store], object]
) -> None:
    with changed(content) as store, pytest.raises(Refusal, match=r"^Version 2 was changed, its content cannot be read"):
        read(store)


@pytest.mark.parametrize(
    "odd",
    [
        {"models": 5},
        {"models": {"a": 5}},
        {"models": {"a": {"targets": {"model": "m"}}}},
        {"models": {"a": {"targets": [5, {"provider": "p"}]}}},
        {"models": {"a": {"targets": [{"provider": ["p"], "model": None}]}}},
        {"clients": [5]},
        {"clients": [{"name": ["x"]}]},
        {"clients": None},
        {STEERING: {STEERING: [STEERING]}, "models": {STEERING: {"targets": [{"provider": STEERING, "model": "m"}]}}},
    ],
)
def test_a_content_of_another_shape_is_compared_and_shown(changed: Callable[[str], Store], odd: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=200)
    with changed(json.dumps(odd)) as store:
        for first, second, differ in (("1", "2", True), ("2", "1", True), ("2", "2", False)):
            print_changes(console, found := diff(store, first, second))
            assert differ is bool(of_changes(found))
        print_shown(console, version := show(store, 2))
        assert odd == of_shown(version)["content"]

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert [] == [char for char in text if not char.isprintable() and char != "\n"]
    assert not any(line.startswith("FAKE") for line in text.splitlines())


def test_details_that_nothing_could_print_are_refused() -> None:
    class Row:
        seq = 1

        def _asdict(self) -> dict[str, object]:
            texts = {"actor": "ann", "act": "publish", "detail": DEEP, "prev_hash": "", "hash": ""}
            return {"seq": 1, "at": 1.0, "version": None, "refused": 0, **texts}

    row: Any = Row()
    with pytest.raises(RowError, match=r"^audit entry 1 was changed, its detail cannot be read"):
        read_entry(row)
