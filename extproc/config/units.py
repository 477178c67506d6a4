"""Durations, sizes and moments as people write them.

Owns the text forms `1m30s`, `50MiB` and `2030-12-31T00:00:00Z`; inside, durations are float seconds, sizes are int
bytes and moments are float epoch seconds.
Invariant: a duration is a whole number of milliseconds, so writing and reading it again gives the same float.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,3})?(?:ms|s|m|h|d))+", re.ASCII)
_PART = re.compile(r"([0-9]+)(?:\.([0-9]+))?(ms|s|m|h|d)", re.ASCII)
_MAX_DURATION_MS = 366 * _MS["d"]
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_MOMENT = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB)", re.ASCII)


def parse_duration(value: object) -> float:
    """Read `250ms`, `10s`, `1m30s`, `30d` or a bare 0 as float seconds; ValueError says what to write."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError("needs a unit: write 250ms, 10s, 2m, 1h or 30d")
    if value == "0":
        return 0.0
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError("must be a duration such as 250ms, 10s, 1m30s, 24h or 30d")
    total_ms = sum(_part_ms(*match.groups("")) for match in _PART.finditer(value))
    if total_ms > _MAX_DURATION_MS:
        raise ValueError("must be at most 366d")
    return total_ms / 1000


def _part_ms(whole: str, fraction: str, unit: str) -> int:
    scale: int = 10 ** len(fraction)
    ms, rest = divmod(int(whole + fraction) * _MS[unit], scale)
    if rest:
        raise ValueError("must be a whole number of milliseconds")
    return ms


def format_duration(seconds: float) -> str:
    """Write float seconds in the shortest form that reads back as the same number: `250ms`, `90s`."""
    ms = round(seconds * 1000)
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def parse_size(value: object) -> int:
    """Read `50MiB`, `8KiB` or a number of bytes; ValueError says what to write."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be a size such as 50MiB, 8KiB or 1GiB, or a whole number of bytes")
    return int(match[1]) * _BYTES[match[2]]


def parse_moment(value: object) -> float:
    """Read `2030-12-31T23:59:59Z`, or any RFC 3339 time of whole seconds with its offset, as epoch seconds."""
    sentence = "must be a time with its offset, such as 2030-12-31T00:00:00Z"
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise ValueError(sentence)
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(sentence) from None


def format_moment(seconds: float) -> str:
    """Write epoch seconds as UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
