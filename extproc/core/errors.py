"""The gateway's own errors, in OpenAI's and Anthropic's envelopes.

Owns every code the gateway can answer with and its status; a provider's own errors never pass through here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from extproc.config.snapshot import Protocol

JSON = ("content-type", "application/json")
"""The header that each of these bodies has."""

# code -> (status, OpenAI type, Anthropic type)
CODES: dict[str, tuple[int, str, str]] = {
    "invalid_json": (400, "invalid_request_error", "invalid_request_error"),
    "missing_model": (400, "invalid_request_error", "invalid_request_error"),
    "bad_request": (400, "invalid_request_error", "invalid_request_error"),
    "invalid_api_key": (401, "authentication_error", "authentication_error"),
    "model_not_allowed": (403, "permission_error", "permission_error"),
    "model_not_found": (404, "invalid_request_error", "not_found_error"),
    "unsupported_endpoint": (404, "invalid_request_error", "not_found_error"),
    "request_timeout": (408, "invalid_request_error", "invalid_request_error"),
    "request_too_large": (413, "invalid_request_error", "request_too_large"),
    "headers_too_large": (431, "invalid_request_error", "invalid_request_error"),
    "client_rate_limited": (429, "rate_limit_error", "rate_limit_error"),
    "upstream_connect_failed": (502, "upstream_error", "api_error"),
    "upstream_bad_answer": (502, "upstream_error", "api_error"),
    "no_healthy_target": (503, "service_unavailable", "overloaded_error"),
    "gateway_unavailable": (503, "service_unavailable", "api_error"),
    "upstream_timeout": (504, "upstream_error", "timeout_error"),
}


@dataclass(frozen=True, slots=True)
class GatewayError:
    """A refusal or failure of the gateway itself: a value, never raised.

    `message` is one sentence for the caller; it must not quote the request's content.
    """

    code: str
    message: str
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=())

    @property
    def status(self) -> int:
        """HTTP status of this code."""
        return CODES[self.code][0]

    def body(self, protocol: Protocol) -> bytes:
        """Return the JSON envelope in the caller's protocol."""
        return envelope(self.code, self.message, protocol, self.param)


def envelope(code: str, message: str, protocol: Protocol, param: str | None = None) -> bytes:
    """Return the error envelope for one of `CODES`."""
    return orjson.dumps(envelope_dict(code, message, protocol, param))


def envelope_dict(code: str, message: str, protocol: Protocol, param: str | None = None) -> dict[str, Any]:
    """Return the error envelope as a plain dict, for Envoy's `json_format` as well."""
    _, openai_type, anthropic_type = CODES[code]
    if protocol == "anthropic":
        return {"type": "error", "error": {"type": anthropic_type, "message": message}}
    return {"error": {"message": message, "type": openai_type, "param": param, "code": code}}
