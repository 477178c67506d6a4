"""gRPC's message framing: any cut, any number, nothing too large."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.transport.frames import GrpcStatus
from extproc.transport.grpc_messages import Messages, RefusedError, framed


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 12), max_size=40))
def test_messages_come_out_whole_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    reader, data, found = Messages(1000, "identity"), b"".join(map(framed, messages)), []
    for cut in cuts:
        found += reader.feed(data[:cut])
        data = data[cut:]
    found += reader.feed(data)
    reader.finish()
    assert messages == found


def test_a_message_that_is_too_large_is_refused_before_it_is_there() -> None:
    with pytest.raises(RefusedError) as refused:
        Messages(10, "identity").feed(framed(bytes(11))[:5])
    assert GrpcStatus.RESOURCE_EXHAUSTED is refused.value.status


@pytest.mark.parametrize(
    ("flag", "encoding", "status"),
    [
        (1, "gzip", GrpcStatus.UNIMPLEMENTED),
        (1, "identity", GrpcStatus.INTERNAL),
        (2, "gzip", GrpcStatus.INTERNAL),
    ],
)
def test_compressed_messages_are_refused(flag: int, encoding: str, status: GrpcStatus) -> None:
    with pytest.raises(RefusedError) as refused:
        Messages(10, encoding).feed(bytes((flag, 0, 0, 0, 1, 0)))
    assert status is refused.value.status


def test_a_stream_may_not_end_amid_a_message() -> None:
    reader = Messages(10, "identity")
    reader.feed(framed(b"abc")[:-1])
    with pytest.raises(RefusedError):
        reader.finish()
