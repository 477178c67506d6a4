"""What people see of a running gateway: facts, tables, and tables that go on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from configctl import live_commands, live_render
from configctl.live_shapes import Json, of_health, of_instance, of_request
from configctl.screen import Screen
from extproc.wire.pb import admin_pb2 as pb

STATUS = pb.StatusReply(
    software_version="1.2.3",
    pid=7,
    started_at=1.0,
    ready=True,
    wanted_version=4,
    applied_version=3,
    applied_at=2.0,
    requests_open=5,
    ledger=pb.LedgerStatus(written=10, dropped=1, waiting=2),
)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=300, soft_wrap=not terminal)


def printed(made: Console) -> str:
    assert isinstance(made.file, io.StringIO)
    return made.file.getvalue()


def instance(**changes: Any) -> Json:
    made = pb.StatusReply()
    made.CopyFrom(STATUS)
    made.MergeFrom(pb.StatusReply(**changes))
    return of_instance(made)


def request(number: int) -> Json:
    return of_request(
        pb.RequestRow(
            request_id=f"r{number}",
            arrived=1.0,
            model="big",
            outcome="served",
            status=200,
            route_mode="provider_failover",
            served_by="second/big-2",
            attempts=2,
            classes=["rate_limited"],
            duration_ms=12.4,
            input_tokens=7,
            output_tokens=3,
        )
    )


def test_the_live_part_of_a_status_is_its_facts_one_a_line() -> None:
    live_render.print_instance(made := console(), instance())

    assert [
        "this gateway:  pid 7, 1.2.3, ready since 1970-01-01T00:00:02.000Z",
        "version:       applied 3, wanted 4",
        "requests:      5 under way",
        "ledger:        10 written, 2 waiting, 1 dropped",
    ] == printed(made).splitlines()


def test_missing_keys_and_the_last_error_are_told_when_there_are_any() -> None:
    live_render.print_instance(made := console(), instance(missing_keys=["a", "b"], last_error="the store\nis away"))

    assert ["missing keys:  a, b", "last error:    the store is away"] == printed(made).splitlines()[4:]


def test_a_gateway_that_runs_nothing_yet_says_so() -> None:
    live_render.print_instance(made := console(), of_instance(pb.StatusReply(pid=7, software_version="1.2.3")))

    assert ["pid 7, 1.2.3, not ready since never", "applied none, wanted none"] == [
        line.partition(":")[2].strip() for line in printed(made).splitlines()[:2]
    ]


def test_in_a_pipe_each_followed_request_is_a_line_at_once() -> None:
    screen = Screen()
    screen.data = made = console()

    def rows() -> Iterator[Json]:
        yield request(1)
        assert 1 == printed(made).count("\n")
        yield request(2)

    live_render.follow_requests(screen, rows())

    line = "1970-01-01T00:00:01.000Z  r2  big  served  200  provider_failover  second/big-2  2  rate_limited  12  7+3"
    assert line == printed(made).splitlines()[1]


def test_on_a_terminal_followed_requests_are_a_table_that_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_render, "_SHOWN_ROWS", 3)
    screen = Screen()
    screen.data = made = console(terminal=True)

    live_render.follow_requests(screen, iter([request(number) for number in range(1, 6)]))

    last = printed(made).rpartition("arrived")[2]
    assert ["r3", "r4", "r5"] == [name for name in ("r1", "r2", "r3", "r4", "r5") if f" {name} " in last]


def test_on_a_terminal_the_health_table_is_drawn_anew_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(("healthy", "cooling"))

    class Client:
        def health(self) -> list[pb.HealthRow]:
            return [pb.HealthRow(subject="first", state=next(states), share=1.0, eligible=True)]

    def stop_after_two(_: float) -> None:
        if "cooling" in printed(made):
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", stop_after_two)
    screen = Screen()
    screen.data = made = console(terminal=True)
    monkeypatch.setattr("rich.live.Live.update", _at_once)

    live_commands._watch_health(Client(), screen)  # type: ignore[arg-type]  # only its health is asked

    assert ("healthy" in printed(made), "cooling" in printed(made)) == (True, True)


def _at_once(live: Any, drawing: Any, **_: Any) -> None:
    """Draw without waiting for the next frame."""
    live.console.print(drawing)


def test_an_order_is_told_in_the_health_table_with_its_owner_and_end() -> None:
    order = pb.Order(kind="drain", owner="ann", reason="their incident", expires_at=60.0)
    row = of_health(pb.HealthRow(subject="first", state="down", share=0.5, until=60.0, reason="drained", order=order))

    assert (
        "first",
        "down",
        "50%",
        "1970-01-01T00:01:00.000Z",
        "drained",
        "drain by ann: their incident until 1970-01-01T00:01:00.000Z",
    ) == live_render.health_cells(row)
