"""What is measured: the subjects side by side, and the rounds that take turns between them.

A subject is plain Envoy, the gateway, or any base URL. All subjects of a stage ask the same providers; they are
measured in turns, so that a busy machine is equally busy for each, and medians are taken over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.bench.callers import Load, streamed_answers, whole_answers
from tests.bench.processes import BUSY, TOO_LONG, cpu_s, fixed_provider, peak_rss_mb, plain_envoy
from tests.support.gateway import Gateway
from tests.support.wall import WallProcess

CONCURRENCY = 2
PATH = "/v1/chat/completions"
EVENTS = 100

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that answers, and the processes that its answers cost."""

    name: str
    base_url: str
    pids: Mapping[str, int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    rounds: int
    round_s: float
    sizes_bytes: tuple[int, ...]
    connections: tuple[int, ...]
    streams_each: int


SHORT = Effort(rounds=2, round_s=2, sizes_bytes=(2048,), connections=(1, 32), streams_each=3)
FULL = Effort(rounds=5, round_s=4, sizes_bytes=(1024, 2048, 65536, 1 << 20), connections=(1, 32), streams_each=10)


def chat_body(size_bytes: int, *, stream: bool = False) -> bytes:
    """Return a chat request of about this size."""
    body: dict[str, Any] = {"model": "bench", "messages": [{"role": "user", "content": ""}]}
    if stream:
        body["stream"] = True
    body["messages"][0]["content"] = "x" * max(1, size_bytes - len(orjson.dumps(body)))
    return orjson.dumps(body)


def gateway_config(primary_url: str, fallback_url: str) -> dict[str, Any]:
    """Return a config whose model falls back to another provider's, also for a context that is too long."""
    urls = {"primary": primary_url, "fallback": fallback_url}
    fallbacks = {"fallback": ["bench-2"], "context_fallback": ["bench-2"]}
    return {
        "schema": 1,
        "providers": {name: {"base_url": url, "allow_private_network": True} for name, url in urls.items()},
        "models": {
            "bench": {"targets": [{"provider": "primary", "model": "bench-upstream"}]} | fallbacks,
            "bench-2": {"targets": [{"provider": "fallback", "model": "bench-2-upstream"}]},
        },
    }


@contextmanager
def gateway(config: Mapping[str, Any], arguments: tuple[str, ...]) -> Iterator[Subject]:
    """Run a gateway as a subject."""
    with Gateway(config, arguments=("--concurrency", str(CONCURRENCY), *arguments)) as running:
        pids = running.pids()
        if pids.envoy is None or pids.extproc is None:
            raise RuntimeError("the gateway did not start")
        yield Subject("gateway", running.url, {"envoy": pids.envoy, "extproc": pids.extproc})


def healthy(effort: Effort, others: list[Subject], arguments: tuple[str, ...]) -> Iterator[Result]:
    """Measure whole answers of a provider that is well."""
    with ExitStack() as stack:
        port = stack.enter_context(fixed_provider())
        plain_port, plain_pid = stack.enter_context(plain_envoy(port, CONCURRENCY))
        provider = f"http://127.0.0.1:{port}/v1"
        subjects = [
            Subject("plain Envoy", f"http://127.0.0.1:{plain_port}", {"envoy": plain_pid}),
            stack.enter_context(gateway(gateway_config(provider, provider), arguments)),
            *others,
        ]
        for size in effort.sizes_bytes:
            for connections in effort.connections:
                yield _whole(f"healthy, {_shown(size)}, {connections}", subjects, effort, size, connections)


def failing(effort: Effort, others: list[Subject], arguments: tuple[str, ...]) -> Iterator[Result]:
    """Measure 2 KB at the most connections while the primary fails: cooled, and asked again every time.

    A context that is too long is charged to nobody, so nothing ever cools: every request is judged and fails over.
    """
    size, connections = 2048, max(effort.connections)
    with ExitStack() as stack:
        good_port = stack.enter_context(fixed_provider())
        good = f"http://127.0.0.1:{good_port}/v1"
        busy = f"http://127.0.0.1:{stack.enter_context(fixed_provider(429, BUSY))}/v1"
        short = f"http://127.0.0.1:{stack.enter_context(fixed_provider(400, TOO_LONG))}/v1"
        plain_port, plain_pid = stack.enter_context(plain_envoy(good_port, CONCURRENCY))
        plain = Subject("plain Envoy", f"http://127.0.0.1:{plain_port}", {"envoy": plain_pid})
        for name, config in (
            ("primary answers 429, cooled", gateway_config(busy, good)),
            ("every request fails over", gateway_config(short, good)),
        ):
            with gateway(config, arguments) as ours:
                yield _whole(
                    f"{name}, {_shown(size)}, {connections}", [plain, ours, *others], effort, size, connections
                )


def streams(effort: Effort, arguments: tuple[str, ...]) -> Iterator[Result]:
    """Measure event streams at a steady pace: how late their first words and each event are."""
    with ExitStack() as stack:
        wall = stack.enter_context(WallProcess("chat", text="hello", chunks=EVENTS, chunk_bytes=20, delay_s=0.005))
        plain_port, plain_pid = stack.enter_context(plain_envoy(wall.port, CONCURRENCY))
        subjects = [
            Subject("plain Envoy", f"http://127.0.0.1:{plain_port}", {"envoy": plain_pid}),
            stack.enter_context(gateway(gateway_config(wall.url, wall.url), arguments)),
        ]
        for connections in (1, 16):
            yield _streams(f"streamed, {EVENTS} events, {connections}", subjects, effort, connections)


def _whole(name: str, subjects: list[Subject], effort: Effort, size: int, connections: int) -> Result:
    body = chat_body(size)
    rounds: dict[str, list[Result]] = {subject.name: [] for subject in subjects}
    for subject in subjects:
        whole_answers(subject.base_url + PATH, body, connections, 1, dict(subject.headers))
    for _ in range(effort.rounds):
        for subject in subjects:
            before = {role: cpu_s(pid) for role, pid in subject.pids.items()}
            load = whole_answers(subject.base_url + PATH, body, connections, effort.round_s, dict(subject.headers))
            rounds[subject.name].append(_of_load(load, subject, before))
    return {"stage": name, "subjects": {subject.name: _median(subject, rounds[subject.name]) for subject in subjects}}


def _of_load(load: Load, subject: Subject, before: Mapping[str, float]) -> Result:
    cost = {f"{role}_cpu_us": (cpu_s(pid) - before[role]) / max(1, load.n) * 1e6 for role, pid in subject.pids.items()}
    return {"rps": load.rps, "p50_ms": load.p50_ms, "p99_ms": load.p99_ms, "errors": load.errors} | cost


def _streams(name: str, subjects: list[Subject], effort: Effort, connections: int) -> Result:
    body = chat_body(2048, stream=True)
    rounds: dict[str, list[Result]] = {subject.name: [] for subject in subjects}
    for _ in range(effort.rounds):
        for subject in subjects:
            before = {role: cpu_s(pid) for role, pid in subject.pids.items()}
            url = subject.base_url + PATH
            found = streamed_answers(url, body, connections, effort.streams_each, dict(subject.headers))
            cost = {
                f"{role}_event_cpu_us": (cpu_s(pid) - before[role]) / max(1, found.events) * 1e6
                for role, pid in subject.pids.items()
            }
            rounds[subject.name].append(found.summary() | cost)
    return {"stage": name, "subjects": {subject.name: _median(subject, rounds[subject.name]) for subject in subjects}}


def _median(subject: Subject, rounds: list[Result]) -> Result:
    values = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    return values | {f"{role}_peak_rss_mb": peak_rss_mb(pid) for role, pid in subject.pids.items()}


def _shown(size_bytes: int) -> str:
    return f"{size_bytes >> 20} MB" if size_bytes >= 1 << 20 else f"{size_bytes >> 10} KB"
