"""Bytes from outside: whatever they are, each reader gives one of its documented answers and never breaks.

How many inputs a test draws, and how it is watched, is in tests/support/fuzzing.py; test_store_rows.py and
test_h2_fuzz.py hold the other readers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.errors import ConfigErrors
from extproc.config.load import load_config
from extproc.config.model import GatewayConfig
from extproc.core.attempt import AttemptExchange
from extproc.core.body import parse_request_body
from extproc.core.errors import CODES, GatewayError
from extproc.core.feedback import AttemptLogged, attempt_logged, request_logged
from extproc.core.gateway import Gateway
from extproc.core.health import HealthEngine
from extproc.core.judge import JudgeExchange
from extproc.core.route import RouteExchange
from extproc.core.stream_events import StreamKind
from extproc.core.stream_guard import Verdict, WatchedStream
from extproc.core.token_usage import UsageWatch
from extproc.transport.service import Session
from extproc.wire import names
from extproc.wire.access_log import LogDecoder
from extproc.wire.ext_proc import Request, Response
from extproc.wire.pb import als_pb2
from tests.support.fuzzing import fuzz
from tests.unit.config.build import FULL
from tests.unit.core.build import NOW, REQUEST_ID, A, B, chain, config, gateway, routed

NASTY = [
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    b"1e999999",
    b"-0",
    b"9" * 400,
    b"[" * 3000,
    b'{"a":' * 500,
    b'"model"',
    b'"model":"x",',
    b'"mod\\u0065l":"y",',
    b"\xef\xbb\xbf",
    b"\r\n",
    b"NaN",
    b"//",
    b"*a",
    b"&a",
    b"!!python/object:os.system ",
    b"<<: *a",
]
BODY = b'{"model":"big","stream":true,"messages":[{"role":"user","content":"a \\"model\\": b"}],"temperature":0.5}'
STREAM = (
    b'data: {"id":"1","choices":[{"delta":{"role":"assistant"}}]}\n\ndata: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    b'event: error\ndata: {"error":{"message":"no","code":"x"}}\n\ndata: {"choices":[{"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)
USAGE = (
    b'data: {"message":{"usage":{"input_tokens":7,"output_tokens":1,"cache_read_input_tokens":2}}}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":5}}}\n\n'
)
CONFIG = json.dumps(FULL, indent=1).encode()


@st.composite
def mutated(draw: st.DrawFn, *seeds: bytes) -> bytes:
    """Draw a seed with pieces cut out, doubled, overwritten or put in; now and then bytes of no seed at all."""
    data = bytearray(draw(st.sampled_from(seeds) | st.binary(max_size=200)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 12)))
        data[at:to] = draw(st.sampled_from(NASTY) | st.binary(max_size=6) | st.just(bytes(data[at:to]) * 2))
    return bytes(data)


@fuzz
@given(mutated(BODY))
def test_a_request_body_is_parsed_or_refused(body: bytes) -> None:
    """What is parsed is what a provider reads: valid JSON whose one `model` is the one found, and can be replaced."""
    found = parse_request_body(body)
    if isinstance(found, GatewayError):
        assert found.code in CODES
        assert 400 <= found.status < 500
    else:
        assert found.model == json.loads(body)["model"]
        changed = json.loads(found.with_model("other-model"))
        assert {**json.loads(body), "model": "other-model"} == changed


@fuzz
@given(
    st.sampled_from(list(StreamKind)),
    st.sampled_from(["off", "first_token", "complete"]),
    st.lists(mutated(STREAM, *STREAM.split(b"\n\n")), min_size=1, max_size=5),
)
def test_an_event_stream_always_gets_a_verdict(kind: StreamKind, guard: Any, chunks: list[bytes]) -> None:
    watched = WatchedStream(kind, guard)
    for number, chunk in enumerate(chunks):
        if watched.feed(chunk, end=number == len(chunks) - 1) in (Verdict.BAD, Verdict.CUT):
            break
        if watched.released:
            watched.take_held()
    assert isinstance(watched.ended_with_error, bool)


@fuzz
@given(st.lists(mutated(USAGE, *USAGE.split(b"\n\n")), min_size=1, max_size=5), st.integers(1, 40))
def test_token_usage_is_counts_and_the_same_for_any_cuts(events: list[bytes], size: int) -> None:
    data = b"".join(events)
    whole, pieces, found = UsageWatch(), UsageWatch(), dict[str, int]()
    for at in range(0, len(data), size):
        found |= pieces.feed(data[at : at + size])
    assert whole.feed(data) == found
    assert all(name in names.USAGE_KEYS and 0 <= count < 1 << 53 for name, count in found.items())


@fuzz
@given(
    mutated(
        CONFIG, b"schema: 1\nmodels: {a: {targets: [{provider: p, model: m}]}}\nproviders: {p: {base_url: http://h}}\n"
    )
)
def test_a_config_file_is_loaded_or_refused_with_reasons(text: bytes) -> None:
    try:
        found: GatewayConfig | ConfigErrors = load_config(text.decode("utf-8", "replace"))
    except ConfigErrors as refused:
        found = refused
    assert found.errors if isinstance(found, ConfigErrors) else isinstance(found, GatewayConfig)


def envoy_says() -> bytes:
    """Serialize what Envoy logs of an attempt and of a request."""
    message = als_pb2.StreamAccessLogsMessage()
    message.identifier.log_name = names.LOG_ATTEMPTS
    entry = message.http_logs.log_entry.add()
    entry.request.request_id = REQUEST_ID
    entry.common_properties.upstream_cluster = "a-cluster"
    entry.response.response_code.value = 200
    entry.response.response_headers["retry-after"] = "3"
    entry.common_properties.time_to_first_upstream_rx_byte.seconds = 1
    return bytes(message.SerializeToString())


@fuzz
@given(st.lists(mutated(envoy_says(), envoy_says().replace(b"attempts", b"requests")), max_size=4))
def test_an_access_log_message_is_taken_in_or_is_no_message(messages: list[bytes]) -> None:
    """Taken in, it never breaks the books: counts stay whole and health keeps answering."""
    made, decoder = gateway(config({"big": chain(A, B)})), LogDecoder()
    routed(made)
    for message in messages:
        try:
            events = list(decoder.decode(message))
        except DecodeError:
            continue
        for event in events:
            if isinstance(event, AttemptLogged):
                attempt_logged(made, event, NOW + 1)
            else:
                request_logged(made, event, NOW + 1)
    assert made.limits.under_way("") in (0, 1)
    assert made.health.view(A, NOW + 2).share >= 0


def messages_of_envoy() -> Iterator[bytes]:
    """Serialize one message of each kind that Envoy sends us."""
    head = Request()
    for name, value in {":method": "POST", ":path": "/v1/chat/completions", "x-request-id": REQUEST_ID}.items():
        header = head.request_headers.headers.headers.add()
        header.key, header.raw_value = name, value.encode()
    answer = Request()
    header = answer.response_headers.headers.headers.add()
    header.key, header.raw_value = ":status", b"503"
    body, piece, end = Request(), Request(), Request()
    body.request_body.body, body.request_body.end_of_stream = BODY, True
    piece.response_body.body = STREAM
    end.response_trailers.SetInParent()
    for message in (head, answer, body, piece, end):
        context = message.metadata_context.filter_metadata[names.METADATA]
        context.update({"id": REQUEST_ID, "version": 1, "attempt": 1, "policy": "default", "plan": [{"provider": "a"}]})
        yield bytes(message.SerializeToString())


def exchange(made: Gateway, role: str) -> Any:
    """Open the exchange of one filter."""
    if role == names.ROLE_ROUTE:
        return RouteExchange(made)
    return JudgeExchange(made, "a-cluster") if role == names.ROLE_JUDGE else AttemptExchange(made, "a-cluster")


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Undecodable bytes are logged, once each; a hundred thousand times is enough."""
    logger = logging.getLogger("extproc.transport.service")
    logger.disabled = True
    yield
    logger.disabled = False


@fuzz
@given(
    st.sampled_from([names.ROLE_ROUTE, names.ROLE_ATTEMPT, names.ROLE_JUDGE]),
    st.lists(mutated(*messages_of_envoy()), max_size=5),
)
def test_an_ext_proc_stream_is_answered_or_broken_off(role: str, messages: list[bytes]) -> None:
    """Bytes that are a message never cause a fault; others end their own stream and nothing else."""
    made = gateway(config({"big": chain(A, B)}))
    faults: list[int] = []
    session = Session(exchange(made, role), lambda: NOW, lambda: faults.append(1))
    for message in messages:
        before = len(faults)
        output = session.on_message(message)
        for reply in output.messages:
            Response.FromString(reply)
        if decodable(message):
            assert before == len(faults)
        if output.close or output.abort is not None:
            break
    session.on_closed()


def decodable(message: bytes) -> bool:
    try:
        Request.FromString(message)
    except DecodeError:
        return False
    return True


@fuzz
@given(mutated(b'{"cells":[{"subject":["a","m-a"],"until":1e18,"reason":"timeout","streak":3,"tripped":true}]}'))
def test_a_saved_health_file_is_taken_over_or_ignored(text: bytes) -> None:
    health = HealthEngine(lambda: 0.5)
    health.retain({A, B})
    try:
        saved = orjson.loads(text)
    except orjson.JSONDecodeError:
        return
    health.load(saved, NOW)
    assert health.view(A, NOW).share >= 0
