"""Durations and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.units import format_duration, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("10s", 10.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("24h", 86_400.0),
        ("30d", 2_592_000.0),
        ("1m30s", 90.0),
        ("1.5s", 1.5),
        ("0", 0.0),
        (0, 0.0),
        ("0s", 0.0),
        ("366d", 366 * 86_400.0),
    ],
)
def test_a_duration_is_read_as_float_seconds(text: object, seconds: float) -> None:
    assert seconds == parse_duration(text)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (10, "needs a unit: write 250ms, 10s, 2m, 1h or 30d"),
        (1.5, "needs a unit: write 250ms, 10s, 2m, 1h or 30d"),
        ("10", "must be a duration such as 250ms, 10s, 1m30s, 24h or 30d"),
        ("-1s", "must be a duration such as 250ms, 10s, 1m30s, 24h or 30d"),
        ("1 s", "must be a duration such as 250ms, 10s, 1m30s, 24h or 30d"),
        ("1w", "must be a duration such as 250ms, 10s, 1m30s, 24h or 30d"),
        ("", "must be a duration such as 250ms, 10s, 1m30s, 24h or 30d"),
        ("\u0661s", "must be a duration such as 250ms, 10s, 1m30s, 24h or 30d"),
        (False, "must be a duration such as 250ms, 10s, 1m30s, 24h or 30d"),
        (("10s",), "must be a duration such as 250ms, 10s, 1m30s, 24h or 30d"),
        ("0.5ms", "must be a whole number of milliseconds"),
        ("367d", "must be at most 366d"),
    ],
)
def test_what_is_no_duration_is_refused_with_a_sentence(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_duration(value)
    assert reason == str(caught.value)


@given(st.integers(min_value=0, max_value=366 * 86_400_000))
def test_a_duration_written_and_read_again_is_the_same(ms: int) -> None:
    assert ms / 1000 == parse_duration(format_duration(ms / 1000))


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [("50MiB", 50 << 20), ("8KiB", 8192), ("1GiB", 1 << 30), ("7B", 7), (1234, 1234)],
)
def test_a_size_is_read_as_bytes(value: object, size_bytes: int) -> None:
    assert size_bytes == parse_size(value)


@pytest.mark.parametrize("value", ["50MB", "50", "1.5MiB", "-1KiB", "", 1.5, True, "50 MiB"])
def test_what_is_no_size_is_refused_with_a_sentence(value: object) -> None:
    with pytest.raises(ValueError, match="must be a size such as 50MiB, 8KiB or 1GiB, or a whole number of bytes"):
        parse_size(value)
