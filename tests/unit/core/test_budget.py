"""How many second tries a failing provider may cost."""

from __future__ import annotations

from extproc.core.budget import FLOOR_PER_S, WINDOW_S, RetryBudget

NOW = 1_700_000_000.0
FLOOR = FLOOR_PER_S * WINDOW_S


def budget_of(requests: int, now: float = NOW) -> RetryBudget:
    """Return a budget that has seen so many requests."""
    budget = RetryBudget()
    for _ in range(requests):
        budget.request(now)
    return budget


def taken(budget: RetryBudget, share: float, now: float = NOW, asked: int = 1000) -> int:
    """Ask often and return how many tries were granted."""
    return sum(budget.take(share, now) for _ in range(asked))


def test_a_gateway_without_traffic_still_has_its_floor() -> None:
    assert FLOOR == taken(budget_of(0), 0.2)


def test_the_floor_holds_where_the_share_would_give_less() -> None:
    assert FLOOR == taken(budget_of(100), 0.2)


def test_a_busy_gateway_may_spend_its_share_of_the_requests() -> None:
    assert 100 == taken(budget_of(500), 0.2)


def test_a_share_of_nothing_leaves_the_floor() -> None:
    assert FLOOR == taken(budget_of(10_000), 0.0)


def test_a_try_that_was_refused_costs_nothing() -> None:
    budget = budget_of(200)
    taken(budget, 0.2, asked=1000)

    assert 60 == taken(budget, 0.5, asked=1000)


def test_more_requests_make_room_for_more_tries() -> None:
    budget = budget_of(200)
    taken(budget, 0.2)
    for _ in range(100):
        budget.request(NOW)

    assert 20 == taken(budget, 0.2)


def test_what_was_spent_comes_back_when_its_second_leaves_the_window() -> None:
    budget = RetryBudget()
    taken(budget, 0.2)

    assert 0 == taken(budget, 0.2, NOW + WINDOW_S - 1)
    assert FLOOR == taken(budget, 0.2, NOW + WINDOW_S)


def test_requests_count_no_longer_than_the_window() -> None:
    assert FLOOR == taken(budget_of(500), 0.2, NOW + WINDOW_S)


def test_only_the_seconds_that_are_old_are_forgotten() -> None:
    budget = budget_of(300)
    for _ in range(200):
        budget.request(NOW + 5)

    assert 100 == taken(budget, 0.2, NOW + 5)
    assert 0 == taken(budget, 0.2, NOW + 9)
    # The 300 requests are over, the 100 tries of the sixth second are not.
    assert 0 == taken(budget, 0.2, NOW + 10)
    assert FLOOR == taken(budget, 0.2, NOW + 15)


def test_a_clock_that_stands_back_a_little_loses_nothing() -> None:
    budget = budget_of(499)
    budget.request(NOW - 1.0)

    assert 100 == taken(budget, 0.2)
