"""Attempts under way are counted by account, and an account at its limit is named."""

from __future__ import annotations

from typing import Any

from extproc.core.in_flight import InFlight
from tests.unit.core.build import A, chain, config, provider, snapshot


def counter(max_connections: int = 1, max_pending: int = 1) -> InFlight:
    """Make a counter of one account, `a`."""
    made = InFlight()
    made.bound(snapshot(written(max_connections, max_pending)).providers.values())
    return made


def written(max_connections: int, max_pending: int) -> dict[str, Any]:
    limits = {"max_connections": max_connections, "max_pending": max_pending}
    return config({"big": chain(A)}, providers={"a": provider("a", limits=limits)})


def test_an_account_is_full_with_its_connections_taken_and_its_queue_long_enough() -> None:
    made = counter(max_connections=2, max_pending=1)
    seen = []
    for _ in range(4):
        made.begin("a")
        seen.append("a" in made.full)
    assert [False, False, True, True] == seen


def test_an_account_has_room_again_when_one_attempt_ends() -> None:
    made = counter()
    made.begin("a")
    made.begin("a")
    made.end("a")
    assert (set(), 1) == (made.full, made.count("a"))


def test_an_account_beyond_its_limit_stays_full_until_it_is_below() -> None:
    made = counter()
    for _ in range(3):
        made.begin("a")
    made.end("a")
    assert {"a"} == made.full


def test_another_version_s_limits_count_for_what_is_under_way() -> None:
    made = counter()
    made.begin("a")
    made.begin("a")
    made.bound(snapshot(written(2, 1)).providers.values())
    assert set() == made.full


def test_an_account_that_no_version_names_is_never_full() -> None:
    made = counter()
    for _ in range(3):
        made.begin("gone")
    assert set() == made.full


def test_nothing_is_kept_of_an_account_without_attempts() -> None:
    made = counter()
    made.begin("a")
    made.end("a")
    assert 0 == made.count("a")
