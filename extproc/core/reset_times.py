"""When a provider says that it can serve again, read from its answer's headers.

Owns the header names, the number and date forms, and which of several limits counts. Leaves to others what
follows from the time (health.py, retry.py). Invariants: total functions, no header text raises; a returned
time lies after `now` and never later than `now + cap_s`; what cannot be read, is negative or is already over
says nothing (None).

`Retry-After` is RFC 9110 section 10.2.3. Its millisecond forms are what the OpenAI and Azure SDKs read. The
limit headers: https://platform.openai.com/docs/guides/rate-limits,
https://docs.claude.com/en/api/rate-limits, https://inference-docs.cerebras.ai/support/rate-limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_MILLISECOND_HEADERS: Final = ("retry-after-ms", "x-ms-retry-after-ms")

_DIMENSIONS: Final[tuple[tuple[str, str], ...]] = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("ratelimit-remaining", "ratelimit-reset"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset"),
    ("x-ratelimit-remaining-requests-day", "x-ratelimit-reset-requests-day"),
    ("x-ratelimit-remaining-tokens-minute", "x-ratelimit-reset-tokens-minute"),
)

LIMIT_HEADERS: Final = ("retry-after", *_MILLISECOND_HEADERS, *(name for pair in _DIMENSIONS for name in pair))
"""Every header that is read here; Envoy has to log them of good answers too."""

_LONGEST_VALUE: Final = 64
_NUMBER: Final = re.compile(r"\d{1,15}(?:\.\d{1,9})?", re.ASCII)
_DURATION: Final = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?(?:ms|us|ns|d|h|m|s))+", re.ASCII)
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|ns|d|h|m|s)", re.ASCII)
_UNIT_S: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

# A bare number this large is a date, not a wait: 1e9 s is the year 2001, 1e11 ms is 1973.
_EPOCH_S: Final = 1e9
_EPOCH_MS: Final = 1e11


def recovery_time(headers: Mapping[str, str], now: float, cap_s: float) -> float | None:
    """Return the epoch second from which a refused request may be repeated, None when nothing says so.

    `headers` has lower-case names. Retry-After is a floor; of the limits only those whose remaining is 0
    count. A limit that comes alone and without any remaining header is taken at its word.
    """
    told = told_time(headers, now, cap_s)
    if told is not None or any(remaining in headers for remaining, _ in _DIMENSIONS):
        return told
    resets = [time for _, reset in _DIMENSIONS if (time := delay_end(headers.get(reset), now, cap_s))]
    return resets[0] if len(resets) == 1 else None


def told_time(headers: Mapping[str, str], now: float, cap_s: float) -> float | None:
    """Return the later of Retry-After and the resets of exhausted limits; never guesses."""
    times = [*_exhausted(headers, now, cap_s)]
    explicit = retry_after_time(headers, now, cap_s)
    if explicit is not None:
        times.append(explicit)
    return max(times, default=None)


def retry_after_time(headers: Mapping[str, str], now: float, cap_s: float) -> float | None:
    """Return the end of an explicit Retry-After; a millisecond form, being exact, wins over the seconds."""
    for name in _MILLISECOND_HEADERS:
        text = headers.get(name, "").strip()
        if len(text) <= _LONGEST_VALUE and _NUMBER.fullmatch(text):
            return _within(now + float(text) / 1000.0, now, cap_s)
    return delay_end(headers.get("retry-after"), now, cap_s)


def exhausted_until(headers: Mapping[str, str], now: float, cap_s: float) -> float | None:
    """Return until when a *successful* answer's limits are spent, None while anything remains."""
    return max(_exhausted(headers, now, cap_s), default=None)


def delay_end(text: str | None, now: float, cap_s: float) -> float | None:
    """Return the epoch second one value names: seconds, `6m0s`, epoch s or ms, an HTTP or RFC 3339 date."""
    if text is None or len(text) > _LONGEST_VALUE:
        return None
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return _within(_from_number(float(text), now), now, cap_s)
    if _DURATION.fullmatch(text):
        wait_s = sum(float(part) * _UNIT_S[unit] for part, unit in _DURATION_PART.findall(text))
        return _within(now + wait_s, now, cap_s)
    date = _date(text)
    return None if date is None else _within(date, now, cap_s)


def _exhausted(headers: Mapping[str, str], now: float, cap_s: float) -> Iterator[float]:
    for remaining, reset in _DIMENSIONS:
        left = headers.get(remaining)
        if left is None or not _is_zero(left):
            continue
        time = delay_end(headers.get(reset), now, cap_s)
        if time is not None:
            yield time


def _is_zero(text: str) -> bool:
    text = text.strip()
    return len(text) <= _LONGEST_VALUE and _NUMBER.fullmatch(text) is not None and float(text) == 0.0


def _from_number(value: float, now: float) -> float:
    if value >= _EPOCH_MS:
        return value / 1000.0
    return value if value >= _EPOCH_S else now + value


def _within(time: float, now: float, cap_s: float) -> float | None:
    return min(time, now + cap_s) if time > now else None


def _date(text: str) -> float | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            date = parse(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None
