"""Envoy's own replies in the caller's error envelope.

Mappers are tried in order. Python's immediate responses come first and go through unchanged; every other reply of
400 or above gets a code of `core.errors`, but for requests that run out of time after a provider's error: they end with
that. No message names a socket path: `%RESPONSE_CODE_DETAILS%` is never used.
"""

from __future__ import annotations

from typing import NamedTuple

from extproc.config.snapshot import Protocol
from extproc.core.endpoints import MESSAGES_PATH
from extproc.core.errors import CODES, envelope_dict
from extproc.core.outcome import RouteMode
from extproc.envoy_config.resource import Json, extension
from extproc.wire import names

FIRST_ERROR_STATUSES = (
    *(400, 401, 402, 403, 404, 408, 409, 410, 425, 429, 498, 499),
    *range(500, 512),
    *range(520, 531),
)
"""Of the errors after which another attempt may follow (core/classify.py): a mapper's status is a fixed one."""
_FIRST_ERROR_HEADERS = ("content-type", "retry-after", "retry-after-ms")
_NO_RETRY = (names.H_SHOULD_RETRY, "false")


class _Reply(NamedTuple):
    code: str
    message: str
    filter: Json
    headers: tuple[tuple[str, str], ...] = ()


def local_reply_config() -> Json:
    """Return the HCM's local_reply_config."""
    mappers = [_own(), *map(_first_error, FIRST_ERROR_STATUSES)]
    for protocol in ("anthropic", "openai"):
        mappers += [_mapper(reply, protocol) for reply in _replies()]
    return {"mappers": mappers, "body_format": _plain_body()}


_FULL = (
    "The provider has as many requests under way as its limits allow, and no other target can serve; try again shortly."
)

_LARGE = "The provider's answer is larger than this gateway can hold."
_LONG = "The request took longer than the gateway's policy allows."


def _replies() -> list[_Reply]:
    unavailable = "The gateway cannot decide about requests at this moment; try again shortly."
    return [
        _Reply("gateway_unavailable", unavailable, _details_start("ext_proc_error")),
        _Reply("no_healthy_target", _FULL, _flags("UO")),
        _Reply("upstream_timeout", _LONG, _details_start(names.DETAILS_DURATION), (_NO_RETRY,)),
        _Reply("upstream_timeout", "The provider did not answer in time.", _flags("UT", "SI", "UMSDR", "DT")),
        _Reply("upstream_bad_answer", _LARGE, _details_start(names.DETAILS_TOO_LARGE), (_NO_RETRY,)),
        _Reply("upstream_connect_failed", "The provider could not be reached.", _details_start(names.DETAILS_ADDRESS)),
        _Reply("upstream_connect_failed", "The provider could not be reached.", _flags("UF", "UC", "UPE", "UR")),
        _Reply("bad_request", "This gateway needs HTTP/1.1 or later.", _details_start(names.DETAILS_HTTP_1_0)),
        _Reply("request_too_large", "The request body is larger than this gateway takes.", _status("EQ", 413)),
        _Reply("request_timeout", "The request did not arrive in time.", _status("EQ", 408)),
        _Reply("headers_too_large", "The request's headers are too large.", _status("EQ", 431)),
        _Reply("unsupported_endpoint", "This gateway does not serve this path.", _status("EQ", 404)),
        _Reply("bad_request", "The request is not valid HTTP for this gateway.", _status("EQ", 501)),
        _Reply("gateway_unavailable", unavailable, _status("GE", 500)),
        _Reply("bad_request", "The request is not valid HTTP for this gateway.", _status("GE", 400)),
    ]


def _own() -> Json:
    return {
        "filter": _details_start(names.DETAILS_OWN),
        "body_format_override": {
            "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
            "content_type": "application/json",
        },
    }


def _mapper(reply: _Reply, protocol: Protocol) -> Json:
    body = {
        "json_format": envelope_dict(reply.code, reply.message, protocol),
        "content_type": "application/json",
    }
    condition = reply.filter
    if protocol == "anthropic":
        condition = {"and_filter": {"filters": [_is_anthropic(), reply.filter]}}
    return {
        "filter": condition,
        "status_code": CODES[reply.code][0],
        "body_format_override": body,
        "headers_to_add": [*_served_by_nobody(), *(_set(*one) for one in reply.headers)],
    }


def _first_error(status: int) -> Json:
    """Answer a request that ran out of time with the first provider's error of this status, if its body is text."""
    private = f"metadata.filter_metadata['{names.METADATA_PRIVATE}']"
    kept = f"%DYNAMIC_METADATA({names.METADATA_PRIVATE}:"
    told = ((name, f"{kept}{names.P_HEADERS}:{name})%") for name in _FIRST_ERROR_HEADERS)
    return {
        "filter": _cel(
            f"response.code_details == '{names.DETAILS_DURATION}'"
            f" && {private}['{names.P_STATUS}'] == {status}.0 && {private}['{names.P_BODY}'] != ''"
        ),
        "status_code": status,
        "body_format_override": {"text_format_source": {"inline_string": f"{kept}{names.P_BODY})%"}},
        "headers_to_add": [*_served_by_nobody(), *(_set(*one) for one in (_NO_RETRY, *told))],
    }


def _served_by_nobody() -> list[Json]:
    # A route adds the number of attempts, but not every reply has a route.
    attempts = {"header": {"key": names.H_ATTEMPTS, "value": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"}}
    return [_set(names.H_ROUTE_MODE, RouteMode.NONE.value), attempts | {"append_action": "ADD_IF_ABSENT"}]


def _set(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _plain_body() -> Json:
    return {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}}


def _is_anthropic() -> Json:
    # The upstream path of /v1/messages ends the same way, whatever prefix the provider has.
    return _cel(f"request.url_path.endsWith('/messages') || request.url_path.startsWith('{MESSAGES_PATH}/')")


def _details_start(prefix: str) -> Json:
    return _cel(f"response.code_details.startsWith('{prefix}')")


def _cel(expression: str) -> Json:
    return {
        "extension_filter": extension(
            "cel",
            "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            expression=expression,
        )
    }


def _flags(*flags: str) -> Json:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(op: str, code: int) -> Json:
    value = {"default_value": code, "runtime_key": f"gateway.local_reply.{op.lower()}_{code}"}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}
