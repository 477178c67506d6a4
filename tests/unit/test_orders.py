"""Orders reach the audit in their turn, and wait on disk while it cannot be reached."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from extproc import orders, store_calls
from extproc.orders import OrderJournal
from extproc.versions import HealthOrder


class Audit:
    """A store's audit that can be away."""

    def __init__(self) -> None:
        self.away = False
        self.heard: list[str] = []

    def ordered(self, order: HealthOrder) -> None:
        if self.away:
            raise OSError("the store is away")
        self.heard.append(order.id)


def order(name: str) -> HealthOrder:
    return HealthOrder(name, 1.0, "health_down", "ann", "claim", "openai", "why", None, None)


@pytest.fixture
def audit() -> Audit:
    return Audit()


@pytest.fixture
def play(tmp_path: Path, audit: Audit) -> Callable[..., Any]:
    """Run a scene with a journal that runs; returns what the scene returns."""

    def play(scene: Callable[[OrderJournal], Coroutine[Any, Any, Any]], *, running: bool = True) -> Any:
        async def act() -> Any:
            journal = OrderJournal(tmp_path / "orders.json", audit)
            task = asyncio.ensure_future(journal.run()) if running else None
            try:
                async with asyncio.timeout(10):
                    return await scene(journal)
            finally:
                if task is not None:
                    task.cancel()

        return asyncio.run(act())

    return play


def test_an_order_is_in_the_audit_when_the_operator_hears_so(play: Callable[..., Any], audit: Audit) -> None:
    assert (True, ["a"]) == (play(lambda journal: journal.record(order("a"))), audit.heard)


def test_orders_of_a_time_without_the_store_follow_in_their_turn(play: Callable[..., Any], audit: Audit) -> None:
    async def scene(journal: OrderJournal) -> tuple[list[bool], list[str]]:
        audit.away = True
        told = [await journal.record(order(name)) for name in "ab"]
        audit.away = False
        return [*told, await journal.record(order("c"))], audit.heard

    assert ([False, False, True], ["a", "b", "c"]) == play(scene)


def test_an_order_outlives_the_process_that_could_not_tell_it(play: Callable[..., Any], audit: Audit) -> None:
    audit.away = True
    assert not play(lambda journal: journal.record(order("a")))
    audit.away = False

    assert play(lambda journal: journal.record(order("b")))
    assert ["a", "b"] == audit.heard


def test_what_the_audit_has_is_not_told_again_by_the_next_process(play: Callable[..., Any], audit: Audit) -> None:
    play(lambda journal: journal.record(order("a")))
    play(lambda journal: journal.record(order("b")))

    assert ["a", "b"] == audit.heard


def test_a_store_that_takes_its_time_holds_no_operator_up(
    play: Callable[..., Any], audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells the audit here, as when a database accepts connections and does not answer."""
    monkeypatch.setattr(orders, "WAIT_S", 0.01)

    assert (False, []) == (play(lambda journal: journal.record(order("a")), running=False), audit.heard)


def test_the_file_is_its_owners_alone(play: Callable[..., Any], tmp_path: Path) -> None:
    play(lambda journal: journal.record(order("a")))

    assert 0o600 == (tmp_path / "orders.json").stat().st_mode & 0o777


@pytest.mark.parametrize("content", [b"", b"[]", b'{"orders": [{"id": 1}]}', b"\xff"])
def test_a_broken_file_is_said_and_costs_nothing_else(
    play: Callable[..., Any], audit: Audit, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "orders.json").write_bytes(content)

    assert play(lambda journal: journal.record(order("a")))
    assert "orders of an earlier run may be missing in the audit" in caplog.text


def test_a_full_disk_costs_only_the_memory_across_restarts(
    play: Callable[..., Any], audit: Audit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "orders.json").mkdir()

    assert play(lambda journal: journal.record(order("a")))
    assert "are not saved" in caplog.text


def test_a_store_that_hangs_holds_up_neither_the_operator_nor_the_end(
    play: Callable[..., Any], audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_calls, "STORE_TIMEOUT_S", 0.05)
    released = threading.Event()

    def hang(_: HealthOrder) -> None:
        audit.heard.append("released" if released.wait(10) else "nobody waits for so long")

    monkeypatch.setattr(audit, "ordered", hang)

    assert (False, []) == (play(lambda journal: journal.record(order("a"))), audit.heard)
    released.set()
