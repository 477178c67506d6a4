"""Recovery times are read from the headers that providers really send."""

from __future__ import annotations

import pytest

from extproc.core.reset_times import exhausted_until, recovery_time, told_time

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
CAP_S = 86_400.0


def wait(headers: dict[str, str], cap_s: float = CAP_S) -> float | None:
    """Return seconds until recovery, rounded to the microsecond."""
    at = recovery_time(headers, NOW, cap_s)
    return None if at is None else round(at - NOW, 6)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12", 12.0),
        (" 12 ", 12.0),
        ("1.5", 1.5),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),
        ("Tue Nov 14 22:14:20 2023", 60.0),
        ("2023-11-14T22:14:20Z", 60.0),
        ("1700000060", 60.0),
        ("0", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("soon", None),
        ("", None),
        ("\u0661\u0662", None),
        ("9" * 400, None),
        ("Tue, 14 Nov 2023 22:12:20 GMT", None),
        ("99999999999999", CAP_S),
        ("Fri, 31 Dec 9999 23:59:59 GMT", CAP_S),
        ("864001", CAP_S),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, expected: float | None) -> None:
    assert expected == wait({"retry-after": value})


@pytest.mark.parametrize("name", ["retry-after-ms", "x-ms-retry-after-ms"])
def test_milliseconds_are_the_exact_form_of_retry_after(name: str) -> None:
    assert wait({name: "1500", "retry-after": "2"}) == 1.5


def test_unreadable_milliseconds_leave_the_seconds() -> None:
    assert wait({"retry-after-ms": "a while", "retry-after": "2"}) == 2.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("6m0s", 360.0),
        ("1.5s", 1.5),
        ("20ms", 0.02),
        ("1h2m3s", 3723.0),
        ("1d", 86_400.0),
        ("7.66s", 7.66),
        ("2m59.56s", 179.56),
        ("30", 30.0),
        ("1700000030", 30.0),
        ("1700000030000", 30.0),
        ("6m 0s", None),
        ("m", None),
        ("0s", None),
    ],
)
def test_a_spent_limit_counts_until_its_reset(value: str, expected: float | None) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": value}
    assert expected == wait(headers)


def test_only_the_spent_dimension_counts() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "41s",
    }
    assert wait(headers) == 41.0


def test_of_two_spent_dimensions_the_later_counts() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "41s",
    }
    assert wait(headers) == 41.0


def test_retry_after_is_a_floor_under_the_dimensions() -> None:
    headers = {
        "retry-after": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2s",
    }
    assert wait(headers) == 60.0


@pytest.mark.parametrize("dimension", ["requests", "tokens", "input-tokens", "output-tokens"])
def test_anthropic_resets_are_rfc_3339(dimension: str) -> None:
    prefix = f"anthropic-ratelimit-{dimension}"
    assert wait({f"{prefix}-remaining": "0", f"{prefix}-reset": "2023-11-14T22:13:50Z"}) == 30.0


def test_nothing_is_guessed_when_every_limit_has_something_left() -> None:
    headers = {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "30s"}
    assert wait(headers) is None


def test_a_lone_reset_without_any_remaining_is_believed_on_a_refusal_only() -> None:
    headers = {"x-ratelimit-reset": "30"}
    assert wait(headers) == 30.0
    assert told_time(headers, NOW, CAP_S) is None


def test_two_resets_without_any_remaining_say_nothing() -> None:
    assert wait({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "9s"}) is None


def test_a_success_rests_the_target_only_when_a_limit_is_spent() -> None:
    spent = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "8s"}
    assert exhausted_until(spent, NOW, CAP_S) == NOW + 8.0
    left = {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "8s", "retry-after": "5"}
    assert exhausted_until(left, NOW, CAP_S) is None


def test_a_spent_limit_without_a_reset_says_nothing() -> None:
    assert exhausted_until({"x-ratelimit-remaining-requests": "0"}, NOW, CAP_S) is None


def test_no_wait_is_longer_than_the_cap() -> None:
    assert wait({"retry-after": "3600"}, cap_s=60.0) == 60.0
