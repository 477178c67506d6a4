"""How the verbs on a running gateway look to people: tables, live tables, and the story of one request."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from configctl.render import drawn_table, one_line, print_rows
from configctl.screen import Screen, print_line, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from configctl.live_shapes import Json

HEALTH_HEADERS = ("subject", "state", "share", "until", "reason", "order")
REQUEST_HEADERS = (
    "arrived",
    "request",
    "model",
    "outcome",
    "status",
    "mode",
    "served by",
    "tries",
    "classes",
    "ms",
    "tokens",
)
_SHOWN_ROWS = 30
_STYLES = {
    "healthy": "green",
    "degraded": "yellow",
    "probing": "yellow",
    "cooling": "red",
    "down": "red",
    "served": "green",
    "aborted": "yellow",
}


def health_cells(row: Json) -> tuple[str, ...]:
    """Return one line of the health table."""
    order = row["order"]
    told = "" if order is None else f"{order['kind']} by {order['owner']}: {order['reason']}"
    if order is not None and order["expires_at"]:
        told += f" until {order['expires_at']}"
    share = "" if row["share"] >= 1.0 else f"{row['share']:.0%}"
    return (row["subject"], row["state"], share, row["until"] or "", row["reason"] or "", told)


def request_cells(row: Json) -> tuple[str, ...]:
    """Return one line of the request table."""
    tokens = "" if row["input_tokens"] is None else f"{row['input_tokens']}+{row['output_tokens'] or 0}"
    duration = "" if row["duration_ms"] is None else f"{row['duration_ms']:.0f}"
    return (
        row["arrived"] or "",
        row["request_id"],
        row["model"],
        row["error"] or row["outcome"],
        str(row["status"]),
        row["route_mode"],
        row["served_by"] or "",
        str(row["attempts"]),
        ",".join(row["classes"]),
        duration,
        tokens,
    )


def print_health(console: Console, rows: Iterable[Json]) -> None:
    """Print the health table."""
    print_rows(console, HEALTH_HEADERS, [health_cells(row) for row in rows])


def print_requests(console: Console, rows: Iterable[Json]) -> None:
    """Print the request table."""
    print_rows(console, REQUEST_HEADERS, [request_cells(row) for row in rows])


def follow_requests(screen: Screen, rows: Iterator[Json]) -> None:
    """Show requests as they come: a live table on a terminal, a line each in a pipe."""
    if not screen.data.is_terminal:
        for row in rows:
            print_line(screen.data, "  ".join(one_line(cell) for cell in request_cells(row)))
            screen.data.file.flush()
        return
    from rich.live import Live

    shown: deque[tuple[str, ...]] = deque(maxlen=_SHOWN_ROWS)
    with Live(_table(REQUEST_HEADERS, shown), console=screen.data, refresh_per_second=4) as live:
        for row in rows:
            shown.append(request_cells(row))
            live.update(_table(REQUEST_HEADERS, shown))


def health_table(rows: Iterable[Json]) -> Table:
    """Return the health table as a drawing, for a live view."""
    return _table(HEALTH_HEADERS, [health_cells(row) for row in rows])


def print_instance(console: Console, live: Json) -> None:
    """Print the live part of `status`."""
    ready = "ready" if live["ready"] else "not ready"
    ledger = live["ledger"]
    facts = {
        "this gateway": f"pid {live['pid']}, {live['software_version']}, {ready} since {live['applied_at'] or 'never'}",
        "version": f"applied {live['applied_version'] or 'none'}, wanted {live['wanted_version'] or 'none'}",
        "requests": f"{live['requests_open']} under way",
        "ledger": f"{ledger['written']} written, {ledger['waiting']} waiting, {ledger['dropped']} dropped",
    }
    if live["missing_keys"]:
        facts["missing keys"] = ", ".join(live["missing_keys"])
    if live["last_error"]:
        facts["last error"] = live["last_error"]
    for name, value in facts.items():
        print_line(console, f"{name + ':':<15}{one_line(value)}")


def print_story(console: Console, story: dict[str, Any]) -> None:
    """Print one request's story in the order in which it happened."""
    for line, style in story_lines(story):
        print_line(console, visible(line), style)


def story_lines(story: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines of a story, each with its style."""
    who = story["client"] or "a caller without a name"
    yield f"request {story['request_id']}", "bold"
    yield (
        (
            f"arrived from {who} at {story['endpoint'] or 'an unknown endpoint'} "
            f"for model {story['model'] or 'unknown'}, "
            f"config version {story['config_version']}, policy {story['policy'] or 'none'}"
        ),
        "",
    )
    if story["session_target"]:
        yield f"its session belongs to {story['session_target']}", ""
    yield from _candidate_lines(story)
    yield from _attempt_lines(story)
    yield from _outcome_lines(story)


def _candidate_lines(story: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not story["candidates"]:
        yield _nothing_considered(story), ""
        return
    yield "considered:", "bold"
    for candidate in story["candidates"]:
        verdict = "in " if candidate["eligible"] else "out"
        told = candidate["state"]
        if candidate["reason"]:
            told += f", {candidate['reason']}"
        if candidate["share"] < 1.0:
            told += f", {candidate['share']:.0%} of its weight"
        if candidate["until"] is not None:
            told += f", for another {max(0.0, candidate['until'] - story['arrived']):.1f} s"
        if candidate["evidence"]:
            told += f" ({', '.join(candidate['evidence'])})"
        place = f"{candidate['public_model']} tier {candidate['tier']} weight {candidate['weight']}"
        yield f"  {verdict} {candidate['target']} ({place}): {told}", "" if candidate["eligible"] else "yellow"
    order = ", ".join(f"{place['target']} ({place['mode']})" for place in story["plan"]) or "nobody"
    yield f"planned: {order}", ""


def _nothing_considered(story: dict[str, Any]) -> str:
    if not story["attempts"] and not story["served_by"]:
        return "no target was considered"
    if story["ticket"] is None:
        return "what was considered was lost with a restart of extproc"
    return "what was considered was lost: its config version had left memory"


def _attempt_lines(story: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for attempt in story["attempts"]:
        duration = "" if attempt["duration_ms"] is None else f", took {attempt['duration_ms']:.0f} ms"
        verdict = attempt["class"] or "success"
        status = "" if attempt["status"] is None else f" {attempt['status']}"
        evidence = f" ({', '.join(attempt['evidence'])})" if attempt["evidence"] else ""
        line = (
            f"attempt {attempt['n']} at +{attempt['start_ms']:.0f} ms: {attempt['target']}{duration}: {verdict}{status}"
        )
        line += evidence
        yield line, "green" if attempt["class"] is None else "red"
        if attempt["next"]:
            yield f"  then {attempt['next']}", ""


def _outcome_lines(story: dict[str, Any]) -> Iterator[tuple[str, str]]:
    got = f"the caller got {story['status'] or 'no status'}"
    if story["error"]:
        got += f" {story['error']}"
    if story["served_by"]:
        got += f" from {story['served_by']}"
    duration = "" if story["duration_ms"] is None else f" after {story['duration_ms']:.0f} ms"
    yield f"{story['outcome']}: {got}, route mode {story['route_mode']}{duration}", "bold"
    if story["tokens"]:
        yield f"tokens: {', '.join(f'{count} {kind}' for kind, count in story['tokens'].items())}", ""
    again = story["replay"]
    if again["same"] is None:
        yield f"not planned again: {again['not_run']}", "yellow"
    elif again["same"]:
        yield "planned again under the recorded version and evidence: the same plan", ""
    else:
        yield f"planned again: {again['differs']}", "yellow"


def _table(headers: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    return drawn_table(headers, ([one_line(cell) for cell in row] for row in rows), _STYLES)
