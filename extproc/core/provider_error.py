"""What a provider said when it failed, in the form in which the caller may get it.

Owns which of its headers go along, how much of its body, and the status of an error that came inside a 200. Whether it
is what the caller gets is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from extproc.config.snapshot import Protocol
from extproc.core.errors import JSON, GatewayError
from extproc.core.exchange import ResponseHeaders
from extproc.core.outcome import ErrorClass
from extproc.core.request_state import FirstError

ERROR_BODY_LIMIT_BYTES = 64 * 1024

ERROR_HEADERS = frozenset(
    {
        "content-type",
        "content-encoding",
        "retry-after",
        "retry-after-ms",
        "request-id",
        "openai-processing-ms",
        "openai-organization",
        "openai-version",
        "anthropic-organization-id",
    }
)
ERROR_HEADER_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-", "ratelimit-")

# An error event inside a 200 has no status of its own; this is the one a caller gets when nothing else served.
STATUS_OF_EVENT: Mapping[ErrorClass, int] = {
    ErrorClass.RATE_LIMITED: 429,
    ErrorClass.QUOTA_EXHAUSTED: 429,
    ErrorClass.AUTH_REJECTED: 401,
    ErrorClass.MODEL_UNAVAILABLE: 404,
    ErrorClass.OVERLOADED: 503,
    ErrorClass.CONTEXT_LENGTH: 400,
    ErrorClass.CONTENT_FILTERED: 400,
    ErrorClass.INVALID_REQUEST: 400,
}
BAD_GATEWAY = 502


def error_answer(answer: ResponseHeaders, body: bytes, protocol: Protocol, *, ended: bool) -> FirstError:
    """Return an answered error; `body` is what was kept of it, `ended` whether no more came."""
    kept = tuple((name, value) for name, value in answer.headers.items() if _is_error_header(name))
    if is_encoded(answer) and not (ended and len(body) < ERROR_BODY_LIMIT_BYTES):
        own = tuple(one for one in kept if one[0] not in ("content-type", "content-encoding"))
        return FirstError(answer.status, _unreadable(answer.status).body(protocol), (JSON, *own))
    return FirstError(answer.status, body, kept)


def error_event(error: Mapping[str, Any], error_class: ErrorClass, protocol: Protocol) -> FirstError:
    """Return an error that came inside a 200."""
    shown = {"error": dict(error)}
    body = orjson.dumps({"type": "error", **shown} if protocol == "anthropic" else shown)
    return FirstError(STATUS_OF_EVENT.get(error_class, BAD_GATEWAY), body, (JSON,))


def is_encoded(answer: ResponseHeaders) -> bool:
    """Tell whether a body is compressed."""
    return answer.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")


def _unreadable(status: int) -> GatewayError:
    """Stand for a compressed error that was cut: nobody could read even the beginning."""
    limit_kib = ERROR_BODY_LIMIT_BYTES // 1024
    return GatewayError(
        "upstream_bad_answer",
        f"The provider answered {status} with a compressed error that is incomplete or larger than {limit_kib} KiB.",
    )


def _is_error_header(name: str) -> bool:
    return name in ERROR_HEADERS or name.startswith(ERROR_HEADER_PREFIXES)
