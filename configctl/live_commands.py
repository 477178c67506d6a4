"""What the verbs that ask a running gateway do: `health`, `requests`, `explain`, and the live part of `status`.

Leaves the verbs' spelling to `live_verbs.py`, the connection to `admin_client.py` and looks to `live_render.py`.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from configctl import live_render, live_shapes
from configctl.admin_client import AdminClient, AdminError
from configctl.live_shapes import Json
from configctl.options import Place
from configctl.render import one_line
from configctl.screen import Screen, to_json
from extproc.wire.pb import admin_pb2 as pb

_WATCH_S = 1.0


def live_status(place: Place) -> Json | None:
    """Return what the gateway on a data directory says of itself, None when none runs there.

    A gateway that was named with --admin must answer.
    """
    try:
        with AdminClient.of(place) as client:
            return live_shapes.of_instance(client.status())
    except AdminError:
        if place.admin:
            raise
        return None


def list_health(place: Place, *, as_json: bool, follow: bool = False) -> int:
    """Print every provider account and target."""
    screen = Screen()
    with AdminClient.of(place) as client:
        rows = _health(client)
        if as_json:
            screen.json(rows)
        elif follow and screen.data.is_terminal:
            _watch_health(client, screen)
        else:
            live_render.print_health(screen.data, rows)
    return 0


def set_health(place: Place, request: pb.SetHealthRequest, *, as_json: bool) -> int:
    """Carry out an order and print the subject's new row."""
    screen = Screen()
    with AdminClient.of(place) as client:
        answer = client.set_health(request)
    row = live_shapes.of_health(answer)
    if not answer.in_audit:
        screen.say("The store cannot be reached: the order holds, and the audit has it as soon as it can be.", "yellow")
    if as_json:
        screen.json(row | {"in_audit": answer.in_audit})
    else:
        reason = f" ({row['reason']})" if row["reason"] else ""
        screen.say(one_line(f"{row['subject']} is {row['state']}{reason} on this gateway."))
    return 0


def list_requests(place: Place, request: pb.ListRequestsRequest, *, as_json: bool) -> int:
    """Print past requests, and new ones as they end when the request says follow."""
    screen = Screen()
    with AdminClient.of(place) as client:
        rows = (live_shapes.of_request(row) for row in client.requests(request))
        if not request.follow:
            listed = list(rows)
            if as_json:
                screen.json(listed)
            elif listed:
                live_render.print_requests(screen.data, listed)
            else:
                screen.say("The ledger has no such request.")
            return 0
        with suppress(KeyboardInterrupt, BrokenPipeError):
            if as_json:
                for row in rows:
                    sys.stdout.write(f"{to_json(row)}\n")
                    sys.stdout.flush()
            else:
                live_render.follow_requests(screen, rows)
    return 0


def explain_request(place: Place, request_id: str, *, as_json: bool) -> int:
    """Print one request's story."""
    with AdminClient.of(place) as client:
        story = client.explain(request_id)
    screen = Screen()
    if as_json:
        screen.json(story)
    else:
        live_render.print_story(screen.data, story)
    return 0


def _health(client: AdminClient) -> list[Json]:
    return [live_shapes.of_health(row) for row in client.health()]


def _watch_health(client: AdminClient, screen: Screen) -> None:
    from rich.live import Live

    with suppress(KeyboardInterrupt), Live(console=screen.data, refresh_per_second=4) as live:
        while True:
            live.update(live_render.health_table(_health(client)))
            time.sleep(_WATCH_S)
