"""What of health survives a restart, as JSON values.

Owns the saved form and its reading. Latencies, failure counts and probes under way are not saved: they say
nothing of the time after a restart. Invariants: reading never raises, whatever it is given; a bad entry is
skipped alone; a saved deadline never shortens one that the engine has; nothing is kept from use longer than
LONGEST_S.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from extproc.config.snapshot import TargetKey
from extproc.core.health_cell import Cell
from extproc.core.health_state import Operator, Subject

LONGEST_S: Final = 31 * 86400.0
_ENTRIES_READ: Final = 20_000
_NAME_LIMIT: Final = 512
_STREAK_LIMIT: Final = 30
_REASON: Final = re.compile(r"[a-z_]{1,40}", re.ASCII)


def dump_cells(cells: Iterable[Cell]) -> dict[str, Any]:
    """Return every subject that has a cooldown, a pause or an order."""
    return {"version": 1, "subjects": [_entry(cell) for cell in cells if not cell.calm]}


def load_cells(
    saved: object,
    now: float,
    is_known: Callable[[Subject], bool],
    cell_of: Callable[[Subject], Cell],
) -> None:
    """Put saved entries into the cells that `cell_of` finds or makes for them."""
    entries = saved.get("subjects") if isinstance(saved, Mapping) else None
    if not isinstance(entries, list):
        return
    for entry in entries[:_ENTRIES_READ]:
        subject = _subject(entry)
        if subject is None or not is_known(subject):
            continue
        until, reason = _deadline(entry.get("until"), now), entry.get("reason")
        paced_until = _deadline(entry.get("paced_until"), now) or 0.0
        operator = _operator(entry.get("operator"), now)
        tripped = until is not None and isinstance(reason, str) and _REASON.fullmatch(reason) is not None
        if not tripped and paced_until <= now and operator is None:
            continue
        cell = cell_of(subject)
        if tripped and until is not None:
            _trip(cell, entry, until)
        cell.paced_until = max(cell.paced_until, paced_until)
        cell.operator = operator or cell.operator
        cell.settle(now)
        cell.reported = cell.view(now).state


def _entry(cell: Cell) -> dict[str, Any]:
    subject = cell.subject
    entry: dict[str, Any] = {"provider": subject}
    if isinstance(subject, TargetKey):
        entry = {"provider": subject.provider, "model": subject.model}
    if cell.tripped:
        entry |= {
            "until": cell.until,
            "reason": cell.reason,
            "streak": cell.streak,
            "ill_since": cell.ill_since,
            "promoted": cell.promoted,
        }
    if cell.paced_until:
        entry["paced_until"] = cell.paced_until
    if cell.operator is not None:
        entry["operator"] = cell.operator._asdict()
    return entry


def _trip(cell: Cell, entry: Mapping[str, Any], until: float) -> None:
    if not cell.tripped or until > cell.until:
        cell.until, cell.reason = until, entry["reason"]
        cell.promoted = entry.get("promoted") is True
    if not cell.tripped:
        # Without a time that makes sense the outage counts from its last known deadline: the next wait is a short one.
        since = _number(entry.get("ill_since"))
        cell.ill_since = cell.until if since is None else min(since, cell.until)
    cell.tripped = True
    cell.streak = max(cell.streak, _streak(entry.get("streak")))


def _subject(entry: object) -> Subject | None:
    if not isinstance(entry, dict):
        return None
    provider, model = entry.get("provider"), entry.get("model")
    if not isinstance(provider, str) or not 0 < len(provider) <= _NAME_LIMIT:
        return None
    if model is None:
        return provider
    return TargetKey(provider, model) if isinstance(model, str) and 0 < len(model) <= _NAME_LIMIT else None


def _operator(value: object, now: float) -> Operator | None:
    if not isinstance(value, dict):
        return None
    kind, owner, reason = value.get("kind"), value.get("owner"), value.get("reason")
    expires = value.get("expires_at")
    if kind not in ("down", "drain") or not isinstance(owner, str) or not isinstance(reason, str):
        return None
    if expires is not None and _number(expires) is None:
        return None
    operator = Operator(kind, owner[:_NAME_LIMIT], reason[:_NAME_LIMIT], _number(expires))
    return operator if operator.holds(now) else None


def _deadline(value: object, now: float) -> float | None:
    time = _number(value)
    return None if time is None else min(time, now + LONGEST_S)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _streak(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= _STREAK_LIMIT else 1
