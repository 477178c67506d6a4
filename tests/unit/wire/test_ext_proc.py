"""Every message of Envoy's becomes an event, every action becomes its message."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.exchange import (
    Abort,
    Action,
    CancelTimer,
    Close,
    Event,
    Part,
    Pass,
    ReleaseBody,
    ReleaseHeaders,
    RequestBody,
    RequestHeaders,
    Respond,
    ResponseBody,
    ResponseHeaders,
    RouteTo,
    SendAttempt,
    SetTimer,
    Trailers,
    Unexpected,
)
from extproc.core.request_state import FirstError
from extproc.wire import names
from extproc.wire.ext_proc import Request, Response, decode, encode
from extproc.wire.pb import core_pb2
from extproc.wire.state import read_state, typed_plan, write_state
from tests.unit.wire.test_state import state

STATE = state()


def header_map(**headers: str) -> core_pb2.HeaderMap:
    """Write headers as Envoy does, their values as raw bytes."""
    found = core_pb2.HeaderMap()
    for name, value in headers.items():
        found.headers.add(key=name.replace("_", "-"), raw_value=value.encode())
    return found


def with_state(request: Request) -> Request:
    """Add the metadata that an earlier exchange left."""
    into = Struct()
    write_state(into, STATE)
    for namespace, value in into.fields.items():
        request.metadata_context.filter_metadata[namespace].CopyFrom(value.struct_value)
    return request


def headers_request(kind: str, end: bool = False, **headers: str) -> Request:
    """Build a headers message."""
    request = Request()
    message = getattr(request, kind)
    message.headers.CopyFrom(header_map(**headers))
    message.end_of_stream = end
    return request


def body_request(kind: str, body: bytes, end: bool = False) -> Request:
    """Build a body message."""
    request = Request()
    message = getattr(request, kind)
    message.body, message.end_of_stream = body, end
    return request


def trailers_request(kind: str) -> Request:
    """Build a trailers message."""
    request = Request()
    getattr(request, kind).SetInParent()
    return request


def sent(action: Action) -> Response:
    """Encode an action, send it over the wire and parse it."""
    message = encode(action)
    assert message is not None
    return Response.FromString(message.SerializeToString())


def set_headers(mutation: Any) -> list[tuple[str, bytes]]:
    """Return the headers that a mutation sets."""
    return [(option.header.key, option.header.raw_value) for option in mutation.set_headers]


def state_in(response: Response) -> Any:
    """Read the state that a response writes to metadata."""
    metadata = core_pb2.Metadata()
    for namespace, value in response.dynamic_metadata.fields.items():
        metadata.filter_metadata[namespace].CopyFrom(value.struct_value)
    return read_state(metadata)


class TestDecoding:
    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            (headers_request("request_headers", x_a="1"), RequestHeaders({"x-a": "1"}, end_of_stream=False)),
            (headers_request("request_headers", end=True), RequestHeaders({}, end_of_stream=True)),
            (body_request("request_body", b"{}", end=True), RequestBody(b"{}")),
            (body_request("response_body", b"x"), ResponseBody(b"x", end_of_stream=False)),
            (body_request("response_body", b"", end=True), ResponseBody(b"", end_of_stream=True)),
            (trailers_request("request_trailers"), Trailers(Part.REQUEST_TRAILERS)),
            (trailers_request("response_trailers"), Trailers(Part.RESPONSE_TRAILERS)),
            (Request(), Unexpected()),
        ],
    )
    def test_gives_each_message_its_event(self, request_: Request, expected: Event) -> None:
        assert expected == decode(Request.FromString(request_.SerializeToString()))

    def test_reads_the_state_beside_request_headers(self) -> None:
        event = decode(with_state(headers_request("request_headers")))
        assert RequestHeaders({}, end_of_stream=False, state=STATE) == event

    def test_reads_the_state_beside_response_headers(self) -> None:
        raw = header_map()
        raw.headers.add(key=":status", raw_value=b"429")
        request = Request()
        request.response_headers.headers.CopyFrom(raw)
        expected = ResponseHeaders(429, {":status": "429"}, end_of_stream=False, state=STATE)
        assert expected == decode(with_state(request))

    @pytest.mark.parametrize("status", ["", "abc", "-1", "2.5"])
    def test_gives_an_unreadable_status_as_zero(self, status: str) -> None:
        request = Request()
        request.response_headers.headers.headers.add(key=":status", raw_value=status.encode())
        event = decode(request)
        assert isinstance(event, ResponseHeaders)
        assert 0 == event.status

    def test_joins_the_values_of_a_repeated_header(self) -> None:
        request = Request()
        for value in (b"a", b"b"):
            request.request_headers.headers.headers.add(key="x-many", raw_value=value)
        event = decode(request)
        assert isinstance(event, RequestHeaders)
        assert {"x-many": "a, b"} == event.headers

    def test_reads_values_in_either_field(self) -> None:
        request = Request()
        request.request_headers.headers.headers.add(key="x-a", value="text")
        event = decode(request)
        assert isinstance(event, RequestHeaders)
        assert {"x-a": "text"} == event.headers

    @given(st.binary(max_size=30))
    def test_loses_no_byte_of_a_header(self, value: bytes) -> None:
        request = Request()
        request.request_headers.headers.headers.add(key="x-a", raw_value=value)
        event = decode(request)
        assert isinstance(event, RequestHeaders)
        back = sent(ReleaseHeaders((("x-a", event.headers["x-a"]),)))
        assert [("x-a", value)] == set_headers(back.response_headers.response.header_mutation)


class TestEncoding:
    @pytest.mark.parametrize("part", list(Part))
    def test_passing_is_an_empty_answer_of_that_part(self, part: Part) -> None:
        response = sent(Pass(part))
        assert (part.value, 0) == (response.WhichOneof("response"), getattr(response, part.value).ByteSize())

    @pytest.mark.parametrize("action", [SetTimer(1.0), CancelTimer(), Close(), Abort("why")])
    def test_what_the_transport_does_itself_is_no_message(self, action: Action) -> None:
        assert encode(action) is None

    def test_a_route_clears_the_route_and_sets_path_and_attempts(self) -> None:
        common = sent(RouteTo(STATE, 3, "/v1/x", None)).request_body.response
        expected = [(":path", b"/v1/x"), ("x-envoy-max-retries", b"3")]
        assert (True, expected) == (common.clear_route_cache, set_headers(common.header_mutation))
        assert not common.HasField("body_mutation")

    def test_a_changed_body_comes_with_its_length(self) -> None:
        """Envoy answers 500 when they disagree."""
        common = sent(RouteTo(STATE, 3, "/v1/x", b"body")).request_body.response
        assert ("content-length", b"4") in set_headers(common.header_mutation)
        assert b"body" == common.body_mutation.body

    def test_a_route_carries_the_plan_and_its_untyped_twin(self) -> None:
        response = sent(RouteTo(STATE, 3, "/v1/x", None))
        assert STATE == state_in(response)
        assert {"gateway.plan": typed_plan(STATE)} == dict(response.typed_dynamic_metadata)

    def test_a_later_attempt_sets_path_length_and_body(self) -> None:
        response = sent(SendAttempt(STATE, "/v1/y", b"body"))
        common = response.request_body.response
        assert [(":path", b"/v1/y"), ("content-length", b"4")] == set_headers(common.header_mutation)
        assert (b"body", False) == (common.body_mutation.body, common.clear_route_cache)

    def test_a_later_attempt_leaves_the_plan_and_the_first_error_alone(self) -> None:
        """Nothing of them changed, and an error may be 64 KiB."""
        response = sent(SendAttempt(state(first_error=FirstError(400, b"my prompt", ())), "/v1/y", b""))
        assert {} == dict(response.typed_dynamic_metadata)
        assert [names.METADATA] == list(response.dynamic_metadata.fields)
        assert names.M_PLAN not in response.dynamic_metadata.fields[names.METADATA].struct_value.fields

    def test_an_answer_of_our_own_is_immediate_and_says_so(self) -> None:
        immediate = sent(Respond(404, (("content-type", "application/json"),), b"{}", 0, 7)).immediate_response
        assert (404, b"{}", "gateway_own") == (immediate.status.code, immediate.body, immediate.details)
        assert [
            ("content-type", b"application/json"),
            ("x-gateway-route-mode", b"none"),
            ("x-gateway-attempts", b"0"),
            ("x-gateway-config-version", b"7"),
        ] == set_headers(immediate.headers)

    @pytest.mark.parametrize("status", [100, 299, 418, 529, 599])
    def test_any_status_can_be_answered(self, status: int) -> None:
        assert status == sent(Respond(status, (), b"", None)).immediate_response.status.code

    def test_an_answer_of_unknown_attempts_and_version_names_neither(self) -> None:
        immediate = sent(Respond(503, (), b"", None)).immediate_response
        assert [("x-gateway-route-mode", b"none")] == set_headers(immediate.headers)

    def test_an_answer_with_a_state_tells_the_log_that_nobody_served(self) -> None:
        response = sent(Respond(503, (), b"", 1, state=STATE))
        fields = response.dynamic_metadata.fields[names.METADATA].struct_value.fields
        assert ("none", "") == (fields[names.M_ROUTE_MODE].string_value, fields[names.M_SERVED_BY].string_value)

    def test_released_headers_are_left_as_they_are(self) -> None:
        response = sent(ReleaseHeaders())
        assert "response_headers" == response.WhichOneof("response")
        assert ({}, {}) == (dict(response.dynamic_metadata.fields), dict(response.typed_dynamic_metadata))
        assert [] == set_headers(response.response_headers.response.header_mutation)

    def test_a_retry_is_asked_for_with_a_header(self) -> None:
        response = sent(ReleaseHeaders((("x-a", "1"),), ("x-b",), retry=True))
        mutation = response.response_headers.response.header_mutation
        assert [("x-gateway-retry", b"1"), ("x-a", b"1")] == set_headers(mutation)
        assert ["x-b"] == list(mutation.remove_headers)

    @pytest.mark.parametrize(("replan", "expected"), [(True, {"gateway.plan": typed_plan(STATE)}), (False, {})])
    def test_a_plan_is_sent_in_both_forms_when_it_is_new(self, replan: bool, expected: dict[str, Any]) -> None:
        response = sent(ReleaseHeaders(retry=True, state=STATE, replan=replan, failed=True))
        assert expected == dict(response.typed_dynamic_metadata)
        assert replan is (names.M_PLAN in response.dynamic_metadata.fields[names.METADATA].struct_value.fields)

    @pytest.mark.parametrize(("failed", "expected"), [(True, "none"), (False, "balanced")])
    def test_a_failed_attempt_does_not_say_that_it_served(self, failed: bool, expected: str) -> None:
        response = sent(ReleaseHeaders(state=STATE, failed=failed))
        fields = response.dynamic_metadata.fields[names.METADATA].struct_value.fields
        assert expected == fields[names.M_ROUTE_MODE].string_value

    def test_the_first_error_goes_to_the_private_namespace_only(self) -> None:
        failed = state(first_error=FirstError(400, b"my prompt", ()))
        response = sent(ReleaseHeaders(retry=True, state=failed, failed=True))
        assert {"gateway", "gateway.private"} == set(response.dynamic_metadata.fields)
        assert "my prompt" not in str(response.dynamic_metadata.fields["gateway"])

    def test_a_released_piece_of_body_is_a_streamed_response(self) -> None:
        streamed = sent(ReleaseBody(b"x", True)).response_body.response.body_mutation.streamed_response
        assert (b"x", True) == (streamed.body, streamed.end_of_stream)

    def test_every_header_replaces_the_one_that_was_there(self) -> None:
        option = sent(Respond(404, (("a", "b"),), b"", 0)).immediate_response.headers.set_headers[0]
        assert core_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD == option.append_action
