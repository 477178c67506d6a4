"""Whatever a client says, the fast transport neither raises nor hangs, nor keeps more than its bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.exchange import Action, Close, Event, Exchange, Part, Pass, RequestBody, SetTimer
from extproc.transport import frames as f
from extproc.transport.fast import METHOD_PATH, FastServer, Peer
from extproc.transport.grpc_messages import framed
from extproc.transport.h2 import BLOCK_LIMIT_BYTES, FRAME_LIMIT_BYTES
from extproc.transport.service import ext_proc_service
from extproc.wire.ext_proc import Request
from tests.support.fuzzing import fuzz
from tests.support.h2_client import GREETING, SETTINGS_ACK, frames_of

LIMIT_BYTES = 10_000
BLOCK = f.header_block(
    (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", METHOD_PATH),
        ("content-type", "application/grpc"),
        ("x-gateway-role", "route"),
    )
)


class _Parrot:
    """Answers headers, ends after a body; counts its ends."""

    def __init__(self, scene: _Scene) -> None:
        self._scene = scene

    def handle(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, RequestBody):
            return [Pass(Part.REQUEST_BODY), Close()]
        return [Pass(Part.REQUEST_HEADERS), SetTimer(60)]

    def closed(self, now: float) -> None:
        self._scene.closed += 1


class _Wire(asyncio.Transport):
    """A socket that takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.out += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class _Scene:
    """One server with one peer."""

    def __init__(self) -> None:
        self.opened = self.closed = self.faults = 0
        service = ext_proc_service(self._exchange, lambda: 0.0, self._fault)
        server = FastServer("unix:unused", {METHOD_PATH: service}, lambda: 0.0, LIMIT_BYTES)
        self.peer, self.wire = Peer(server), _Wire()
        self.peer.connection_made(self.wire)

    def _exchange(self, role: str, cluster: str) -> Exchange | None:
        if role != "route":
            return None
        self.opened += 1
        return _Parrot(self)

    def _fault(self) -> None:
        self.faults += 1

    def say(self, data: bytes) -> None:
        if not self.wire.closed:
            self.peer.data_received(data)


def _message(body: bool) -> bytes:
    request = Request()
    if body:
        request.request_body.body = b"x" * 50
    else:
        request.request_headers.SetInParent()
    return framed(request.SerializeToString())


_ids = st.sampled_from([0, 1, 3, 5, 7, 2, 1001])
_payloads = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([b"", bytes(4), bytes(5), bytes(6), bytes(8), BLOCK, BLOCK[:9], b"\x20" + BLOCK]),
    st.sampled_from([_message(body=False), _message(body=True), _message(body=False)[:3], b"\1\0\0\0\1x", b"\xff" * 5]),
)
_frames = st.builds(f.frame, st.integers(0, 12), st.integers(0, 255), _ids, _payloads)
_sensible = st.one_of(
    st.builds(lambda i: f.frame(f.HEADERS, f.END_HEADERS, i, BLOCK), st.sampled_from([1, 3, 5, 7])),
    st.builds(
        lambda i, body, end: f.frame(f.DATA, int(end), i, _message(body)),
        st.sampled_from([1, 3, 5, 7]),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(f.window_update, _ids, st.integers(0, f.LARGEST_WINDOW)),
    st.just(SETTINGS_ACK),
    st.builds(
        lambda name, value: f.settings_frame({name: value}), st.sampled_from(f.Setting), st.integers(0, (1 << 32) - 1)
    ),
)
_talks = st.lists(st.one_of(_sensible, _frames, st.binary(max_size=12)), max_size=40)


def _in_loop(play: Callable[[], None]) -> None:
    async def run() -> None:
        play()

    asyncio.run(run())


@fuzz
@given(_talks, st.lists(st.integers(1, 400), min_size=1, max_size=8), st.booleans())
def test_any_talk_ends_in_bounded_state_and_whole_frames(talk: list[bytes], cuts: list[int], greet: bool) -> None:
    def play() -> None:
        scene = _Scene()
        data, turn = (GREETING if greet else b"") + b"".join(talk), 0
        while data:
            cut = cuts[turn % len(cuts)]
            scene.say(data[:cut])
            data, turn = data[cut:], turn + 1
        list(frames_of(bytes(scene.wire.out)))
        http = scene.peer._http
        assert len(http._rest) <= FRAME_LIMIT_BYTES + f.HEAD_BYTES
        assert http._block is None or sum(map(len, http._block.parts)) <= BLOCK_LIMIT_BYTES + FRAME_LIMIT_BYTES
        assert not http.failed or scene.wire.closed
        scene.peer.connection_lost(None)
        assert scene.opened == scene.closed
        assert {} == scene.peer.outbox.streams

    _in_loop(play)


@fuzz
@given(st.integers(0, 500), st.integers(0, 255), st.integers(1, 200))
def test_a_good_talk_with_one_bad_byte_does_no_more_harm_than_to_itself(at: int, byte: int, cut: int) -> None:
    def play() -> None:
        scene = _Scene()
        talk = bytearray(GREETING + SETTINGS_ACK)
        for stream_id in (1, 3):
            talk += f.frame(f.HEADERS, f.END_HEADERS, stream_id, BLOCK)
            talk += f.frame(f.DATA, 0, stream_id, _message(body=False))
            talk += f.frame(f.DATA, f.END_STREAM, stream_id, _message(body=True))
        talk[at % len(talk)] = byte
        for start in range(0, len(talk), cut):
            scene.say(bytes(talk[start : start + cut]))
        list(frames_of(bytes(scene.wire.out)))
        scene.peer.connection_lost(None)
        assert scene.opened == scene.closed

    _in_loop(play)
