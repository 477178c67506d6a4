"""What a crash, a hang or a restart of one process costs: nothing that is under way, and seconds of the rest."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from extproc.ledger_reader import LedgerReader
from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.http1 import Call, Reply
from tests.support.wall import Wall, empty_200, error, html_200, ok, rate_limited, silence

# Nothing that a dying process did to an attempt may keep the next test's request from its provider.
PATIENT = {"consecutive": 1000, "failure_ratio": 1, "min_requests": 100_000}
CHAT = {"model": "demo-primary", "messages": [{"role": "user", "content": "hi"}]}
MESSAGE = CHAT | {"model": "claude", "max_tokens": 5}
WORKERS_ASKED = 5
BACK_S = 30.0
EXCHANGE_ENDS_S = 0.5
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OPENAI_SHAPE = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Start the gateway whose children the tests of this module kill; it also has an Anthropic model."""
    config = two_providers(module_primary, module_fallback, cooldown=PATIENT, same_target={"max": 0})
    config["providers"]["claude"] = provider(module_primary, protocol="anthropic")
    config["models"]["claude"] = {"targets": [{"provider": "claude", "model": "claude-upstream"}]}
    return module_gateway_factory(config)


@pytest.fixture(scope="module")
def while_down(module_gateway: Gateway) -> dict[str, Reply]:
    """Ask for everything while no extproc runs."""
    with _Down(module_gateway):
        return {
            "chat": module_gateway.chat(),
            "stream": module_gateway.chat(stream=True),
            "message": module_gateway.post("/v1/messages", MESSAGE),
            "alive": module_gateway.get("/healthz"),
            "ready": module_gateway.get("/readyz"),
        }


def test_unary_requests_that_wait_for_a_slow_provider_outlive_extproc(shared: Shared) -> None:
    """Ten requests are waiting when extproc is killed; all of them end in 200, though only after its death."""
    gateway, primary, _ = shared
    primary.script(silence())
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(gateway.chat) for _ in range(10)]
        _until_planned(primary, 10)
        killed = gateway.kill_extproc()
        _until_gone(gateway, killed)
        primary.release()
        replies = [one.result(20) for one in waiting]
    assert [(200, "clean", "hello")] * 10 == [(reply.status, reply.ended, reply.text) for reply in replies]
    assert {"direct"} == {reply.header("x-gateway-route-mode") for reply in replies}
    _until_back(gateway)


def test_a_new_request_is_refused_in_openai_s_shape_while_extproc_is_down(while_down: dict[str, Reply]) -> None:
    reply = while_down["chat"]
    assert (503, "clean") == (reply.status, reply.ended)
    assert "application/json" == reply.header("content-type")
    assert reply.json["error"].keys() == OPENAI_SHAPE
    assert "gateway_unavailable" == reply.json["error"]["code"]


def test_a_new_message_is_refused_in_anthropic_s_shape_while_extproc_is_down(while_down: dict[str, Reply]) -> None:
    reply = while_down["message"]
    assert (503, "clean") == (reply.status, reply.ended)
    assert "application/json" == reply.header("content-type")
    assert "error" == reply.json["type"]
    assert {"type", "message"} == reply.json["error"].keys()
    assert "api_error" == reply.json["error"]["type"]


@pytest.mark.parametrize("asked", ["chat", "stream", "message"])
def test_a_refusal_while_extproc_is_down_carries_an_id_and_the_mode_none(
    while_down: dict[str, Reply], asked: str
) -> None:
    reply = while_down[asked]
    assert "none" == reply.header("x-gateway-route-mode")
    assert UUID.fullmatch(reply.header("x-request-id") or "")
    assert reply.header("x-gateway-served-by") is None


def test_refusals_while_extproc_is_down_come_at_once_and_have_ids_of_their_own(while_down: dict[str, Reply]) -> None:
    replies = [while_down[asked] for asked in ("chat", "stream", "message")]
    assert 3 == len({reply.header("x-request-id") for reply in replies})
    assert 1.0 > max(reply.seconds for reply in replies)


def test_the_gateway_is_alive_but_not_ready_while_extproc_is_down(while_down: dict[str, Reply]) -> None:
    assert (200, 503) == (while_down["alive"].status, while_down["ready"].status)


def test_the_gateway_serves_again_after_a_kill_and_envoy_stays(shared: Shared) -> None:
    before = shared.gateway.pids()
    shared.gateway.kill_extproc()
    _until_back(shared.gateway)
    after = shared.gateway.pids()
    assert (before.supervisor, before.envoy) == (after.supervisor, after.envoy)
    assert after.extproc not in (None, before.extproc)


def test_requests_whose_answer_needs_a_judge_while_extproc_is_dead_get_a_503_in_shape(shared: Shared) -> None:
    """A provider fails after extproc died: nobody can say what follows, and the caller is told to try again."""
    gateway, primary, fallback = shared
    failures = {"500": error(500), "429": error(429), "html": html_200(), "empty": empty_200(), "stream": ok()}
    primary.script(lambda seen: silence(then=failures[seen.json["user"]]))
    with ThreadPoolExecutor(len(failures)) as pool:
        waiting = [pool.submit(gateway.chat, stream=name == "stream", user=name) for name in failures]
        _until_planned(primary, len(failures))
        with _Down(gateway):
            primary.release()
            replies = [one.result(20) for one in waiting]
    assert [(503, "clean")] * len(failures) == [(reply.status, reply.ended) for reply in replies]
    assert {"gateway_unavailable"} == {reply.json["error"]["code"] for reply in replies}
    assert all(reply.json["error"].keys() == OPENAI_SHAPE for reply in replies)
    assert {"none"} == {reply.header("x-gateway-route-mode") for reply in replies}
    assert {None} == {reply.header("x-gateway-served-by") for reply in replies}
    assert 0 == fallback.count()


def test_a_request_failed_over_by_the_next_extproc_ends_well(shared: Shared) -> None:
    """Planned by a process that was killed, judged and rewritten by its successor, from metadata alone."""
    gateway, primary, fallback = shared
    primary.script(silence(then=error(500)))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.chat)
        _until_planned(primary, 1)
        gateway.kill_extproc()
        _until_back(gateway)
        primary.release()
        reply = waiting.result(20)
    assert (200, "model_fallback") == (reply.status, reply.header("x-gateway-route-mode"))
    assert "demo-fallback-upstream" == fallback.requests[-1].json["model"]
    ledger, request_id = LedgerReader(gateway.data_dir / "requests.db"), reply.header("x-request-id") or ""
    story = gateway.wait_until(lambda: ledger.find(request_id), "the request's row")
    assert story is not None
    assert [(1, "server_error"), (2, None)] == [(tried.n, tried.error_class) for tried in story.attempts]
    assert ("2", tuple(gateway.logged(reply)["classes"])) == (reply.header("x-gateway-attempts"), story.classes)


def test_streams_under_way_when_extproc_dies_are_broken_visibly_or_arrive_whole(shared: Shared) -> None:
    gateway, primary, _ = shared
    streams, words = 5, "x" * 200
    primary.script(ok(words, chunks=100, delay_s=0.02))
    begun = threading.Barrier(streams + 1)

    def read() -> Reply:
        with Call(gateway.url + "/v1/chat/completions", timeout_s=20) as call:
            call.send("POST", {"content-type": "application/json"}, orjson.dumps(CHAT | {"stream": True}))
            call.read_head()
            for number, _ in enumerate(call.pieces()):
                if number == 0:
                    begun.wait(10)
            return call.reply()

    with ThreadPoolExecutor(streams) as pool:
        waiting = [pool.submit(read) for _ in range(streams)]
        begun.wait(10)
        gateway.kill_extproc()
        replies = [one.result(20) for one in waiting]
    for reply in replies:
        assert reply.ended in ("cut", "reset") or (words, "[DONE]") == (reply.text, reply.events[-1])
    _until_back(gateway)


def test_a_cooldown_outlives_the_process_that_began_it(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall
) -> None:
    gateway = gateway_factory(two_providers(primary, fallback))
    primary.script([rate_limited(retry_after=60), ok()])
    assert 200 == gateway.chat().status
    saved = gateway.data_dir / "health.json"
    gateway.wait_until(lambda: saved.exists() and b"rate_limited" in saved.read_bytes(), "the cooldown to be saved")
    gateway.kill_extproc()
    _until_back(gateway, "demo-fallback")
    reply = gateway.chat()
    assert (200, "fallback/demo-fallback-upstream") == (reply.status, reply.header("x-gateway-served-by"))
    assert 1 == primary.count()


def test_a_killed_envoy_is_started_again_alone(shared: Shared) -> None:
    gateway = shared.gateway
    before = gateway.pids()
    assert before.envoy is not None
    os.kill(before.envoy, signal.SIGKILL)
    gateway.wait_until(lambda: _status(gateway) == 200, "an answer from a new Envoy", 10)
    after = gateway.pids()
    assert (before.supervisor, before.extproc) == (after.supervisor, after.extproc)
    assert after.envoy not in (None, before.envoy)
    assert 200 == gateway.get("/readyz").status


def test_a_request_to_a_hung_extproc_is_refused_in_shape_and_service_comes_back(shared: Shared) -> None:
    """SIGSTOP for as long as it takes: Envoy's own timer answers, and after SIGCONT all is as before."""
    gateway = shared.gateway
    before = gateway.pids()
    gateway.pause_extproc()
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: gateway.chat(), range(4)))
    waited_s = time.monotonic() - began
    gateway.resume_extproc()
    assert {reply.status for reply in replies} <= {503, 504}
    assert all(reply.json["error"].keys() == OPENAI_SHAPE for reply in replies)
    assert {"none"} == {reply.header("x-gateway-route-mode") for reply in replies}
    assert 8 > waited_s
    gateway.wait_until(lambda: _status(gateway) == 200, "service after the hang", 5)
    assert before == gateway.pids()


class _Down:
    """No extproc inside the block: its child is killed, and killed again should it come back too soon."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __enter__(self) -> None:
        # A stopped supervisor starts nothing; the socket of a dead process refuses at once.
        os.kill(self._gateway.pids().supervisor, signal.SIGSTOP)
        killed = self._gateway.kill_extproc()
        _until_gone(self._gateway, killed)

    def __exit__(self, *_: object) -> None:
        os.kill(self._gateway.pids().supervisor, signal.SIGCONT)
        _until_back(self._gateway, "demo-fallback")


def _until_planned(wall: Wall, requests: int) -> None:
    """Wait until the provider has so many requests and extproc has ended their route exchanges.

    The end of an exchange comes after the answer that sends a request off, and who kills between the two hits it.
    """
    wall.wait_for(requests)
    threading.Event().wait(EXCHANGE_ENDS_S)


def _until_gone(gateway: Gateway, pid: int) -> None:
    gateway.wait_until(lambda: gateway.pids().extproc != pid, "the end of the killed child")


def _until_back(gateway: Gateway, model: str = "demo-primary") -> None:
    """Wait for service on several connections: each of Envoy's workers finds out for itself."""
    asked = range(WORKERS_ASKED)
    gateway.wait_until(
        lambda: all(_status(gateway, model) == 200 for _ in asked), "service after a restart of extproc", BACK_S
    )


def _status(gateway: Gateway, model: str = "demo-primary") -> int:
    """Return the status of `/v1/models/...`: an answer of extproc that costs no provider a request."""
    try:
        return gateway.get(f"/v1/models/{model}", timeout_s=3).status
    except OSError:
        return 0
