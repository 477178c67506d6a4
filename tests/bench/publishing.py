"""Publishing under load: how soon a new version is in callers' answers, and whether a request fails meanwhile.

Requests come at a steady rate, one publish follows the other, and each has new clusters, so that Envoy has all to do.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.gateway import Gateway
from tests.support.load import LoadResult, run_load
from tests.support.operator import Operator
from tests.support.wall import WallProcess

PUBLISHES = 20
RATE = 500.0
CONNECTIONS = 32
LAST_SEEN_WITHIN_S = 1.0
"""How long the load goes on after the last publish: what nobody has seen by then is late."""
NEVER_S = 60.0
"""What a version counts as that no answer had."""
_LAST = 10_000_000
_VERSION = re.compile(rb"x-gateway-config-version: (\d+)")

Result = dict[str, Any]


class FirstSeen:
    """When each version was first in an answer, epoch seconds."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def notice(self, _began: float, answer: bytes) -> None:
        """Take note of one whole answer."""
        found = _VERSION.search(answer)
        if found is not None:
            self.at.setdefault(int(found[1]), time.time())


def publishing(body: bytes, path: str, arguments: tuple[str, ...]) -> Iterator[Result]:
    """Publish again and again under load."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder,
        WallProcess("ok") as wall,
        Gateway(_config(wall.url, 0), arguments=arguments) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        seen, enough = FirstSeen(), threading.Event()
        operator = Operator(Path(folder), data_dir=running.data_dir, installed=True)
        load = pool.submit(
            run_load, running.url + path, _LAST, CONNECTIONS, body, rate=RATE, enough=enough, notice=seen.notice
        )
        try:
            published = [_publish(operator, wall.url, number) for number in range(1, PUBLISHES + 1)]
            threading.Event().wait(LAST_SEEN_WITHIN_S)
        finally:
            enough.set()
        figures = _figures(load.result(), seen, dict(one for one in published if one is not None))
    yield {"stage": f"publish, {PUBLISHES} times at {RATE:.0f} requests/s", "subjects": {"gateway": figures}}


def _publish(operator: Operator, url: str, number: int) -> tuple[int, float] | None:
    """Return a new version's number and when the store had it; None when it did not become active."""
    ran = operator.publish(_config(url, number))
    if ran.code != 0:
        return None
    version = ran.json["version"]
    return version["number"], datetime.fromisoformat(version["created_at"]).timestamp()


def _figures(load: LoadResult, seen: FirstSeen, published: dict[int, float]) -> Result:
    delays_s = [max(0.0, seen.at.get(number, at + NEVER_S) - at) for number, at in published.items()]
    bad = load.errors.total() + sum(count for status, count in load.statuses.items() if status != 200)
    return {
        "rps": load.rps,
        "publishes": len(published),
        "visible_p50_s": statistics.median(delays_s) if delays_s else NEVER_S,
        "visible_worst_s": max(delays_s, default=NEVER_S),
        "p99_ms": load.percentile(0.99) * 1e3,
        "errors": bad + PUBLISHES - len(published),
    }


def _config(url: str, number: int) -> dict[str, Any]:
    """Return the config of one publish; the connection's timeout is a part of every cluster."""
    return {
        "schema": 1,
        "providers": {"primary": {"base_url": url, "allow_private_network": True}},
        "models": {"bench": {"targets": [{"provider": "primary", "model": "bench-upstream"}]}},
        "policies": {"default": {"connect_timeout": f"{2000 + number}ms"}},
    }
