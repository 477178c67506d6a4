"""Whatever headers hold, reading them gives None or a time between now and the cap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.reset_times import exhausted_until, recovery_time

NAMES = [
    "retry-after",
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "ratelimit-remaining",
    "ratelimit-reset",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
    "anthropic-ratelimit-output-tokens-remaining",
    "anthropic-ratelimit-output-tokens-reset",
]
numberish = st.from_regex(r"[-+]?[0-9]{0,25}(\.[0-9]{0,12})?(ms|s|m|h|d|e[0-9]{1,4})?", fullmatch=True)
dateish = st.builds(
    "{}-{:02d}-{:02d}T{:02d}:{:02d}:{:02d}{}".format,
    st.integers(0, 99999),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 99),
    st.sampled_from(["", "Z", "+99:99", "-00:00", "+14:00"]),
)
httpish = st.builds(
    "{}, {:02d} {} {} {:02d}:{:02d}:{:02d} {}".format,
    st.sampled_from(["Mon", "Foo", ""]),
    st.integers(0, 40),
    st.sampled_from(["Jan", "Dec", "Bad", "13"]),
    st.integers(0, 99999),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 99),
    st.sampled_from(["GMT", "+9999", "-0000", "", "EST"]),
)
values = st.one_of(st.text(), st.just("0"), numberish, dateish, httpish)
headers = st.dictionaries(st.sampled_from(NAMES), values)
times = st.floats(min_value=0, max_value=4e9)
caps = st.floats(min_value=1, max_value=1e7)


@given(headers, times, caps)
def test_a_recovery_time_is_never_in_the_past_nor_beyond_the_cap(
    given_headers: dict[str, str], now: float, cap_s: float
) -> None:
    at = recovery_time(given_headers, now, cap_s)
    assert at is None or now < at <= now + cap_s


@given(headers, times, caps)
def test_a_pause_is_never_in_the_past_nor_beyond_the_cap(
    given_headers: dict[str, str], now: float, cap_s: float
) -> None:
    at = exhausted_until(given_headers, now, cap_s)
    assert at is None or now < at <= now + cap_s


@given(headers, times, caps)
def test_a_refusal_is_never_over_before_the_pause_of_a_success_with_the_same_headers(
    given_headers: dict[str, str], now: float, cap_s: float
) -> None:
    pause, recovery = exhausted_until(given_headers, now, cap_s), recovery_time(given_headers, now, cap_s)
    assert pause is None or (recovery is not None and recovery >= pause)
