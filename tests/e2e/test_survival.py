"""What crashed Envoy 1.40 when it judged answers: big ones, bursts, slow readers, a judge that stops for a moment.

Each test is one kind of load. Whatever happens, the processes stay the same, the logs hold no crash, and a
caller gets a whole answer or one that ends visibly broken: never a short answer that looks complete.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import orjson
import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, provider
from tests.support.http1 import Call, Reply
from tests.support.wall import (
    RESET_GAP_S,
    Behaviour,
    Break,
    Event,
    Pause,
    Played,
    Seen,
    Wall,
    big_burst,
    big_error,
    chat,
    error,
    ok,
    pause,
    sse,
)

# A crash; or an answer of extproc that Envoy did not expect, which costs a request.
BAD_WORDS = ("critical", "Segmentation", "Caught ", "assert failure", "Backtrace", "bad_alloc", "Spurious")
MIB = 1 << 20
PAUSE_S = 0.8
IMPATIENT: dict[str, Any] = {
    "same_target": {"max": 0},
    "cooldown": {"consecutive": 1000, "failure_ratio": 1, "min_requests": 100_000},
}
GUARDS = ("first_token", "complete")
GUARDED = 20
"""How many lanes each guard has."""
T = TypeVar("T")


class Lane(NamedTuple):
    """A test's own model: its target is at a provider account that no other test has hurt or slowed down."""

    gateway: Gateway
    primary: Wall
    fallback: Wall
    model: str
    guard: str

    def chat(self, *, stream: bool = False, **members: Any) -> Reply:
        """Ask for a chat completion and read it to its end."""
        with self.ask(stream=stream, **members) as call:
            _exhaust(call.pieces())
            return call.reply()

    def ask(self, *, receive_bytes: int | None = None, head: bool = True, **members: Any) -> Call:
        """Send a chat request and return the call, its head read."""
        call = Call(self.gateway.url + "/v1/chat/completions", timeout_s=30, receive_bytes=receive_bytes)
        body = {"model": self.model, "messages": [{"role": "user", "content": "hi"}]} | members
        call.send("POST", {"content-type": "application/json"}, orjson.dumps(body))
        if head:
            call.read_head()
        return call


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Start a gateway with a lane for each test under each guard, and one more whose streams nobody guards."""
    lanes = {_lane_name(guard, number): guard for guard in GUARDS for number in range(GUARDED)}
    models: dict[str, Any] = {
        name: {
            "targets": [{"provider": name, "model": f"{name}-upstream"}],
            "fallback": ["rescue"],
            "policy": _policy_name(guard),
        }
        for name, guard in lanes.items()
    }
    models["rescue"] = {"targets": [{"provider": "fallback", "model": "rescue-upstream"}]}
    models["unguarded"] = {"targets": [{"provider": "fallback", "model": "unguarded-upstream"}], "policy": "off"}
    return module_gateway_factory(
        {
            "schema": 1,
            "providers": {name: provider(module_primary) for name in lanes} | {"fallback": provider(module_fallback)},
            "models": models,
            # A failure is passed on at once, and the many of one test do not make its target cool down.
            "policies": {_policy_name(guard): IMPATIENT | {"stream_guard": guard} for guard in (*GUARDS, "off")},
        }
    )


@pytest.fixture(scope="module")
def numbers() -> Mapping[str, Iterator[int]]:
    """Count the lanes of each guard."""
    return {guard: iter(range(GUARDED)) for guard in GUARDS}


@pytest.fixture(params=GUARDS)
def lane(request: pytest.FixtureRequest, shared: Shared, numbers: Mapping[str, Iterator[int]]) -> Lane:
    """Give the test a lane of its own, under each guard that judges streams."""
    return Lane(*shared, _lane_name(request.param, next(numbers[request.param])), request.param)


@pytest.fixture
def unary_lane(shared: Shared, numbers: Mapping[str, Iterator[int]]) -> Lane:
    """Give a test of ordinary answers, which no guard changes, a lane of its own."""
    return Lane(*shared, _lane_name(GUARDS[0], next(numbers[GUARDS[0]])), GUARDS[0])


def _lane_name(guard: str, number: int) -> str:
    return f"lane-{_policy_name(guard)}-{number}"


def _policy_name(guard: str) -> str:
    return guard.replace("_", "-")


@pytest.fixture(autouse=True)
def alive(shared: Shared) -> Iterator[None]:
    """Look for a crash around every test: other pids, words in Envoy's log, a gateway that no longer serves."""
    gateway = shared.gateway
    pids, said = gateway.pids(), len(_envoy_log(gateway))
    yield
    gateway.resume_extproc()
    shared.fallback.reset()
    assert pids == gateway.pids()
    assert [] == [line for line in _envoy_log(gateway)[said:] if any(word in line for word in BAD_WORDS)]
    assert 200 == gateway.chat("rescue").status


def test_sixty_streams_of_200_kb_survive_a_judge_that_stops_for_800_ms(lane: Lane) -> None:
    """The streams are under way when extproc stops, shown or held; it goes on later, and so do they."""
    gateway, primary = lane.gateway, lane.primary
    streams, chunks, chunk_bytes = 60, 50, 4096
    primary.script(chat("x", chunks=chunks, chunk_bytes=chunk_bytes, delay_s=0.02))
    begun = threading.Barrier(streams + 1)

    def read() -> Reply:
        with lane.ask(stream=True, head=False) as call:
            if lane.guard == "complete":
                begun.wait(20)
            call.read_head()
            pieces = call.pieces()
            first = next(pieces)
            if lane.guard != "complete":
                begun.wait(20)
            _exhaust(chain([first], pieces))
            return call.reply()

    with ThreadPoolExecutor(streams) as pool:
        waiting = [pool.submit(read) for _ in range(streams)]
        begun.wait(20)
        primary.wait_for(streams, 20)
        gateway.pause_extproc()
        timer = threading.Timer(PAUSE_S, gateway.resume_extproc)
        timer.start()
        replies = [one.result(60) for one in waiting]
        timer.join()
    assert ["clean"] * streams == [reply.ended for reply in replies]
    assert {chunks * chunk_bytes} == {len(reply.text) for reply in replies}
    assert {"[DONE]"} == {reply.events[-1] for reply in replies}


def test_sixty_unread_streams_that_finish_while_the_judge_is_stopped_arrive_whole(lane: Lane) -> None:
    """The provider has sent everything, end included, before extproc goes on: the crash of docs/envoy.md."""
    gateway, primary = lane.gateway, lane.primary
    streams, chunks, chunk_bytes = 60, 50, 4096
    held = chat("x", chunks=chunks, chunk_bytes=chunk_bytes, first_delay_s=60)
    primary.script(held)
    with ThreadPoolExecutor(streams) as pool:
        waiting = [pool.submit(lane.chat, stream=True) for _ in range(streams)]
        primary.wait_for(streams, 20)
        gateway.pause_extproc()
        primary.release()
        timer = threading.Timer(PAUSE_S, gateway.resume_extproc)
        timer.start()
        replies = [one.result(60) for one in waiting]
        timer.join()
    assert ["clean"] * streams == [reply.ended for reply in replies]
    assert {chunks * chunk_bytes} == {len(reply.text) for reply in replies}


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_body_of_3_mb_is_failed_over(unary_lane: Lane, status: int) -> None:
    unary_lane.primary.script(big_error(status, 3 * MIB))
    reply = unary_lane.chat()
    assert (200, "clean") == (reply.status, reply.ended)
    assert (1, 1) == (unary_lane.primary.count(), unary_lane.fallback.count())


def test_twenty_error_bodies_of_3_mb_at_once_are_failed_over(unary_lane: Lane) -> None:
    unary_lane.primary.script(big_error(500, 3 * MIB))
    replies = _at_once(20, unary_lane.chat)
    assert [(200, "clean")] * 20 == [(reply.status, reply.ended) for reply in replies]


def test_an_error_body_of_3_mb_that_ends_the_request_is_cut_to_64_kib_and_still_ends_well(unary_lane: Lane) -> None:
    """A provider's own error goes to the caller with at most 64 KiB of its body."""
    unary_lane.primary.script(big_error(400, 3 * MIB))
    reply = unary_lane.chat()
    assert (400, "clean") == (reply.status, reply.ended)
    assert b'{"error"' == reply.body[:8]
    assert 64 * 1024 >= len(reply.body)
    assert 0 == unary_lane.fallback.count()


def test_a_burst_of_3_mb_of_events_arrives_whole(lane: Lane) -> None:
    lane.primary.script(big_burst(3 * MIB))
    reply = lane.chat(stream=True)
    assert (200, "clean", "[DONE]") == (reply.status, reply.ended, reply.events[-1])
    assert 3 * MIB == len(reply.text)


def test_a_burst_of_3_mb_after_a_failed_attempt_arrives_whole(lane: Lane) -> None:
    lane.primary.script(big_error(500, 3 * MIB))
    lane.fallback.script(big_burst(3 * MIB))
    reply = lane.chat(stream=True)
    assert (200, "clean", "[DONE]") == (reply.status, reply.ended, reply.events[-1])
    assert 3 * MIB == len(reply.text)


def test_a_slow_reader_of_8_mb_gets_all_of_it(lane: Lane) -> None:
    """Its receive buffer is small and it stops for a second and a half, so every buffer on the way fills up."""
    lane.primary.script(big_burst(8 * MIB, event_bytes=16_384))
    with lane.ask(stream=True, receive_bytes=4096) as call:
        pieces = call.pieces(read_bytes=16_384)
        first = next(pieces)
        lane.primary.wait_for(1)
        threading.Event().wait(1.5)
        _exhaust(chain([first], pieces))
        reply = call.reply()
    assert (200, "clean", "[DONE]") == (reply.status, reply.ended, reply.events[-1])
    assert 8 * MIB == len(reply.text)


def test_five_slow_readers_of_endless_streams_who_leave_end_them_at_the_provider_too(lane: Lane) -> None:
    """Under `complete` they leave without having read a byte."""
    lane.primary.script(lambda _: sse(_endless_events()))

    def read_some() -> None:
        shown = lane.guard != "complete"
        with lane.ask(stream=True, receive_bytes=4096, head=shown) as call:
            if shown:
                _exhaust(piece for piece, _ in zip(call.pieces(read_bytes=8192), range(50), strict=False))
            else:
                threading.Event().wait(1.0)

    _at_once(5, read_some)
    assert [True] * 5 == [seen.disconnected.wait(10) for seen in lane.primary.requests]


def test_an_endless_stream_that_is_held_is_given_up_at_32_mb_and_another_answers(lane: Lane) -> None:
    """Under `first_token` the caller sees it break there; either way nothing waits for its end."""
    lane.primary.script(lambda _: sse(_endless_events()))
    reply = lane.chat(stream=True)
    ended = {"complete": ("rescue-upstream", True), "first_token": (f"{lane.model}-upstream", False)}[lane.guard]
    assert ended == ((reply.header("x-gateway-served-by") or "").partition("/")[2], reply.ended == "clean")
    assert 33 * MIB >= len(reply.body)
    assert lane.primary.requests[0].disconnected.wait(10)


@pytest.mark.parametrize("stream", [True, False])
def test_an_unguarded_event_stream_that_begins_with_a_pause_arrives_whole(shared: Shared, stream: bool) -> None:
    """Its headers pass before Envoy has seen a byte of the body: nothing may be said of a body then."""
    shared.fallback.script(sse([pause(0.3), {"choices": [{"index": 0, "delta": {"content": "late"}}]}]))
    reply = shared.gateway.chat("unguarded", stream=stream)
    assert (200, "clean") == (reply.status, reply.ended)
    assert ("late", "[DONE]") == (reply.text, reply.events[-1])


def test_request_bodies_of_5_mb_are_failed_over_byte_for_byte(unary_lane: Lane) -> None:
    unary_lane.primary.script(error(503))
    padding = "p" * (5 * MIB)
    replies = _at_once(6, lambda: unary_lane.chat(user=padding))
    assert [(200, "clean")] * 6 == [(reply.status, reply.ended) for reply in replies]
    assert [padding] * 6 == [seen.json["user"] for seen in unary_lane.fallback.requests]


def test_a_5_mb_body_meets_a_3_mb_error_and_a_3_mb_burst_serves_it(lane: Lane) -> None:
    lane.primary.script(big_error(500, 3 * MIB))
    lane.fallback.script(big_burst(3 * MIB))
    reply = lane.chat(stream=True, user="p" * (5 * MIB))
    assert (200, "clean", "[DONE]") == (reply.status, reply.ended, reply.events[-1])


def test_callers_who_leave_do_not_disturb_those_who_stay(lane: Lane) -> None:
    """Half of eighty callers leave at different points of their stream; the other half reads to the end."""
    primary = lane.primary
    callers, chunks, chunk_bytes = 80, 40, 2048
    primary.script(chat("x", chunks=chunks, chunk_bytes=chunk_bytes, delay_s=0.01))

    def call(number: int) -> Reply:
        with lane.ask(stream=True, head=False) as one:
            if number % 2 and lane.guard == "complete":
                threading.Event().wait(0.02 * (number % 20))
                one.leave()
                return one.reply()
            one.read_head()
            got_bytes = 0
            for piece in one.pieces():
                got_bytes += len(piece)
                if number % 2 and got_bytes >= number % 20 * chunk_bytes // 2:
                    one.leave()
                    break
            return one.reply()

    with ThreadPoolExecutor(callers) as pool:
        replies = list(pool.map(call, range(callers)))
    assert ["left"] * 40 == [reply.ended for reply in replies[1::2]]
    assert ["clean"] * 40 == [reply.ended for reply in replies[::2]]
    assert {chunks * chunk_bytes} == {len(reply.text) for reply in replies[::2]}


def test_callers_who_leave_before_the_failover_is_over_hurt_nobody(lane: Lane) -> None:
    """They are gone while the judge reads the error, or while the second attempt is under way."""
    primary, fallback = lane.primary, lane.fallback
    primary.script(big_error(500, MIB))
    fallback.script(ok(first_delay_s=60))

    def ask_and_leave(number: int) -> None:
        with lane.ask(stream=bool(number % 2), head=False) as call:
            if number % 3 == 0:
                fallback.wait_for(1, 10)
            call.leave()

    _at_once(40, ask_and_leave, numbered=True)
    assert all(seen.disconnected.wait(10) for seen in fallback.requests)


def test_a_stream_cut_in_its_middle_never_looks_complete(lane: Lane) -> None:
    """Thirty cut streams side by side with thirty whole ones: each caller can tell which it got.

    Under `complete` none of them gets a cut one.
    """
    primary = lane.primary
    chunks, chunk_bytes = 20, 4096

    def choose(seen: Seen) -> Behaviour:
        whole = chat("x", chunks=chunks, chunk_bytes=chunk_bytes)
        return whole if seen.wish("user") == "whole" else _half_of(whole)

    primary.script(choose)
    with ThreadPoolExecutor(20) as pool:
        users = ["whole", "cut"] * 30
        replies = list(pool.map(lambda user: lane.chat(stream=True, user=user), users))
    assert {"clean"} == {reply.ended for reply in replies[::2]}
    assert {chunks * chunk_bytes} == {len(reply.text) for reply in replies[::2]}
    for reply in replies[1::2]:
        # One that broke before its first output was released is served whole by the fallback.
        whole = reply.header("x-gateway-route-mode") == "model_fallback"
        assert whole or lane.guard != "complete"
        assert reply.ended in ({"clean"} if whole else {"cut", "reset"})


def _endless_events() -> Iterator[Event]:
    """Yield chat events of 16 KB, about six megabytes a second."""
    while True:
        yield {"choices": [{"index": 0, "delta": {"content": "x" * 16_384}, "finish_reason": None}]}
        yield pause(0.002)


def _half_of(whole: Behaviour) -> Behaviour:
    """Return a behaviour that resets the connection in the middle of what `whole` writes."""

    def play(seen: Seen) -> Played:
        wire = whole.play(seen)
        assert isinstance(wire, bytes)
        return (wire[: len(wire) // 2], Pause(RESET_GAP_S), Break.RST)

    return Behaviour("half_of", play)


def _exhaust(pieces: Iterable[bytes]) -> None:
    for _ in pieces:
        pass


def _at_once(n: int, work: Callable[..., T], *, numbered: bool = False) -> list[T]:
    with ThreadPoolExecutor(n) as pool:
        waiting = [pool.submit(work, i) if numbered else pool.submit(work) for i in range(n)]
        return [one.result(60) for one in waiting]


def _envoy_log(gateway: Gateway) -> list[str]:
    return (gateway.data_dir / "logs" / "envoy.log").read_text(errors="replace").splitlines()
