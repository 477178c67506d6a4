"""A long run with a random mix of all faults: nobody sees a failure that another target could have covered.

Three providers of four fail in every way; the last one is good, so a healthy target always exists. The requests come
in rounds; after each, memory, streams and descriptors are measured, and they must not grow. `SOAK_REQUESTS` and
`SOAK_SEED` come from `make soak N=... SEED=...`; the figures are printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from extproc import envoy_admin
from extproc.envoy_config.listener import STAT_PREFIX
from tests.support.gateway import Gateway, Pids
from tests.support.http1 import Call
from tests.support.load import LoadResult, run_load
from tests.support.wall import WallProcess

pytestmark = pytest.mark.soak

ROUNDS = 10
FAULTY, SHARE = 3, 0.3
"""So many providers of four meet a fault in this share of their requests."""
CONNECTIONS = 12
LEAVERS_OF = 200
"""One caller in so many leaves before the end."""
LEFT = ("left-shown", "left-held")
"""Models of their own for those callers: what they would have got cannot be known."""
TIMEOUT_S = 60.0
SHOWN_FAILURES = 20
CALM_S = 30.0
"""How soon after the last answer everything must be at rest: longer than a lost log entry is waited for."""
TIMERS: dict[str, Any] = {
    "attempts": 8,
    "deadline": "45s",
    "first_byte_timeout": "3s",
    "first_token_timeout": "3s",
    "stream_idle_timeout": "2s",
    "same_target": {"backoff": "20ms"},
    # Rarely out, for a moment, and soon back, so that every fault is met again and again.
    "cooldown": {"consecutive": 20, "failure_ratio": 1, "base": "200ms", "max": "1s", "quota": "1s", "cap": "2s"},
}
_CHUNK = re.compile(rb"(?P<size>[0-9a-fA-F]+)\r\n")


class Kind(NamedTuple):
    """A way to ask, its part of all requests, and whether a cut after the first words may reach the caller."""

    name: str
    part: float
    model: str
    stream: bool
    may_be_cut: bool


KINDS = (
    Kind("unary", 0.5, "shown", stream=False, may_be_cut=False),
    Kind("stream, first_token", 0.25, "shown", stream=True, may_be_cut=True),
    Kind("stream, complete", 0.25, "held", stream=True, may_be_cut=False),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes hold at rest."""

    rss_mib: dict[str, float]
    descriptors: dict[str, int]
    extproc_streams: int
    """gRPC streams that Envoy has open to extproc: at rest those of its access logs."""
    in_flight: float


@dataclass(slots=True)
class Soaked:
    """The whole run."""

    gateway: Gateway
    before: Pids
    requests: int
    results: dict[str, list[LoadResult]] = field(default_factory=lambda: {kind.name: [] for kind in KINDS})
    samples: list[Sample] = field(default_factory=list)
    leavers: int = 0
    seconds: float = 0.0

    def statuses(self, kind: Kind) -> Counter[int]:
        return sum((result.statuses for result in self.results[kind.name]), Counter[int]())

    def errors(self, kind: Kind) -> Counter[str]:
        return sum((result.errors for result in self.results[kind.name]), Counter[str]())


@pytest.fixture(scope="module")
def soaked() -> Iterator[Soaked]:
    """Run all rounds, printing figures as they come."""
    requests, seed = int(os.environ.get("SOAK_REQUESTS", "200000")), int(os.environ.get("SOAK_SEED", "1"))
    _say(f"{requests} requests in {ROUNDS} rounds, seed {seed}")
    with ExitStack() as stack:
        faulty = [WallProcess("mixed", share=SHARE, seed=seed + number) for number in range(FAULTY)]
        walls = [stack.enter_context(wall) for wall in (*faulty, WallProcess("ok", chunks=8))]
        gateway = stack.enter_context(Gateway(_config(walls)))
        run = Soaked(gateway, gateway.pids(), requests)
        for number in range(ROUNDS):
            _round(run, number, requests // ROUNDS, random.Random(seed * ROUNDS + number))  # noqa: S311 - the same seed, the same faults
        _say_what_was_met(gateway)
        yield run


def _config(walls: list[WallProcess]) -> dict[str, Any]:
    providers: dict[str, Any] = {
        f"provider-{number}": {"base_url": wall.url, "allow_private_network": True} for number, wall in enumerate(walls)
    }
    models: dict[str, Any] = {}
    for name in ("shown", "held"):
        models[name] = {
            "targets": [
                {"provider": f"provider-{number}", "model": f"upstream-{name}", "tier": tier}
                for number, tier in ((0, 0), (1, 0), (2, 1))
            ],
            "fallback": [f"good-{name}"],
            "policy": name,
        }
        good = {"provider": f"provider-{len(walls) - 1}", "model": f"good-{name}"}
        models[f"good-{name}"] = {"targets": [good], "policy": name}
        models[f"left-{name}"] = models[name]
    policies = {"shown": TIMERS, "held": TIMERS | {"stream_guard": "complete"}}
    return {"schema": 1, "providers": providers, "models": models, "policies": policies}


def _round(run: Soaked, number: int, requests: int, draw: random.Random) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(len(KINDS) + 1) as pool:
        loads = {kind.name: pool.submit(_load, run.gateway, kind, int(requests * kind.part)) for kind in KINDS}
        leaving = pool.submit(_leave_early, run.gateway, requests // LEAVERS_OF, draw)
        run.leavers += requests // LEAVERS_OF
        for name, load in loads.items():
            run.results[name].append(load.result())
        leaving.result()
    seconds = time.monotonic() - began
    run.seconds += seconds
    run.samples.append(_at_rest(run.gateway))
    sample = run.samples[-1]
    memory = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in sample.rss_mib.items())
    ends = {kind.name: dict(run.statuses(kind)) | dict(run.errors(kind)) for kind in KINDS}
    _say(f"round {number + 1}: {requests / seconds:.0f} requests/s, {memory}, {sample.descriptors}, {ends}")


def _load(gateway: Gateway, kind: Kind, requests: int) -> LoadResult:
    body: dict[str, Any] = {"model": kind.model, "messages": [{"role": "user", "content": "hi"}]}
    body |= {"stream": True} if kind.stream else {}
    url = f"{gateway.url}/v1/chat/completions"
    return run_load(url, requests, CONNECTIONS, orjson.dumps(body), timeout_s=TIMEOUT_S, is_whole=_is_whole)


def _is_whole(answer: bytes) -> bool:
    """Tell whether an answer says all that it has to say: JSON that ends, a stream with its last event."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" in head.lower():
        body = _unchunked(body)
    if b"text/event-stream" in head:
        return body.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"stop"' in body
    return not {"choices", "error"}.isdisjoint(orjson.loads(body))


def _unchunked(body: bytes) -> bytes:
    parts, at = [], 0
    while (match := _CHUNK.match(body, at)) and (size := int(match["size"], 16)):
        parts.append(body[match.end() : match.end() + size])
        at = match.end() + size + 2
    return b"".join(parts)


def _leave_early(gateway: Gateway, callers: int, draw: random.Random) -> None:
    """Send requests and close each connection after a moment, answered or not."""
    for _ in range(callers):
        body: dict[str, Any] = {"model": draw.choice(LEFT), "messages": [], "stream": draw.random() < 0.7}
        with Call(f"{gateway.url}/v1/chat/completions", timeout_s=TIMEOUT_S) as call:
            call.send("POST", {"content-type": "application/json"}, orjson.dumps(body))
            threading.Event().wait(draw.random() * 0.05)
            call.leave()


def _at_rest(gateway: Gateway) -> Sample:
    """Measure as soon as nothing is under way any more, or after `CALM_S` what is left."""
    deadline = time.monotonic() + CALM_S
    in_flight = gateway.metric("gateway_requests_in_flight")
    while in_flight and time.monotonic() < deadline:
        threading.Event().wait(0.2)
        in_flight = gateway.metric("gateway_requests_in_flight")
    pids = gateway.pids()
    named = {"extproc": pids.extproc, "envoy": pids.envoy}
    alive = {name: pid for name, pid in named.items() if pid is not None}
    return Sample(
        {name: _rss_mib(pid) for name, pid in alive.items()},
        {name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in alive.items()},
        _envoy_stat(gateway, r"cluster\.gateway-extproc\.http2\.streams_active"),
        in_flight,
    )


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _envoy_stat(gateway: Gateway, pattern: str) -> int:
    """Return the sum of Envoy's counters and gauges whose names fit."""
    socket = gateway.data_dir / "run" / "envoy-admin.sock"
    answer = asyncio.run(envoy_admin.get(socket, f"/stats?format=json&filter={pattern}"))
    return sum(int(stat["value"]) for stat in orjson.loads(answer.body)["stats"] if "value" in stat)


def _say_what_was_met(gateway: Gateway) -> None:
    """Print how many faults of each class were met, and the first answers that no caller should have got."""
    rows = gateway.access_log()
    _say(f"faults met: {dict(Counter(kind for row in rows for kind in row['classes'] or ()))}")
    for row in [row for row in rows if int(row["status"]) >= 500][:SHOWN_FAILURES]:
        _say(f"failed: {row}")


def _say(words: str) -> None:
    sys.stderr.write(f"soak: {words}\n")


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_no_caller_sees_a_failure_that_another_target_could_cover(soaked: Soaked, kind: Kind) -> None:
    """Only a provider's own refusal of a request may come through: a 400."""
    assert {200, 400} >= soaked.statuses(kind).keys()
    assert 0.97 < soaked.statuses(kind)[200] / soaked.statuses(kind).total()


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_no_answer_that_ends_cleanly_is_a_part_of_one(soaked: Soaked, kind: Kind) -> None:
    assert 0 == sum(result.short for result in soaked.results[kind.name])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.may_be_cut], ids=lambda kind: kind.name)
def test_no_answer_breaks_that_need_not(soaked: Soaked, kind: Kind) -> None:
    assert Counter() == soaked.errors(kind)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.may_be_cut], ids=lambda kind: kind.name)
def test_shown_streams_break_no_oftener_than_providers_break_them(soaked: Soaked, kind: Kind) -> None:
    errors, statuses = soaked.errors(kind), soaked.statuses(kind)
    assert "timeout" not in errors
    assert SHARE / 5 > errors.total() / (errors.total() + statuses.total())


def test_nothing_is_under_way_at_the_end(soaked: Soaked) -> None:
    assert 0 == soaked.samples[-1].in_flight
    assert 0 == _envoy_stat(soaked.gateway, r"cluster\.provider-.*\.upstream_rq_active")
    assert 0 == _envoy_stat(soaked.gateway, rf"http\.{STAT_PREFIX}\.downstream_rq_active")


@pytest.mark.parametrize("model", ["shown", "held"])
def test_metrics_count_exactly_what_the_load_tool_got(soaked: Soaked, model: str) -> None:
    """Each answer by its status; one that broke had begun with a 200."""
    got = Counter[str]()
    for kind in (kind for kind in KINDS if kind.model == model):
        got += Counter({str(status): count for status, count in soaked.statuses(kind).items()})
        got["200"] += soaked.errors(kind).total()
    told = {code: int(soaked.gateway.metric("gateway_requests_total", model=model, code=code)) for code in got}
    assert dict(got) == told
    assert got.total() == soaked.gateway.metric("gateway_requests_total", model=model)


def test_metrics_ledger_and_access_log_have_every_request_once(soaked: Soaked) -> None:
    """Those of callers who left included; what the ledger could not take is in its drop counter."""
    gateway, asked = soaked.gateway, sum(soaked.statuses(kind).total() + soaked.errors(kind).total() for kind in KINDS)
    sent = asked + soaked.leavers
    gateway.wait_until(lambda: gateway.metric("gateway_ledger_waiting") == 0, "the ledger to be written", CALM_S)
    counted, attempts, written, dropped = (
        int(gateway.metric(f"gateway_{name}_total"))
        for name in ("requests", "attempts", "ledger_rows", "ledger_dropped")
    )
    with closing(sqlite3.connect(f"file:{gateway.data_dir / 'requests.db'}?mode=ro", uri=True)) as database:
        rows, tried = database.execute("select count(*), sum(attempt_count) from requests").fetchone()
    lines = len(gateway.access_log())
    _say(
        f"load tool {asked} and {soaked.leavers} who left, metrics {counted} requests and {attempts} attempts, "
        f"ledger {rows} rows with {tried} attempts and {dropped} dropped, access log {lines} lines"
    )
    assert (sent, sent, sent, sent) == (counted, written + dropped, rows + dropped, lines)
    assert dropped or attempts == tried


def test_no_stream_to_extproc_is_left_behind(soaked: Soaked) -> None:
    assert soaked.samples[0].extproc_streams == soaked.samples[-1].extproc_streams


@pytest.mark.parametrize("process", ["extproc", "envoy"])
def test_memory_is_flat(soaked: Soaked, process: str) -> None:
    """What a process holds at the end is what it held half way."""
    middle, end = (soaked.samples[index].rss_mib[process] for index in (ROUNDS // 2 - 1, -1))
    assert end <= middle * 1.1 + 8


@pytest.mark.parametrize("process", ["extproc", "envoy"])
def test_descriptors_are_flat(soaked: Soaked, process: str) -> None:
    """Idle connections to providers come and go; beyond those nothing piles up."""
    middle, end = (soaked.samples[index].descriptors[process] for index in (ROUNDS // 2 - 1, -1))
    assert end <= middle + len(KINDS) * CONNECTIONS


def test_the_processes_of_the_first_request_served_the_last(soaked: Soaked) -> None:
    assert soaked.before == soaked.gateway.pids()
    assert 0.0 == soaked.gateway.metric("gateway_internal_faults_total")
    assert [] == soaked.gateway.alarming_lines()
