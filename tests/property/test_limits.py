"""A client's allowance, whatever the order and the times of its requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.config.snapshot import Client
from extproc.core.limits import MINUTE_S, WAITING_LIMIT_BYTES, ClientLimits

RATES = st.integers(1, 1000)
GAPS_S = st.lists(st.floats(0, 100, allow_nan=False), max_size=60)


def client(rate: int | None = None, concurrent: int | None = None) -> Client:
    return Client("team", (), ("*",), rate, concurrent)


@given(RATES, GAPS_S)
def test_no_more_is_granted_than_a_full_bucket_and_what_time_brings(rate: int, gaps_s: list[float]) -> None:
    limits, now, granted = ClientLimits(), 0.0, 0
    for gap_s in gaps_s:
        now += gap_s
        granted += limits.take(client(rate), now) is None
    assert granted <= rate + now * rate / MINUTE_S + 1e-6


@given(RATES, GAPS_S)
def test_after_the_wait_that_a_refusal_tells_the_next_request_fits(rate: int, gaps_s: list[float]) -> None:
    limits, now = ClientLimits(), 0.0
    for gap_s in gaps_s:
        now += gap_s
        refused = limits.take(client(rate), now)
        if refused is not None:
            now += int(dict(refused.headers)["retry-after"])
            assert limits.take(client(rate), now) is None


@given(RATES, st.floats(0, 1e6))
def test_a_clock_that_steps_back_gives_nothing_away(rate: int, back_s: float) -> None:
    limits = ClientLimits()
    for _ in range(rate):
        assert limits.take(client(rate), 2e6) is None
    assert limits.take(client(rate), 2e6 - back_s) is not None
    assert limits.take(client(rate), 2e6) is not None


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_never_more_are_under_way_than_the_limit(limit: int, begins: list[bool]) -> None:
    limits, under_way = ClientLimits(), 0
    for begin in begins:
        if begin and limits.busy(client(concurrent=limit)) is None:
            limits.begin("team")
            under_way += 1
        elif not begin and under_way:
            limits.end("team")
            under_way -= 1
        assert under_way == limits.under_way("team") <= limit


@given(st.integers(1, 5), st.lists(st.one_of(st.none(), st.integers(0, WAITING_LIMIT_BYTES)), max_size=60))
def test_no_more_wait_than_may_be_under_way_and_no_more_bytes_than_the_bound(
    limit: int, sizes: list[int | None]
) -> None:
    limits, waiting = ClientLimits(), list[int]()
    for size in sizes:
        if size is not None and limits.wait(client(concurrent=limit), size):
            waiting.append(size)
        elif size is None and waiting:
            limits.waited(client(concurrent=limit), waiting.pop())
        assert len(waiting) <= limit
        assert sum(waiting) <= WAITING_LIMIT_BYTES


def test_clients_do_not_share_their_allowance() -> None:
    limits = ClientLimits()
    assert limits.take(client(1), 0.0) is None
    assert limits.take(Client("other", (), ("*",), 1), 0.0) is None
    assert limits.take(client(1), 0.0) is not None
