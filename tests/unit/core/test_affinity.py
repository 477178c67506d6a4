"""Which target a session stays on, for how long, and how many sessions are remembered."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.config.snapshot import Affinity, TargetKey
from extproc.core import affinity
from extproc.core.affinity import AffinityTable, session_of

NOW = 1_700_000_000.0
A = TargetKey("a", "m")
B = TargetKey("b", "m")

BY_HEADER = Affinity(header="x-session", body=None, ttl_s=60.0)
BY_BODY = Affinity(header=None, body="user", ttl_s=60.0)


def session(value: str, model: str = "big") -> bytes:
    found = session_of(BY_HEADER, model, {"x-session": value}, {})
    assert found is not None
    return found


class TestABinding:
    def test_is_found_until_it_lapses(self) -> None:
        table = AffinityTable()
        table.planned(b"s", A, NOW, 60.0)
        assert [A, None] == [table.find(b"s", NOW + 59.9), table.find(b"s", NOW + 60.0)]

    def test_that_lapsed_takes_no_room(self) -> None:
        table = AffinityTable()
        table.planned(b"s", A, NOW, 0.0)
        table.find(b"s", NOW)
        assert 0 == len(table)

    def test_of_another_session_is_not_found(self) -> None:
        table = AffinityTable()
        table.planned(b"s", A, NOW, 60.0)
        assert None is table.find(b"t", NOW)

    def test_is_the_first_plan_s_while_nobody_served(self) -> None:
        table = AffinityTable()
        first = table.planned(b"s", A, NOW, 60.0)
        assert first is table.planned(b"s", B, NOW + 1.0, 60.0)
        assert A == table.find(b"s", NOW + 1.0)

    def test_moves_to_another_target_that_served(self) -> None:
        table = AffinityTable()
        seen = table.planned(b"s", A, NOW, 60.0)
        table.served(b"s", B, NOW + 30.0, 60.0, seen)
        assert (B, 1) == (table.find(b"s", NOW + 80.0), len(table))

    def test_that_has_moved_is_not_moved_back_by_a_request_that_was_planned_before(self) -> None:
        """Two requests were planned for A; the first failed over to B, then A served the second."""
        table = AffinityTable()
        first, second = (table.planned(b"s", A, NOW, 60.0) for _ in range(2))
        table.served(b"s", B, NOW + 1.0, 60.0, first)
        table.served(b"s", A, NOW + 2.0, 60.0, second)
        assert B == table.find(b"s", NOW + 3.0)

    def test_that_lapsed_meanwhile_is_made_anew_by_who_served(self) -> None:
        table = AffinityTable()
        seen = table.planned(b"s", A, NOW, 60.0)
        table.served(b"s", A, NOW + 100.0, 60.0, seen)
        assert A == table.find(b"s", NOW + 159.0)

    def test_is_prolonged_by_an_answer(self) -> None:
        table = AffinityTable()
        seen = table.planned(b"s", A, NOW, 60.0)
        table.served(b"s", A, NOW + 30.0, 60.0, seen)
        assert A == table.find(b"s", NOW + 89.0)

    def test_is_not_prolonged_by_a_plan_or_a_look(self) -> None:
        """Only an answer that came proves that the target's cache is warm."""
        table = AffinityTable()
        table.planned(b"s", A, NOW, 60.0)
        table.planned(b"s", A, NOW + 59.0, 60.0)
        table.find(b"s", NOW + 59.0)
        assert None is table.find(b"s", NOW + 61.0)


class TestTheBound:
    def test_puts_out_the_least_recently_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(affinity, "LIMIT", 2)
        table = AffinityTable()
        for name in (b"1", b"2", b"1", b"3"):
            table.served(name, A, NOW, 60.0, None)
        assert [A, None, A] == [table.find(name, NOW) for name in (b"1", b"2", b"3")]

    def test_is_never_exceeded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(affinity, "LIMIT", 3)
        table = AffinityTable()
        for number in range(10):
            table.planned(bytes([number]), A, NOW, 60.0)
        assert 3 == len(table)


class TestWhatStandsForASession:
    def test_is_the_same_for_the_same_value(self) -> None:
        assert session("chat-1") == session("chat-1")

    def test_differs_by_value_and_by_model(self) -> None:
        """A session may use several models; each has its own targets."""
        assert 3 == len({session("chat-1"), session("chat-2"), session("chat-1", "small")})

    def test_does_not_hold_the_value(self) -> None:
        assert (16, False) == (len(session("chat-1")), b"chat-1" in session("chat-1"))

    def test_comes_from_the_field_of_the_body_that_the_model_names(self) -> None:
        assert session("chat-1") == session_of(BY_BODY, "big", {}, {"user": "chat-1"})

    def test_is_in_whatever_header_or_field_the_model_names(self) -> None:
        by_header = Affinity(header="x-thread", body=None, ttl_s=60.0)
        by_body = Affinity(header=None, body="thread", ttl_s=60.0)
        told = {"x-session": "chat-1", "user": "chat-1"}
        assert [None, None] == [session_of(by_header, "big", told, told), session_of(by_body, "big", told, told)]
        found = [
            session_of(by_header, "big", {"x-thread": "chat-1"}, {}),
            session_of(by_body, "big", {}, {"thread": "chat-1"}),
        ]
        assert [session("chat-1")] * 2 == found

    def test_is_none_where_the_model_asks_for_none(self) -> None:
        assert None is session_of(None, "big", {"x-session": "chat-1"}, {"user": "chat-1"})

    @pytest.mark.parametrize("value", [None, "", 7, ["chat-1"], {"id": 1}])
    def test_is_none_where_the_request_names_none(self, value: Any) -> None:
        assert None is session_of(BY_BODY, "big", {}, {"user": value})

    def test_is_none_without_the_header(self) -> None:
        assert None is session_of(BY_HEADER, "big", {}, {"user": "chat-1"})

    def test_may_be_a_header_of_bytes_that_are_no_text(self) -> None:
        value = b"caf\xe9".decode("utf-8", "surrogateescape")
        assert 16 == len(session(value))

    def test_may_be_any_text_of_a_body(self) -> None:
        assert 16 == len(session_of(BY_BODY, "big", {}, {"user": "\u00e9\U0001f600"}) or b"")
