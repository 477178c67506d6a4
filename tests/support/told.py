"""What each of the gateway's four witnesses tells of a request, in one shape, so that they can be compared.

Owns the reading of the access log's line, the ledger's row and `explain`, and the counting of metrics by provider and
model. Leaves what they should tell to the tests.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from configctl.admin_client import AdminClient
from extproc.core.story import Story
from extproc.ledger_reader import LedgerReader
from tests.support.gateway import Gateway
from tests.support.http1 import Reply

SETTLED_WITHIN_S = 30.0
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Account(NamedTuple):
    """One witness's account of a request; `classes` are those of its failed attempts."""

    status: int
    route_mode: str
    served_by: str | None
    attempts: int
    classes: tuple[str, ...]


class Try(NamedTuple):
    """One attempt: its target, and its class, None for a success."""

    target: str
    error_class: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What was told of one request; `tries`, `nexts` and `replay` are as `explain` has them.

    `nexts` says of each try what followed it, None when nothing did; `flags` are Envoy's short ones.
    """

    line: Account
    row: Account
    explained: Account
    row_tries: tuple[Try, ...]
    tries: tuple[Try, ...]
    nexts: tuple[str | None, ...]
    replay: Mapping[str, Any]
    flags: str


class Totals(NamedTuple):
    """What metrics counted: attempts by (provider, class), requests by (model, provider, route_mode, code)."""

    attempts: Counter[tuple[str, str]]
    requests: Counter[tuple[str, str, str, str]]


def id_of(reply: Reply) -> str:
    """Return an answer's request id."""
    return reply.header("x-request-id") or ""


def all_told(gateway: Gateway, replies: Iterable[Reply]) -> dict[str, Told]:
    """Return what was told of each of these requests, by id, once nothing of any is under way."""
    ids = [id_of(reply) for reply in replies]
    for name in ("gateway_requests_in_flight", "gateway_ledger_waiting"):
        gateway.wait_until(lambda name=name: gateway.metric(name) == 0, f"{name} to be 0", SETTLED_WITHIN_S)  # type: ignore[misc]
    lines = {line["request_id"]: line for line in gateway.access_log(len(ids))}
    ledger = LedgerReader(gateway.data_dir / "requests.db")
    with AdminClient(str(gateway.data_dir)) as api:
        return {one: _told(lines[one], _found(ledger, one), api.explain(one)) for one in ids}


def totals_of(gateway: Gateway) -> Totals:
    """Return what metrics counted up to now."""
    totals = Totals(Counter(), Counter())
    for sample, value in gateway.metrics().items():
        name, _, rest = sample.partition("{")
        label = dict(_LABEL.findall(rest))
        if name == "gateway_attempts_total":
            totals.attempts[label["provider"], label["class"]] += int(value)
        elif name == "gateway_requests_total":
            key = (label["model"], label["provider"], label["route_mode"], label["code"])
            totals.requests[key] += int(value)
    return totals


def _found(ledger: LedgerReader, request_id: str) -> Story:
    story = ledger.find(request_id)
    assert story is not None, f"the ledger has no row of {request_id}"
    return story


def _told(line: Mapping[str, Any], row: Story, story: Mapping[str, Any]) -> Told:
    tries = tuple(Try(attempt["target"], attempt["class"]) for attempt in story["attempts"])
    failed = tuple(one.error_class for one in tries if one.error_class is not None)
    return Told(
        Account(
            line["status"],
            line["route_mode"],
            line["served_by"] or None,
            int(line["attempts"]),
            tuple(line["classes"] or ()),
        ),
        Account(row.status, row.route_mode, row.served_by or None, row.attempt_count, row.classes),
        Account(story["status"], story["route_mode"], story["served_by"], len(tries), failed),
        tuple(Try(str(attempt.target), attempt.error_class) for attempt in row.attempts),
        tries,
        tuple(attempt["next"] for attempt in story["attempts"]),
        story["replay"],
        line["flags"] or "",
    )
