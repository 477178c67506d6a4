"""Metrics, ledger, access log and `explain` tell the same story, add up exactly, leak nothing and slow nobody.

How they tell of every way to fail is in test_failure_semantics.py; here are the route modes that its table does not
have. A test shares the module's gateway, with a lane of its own, or `quiet`, where everything that is counted is its
own; a gateway of its own has who needs another config, or hurts it.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import socket
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import pytest

from configctl.admin_client import AdminClient, AdminError
from extproc.ledger_reader import LedgerReader, Query
from tests.e2e.conftest import GatewayFactory, Shared
from tests.support import http1
from tests.support.files import files_with
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.lanes import Lane, Lanes
from tests.support.operator import Operator, Ran
from tests.support.wall import (
    Behaviour,
    Seen,
    Wall,
    answer,
    error,
    fin_after,
    ok,
    rate_limited,
    reset,
    reset_after,
    silence,
)

ONE_TRY = {"max": 0}
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "brittle": {"same_target": ONE_TRY, "cooldown": {"consecutive": 2}},
    "usage": {"force_usage": True},
}
SIZES = {"default": 9, "brittle": 1, "usage": 0}
ADD_UP = 1_500
PLANTED = "planted-7f3c9ab2d1e4"
TOKEN = f"gw-client-{PLANTED}"


@pytest.fixture(scope="module")
def lanes(module_primary: Wall, module_fallback: Wall) -> Lanes:
    """Plan the lanes of the module's gateway."""
    return Lanes(module_primary, module_fallback, POLICIES, SIZES)


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, lanes: Lanes) -> Gateway:
    """Start one gateway with a lane for each test, and both protocols with the usage of every stream asked for."""
    config = lanes.config
    config["providers"] |= {
        "openai": provider(module_primary),
        "anthropic": provider(module_primary, protocol="anthropic"),
    }
    for name, account in (("gpt", "openai"), ("claude", "anthropic")):
        config["models"][name] = {"targets": [{"provider": account, "model": f"{name}-upstream"}], "policy": "usage"}
    return module_gateway_factory(config)


@pytest.fixture
def lane(lanes: Lanes) -> Lane:
    return lanes.take()


@pytest.fixture(scope="module")
def quiet(module_gateway_factory: GatewayFactory) -> Iterator[Shared]:
    """Start a gateway whose every count is a test's own: each leaves it with nothing under way."""
    with Wall() as primary, Wall() as fallback:
        yield Shared(module_gateway_factory(two_providers(primary, fallback)), primary, fallback)


def configctl(gateway: Gateway, *argv: str) -> Ran:
    """Run a verb against a gateway."""
    return Operator(gateway.config_file.parent, data_dir=gateway.data_dir).run(*argv)


def counted(gateway: Gateway) -> Counter[str]:
    """Return what a gateway has counted of whole requests up to now."""
    names = ("requests_total", "request_seconds_count", "decision_seconds_count", "ledger_rows_total")
    return Counter({name: int(gateway.metric(f"gateway_{name}")) for name in names})


def explained(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """Ask for one request's story, waiting until it is told."""

    def ask() -> dict[str, Any] | None:
        with AdminClient(str(gateway.data_dir)) as api, suppress(AdminError):
            story = api.explain(request_id)
            return story if story["outcome"] != "open" else None
        return None

    found = gateway.wait_until(ask, f"the story of {request_id}", 15.0)
    assert found is not None
    return found


@dataclass(frozen=True, slots=True)
class Case:
    """One way to end and what everybody must tell of it; `tries` are (wall, class) in order."""

    name: str
    primary: Behaviour
    fallback: Behaviour
    tries: tuple[tuple[str, str | None], ...]
    status: int
    outcome: str
    mode: str
    stream: bool = False


P, F = "primary", "fallback"
CASES = [
    Case("served", ok(), ok(), ((P, None),), 200, "served", "direct"),
    Case("rate limit", rate_limited(), ok(), ((P, "rate_limited"), (F, None)), 200, "served", "model_fallback"),
    Case("both down", error(503), error(529), ((P, "overloaded"), (F, "overloaded")), 503, "failed", "none"),
    Case("a stream that breaks", reset_after(n_events=3), ok(), ((P, "stream_cut"),), 200, "broken", "direct", True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_four_tell_what_the_wall_saw(case: Case, shared: Shared, lane: Lane) -> None:
    """Metrics, the ledger's row, the access log's line and `explain` against the providers' own record."""
    gateway, primary, fallback = shared
    primary.script(case.primary)
    fallback.script(case.fallback)

    reply = gateway.chat(lane.model, stream=case.stream)

    request_id = reply.header("x-request-id") or ""
    failed = [error_class for _, error_class in case.tries if error_class is not None]
    walls = {P: primary.count(), F: fallback.count()}
    assert walls == {name: sum(wall == name for wall, _ in case.tries) for name in (P, F)}
    assert case.status == reply.status

    story = explained(gateway, request_id)
    assert list(case.tries) == [(a["target"].partition("-")[0], a["class"]) for a in story["attempts"]]
    assert (case.status, case.outcome, case.mode) == (story["status"], story["outcome"], story["route_mode"])
    assert {"same": True, "differs": None, "not_run": None} == story["replay"]

    row = LedgerReader(gateway.data_dir / "requests.db").find(request_id)
    assert row is not None
    assert (tuple(failed), len(case.tries), case.status) == (row.classes, row.attempt_count, row.status)
    assert row.served_by == (story["served_by"] or "") == (reply.header("x-gateway-served-by") or "")

    line = gateway.logged(reply)
    assert (case.status, case.mode, len(case.tries)) == (line["status"], line["route_mode"], line["attempts"])
    assert (line["served_by"] or "") == row.served_by
    if case.outcome != "broken":
        assert failed == (line["classes"] or [])

    accounts = {P: lane.primary, F: lane.fallback}
    for (wall, error_class), times in Counter(case.tries).items():
        labels = {"provider": accounts[wall], "class": error_class or "success"}
        assert times == gateway.metric("gateway_attempts_total", **labels)
    assert len(case.tries) == sum(gateway.metric("gateway_attempts_total", provider=name) for name in accounts.values())
    told = {"model": lane.model, "code": str(case.status), "route_mode": case.mode}
    assert 1 == gateway.metric("gateway_requests_total", **told)
    assert 1 == gateway.metric("gateway_requests_total", model=lane.model)


def test_a_caller_who_leaves_is_told_as_such(shared: Shared, lane: Lane) -> None:
    gateway, primary, _ = shared
    primary.script(silence())
    aborts = gateway.metric("gateway_client_aborts_total")
    body = json.dumps({"model": lane.model, "messages": []}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
        caller.sendall(head + body)
        primary.wait_for(1)
    gateway.wait_until(lambda: gateway.metric("gateway_client_aborts_total") == aborts + 1, "the abort to be counted")
    primary.release()

    reader = LedgerReader(gateway.data_dir / "requests.db")
    (entry,) = gateway.wait_until(lambda: reader.entries(Query(model=lane.model)), "the ledger's row")
    assert ("aborted", ("client_abort",), "none") == (entry.story.outcome, entry.story.classes, entry.story.route_mode)
    assert 1 == gateway.metric("gateway_requests_total", model=lane.model, code="0", route_mode="none")
    assert 1 == gateway.metric("gateway_attempts_total", provider=lane.primary, **{"class": "client_abort"})


def test_questions_about_the_gateway_itself_are_no_requests(quiet: Shared) -> None:
    """Neither in metrics, the time of decisions included, nor in the ledger."""
    gateway = quiet.gateway
    before = counted(gateway)
    asked = [gateway.get(path) for path in ("/healthz", "/readyz", "/v1/models", "/v1/models/demo-primary")]
    assert [200] * 4 == [reply.status for reply in asked]
    for reply in (*asked, gateway.chat()):
        gateway.logged(reply)
    gateway.wait_until(lambda: (counted(gateway) - before)["ledger_rows_total"], "the ledger's row")
    assert {1} == set((counted(gateway) - before).values())


def test_requests_that_never_got_an_id_have_a_row_each(quiet: Shared) -> None:
    """Envoy refuses them before there is a request to speak of; they count in metrics, ledger and access log alike."""
    gateway = quiet.gateway
    before, lines = counted(gateway), len(gateway.access_log())
    for head in (
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    ):
        with http1.Call(gateway.url) as call:
            call.send_raw(head)
            assert call.read_head() in (400, 431)
    gateway.chat()
    gateway.wait_until(lambda: (counted(gateway) - before)["ledger_rows_total"] == 4, "the ledger's rows")
    logged = gateway.access_log(lines + 4)[lines:]
    assert (4, 4) == (len(logged), (counted(gateway) - before)["requests_total"])
    refused = [one for one in logged if one["status"] != 200]
    assert [(None, None, None)] * 3 == [(one["model"], one["attempts"], one["tokens"]) for one in refused]
    entries = LedgerReader(gateway.data_dir / "requests.db").entries(Query(limit=4))
    assert [200, 400, 400, 431] == sorted(entry.story.status for entry in entries)
    assert 3 == sum(entry.story.id == "" for entry in entries)


class TestTokens:
    """Envoy reads them, for every shape, and passes them on to all four."""

    @pytest.mark.parametrize(
        ("path", "model", "stream", "expected"),
        [
            ("/v1/chat/completions", "gpt", False, {"input": 7, "output": 3}),
            ("/v1/chat/completions", "gpt", True, {"input": 7, "output": 3}),
            ("/v1/completions", "gpt", False, {"input": 7, "output": 3}),
            ("/v1/responses", "gpt", False, {"input": 7, "output": 3}),
            ("/v1/responses", "gpt", True, {"input": 7, "output": 3}),
            ("/v1/embeddings", "gpt", False, {"input": 7}),
            ("/v1/messages", "claude", False, {"input": 7, "output": 3}),
            ("/v1/messages", "claude", True, {"input": 7, "output": 3}),
        ],
    )
    def test_are_told_for(self, shared: Shared, path: str, model: str, stream: bool, expected: dict[str, int]) -> None:
        gateway = shared.gateway
        account = {"gpt": "openai", "claude": "anthropic"}[model]
        before = gateway.metric("gateway_tokens_total", type="input", provider=account)
        members = {"messages": [], "input": "x", "prompt": "x", "max_tokens": 9, "stream": stream}
        reply = gateway.post(path, {"model": model, **members})
        assert 200 == reply.status
        assert expected == explained(gateway, reply.header("x-request-id") or "")["tokens"]
        assert expected == gateway.logged(reply)["tokens"]
        assert 7 == gateway.metric("gateway_tokens_total", type="input", provider=account) - before

    @pytest.mark.parametrize("asked", [None, False, True])
    def test_are_asked_for_and_shown_only_to_who_asked(self, shared: Shared, asked: bool | None) -> None:
        members: dict[str, Any] = {} if asked is None else {"stream_options": {"include_usage": asked}}
        reply = shared.gateway.chat("gpt", stream=True, **members)
        (seen,) = shared.primary.wait_for(1)
        assert {"include_usage": True} == seen.wish("stream_options")
        assert (asked is True) == (b'"usage"' in reply.body)
        assert reply.body.endswith(b"data: [DONE]\n\n")


def test_many_requests_at_once_add_up_exactly(gateway_factory: GatewayFactory, primary: Wall, fallback: Wall) -> None:
    """Half of the first attempts fail; callers, providers, metrics, ledger and access log count the same."""
    rule = {"failure_ratio": 1.0, "consecutive": 1000, "min_requests": 10_000}
    gateway = gateway_factory(two_providers(primary, fallback, same_target=ONE_TRY, cooldown=rule))
    total, refused = ADD_UP, Counter[str]()

    def choose(seen: Seen) -> Behaviour:
        refused["overloaded"] += seen.wish("user") == "odd"
        return error(503) if seen.wish("user") == "odd" else ok()

    primary.script(choose)
    with ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        idle = queue.SimpleQueue[_Connection]()
        for _ in range(16):
            idle.put(stack.enter_context(_Connection(gateway.port)))

        def ask(number: int) -> int:
            connection = idle.get()
            user = "odd" if number % 2 else "even"
            status = connection.chat({"model": "demo-primary", "messages": [], "user": user})
            idle.put(connection)
            return status

        statuses = Counter(pool.map(ask, range(total)))

    assert {200: total} == statuses
    failed, moved = refused["overloaded"], fallback.count()
    assert failed > 50
    assert total + failed == primary.count() + fallback.count()
    gateway.wait_until(lambda: gateway.metric("gateway_requests_total") == total, "every request to be counted", 20.0)
    gateway.wait_until(lambda: gateway.metric("gateway_requests_in_flight") == 0, "every request to be closed", 20.0)
    gateway.wait_until(lambda: gateway.metric("gateway_ledger_waiting") == 0, "the ledger to be written", 20.0)
    assert total == gateway.metric("gateway_requests_total", code="200")
    assert moved == gateway.metric("gateway_requests_total", route_mode="model_fallback")
    assert failed == gateway.metric("gateway_attempts_total", **{"class": "overloaded"})
    assert total == gateway.metric("gateway_attempts_total", **{"class": "success"})
    assert total == gateway.metric("gateway_request_seconds_count")
    assert total == gateway.metric("gateway_decision_seconds_count")
    assert failed == gateway.metric("gateway_failover_seconds_count")
    assert moved == gateway.metric("gateway_fallbacks_total")
    assert total * 7 == gateway.metric("gateway_tokens_total", type="input")
    assert total == gateway.metric("gateway_ledger_rows_total") + gateway.metric("gateway_ledger_dropped_total")
    with closing(sqlite3.connect(f"file:{gateway.data_dir / 'requests.db'}?mode=ro", uri=True)) as database:
        found = dict(database.execute("select attempt_count, count(*) from requests group by 1").fetchall())
    assert {1: total - failed, 2: failed} == found
    assert total == len(gateway.access_log(total, 20.0))


class _Connection:
    """One kept connection of a caller; a context manager."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def chat(self, body: dict[str, Any]) -> int:
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        self._socket.sendall(head.encode() + data)
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        self._file.read(length)
        return status


class TestAPlantedSecret:
    """Prompts, answers, client tokens, provider keys and error bodies are nowhere but where they must be."""

    def test_appears_nowhere(self, gateway_factory: GatewayFactory, primary: Wall, fallback: Wall) -> None:
        config = two_providers(primary, fallback, same_target=ONE_TRY, force_usage=True)
        config["clients"] = [{"name": "team-a", "token_sha256": sha256(TOKEN.encode()).hexdigest()}]
        keys = {"PRIMARY_KEY": f"sk-primary-{PLANTED}", "FALLBACK_KEY": f"sk-fallback-{PLANTED}"}
        gateway = gateway_factory(config, environment=keys)
        answers = self._ask_in_many_ways(gateway, primary, fallback)
        gateway.wait_until(
            lambda: gateway.metric("gateway_requests_in_flight") == 0, "every request to be closed", 20.0
        )
        gateway.access_log(len(answers), 20.0)

        told = [configctl(gateway, *verb) for verb in self._verbs(answers)]
        assert {0} == {one.code for one in told}, told
        for one in told:
            assert PLANTED not in one.stdout + one.stderr
        with AdminClient(str(gateway.data_dir)) as api:
            stories = [api.explain(request_id) for request_id in answers]
            assert PLANTED not in f"{stories} {api.status()} {api.snapshot()} {api.health()}"
        assert PLANTED not in http1.request(gateway.metrics_url).body.decode()
        assert PLANTED not in gateway.logs()
        gateway.stop(20)
        holders = {str(path.relative_to(gateway.data_dir).parent) for path in files_with(gateway.data_dir, PLANTED)}
        assert holders == {"envoy/sds"}

    def _ask_in_many_ways(self, gateway: Gateway, primary: Wall, fallback: Wall) -> list[str]:
        error_body = json.dumps(
            {
                "error": {"message": PLANTED, "type": PLANTED, "code": PLANTED, "param": PLANTED},
                "usage": {"prompt_tokens": PLANTED},
            }
        ).encode()
        bad_usage = json.dumps(
            {"choices": [{"message": {"content": PLANTED}}], "usage": {"prompt_tokens": PLANTED}}
        ).encode()
        scripts = [
            (ok(PLANTED), ok(PLANTED)),
            (answer(400, error_body), ok()),
            (answer(503, error_body), answer(500, error_body)),
            (answer(200, bad_usage), ok()),
            (fin_after(2), ok(PLANTED)),
            (reset(), reset()),
        ]
        headers = {"authorization": f"Bearer {TOKEN}", "x-session": PLANTED, "user-agent": PLANTED, "cookie": PLANTED}
        messages = [{"role": "user", "content": PLANTED}]
        seen: list[str] = []
        for first, second in scripts:
            primary.script(first)
            fallback.script(second)
            for stream in (False, True):
                body = {"model": "demo-primary", "messages": messages, "user": PLANTED, "stream": stream}
                reply = gateway.post(f"/v1/chat/completions?key={PLANTED}", body, headers=headers)
                seen.append(reply.header("x-request-id") or "")
        for model, token in ((PLANTED, TOKEN), ("demo-primary", PLANTED)):
            refused = {"model": model, "messages": messages}
            reply = gateway.post(
                "/v1/chat/completions", refused, headers=headers | {"authorization": f"Bearer {token}"}
            )
            seen.append(reply.header("x-request-id") or "")
        return seen

    def _verbs(self, request_ids: list[str]) -> Iterator[tuple[str, ...]]:
        for json_ in ((), ("--json",)):
            yield ("requests", *json_)
            yield ("requests", "--failed", *json_)
            yield ("health", "list", *json_)
            for request_id in request_ids[::7]:
                yield ("explain", request_id, *json_)


def test_a_dead_trace_collector_and_a_stopped_scraper_slow_nobody(
    gateway_factory: GatewayFactory, quiet: Shared, primary: Wall, fallback: Wall
) -> None:
    """The collector accepts and never answers, the scraper asks and never reads."""
    with socket.create_server(("127.0.0.1", 0)) as collector:
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}"
        config = two_providers(primary, fallback) | {"telemetry": {"otlp": {"endpoint": endpoint, "sample": 1.0}}}
        traced = gateway_factory(config)
        scraper = socket.create_connection(("127.0.0.1", int(traced.metrics_url.rsplit(":", 1)[1].split("/")[0])))
        scraper.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 50)
        # In turns: other work on the machine then slows both alike.
        gateways = {"plain": quiet.gateway, "traced": traced}
        rounds = [{name: _median_s(gateway, 50) for name, gateway in gateways.items()} for _ in range(3)]
        times = {name: min(one[name] for one in rounds) for name in gateways}
        scraper.close()
    assert times["traced"] < times["plain"] + 0.02
    traced.wait_until(lambda: traced.metric("gateway_requests_total", code="200") == 150, "every request to be counted")


def _median_s(gateway: Gateway, requests: int) -> float:
    return sorted(_spent_s(gateway, requests))[requests // 2]


def _spent_s(gateway: Gateway, requests: int) -> list[float]:
    """Return the seconds of each of these requests, all of which are served."""
    spent = []
    with _Connection(gateway.port) as connection:
        for _ in range(requests):
            began = time.perf_counter()
            assert 200 == connection.chat({"model": "demo-primary", "messages": []})
            spent.append(time.perf_counter() - began)
    return spent


def test_a_ledger_that_cannot_be_written_costs_no_request(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    data_dir = Path(os.path.realpath(tmp_path))
    (data_dir / "requests.db").mkdir()
    with Gateway(two_providers(primary, fallback), data_dir=data_dir) as gateway:
        assert {200} == {gateway.chat().status for _ in range(20)}
        gateway.wait_until(lambda: gateway.metric("gateway_requests_total", code="200") == 20, "every request")
        assert "cannot be written" in gateway.logs()


@pytest.fixture(scope="module")
def curable(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Start one gateway for both diseases of its disk; it has recovered from the first when the second begins."""
    return module_gateway_factory(two_providers(module_primary, module_fallback))


class TestASickLedgerDisk:
    """While rows wait, or are lost and counted, requests are served, and as quickly as before."""

    @pytest.fixture
    def gateway(self, curable: Gateway) -> Gateway:
        return curable

    @pytest.fixture
    def before(self, gateway: Gateway) -> int:
        """Return how many rows are written or lost when the disk is well and nothing waits."""
        settled = self._told(gateway) + 20
        _spent_s(gateway, 20)
        gateway.wait_until(lambda: self._told(gateway) == settled, "the ledger's rows")
        return settled

    def _told(self, gateway: Gateway) -> int:
        return sum(int(gateway.metric(f"gateway_ledger_{name}_total")) for name in ("rows", "dropped"))

    def test_that_answers_nothing_for_seconds_slows_nobody(self, gateway: Gateway, before: int) -> None:
        """Another process holds the file's lock for longer than the writer waits for it."""
        usual_s = _spent_s(gateway, 200)
        with closing(sqlite3.connect(gateway.data_dir / "requests.db", timeout=10, isolation_level=None)) as other:
            lost = gateway.metric("gateway_ledger_dropped_total")
            other.execute("begin immediate")
            sick_s = self._until(gateway, "the writer to give up", lambda: "database is locked" in gateway.logs())
        self._is_as_quick(usual_s, sick_s)
        self._recovers(gateway, before + len(usual_s) + len(sick_s))
        assert lost == gateway.metric("gateway_ledger_dropped_total")

    def test_that_is_full_slows_nobody(self, gateway: Gateway, before: int) -> None:
        """The process may not make any file longer than the ledger's log is now."""
        usual_s = _spent_s(gateway, 200)
        pid, size = gateway.extproc_pid(), (gateway.data_dir / "requests.db-wal").stat().st_size
        usual_limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, usual_limit[1]))
        lost = gateway.metric("gateway_ledger_dropped_total")
        sick_s = self._until(gateway, "rows to be lost", lambda: gateway.metric("gateway_ledger_dropped_total") > lost)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, usual_limit)
        self._is_as_quick(usual_s, sick_s)
        self._recovers(gateway, before + len(usual_s) + len(sick_s))

    def _until(self, gateway: Gateway, what: str, holds: Callable[[], bool]) -> list[float]:
        """Ask until something holds; return how long each answer took."""
        spent: list[float] = []

        def some_more() -> bool:
            spent.extend(_spent_s(gateway, 50))
            return holds()

        gateway.wait_until(some_more, what, 30.0)
        assert "cannot be written" in gateway.logs()
        return spent

    def _is_as_quick(self, usual_s: list[float], sick_s: list[float]) -> None:
        usual, sick = (sorted(spent)[len(spent) // 2] for spent in (usual_s, sick_s))
        assert sick < 3 * usual + 0.02
        assert max(sick_s) < max(usual_s) + 1.0

    def _recovers(self, gateway: Gateway, asked: int) -> None:
        """Every request is a row or counted as lost, and soon new ones are rows again."""
        rows = gateway.metric("gateway_ledger_rows_total")

        def written() -> bool:
            nonlocal asked
            asked += len(_spent_s(gateway, 1))
            return gateway.metric("gateway_ledger_rows_total") > rows

        gateway.wait_until(written, "new rows", 20.0)
        gateway.wait_until(lambda: gateway.metric("gateway_requests_in_flight") == 0, "every request to be closed")
        gateway.wait_until(lambda: gateway.metric("gateway_ledger_waiting") == 0, "the ledger to be written")
        assert asked == self._told(gateway)
        assert gateway.metric("gateway_ledger_rows_total") == LedgerReader(gateway.data_dir / "requests.db").count()


class TestOrders:
    def test_drain_moves_traffic_and_restore_brings_it_back(self, shared: Shared, lane: Lane) -> None:
        gateway = shared.gateway
        drained = configctl(gateway, "health", "drain", lane.primary, "--reason", "maintenance", "--for", "1h")
        assert (0, "") == (drained.code, drained.stdout)
        reply = gateway.chat(lane.model)
        assert "model_fallback" == reply.header("x-gateway-route-mode")
        (candidate, *_) = explained(gateway, reply.header("x-request-id") or "")["candidates"]
        assert (False, "drained") == (candidate["eligible"], candidate["reason"])
        restored = configctl(gateway, "health", "restore", lane.primary, "--json").json
        assert ("healthy", None) == (restored["state"], restored["order"])
        assert "direct" == gateway.chat(lane.model).header("x-gateway-route-mode")

    def test_are_shown_with_owner_reason_and_expiry(self, shared: Shared, lane: Lane) -> None:
        configctl(
            shared.gateway, "health", "down", lane.by_primary, "--reason", "bill", "--owner", "ann", "--for", "30m"
        )
        rows = configctl(shared.gateway, "health", "--json").json
        (order,) = [row["order"] for row in rows if row["subject"] == lane.by_primary]
        assert ("down", "ann", "bill", True) == (
            order["kind"],
            order["owner"],
            order["reason"],
            bool(order["expires_at"]),
        )

    @pytest.mark.parametrize(
        "argv",
        [
            ("health", "down", "nobody", "--reason", "x"),
            ("health", "down", "openai/unknown", "--reason", "x"),
            ("health", "restore", "openai/"),
            ("explain", "no-such-request"),
        ],
    )
    def test_that_make_no_sense_are_refused_with_a_sentence(self, argv: tuple[str, ...], shared: Shared) -> None:
        refused = configctl(shared.gateway, *argv)
        assert (1, "") == (refused.code, refused.stdout)
        assert refused.stderr.strip().endswith(".")


def test_explain_tells_a_story_to_people_and_to_programs(shared: Shared, lane: Lane) -> None:
    gateway = shared.gateway
    shared.primary.script(rate_limited(30))
    request_id = gateway.chat(lane.model).header("x-request-id") or ""
    story = explained(gateway, request_id)
    assert story == configctl(gateway, "explain", request_id, "--json").json
    told = configctl(gateway, "explain", request_id).stdout.splitlines()
    assert f"request {request_id}" == told[0]
    assert [line for line in told if line.startswith("attempt 1 at +") and lane.by_primary in line]
    assert f"  then next: another target, {lane.by_fallback}" in told
    assert "planned again under the recorded version and evidence: the same plan" == told[-1]


def test_explain_says_what_took_a_target_out(shared: Shared, lanes: Lanes) -> None:
    """The value that met a threshold, and both."""
    gateway, lane = shared.gateway, lanes.take("brittle")
    shared.primary.script(error(503))
    for _ in range(2):
        gateway.chat(lane.model)
    state = {"subject": lane.by_primary, "state": "cooling"}
    gateway.wait_until(lambda: gateway.metric("gateway_target_state", **state) == 1, "the cooldown")
    request_id = gateway.chat(lane.model).header("x-request-id") or ""
    first, second = explained(gateway, request_id)["candidates"]
    assert ("overloaded", ["failures_in_a_row=2", "consecutive=2"]) == (first["reason"], first["evidence"])
    assert (None, []) == (second["reason"], second["evidence"])
    assert "(failures_in_a_row=2, consecutive=2)" in configctl(gateway, "explain", request_id).stdout


def test_explain_plans_again_under_a_version_that_only_the_store_has(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall
) -> None:
    """After a publish and a restart the process has only the active version in memory."""
    config = two_providers(primary, fallback)
    gateway = gateway_factory(config)
    request_id = gateway.chat().header("x-request-id") or ""
    gateway.write_config(config | {"policies": {"default": {"attempts": 2}}})
    published = configctl(gateway, "publish", str(gateway.config_file), "-m", "two attempts", "--yes")
    assert 0 == published.code, published.stderr
    gateway.stop()
    gateway.start()
    assert "2" == gateway.chat().header("x-gateway-config-version")

    story = explained(gateway, request_id)

    assert (1, {"same": True, "differs": None, "not_run": None}) == (story["config_version"], story["replay"])


def test_requests_follow_shows_new_ones(shared: Shared, lane: Lane) -> None:
    gateway = shared.gateway
    command = [gateway.command("configctl"), "requests", "--follow", "--json", "--data-dir", str(gateway.data_dir)]
    command += ["--model", lane.model]
    gateway.logged(gateway.chat(lane.model))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        try:
            first = json.loads(follower.stdout.readline())
            reply = gateway.chat(lane.model)
            second = json.loads(follower.stdout.readline())
        finally:
            follower.terminate()
    assert "served" == first["outcome"]
    assert reply.header("x-request-id") == second["request_id"]


def test_the_admin_socket_is_its_owners_alone(quiet: Shared) -> None:
    assert 0o600 == (quiet.gateway.data_dir / "run" / "admin.sock").stat().st_mode & 0o777


def test_without_a_gateway_every_live_verb_says_so(tmp_path: Path) -> None:
    operator = Operator(tmp_path, data_dir=tmp_path)
    for verb in (("health",), ("requests",), ("explain", "x")):
        said = operator.run(*verb)
        assert (1, "") == (said.code, said.stdout)
        assert said.stderr.startswith("No gateway runs on the data directory")
