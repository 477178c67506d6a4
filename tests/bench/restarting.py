"""How long callers get 503 after the external processor was killed: from the kill to the first good answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from tests.support import http1
from tests.support.gateway import Gateway
from tests.support.wall import WallProcess

KILLS = 5
POLL_S = 0.01
GIVE_UP_S = 30.0

Result = dict[str, Any]


def restarting(body: bytes, path: str, arguments: tuple[str, ...]) -> Iterator[Result]:
    """Kill `extproc serve` again and again, and ask until it serves."""
    with WallProcess("ok") as wall, Gateway(_config(wall.url), arguments=arguments) as running:
        outages = [_outage(running, running.url + path, body) for _ in range(KILLS)]
    seconds = [one for one, _ in outages]
    figures = {
        "back_p50_s": statistics.median(seconds),
        "back_worst_s": max(seconds),
        "errors": sum(strange for _, strange in outages),
    }
    yield {"stage": f"extproc killed, {KILLS} times", "subjects": {"gateway": figures}}


def _outage(running: Gateway, url: str, body: bytes) -> tuple[float, int]:
    """Return how long it lasted, and how many answers were neither good nor the documented 503."""
    killed = running.kill_extproc()
    began, strange = time.monotonic(), 0
    while time.monotonic() - began < GIVE_UP_S:
        reply = http1.request(url, body=body, timeout_s=10)
        if reply.status == 200 and running.pids().extproc not in (None, killed):
            break
        strange += reply.status not in (200, 503) or (
            reply.status == 503 and b'"gateway_unavailable"' not in reply.body
        )
        time.sleep(POLL_S)
    return time.monotonic() - began, strange


def _config(url: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "providers": {"one": {"base_url": url, "allow_private_network": True}},
        "models": {"bench": {"targets": [{"provider": "one", "model": "upstream"}]}},
    }
