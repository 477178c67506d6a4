"""The server's HTTP/2 connection, as a conversation with a client that may say anything."""

from __future__ import annotations

import struct

import pytest

from extproc.transport import frames as f
from extproc.transport.frames import ErrorCode, Setting
from extproc.transport.h2 import BLOCK_LIMIT_BYTES, FRAME_LIMIT_BYTES, Data, Gone, Opened
from extproc.transport.header_blocks import KnownBlocks
from extproc.transport.outbox import CONNECTION_WINDOW_BYTES, DEFAULT_WINDOW_BYTES, STREAM_WINDOW_BYTES
from tests.support.h2_client import GREETING, REQUEST, SETTINGS_ACK, Client

OK = f.header_block(f.GRPC_HEADERS)
TRAILERS = f.header_block(f.status_fields(f.GrpcStatus.OK))


def opened(client: Client, stream_id: int = 1) -> Opened:
    """Open a stream and return its event."""
    (event,) = client.request(stream_id)
    assert isinstance(event, Opened)
    return event


# -- the beginning -------------------------------------------------------------------------------------------------


def test_the_server_says_settings_first_and_acknowledges_the_client_s() -> None:
    client = Client()
    assert [f.SETTINGS, f.WINDOW_UPDATE, f.SETTINGS] == client.kinds()
    values = dict(struct.iter_unpack(">HI", client.heard[0].payload))
    assert 0 == values[Setting.HEADER_TABLE_SIZE]
    assert f.ACK == client.heard[2].flags


def test_a_greeting_may_come_in_single_bytes() -> None:
    client = Client(greet=False)
    for byte in GREETING:
        client.say(bytes((byte,)))
    assert opened(client).stream.id == 1


def test_what_is_not_http2_is_told_so_and_left() -> None:
    client = Client(greet=False)
    client.say(b"GET / HTTP/1.1\r\n")
    assert client.server.failed
    assert ErrorCode.PROTOCOL_ERROR == client.last(f.GOAWAY).code


def test_settings_must_come_first() -> None:
    client = Client(greet=False)
    client.say(f.PREFACE + f.frame(f.PING, 0, 0, bytes(8)))
    assert ErrorCode.PROTOCOL_ERROR == client.last(f.GOAWAY).code


# -- header blocks -------------------------------------------------------------------------------------------------


def test_a_request_has_its_fields() -> None:
    event = opened(Client())
    assert dict(REQUEST) == event.fields


def test_padding_and_priority_are_taken_off_a_header_block() -> None:
    client = Client()
    block = client.encoder.encode(list(REQUEST))
    payload = bytes((3,)) + bytes(5) + block + bytes(3)
    flags = f.END_HEADERS | f.PADDED | f.PRIORITIZED
    (event,) = client.say(f.frame(f.HEADERS, flags, 1, payload))
    assert isinstance(event, Opened)
    assert "/some.Service/Method" == event.fields[":path"]


def test_a_header_block_may_be_cut_anywhere() -> None:
    client = Client()
    block = client.encoder.encode(list(REQUEST))
    said = f.frame(f.HEADERS, f.END_STREAM, 1, block[:1])
    said += f.frame(f.CONTINUATION, 0, 1, block[1:7]) + f.frame(f.CONTINUATION, f.END_HEADERS, 1, block[7:])
    (event,) = client.say(said)
    assert isinstance(event, Opened)
    assert event.end


def test_nothing_may_interrupt_a_header_block() -> None:
    client = Client()
    client.say(f.frame(f.HEADERS, 0, 1, b"") + f.frame(0xFA, 0, 1, b"unknown"))
    assert ErrorCode.PROTOCOL_ERROR == client.last(f.GOAWAY).code


def test_an_endless_header_block_is_refused() -> None:
    client = Client()
    client.say(f.frame(f.HEADERS, 0, 1, b""))
    for _ in range(BLOCK_LIMIT_BYTES // FRAME_LIMIT_BYTES + 1):
        client.say(f.frame(f.CONTINUATION, 0, 1, bytes(FRAME_LIMIT_BYTES)))
    assert ErrorCode.ENHANCE_YOUR_CALM == client.last(f.GOAWAY).code


def test_many_empty_continuations_are_refused() -> None:
    client = Client()
    client.say(f.frame(f.HEADERS, 0, 1, b"") + f.frame(f.CONTINUATION, 0, 1) * 100)
    assert ErrorCode.ENHANCE_YOUR_CALM == client.last(f.GOAWAY).code


def test_a_block_that_cannot_be_decoded_ends_the_connection() -> None:
    client = Client()
    client.say(f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xff\xff\xff"))
    assert ErrorCode.COMPRESSION_ERROR == client.last(f.GOAWAY).code


def test_before_our_settings_are_acknowledged_the_client_may_use_its_table() -> None:
    client = Client()
    first, second = opened(client, 1), opened(client, 3)
    assert first.fields == second.fields


def test_a_client_that_keeps_its_table_after_the_acknowledgement_is_refused() -> None:
    client = Client()
    opened(client)
    client.say(SETTINGS_ACK)
    client.request(3)
    assert ErrorCode.COMPRESSION_ERROR == client.last(f.GOAWAY).code


def test_blocks_that_another_connection_made_known_serve_a_new_one() -> None:
    """The first block after the acknowledgement empties the table; a later, unknown one must still be decoded."""
    known = KnownBlocks()
    for _ in range(2):
        client = Client(known=known)
        client.say(SETTINGS_ACK)
        client.encoder.header_table_size = 0
        assert dict(REQUEST) == opened(client, 1).fields
        assert dict(REQUEST) == opened(client, 3).fields
        (event,) = client.request(5, (*REQUEST, ("x-new", str(id(client)))))
        assert isinstance(event, Opened)
    assert 4 == len(known)


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST[1:],
        (*REQUEST, (":path", "/again")),
        (REQUEST[0], ("early", "1"), *REQUEST[1:]),
        (*REQUEST, (":status", "200")),
        (*REQUEST, ("Upper", "1")),
        (*REQUEST, ("connection", "close")),
        (*REQUEST, ("te", "gzip")),
        (*REQUEST, ("split", "a\r\nb: c")),
        (*REQUEST[:2], (":path", "")),
    ],
)
def test_a_malformed_request_resets_its_stream_only(fields: tuple[tuple[str, str], ...]) -> None:
    client = Client()
    assert [] == client.request(1, fields)
    assert (1, ErrorCode.PROTOCOL_ERROR) == (client.last(f.RST_STREAM).stream_id, client.last(f.RST_STREAM).code)
    assert opened(client, 3).stream.id == 3


# -- streams -------------------------------------------------------------------------------------------------------


def test_data_may_be_padded_and_ends_with_a_flag() -> None:
    client = Client()
    stream = opened(client).stream
    events = client.say(f.frame(f.DATA, f.PADDED, 1, b"\x02abc\0\0") + f.frame(f.DATA, f.END_STREAM, 1, b"de"))
    assert [Data(stream, b"abc", False), Data(stream, b"de", True)] == events


def test_request_trailers_end_a_stream() -> None:
    client = Client()
    stream = opened(client).stream
    assert [Data(stream, b"", True)] == client.request(1, (("x-sum", "1"),), end=True)


def test_data_after_the_end_is_an_error_of_the_stream() -> None:
    client = Client()
    stream = opened(client).stream
    client.say(f.frame(f.DATA, f.END_STREAM, 1, b""))
    assert [Gone(stream)] == client.say(f.frame(f.DATA, 0, 1, b"more"))
    assert ErrorCode.STREAM_CLOSED == client.last(f.RST_STREAM).code


def test_a_reset_stream_is_gone_and_late_frames_for_it_are_dropped() -> None:
    client = Client()
    stream = opened(client).stream
    assert [Gone(stream)] == client.say(f.rst_stream(1, ErrorCode.CANCEL))
    late = f.frame(f.DATA, 0, 1, b"late") + f.window_update(1, 5) + f.rst_stream(1, ErrorCode.CANCEL)
    assert [] == client.say(late)
    assert not client.server.failed


def test_streams_beyond_the_limit_are_refused() -> None:
    client = Client(stream_limit=2)
    opened(client, 1)
    opened(client, 3)
    assert [] == client.request(5)
    assert ErrorCode.REFUSED_STREAM == client.last(f.RST_STREAM).code


def test_trailers_of_ours_end_the_stream_and_ask_the_client_to_stop() -> None:
    client = Client()
    stream = opened(client).stream
    client.server.outbox.send_headers(stream, OK)
    client.server.outbox.send_data(stream, b"answer")
    client.server.outbox.end(stream, TRAILERS)
    assert [f.HEADERS, f.DATA, f.HEADERS, f.RST_STREAM] == [frame.kind for frame in client.listen()]
    assert ErrorCode.NO_ERROR == client.last(f.RST_STREAM).code
    assert {} == client.server.outbox.streams


def test_a_client_that_has_finished_gets_no_reset() -> None:
    client = Client()
    (event,) = client.request(1, end=True)
    client.server.outbox.end(event.stream, TRAILERS)
    assert [f.HEADERS] == [frame.kind for frame in client.listen()]


def test_our_header_blocks_decode() -> None:
    client = Client()
    stream = opened(client).stream
    long = "x" * 300
    client.server.outbox.end(stream, f.header_block((*f.GRPC_HEADERS, ("grpc-message", long))))
    block = client.listen()[0].payload
    assert [*f.GRPC_HEADERS, ("grpc-message", long)] == [
        (str(name), str(value)) for name, value in client.decoder.decode(block)
    ]


def test_a_client_that_changed_its_table_is_told_that_we_use_none() -> None:
    client = Client(greet=False)
    client.say(f.PREFACE + f.settings_frame({Setting.HEADER_TABLE_SIZE: 0}))
    stream = opened(client).stream
    client.server.outbox.send_headers(stream, OK)
    client.server.outbox.end(stream, TRAILERS)
    first, second, _ = client.listen()
    assert f.TABLE_EMPTIED + OK == first.payload
    assert TRAILERS == second.payload


# -- flow control --------------------------------------------------------------------------------------------------


def test_data_never_exceeds_the_client_s_window_or_frame_size() -> None:
    client = Client()
    stream = opened(client).stream
    client.server.outbox.send_data(stream, bytes(100_000))
    client.server.outbox.end(stream, TRAILERS)
    sent = client.listen()
    assert DEFAULT_WINDOW_BYTES == sum(len(frame.payload) for frame in sent)
    assert FRAME_LIMIT_BYTES == max(len(frame.payload) for frame in sent)
    client.say(f.window_update(0, 50_000))
    assert DEFAULT_WINDOW_BYTES == _data_bytes(client)
    client.say(f.window_update(1, 50_000))
    assert 100_000 == _data_bytes(client)
    assert [f.HEADERS, f.RST_STREAM] == client.kinds()[-2:]


def test_one_stream_s_window_holds_no_other_stream_back() -> None:
    client = Client()
    first, second = opened(client, 1).stream, opened(client, 3).stream
    client.say(f.window_update(0, 1_000_000))
    client.server.outbox.send_data(first, bytes(DEFAULT_WINDOW_BYTES + 1))
    client.listen()
    client.server.outbox.send_data(second, b"hello")
    assert [(3, b"hello")] == [(frame.stream_id, frame.payload) for frame in client.listen()]


def test_a_smaller_initial_window_may_make_a_window_negative() -> None:
    client = Client()
    stream = opened(client).stream
    client.server.outbox.send_data(stream, bytes(60_000))
    client.listen()
    client.say(f.settings_frame({Setting.INITIAL_WINDOW_SIZE: 1000}) + f.window_update(0, 100_000))
    client.server.outbox.send_data(stream, b"x")
    client.say(f.window_update(1, 59_000))
    assert 60_000 == _data_bytes(client)
    client.say(f.window_update(1, 1))
    assert 60_001 == _data_bytes(client)


def test_larger_frames_are_used_when_the_client_takes_them() -> None:
    client = Client()
    client.say(f.settings_frame({Setting.MAX_FRAME_SIZE: 60_000}))
    client.server.outbox.send_data(opened(client).stream, bytes(50_000))
    assert [50_000] == [len(frame.payload) for frame in client.listen()]


def test_windows_are_given_back_as_data_is_taken() -> None:
    client = Client()
    opened(client)
    for _ in range(2 * CONNECTION_WINDOW_BYTES // FRAME_LIMIT_BYTES):
        client.say(f.frame(f.DATA, 0, 1, bytes(FRAME_LIMIT_BYTES)))
    assert not client.server.failed
    given = [frame for frame in client.heard if frame.kind == f.WINDOW_UPDATE]
    assert {0, 1} == {frame.stream_id for frame in given}


def test_a_stream_whose_answers_wait_gets_no_new_window() -> None:
    client = Client()
    stream = opened(client).stream
    client.server.outbox.send_data(stream, bytes(2 * 1024 * 1024))
    client.say(f.frame(f.DATA, 0, 1, bytes(FRAME_LIMIT_BYTES)) * (STREAM_WINDOW_BYTES // FRAME_LIMIT_BYTES))
    assert [0] == [frame.stream_id for frame in client.heard if frame.kind == f.WINDOW_UPDATE]
    client.say(f.window_update(0, 1 << 24) + f.window_update(1, 1 << 24))
    assert 1 == client.last(f.WINDOW_UPDATE).stream_id


def test_data_beyond_a_stream_s_window_resets_it() -> None:
    client = Client()
    stream = opened(client).stream
    client.server.outbox.send_data(stream, bytes(2 * 1024 * 1024))
    frames = f.frame(f.DATA, 0, 1, bytes(FRAME_LIMIT_BYTES)) * (STREAM_WINDOW_BYTES // FRAME_LIMIT_BYTES + 1)
    assert Gone(stream) == client.say(frames)[-1]
    assert ErrorCode.FLOW_CONTROL_ERROR == client.last(f.RST_STREAM).code


def test_while_the_socket_is_full_data_waits() -> None:
    client = Client()
    stream = opened(client).stream
    client.server.outbox.paused = True
    client.server.outbox.send_data(stream, b"later")
    assert [] == client.listen()
    client.server.outbox.paused = False
    assert [b"later"] == [frame.payload for frame in client.listen()]


# -- the rest of the frames ----------------------------------------------------------------------------------------


def test_a_ping_is_answered() -> None:
    client = Client()
    client.say(f.frame(f.PING, 0, 0, b"12345678"))
    assert (f.ACK, b"12345678") == (client.last(f.PING).flags, client.last(f.PING).payload)


def test_unknown_frames_and_settings_are_ignored() -> None:
    client = Client()
    client.say(f.frame(0xFA, 0xFF, 7, b"?") + f.frame(f.SETTINGS, 0, 0, struct.pack(">HI", 0x99, 1)))
    client.say(f.frame(f.PRIORITY, 0, 9, bytes(5)))
    assert not client.server.failed


def test_a_drain_refuses_streams_once_the_client_has_heard_of_it() -> None:
    client = Client()
    stream = opened(client, 1).stream
    client.server.go_away()
    going, ping = client.listen()
    assert (f.GOAWAY, f.STREAM_MASK) == (going.kind, int.from_bytes(going.payload[:4], "big"))
    opened(client, 3)
    client.say(f.frame(f.PING, f.ACK, 0, ping.payload))
    assert 3 == int.from_bytes(client.last(f.GOAWAY).payload[:4], "big")
    assert [] == client.request(5)
    assert [Data(stream, b"on", False)] == client.say(f.frame(f.DATA, 0, 1, b"on"))


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (f.frame(f.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.DATA, 0, 9, b"x"), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.DATA, f.PADDED, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.DATA, f.PADDED, 1, b""), ErrorCode.FRAME_SIZE_ERROR),
        (f.frame(f.HEADERS, f.END_HEADERS, 0), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.HEADERS, f.END_HEADERS, 2), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.HEADERS, f.END_HEADERS | f.PRIORITIZED, 3, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
        (f.frame(f.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.RST_STREAM, 0, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
        (f.rst_stream(9, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.SETTINGS, 0, 0, b"abc"), ErrorCode.FRAME_SIZE_ERROR),
        (f.frame(f.SETTINGS, f.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (f.settings_frame({Setting.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
        (f.settings_frame({Setting.INITIAL_WINDOW_SIZE: 1 << 31}), ErrorCode.FLOW_CONTROL_ERROR),
        (f.settings_frame({Setting.MAX_FRAME_SIZE: 16383}), ErrorCode.PROTOCOL_ERROR),
        (f.settings_frame({Setting.MAX_FRAME_SIZE: 1 << 24}), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.PUSH_PROMISE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (f.frame(f.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (f.frame(f.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (f.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (f.window_update(0, f.LARGEST_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
        (f.window_update(9, 1), ErrorCode.PROTOCOL_ERROR),
        (f.frame(f.CONTINUATION, f.END_HEADERS, 1), ErrorCode.PROTOCOL_ERROR),
        (f.frame_head(FRAME_LIMIT_BYTES + 1, f.DATA, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_an_error_of_the_connection_ends_it_with_its_code(said: bytes, code: ErrorCode) -> None:
    client = Client()
    opened(client)
    client.say(said)
    assert (True, code) == (client.server.failed, client.last(f.GOAWAY).code)
    assert [] == client.say(f.frame(f.PING, 0, 0, bytes(8)))


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (f.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        (f.window_update(1, f.LARGEST_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
        (f.frame(f.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_an_error_of_a_stream_resets_it_only(said: bytes, code: ErrorCode) -> None:
    client = Client()
    stream = opened(client).stream
    assert [Gone(stream)] == client.say(said)
    assert (False, code) == (client.server.failed, client.last(f.RST_STREAM).code)


def _data_bytes(client: Client) -> int:
    return sum(len(frame.payload) for frame in client.heard if frame.kind == f.DATA)
