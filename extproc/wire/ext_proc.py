"""ext_proc messages <-> the core's events and actions; total functions, no decisions.

Header values travel as raw bytes in both directions. Messages of kinds that no filter of ours asks for decode as
`Unexpected`.
"""

from __future__ import annotations

from collections.abc import Iterable

from extproc.core.exchange import (
    Action,
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
    Trailers,
    Unexpected,
)
from extproc.core.outcome import RouteMode
from extproc.wire import names
from extproc.wire.pb import core_pb2, external_processor_pb2
from extproc.wire.state import read_state, typed_plan, write_classes, write_state

Request = external_processor_pb2.ProcessingRequest
Response = external_processor_pb2.ProcessingResponse
_OVERWRITE = core_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


def decode(request: Request) -> Event:
    """Return the event a message from Envoy stands for."""
    kind = request.WhichOneof("request")
    if kind == "request_headers":
        headers = _headers(request.request_headers.headers)
        return RequestHeaders(headers, request.request_headers.end_of_stream, read_state(request.metadata_context))
    if kind == "request_body":
        return RequestBody(request.request_body.body)
    if kind == "response_headers":
        headers = _headers(request.response_headers.headers)
        status = headers.get(":status", "")
        return ResponseHeaders(
            int(status) if status.isdecimal() else 0,
            headers,
            request.response_headers.end_of_stream,
            read_state(request.metadata_context),
        )
    if kind == "response_body":
        return ResponseBody(request.response_body.body, request.response_body.end_of_stream)
    if kind in ("request_trailers", "response_trailers"):
        return Trailers(Part(kind))
    return Unexpected()


def encode(action: Action) -> Response | None:
    """Return the message that carries an action out, None when the transport itself must act."""
    if isinstance(action, Pass):
        return _pass(action.part)
    if isinstance(action, RouteTo):
        return _route_to(action)
    if isinstance(action, SendAttempt):
        return _send_attempt(action)
    if isinstance(action, Respond):
        return _respond(action)
    if isinstance(action, ReleaseHeaders):
        return _release_headers(action)
    if isinstance(action, ReleaseBody):
        response = Response()
        streamed = response.response_body.response.body_mutation.streamed_response
        streamed.body = action.chunk
        streamed.end_of_stream = action.end_of_stream
        for key, value in (action.tokens or {}).items():
            response.dynamic_metadata.fields[names.METADATA_USAGE].struct_value.fields[key].number_value = value
        if action.classes:
            write_classes(response.dynamic_metadata, action.classes)
        return response
    return None


def _pass(part: Part) -> Response:
    response = Response()
    getattr(response, part.value).SetInParent()
    return response


def _route_to(action: RouteTo) -> Response:
    response = Response()
    common = response.request_body.response
    common.clear_route_cache = True
    # One attempt beyond the plan's last: the `gateway-end` group, in which we answer for ourselves.
    sets = [(":path", action.path), (names.H_MAX_RETRIES, str(action.attempts))]
    if action.body is not None:
        sets.append(("content-length", str(len(action.body))))
        common.body_mutation.body = action.body
    _set_headers(common.header_mutation, sets)
    write_state(response.dynamic_metadata, action.state)
    response.typed_dynamic_metadata[names.METADATA_PLAN].CopyFrom(typed_plan(action.state))
    return response


def _send_attempt(action: SendAttempt) -> Response:
    response = Response()
    common = response.request_body.response
    common.body_mutation.body = action.body
    sets = [(":path", action.path), ("content-length", str(len(action.body)))]
    _set_headers(common.header_mutation, sets)
    write_state(response.dynamic_metadata, action.state, whole=False, plan=False, error=False)
    return response


def _respond(action: Respond) -> Response:
    response = Response()
    immediate = response.immediate_response
    immediate.status.code = action.status  # type: ignore[assignment]  # any HTTP status is a valid open enum value
    immediate.body = action.body
    immediate.details = names.DETAILS_OWN
    sets = [*action.headers, (names.H_ROUTE_MODE, RouteMode.NONE.value)]
    if action.attempts is not None:
        sets.append((names.H_ATTEMPTS, str(action.attempts)))
    if action.version is not None:
        sets.append((names.H_VERSION, str(action.version)))
    _set_headers(immediate.headers, sets)
    if action.state is not None:
        write_state(response.dynamic_metadata, action.state, served=False, whole=False, plan=False)
    if action.note or action.attempts is not None:
        fields = response.dynamic_metadata.fields[names.METADATA].struct_value.fields
        if action.attempts is not None:
            # The attempt in which we answer by ourselves is none that a provider saw.
            fields[names.M_ATTEMPT].number_value = action.attempts
        for key, value in (action.note or {}).items():
            fields[key].string_value = value
    return response


def _release_headers(action: ReleaseHeaders) -> Response:
    response = Response()
    common = response.response_headers.response
    common.SetInParent()
    if action.retry:
        _set_headers(common.header_mutation, [(names.H_RETRY, "1")])
    _set_headers(common.header_mutation, action.set_headers)
    common.header_mutation.remove_headers.extend(action.remove_headers)
    if action.state is not None:
        write_state(response.dynamic_metadata, action.state, served=not action.failed, whole=False, plan=action.replan)
        if action.replan:
            response.typed_dynamic_metadata[names.METADATA_PLAN].CopyFrom(typed_plan(action.state))
    return response


def _set_headers(mutation: external_processor_pb2.HeaderMutation, pairs: Iterable[tuple[str, str]]) -> None:
    for name, value in pairs:
        option = mutation.set_headers.add()
        option.header.key = name
        option.header.raw_value = value.encode("utf-8", "surrogateescape")
        option.append_action = _OVERWRITE


def _headers(headers: core_pb2.HeaderMap) -> dict[str, str]:
    """Return headers by lower-case name; of a repeated header the values are joined as RFC 9110 says."""
    found = {header.key: header.raw_value.decode("utf-8", "surrogateescape") for header in headers.headers}
    if len(found) == len(headers.headers) and "" not in found.values():
        return found
    return _joined(headers)


def _joined(headers: core_pb2.HeaderMap) -> dict[str, str]:
    found: dict[str, str] = {}
    for header in headers.headers:
        value = (header.raw_value or header.value.encode()).decode("utf-8", "surrogateescape")
        name = header.key
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
