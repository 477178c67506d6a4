"""The timers of docs/envoy.md, section 5: an answer that moves is never cut, one that stands still always ends.

Each row is one kind of answer, asked for under each stream guard (or as an ordinary request), in front of provider
accounts of its own. All rows run at once in one gateway; then each test looks at its own. Every answer that moves
lasts far longer than the timers, with gaps far shorter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event as Never
from typing import Any, Literal

import orjson
import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway
from tests.support.http1 import Call, Reply
from tests.support.wall import (
    Behaviour,
    Event,
    Played,
    Seen,
    Wall,
    big_burst,
    chat,
    error,
    headers_then_silence,
    pause,
    silence,
    slow_body,
    sse,
)

Guard = Literal["first_token", "complete", "off"]
GUARDS: tuple[Guard, ...] = ("first_token", "complete", "off")
FIRST_S, IDLE_S, DEADLINE_S, SLACK_S = 2.0, 0.8, 12.0, 1.5
"""What a policy allows before the first byte or token and between two pieces, in all; what a busy machine may add."""
GAP_S, PIECES, LATE = 0.25, 26, 8
"""A moving answer lasts more than six seconds; one that stalls late has moved for two."""
MIB = 1 << 20
READER_STOPS_S = 2.0
ANSWERS = chat("rescued")
Ends = Literal["first", "second", "broken", "failed"]
"""Whose whole answer the caller has; or half an answer that is visibly none; or an error."""


def _moves(pieces: int, *, stops: bool = False) -> Behaviour:
    """Stream a role and so many pieces, each after a gap, and then the end, or nothing more for ever."""
    events: list[Event] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    for _ in range(pieces):
        events += [pause(GAP_S), {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}]
    return sse(events, done=not stops, end="hang" if stops else "clean")


def stalled_body() -> Behaviour:
    """Send half of an ordinary answer and then nothing."""

    def play(seen: Seen) -> Played:
        whole = chat("x" * 200).play(seen)
        assert isinstance(whole, bytes)
        return (whole[: len(whole) // 2], pause(None))

    return Behaviour("stalled_body", play)


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of answer under one guard; `within_s` is how soon the caller knows its end."""

    name: str
    guard: Guard
    first: Behaviour
    ends: Ends
    within_s: float
    second: Behaviour = ANSWERS
    stream: bool = True
    slow_reader: bool = False

    @property
    def key(self) -> str:
        return f"{self.name}-{self.guard}".replace("_", "-")


def _rows_of(guard: Guard) -> Iterator[Row]:
    """Yield the rows of streams; the trap is a timer that ran out while the answer moved and left it without any."""
    moving_s = PIECES * GAP_S + SLACK_S
    early_s = FIRST_S + SLACK_S
    late_s = LATE * GAP_S + early_s
    held = guard == "complete"
    saved: Ends = "second" if held else "broken"
    shown: Ends = "broken" if guard == "off" else "second"
    moving, stalled_late = _moves(PIECES), _moves(LATE, stops=True)
    yield Row("moving", guard, moving, "first", moving_s)
    yield Row("moving-second", guard, error(503), "second", moving_s, second=moving)
    yield Row("slow-reader", guard, big_burst(4 * MIB), "first", 30.0, slow_reader=True)
    yield Row("stalled-early", guard, _moves(1, stops=True), saved, early_s + IDLE_S)
    yield Row("stalled-late", guard, stalled_late, saved, late_s)
    yield Row("stalled-second", guard, error(503), "failed" if held else "broken", late_s, second=stalled_late)
    yield Row("only-a-role", guard, _moves(0, stops=True), shown, early_s)
    yield Row("only-headers", guard, headers_then_silence(), shown, early_s)
    # Under `complete` nothing but the deadline bounds the silence before headers.
    yield Row("silent", guard, silence(), "failed" if held else "second", (DEADLINE_S if held else FIRST_S) + SLACK_S)


def _rows() -> Iterator[Row]:
    for guard in GUARDS:
        yield from _rows_of(guard)
    early_s = FIRST_S + SLACK_S
    slow = slow_body(PIECES * 64, 64, GAP_S)
    yield Row("unary-moving", "first_token", slow, "first", PIECES * GAP_S + SLACK_S, stream=False)
    yield Row("unary-stalled", "first_token", stalled_body(), "failed", early_s, stream=False)
    yield Row("unary-silent", "first_token", silence(), "second", early_s, stream=False)


ROWS = tuple(_rows())
MOVING = tuple(row for row in ROWS if row.name in ("moving", "moving-second", "slow-reader", "unary-moving"))
STANDING = tuple(row for row in ROWS if row not in MOVING)
LONG = tuple(row for row in MOVING if not row.slow_reader)


def named(rows: tuple[Row, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[row.key for row in rows])


def _config(wall: Wall) -> dict[str, Any]:
    providers = {
        f"{row.key}-{who}": {"base_url": f"http://127.0.0.1:{wall.port}/{row.key}/{who}/v1"}
        | {"allow_private_network": True}
        for row in ROWS
        for who in ("first", "second")
    }
    models = {
        row.key: {
            "targets": [
                {"provider": f"{row.key}-{who}", "model": "upstream", "tier": tier}
                for tier, who in enumerate(("first", "second"))
            ],
            "policy": row.guard.replace("_", "-"),
        }
        for row in ROWS
    }
    timers = {
        "first_byte_timeout": f"{FIRST_S}s",
        "first_token_timeout": f"{FIRST_S}s",
        "stream_idle_timeout": f"{IDLE_S}s",
        "deadline": f"{DEADLINE_S}s",
        "attempts": 2,
    }
    policies = {guard.replace("_", "-"): timers | {"stream_guard": guard} for guard in GUARDS}
    return {"schema": 1, "providers": providers, "models": models, "policies": policies}


@pytest.fixture(scope="module")
def replies(module_gateway_factory: GatewayFactory, module_primary: Wall) -> Mapping[str, Reply]:
    """Ask for all rows at once and read each answer to its end."""
    plays = {(row.key, who): play for row in ROWS for who, play in (("first", row.first), ("second", row.second))}
    module_primary.script(lambda seen: plays[_who(seen)])
    gateway = module_gateway_factory(_config(module_primary))
    pids = gateway.pids()
    with ThreadPoolExecutor(len(ROWS)) as pool:
        told = dict(zip([row.key for row in ROWS], pool.map(lambda row: _ask(gateway, row), ROWS), strict=True))
    assert pids == gateway.pids()
    return told


def _who(seen: Seen) -> tuple[str, str]:
    _, key, who, *_ = seen.path.split("/")
    return key, who


def _ask(gateway: Gateway, row: Row) -> Reply:
    body: dict[str, Any] = {"model": row.key, "messages": [{"role": "user", "content": "hi"}]}
    body |= {"stream": True} if row.stream else {}
    small = 4096 if row.slow_reader else None
    with Call(f"{gateway.url}/v1/chat/completions", timeout_s=DEADLINE_S + 5, receive_bytes=small) as call:
        call.send("POST", {"content-type": "application/json"}, orjson.dumps(body))
        if call.read_head():
            for number, _ in enumerate(call.pieces()):
                if row.slow_reader and number == 0:
                    Never().wait(READER_STOPS_S)
        return call.reply()


def _ended(reply: Reply) -> str:
    """Say whose whole answer this is, or in which way it is none."""
    if reply.status != 200:
        return "failed" if reply.ended == "clean" else reply.ended
    if reply.ended != "clean":
        return "broken"
    whole = reply.events[-1:] == ["[DONE]"] or "event-stream" not in (reply.header("content-type") or "")
    return (reply.header("x-gateway-served-by") or "").partition("/")[0].rpartition("-")[2] if whole else "short"


@named(MOVING)
def test_an_answer_that_moves_is_never_cut(replies: Mapping[str, Reply], row: Row) -> None:
    reply = replies[row.key]
    assert (row.ends, "clean") == (_ended(reply), reply.ended)


@named(LONG)
def test_a_moving_answer_outlasts_every_timer(replies: Mapping[str, Reply], row: Row) -> None:
    """Else the rows above would prove nothing."""
    assert 3 * max(FIRST_S, IDLE_S) < replies[row.key].seconds <= row.within_s


@pytest.mark.parametrize("guard", GUARDS)
def test_every_word_arrives_however_slowly_it_is_read(replies: Mapping[str, Reply], guard: str) -> None:
    reply = replies[f"slow-reader-{guard.replace('_', '-')}"]
    assert 4 * MIB == len(reply.text)
    assert reply.seconds > READER_STOPS_S > IDLE_S


@named(STANDING)
def test_an_answer_that_stands_still_always_ends(replies: Mapping[str, Reply], row: Row) -> None:
    """Broken where the caller has seen some of it, another provider's where not, and soon."""
    reply = replies[row.key]
    assert row.ends == _ended(reply)
    assert reply.seconds <= row.within_s
