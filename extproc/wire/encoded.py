"""Actions of the hot path -> serialized ProcessingResponses, joined from pieces that were serialized before.

A route answer repeats nearly all of the last one with the same plan; only ids, times and the body are new. The bytes
parse to the same message as `ext_proc.encode`'s, which stays the definition (a property test holds them together).
What is kept is bounded in number and in size: of what callers choose it holds the model's name, which is short
(body.py), and a short query. A long one, as long as headers may be, is in every step's path too: it is not kept.
Nested messages are length-prefixed bytes, so a piece is made by protobuf once and framed here again and again.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple

from extproc.config.snapshot import Protocol
from extproc.core.endpoints import Kind
from extproc.core.exchange import Action, Pass, ReleaseBody, RouteTo
from extproc.core.request_state import PlanStep, RequestState
from extproc.wire import names
from extproc.wire.ext_proc import encode
from extproc.wire.state import QUERY_KEPT

PREPARED_KEPT: Final = 2048

# Tags, by the numbers in protos/; each begins a length-delimited field, but for the two that say otherwise.
_REQUEST_BODY: Final = b"\x1a"  # ProcessingResponse.request_body = 3
_RESPONSE_BODY: Final = b"\x22"  # ProcessingResponse.response_body = 4
_DYNAMIC_METADATA: Final = b"\x42"  # ProcessingResponse.dynamic_metadata = 8
_RESPONSE: Final = b"\x0a"  # BodyResponse.response = 1
_HEADER_MUTATION: Final = b"\x12"  # CommonResponse.header_mutation = 2
_BODY_MUTATION: Final = b"\x1a"  # CommonResponse.body_mutation = 3
_BODY: Final = b"\x0a"  # BodyMutation.body = 1, StreamedBodyResponse.body = 1
_STREAMED: Final = b"\x1a"  # BodyMutation.streamed_response = 3
_LAST_CHUNK: Final = b"\x10\x01"  # StreamedBodyResponse.end_of_stream = 2: true
_SET_HEADERS: Final = b"\x0a"  # HeaderMutation.set_headers = 1
_HEADER: Final = b"\x0a"  # HeaderValueOption.header = 1
_OVERWRITE: Final = b"\x18\x02"  # HeaderValueOption.append_action = 3: OVERWRITE_IF_EXISTS_OR_ADD
_NAME: Final = b"\x0a"  # HeaderValue.key = 1
_RAW_VALUE: Final = b"\x1a"  # HeaderValue.raw_value = 3
_FIELD: Final = b"\x0a"  # Struct.fields = 1, a map
_KEY: Final = b"\x0a"  # a map entry's key = 1
_VALUE: Final = b"\x12"  # a map entry's value = 2
_NUMBER: Final = b"\x11"  # Value.number_value = 2: a double
_STRING: Final = b"\x1a"  # Value.string_value = 3
_STRUCT: Final = b"\x2a"  # Value.struct_value = 5

_OWN_KEYS: Final = (names.M_ID, names.M_TICKET, names.M_ARRIVED, names.M_STARTED)
"""What differs between two requests with the same plan."""


class _Shared(NamedTuple):
    """What the answers to many requests have in common."""

    version: int
    policy: str
    kind: Kind
    protocol: Protocol
    endpoint: str
    query: str
    client: str
    model: str
    plan: tuple[PlanStep, ...]
    attempts: int
    path: str


class _Pieces(NamedTuple):
    """The serialized parts of an answer, for ids of one length; `headers` and `common` can be added to."""

    headers: bytes
    common: bytes
    metadata: bytes
    """All of it but its end: the id, then the numbers."""
    rest: bytes


def serialize(action: Action) -> bytes | None:
    """Return the message that carries an action out, None when the transport itself must act."""
    if isinstance(action, ReleaseBody) and not action.tokens and not action.classes:
        return _release_body(action.chunk, end_of_stream=action.end_of_stream)
    if isinstance(action, Pass):
        return _pass(action)
    if isinstance(action, RouteTo) and _is_first(action.state):
        return _route_to(action)
    message = encode(action)
    return None if message is None else message.SerializeToString()


@lru_cache(maxsize=16)
def _pass(action: Pass) -> bytes:
    message = encode(action)
    return b"" if message is None else message.SerializeToString()


def _release_body(chunk: bytes, *, end_of_stream: bool) -> bytes:
    streamed = (_delimited(_BODY, chunk) if chunk else b"") + (_LAST_CHUNK if end_of_stream else b"")
    mutation = _delimited(_BODY_MUTATION, _delimited(_STREAMED, streamed))
    return _delimited(_RESPONSE_BODY, _delimited(_RESPONSE, mutation))


def _is_first(state: RequestState) -> bool:
    plain = state.attempt == 1 and not state.classes and state.first_error is None
    return plain and not state.context and not state.hide_usage


def _route_to(action: RouteTo) -> bytes:
    state, body = action.state, action.body
    shared = _Shared(
        state.version,
        state.policy,
        state.kind,
        state.protocol,
        state.endpoint,
        state.query,
        state.client,
        state.model,
        state.plan,
        action.attempts,
        action.path,
    )
    own_id = state.id.encode()
    headers, common, metadata, rest = (_pieces if len(state.query) <= QUERY_KEPT else _make_pieces)(shared, len(own_id))
    changed = b""
    if body is None:
        body = b""
    else:
        length = b"%d" % len(body)
        headers += _LENGTH_HEADS[len(length)] + length + _OVERWRITE
        changed = _head(_BODY, len(body))
        changed = _head(_BODY_MUTATION, len(changed) + len(body)) + changed
    mutation = _head(_HEADER_MUTATION, len(headers)) + headers
    response = _head(_RESPONSE, len(common) + len(mutation) + len(changed) + len(body))
    size = len(response) + len(common) + len(mutation) + len(changed) + len(body)
    numbers = _NUMBERS(_TICKET, state.ticket, _ARRIVED, state.arrived, _STARTED, state.started)
    # One join: a body may be as large as max_body, and each further step would copy it.
    return b"".join(
        (_head(_REQUEST_BODY, size), response, common, mutation, changed, body, metadata, own_id, numbers, rest)
    )


def _make_pieces(shared: _Shared, id_bytes: int) -> _Pieces:
    """Let the plain encoder make an answer, and take it apart."""
    message = encode(RouteTo(_nobodys_state(shared), shared.attempts, shared.path, None))
    if message is None:
        raise TypeError("a route answer is a message")
    common = message.request_body.response
    headers = common.header_mutation.SerializeToString()
    common.ClearField("header_mutation")
    own = message.dynamic_metadata.fields[names.METADATA].struct_value
    for key in _OWN_KEYS:
        del own.fields[key]
    fields, common_bytes = own.SerializeToString(), common.SerializeToString()
    message.ClearField("request_body")
    message.ClearField("dynamic_metadata")
    # From the inside out: what encloses the id and the numbers is as long as they will be.
    id_head = _head(_STRING, id_bytes)
    id_head = _ID + _head(_VALUE, len(id_head) + id_bytes) + id_head
    fields += _head(_FIELD, len(id_head) + id_bytes) + id_head
    metadata = _enclosed(_STRUCT, fields, id_bytes + _NUMBERS_BYTES)
    metadata = _enclosed(_VALUE, metadata, id_bytes + _NUMBERS_BYTES)
    metadata = _enclosed(_FIELD, _NAMESPACE + metadata, id_bytes + _NUMBERS_BYTES)
    metadata = _enclosed(_DYNAMIC_METADATA, metadata, id_bytes + _NUMBERS_BYTES)
    return _Pieces(headers, common_bytes, metadata, message.SerializeToString())


_pieces: Final = lru_cache(maxsize=PREPARED_KEPT)(_make_pieces)


def _nobodys_state(shared: _Shared) -> RequestState:
    return RequestState(
        id="",
        version=shared.version,
        policy=shared.policy,
        kind=shared.kind,
        protocol=shared.protocol,
        endpoint=shared.endpoint,
        query=shared.query,
        client=shared.client,
        model=shared.model,
        ticket=0,
        arrived=0.0,
        plan=shared.plan,
    )


def _delimited(tag: bytes, payload: bytes) -> bytes:
    return _head(tag, len(payload)) + payload


def _enclosed(tag: bytes, payload: bytes, following: int) -> bytes:
    """Begin a field whose last `following` bytes are not there yet."""
    return _head(tag, len(payload) + following) + payload


def _head(tag: bytes, size: int) -> bytes:
    """Return how a field of so many bytes begins."""
    return tag + (_SMALL[size] if size < 0x80 else _varint(size))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(name: str) -> bytes:
    return _delimited(_KEY, name.encode())


def _number_entry(name: str) -> bytes:
    """Return a map entry up to its number: key and value are as long as ever, 8 bytes follow."""
    entry = _key(name) + _VALUE + b"\x09" + _NUMBER
    return _FIELD + _varint(len(entry) + 8) + entry


_SMALL: Final = tuple(bytes((size,)) for size in range(0x80))
_CONTENT_LENGTH: Final = _delimited(_NAME, b"content-length")
_NAMESPACE: Final = _key(names.METADATA)
_ID: Final = _key(names.M_ID)
_TICKET: Final = _number_entry(names.M_TICKET)
_ARRIVED: Final = _number_entry(names.M_ARRIVED)
_STARTED: Final = _number_entry(names.M_STARTED)
_NUMBERS_FORMAT: Final = struct.Struct(f"<{len(_TICKET)}sd{len(_ARRIVED)}sd{len(_STARTED)}sd")
_NUMBERS, _NUMBERS_BYTES = _NUMBERS_FORMAT.pack, _NUMBERS_FORMAT.size


def _length_head(digits: int) -> bytes:
    """Return a content-length header up to its value."""
    value = _enclosed(_RAW_VALUE, b"", digits)
    header = _enclosed(_HEADER, _CONTENT_LENGTH + value, digits)
    return _enclosed(_SET_HEADERS, header, digits + len(_OVERWRITE))


_LENGTH_HEADS: Final = tuple(map(_length_head, range(20)))
"""By the number of its digits."""
