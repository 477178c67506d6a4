"""The kinds of single values that a config file holds: names, durations, sizes, headers, URLs.

Owns the rule and the sentence of each kind. Leaves rules between two values to `model.py` (same section)
and `references.py` (across sections).
Invariant: a sentence never quotes the value; a value that was accepted is in its normal form, so that two
spellings of one thing become equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from extproc.config.base_url import parse_base_url
from extproc.config.errors import SECRET_LIKE
from extproc.config.snapshot import CREDENTIAL_PARAMETERS
from extproc.config.units import format_duration, format_moment, parse_duration, parse_moment, parse_size

ERROR_CLASSES = (
    "rate_limited",
    "quota_exhausted",
    "auth_rejected",
    "model_unavailable",
    "overloaded",
    "server_error",
    "timeout",
    "connection",
    "bad_answer",
    "stream_cut",
    "stream_stall",
    "context_length",
    "content_filtered",
    "invalid_request",
    "client_abort",
)
"""The values of core's `ErrorClass`, written again because core imports this package."""
SAME_TARGET_CLASSES = ("rate_limited", "overloaded", "server_error", "connection")
"""Classes after which the same target may answer; the others need another one, or nobody can help."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
_HEADER_VALUE = re.compile(r"(?:[!-~](?:[ -~]{0,4094}[!-~])?)?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_BEARER = re.compile(r"(?i)(bearer|basic) +\S")
_TRANSPORT_HEADERS = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    )
)
_CREDENTIAL_HEADERS = frozenset(
    (
        "authorization",
        "proxy-authorization",
        "api-key",
        "apikey",
        "cookie",
        "set-cookie",
    )
)
_OWN_HEADERS = frozenset(("accept-encoding", "x-request-id"))
"""Set by the gateway for every provider: it reads answers as they are, and knows a request again by its id."""
SHARED_HEADERS = frozenset(
    (
        "accept",
        "accept-language",
        "anthropic-beta",
        "anthropic-version",
        "baggage",
        "content-encoding",
        "content-type",
        "date",
        "openai-beta",
        "origin",
        "referer",
        "traceparent",
        "tracestate",
        "user-agent",
    )
)
"""Headers of the protocols themselves, which reach every provider: none may carry the key of one."""


def _rule(test: Callable[[str], object], sentence: str) -> AfterValidator:
    def check(value: str) -> str:
        if not test(value):
            raise ValueError(sentence)
        return value

    return AfterValidator(check)


def looks_secret(value: str) -> bool:
    """Tell whether a value has the look of a credential that somebody pasted."""
    return bool(SECRET_LIKE.search(value) or _BEARER.match(value))


def client_name(value: str) -> str:
    """Check a client's name; ValueError with the sentence of its rule."""
    if not _CLIENT_NAME.fullmatch(value):
        raise ValueError("must be a name of letters, digits and . _ @ -, up to 64 characters")
    return value


def _is_name(value: str) -> bool:
    return 0 < len(value) <= 200 and value.isprintable() and not any(char.isspace() for char in value)


def _header_name(value: str) -> str:
    name = value.lower()
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("is not a header name; use letters, digits and dashes")
    if name in _TRANSPORT_HEADERS:
        raise ValueError("is a header of the connection itself and cannot be set; remove it")
    if name.startswith(("x-gateway-", "x-envoy-")):
        raise ValueError("is reserved for the gateway; use a name without x-gateway- or x-envoy-")
    return name


def _sent_header_name(value: str) -> str:
    name = _header_name(value)
    if name in _OWN_HEADERS:
        raise ValueError("is set by the gateway itself; remove it")
    return name


def _auth_header_name(value: str) -> str:
    name = _sent_header_name(value)
    if name in SHARED_HEADERS:
        raise ValueError("is a header that every provider receives, and so the key; use another, such as authorization")
    return name


def _static_header_name(value: str) -> str:
    name = _sent_header_name(value)
    if name in _CREDENTIAL_HEADERS or name.endswith(("-api-key", "-auth-token")):
        raise ValueError("is a credential header; use api_key (and auth for its header)")
    return name


def _static_header_value(value: str) -> str:
    if looks_secret(value):
        raise ValueError("looks like a credential; use api_key (the value is not shown)")
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError("must be visible ASCII text in one line, without spaces at its ends")
    return value


def _auth_prefix(value: str) -> str:
    if looks_secret(value):
        raise ValueError("looks like a credential; give only what stands before the key, such as 'Bearer '")
    if len(value) > 64 or not value.isascii() or not value.isprintable():
        raise ValueError("must be at most 64 visible ASCII characters, such as 'Bearer '")
    return value


def _query_name(value: str) -> str:
    if value.lower() in CREDENTIAL_PARAMETERS:
        raise ValueError("is a credential parameter; use api_key (and auth for its header)")
    return value


def _query_value(value: str) -> str:
    if looks_secret(value):
        raise ValueError("looks like a credential; use api_key (the value is not shown)")
    return value


def _env_name(value: str) -> str:
    if looks_secret(value) or not _ENV_NAME.fullmatch(value):
        raise ValueError("must be the name of an environment variable, such as OPENAI_API_KEY")
    return value


def _url(value: str) -> str:
    return str(parse_base_url(value))


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than 0")
    return seconds


def _digests(value: object) -> object:
    digests = (value,) if isinstance(value, str) else value
    if isinstance(digests, tuple) and not 1 <= len(digests) <= 2:
        raise ValueError("must be one digest, or two while a token is being replaced")
    return digests


def _digest(value: str) -> str:
    if not _SHA256.fullmatch(value.lower()):
        raise ValueError("must be the SHA-256 of the token: 64 hexadecimal digits, as `configctl key hash` prints")
    return value.lower()


def _same_target_class(value: str) -> str:
    if value not in SAME_TARGET_CLASSES:
        raise ValueError(f"must be one of: {', '.join(SAME_TARGET_CLASSES)}; other failures go to the next target")
    return value


def _error_class(value: str) -> str:
    if value not in ERROR_CLASSES:
        raise ValueError(f"must be one of: {', '.join(ERROR_CLASSES)}")
    return value


_PRINTABLE = _rule(
    lambda value: 0 < len(value) <= 2048 and value.isprintable(),
    "must be 1 to 2048 characters of text without control characters",
)
NAME_SENTENCE = "must be a name of lower-case letters, digits, - and _, up to 40 characters, not starting with - or _"

Text = Annotated[str, _PRINTABLE]
Name = Annotated[str, _rule(_NAME.fullmatch, NAME_SENTENCE)]
ClientName = Annotated[str, AfterValidator(client_name)]
ModelPattern = Annotated[str, _rule(_is_name, "must be 1 to 200 printable characters without spaces")]
UpstreamModel = Annotated[
    ModelPattern,
    _rule(
        lambda value: value == "*" or "*" not in value,
        "must be one name, or * alone for the name the client sent",
    ),
]
PublicName = Annotated[ModelPattern, _rule(lambda value: "*" not in value, "must be one model name, not a pattern")]
AbsolutePath = Annotated[Text, _rule(lambda value: value[0] == "/", "must be an absolute path, such as /run/secrets/x")]
UrlPath = Annotated[
    Text,
    _rule(
        lambda value: value[0] == "/" and value.isascii() and not set(value) & set(" ?#\\"),
        "must be a path that starts with a slash and has no query, such as /health",
    ),
]
BodyField = Annotated[
    str,
    _rule(re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", re.ASCII).fullmatch, "must be the name of a body field"),
]
EnvName = Annotated[str, AfterValidator(_env_name)]
BaseUrlText = Annotated[Text, AfterValidator(_url)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
AuthHeaderName = Annotated[str, AfterValidator(_auth_header_name)]
StaticHeaderName = Annotated[str, AfterValidator(_static_header_name)]
StaticHeaderValue = Annotated[str, AfterValidator(_static_header_value)]
AuthPrefix = Annotated[str, AfterValidator(_auth_prefix)]
QueryName = Annotated[Text, AfterValidator(_query_name)]
QueryValue = Annotated[Text, AfterValidator(_query_value)]
Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
Moment = Annotated[float, BeforeValidator(parse_moment), PlainSerializer(format_moment, return_type=str)]
Size = Annotated[int, BeforeValidator(parse_size)]
TokenDigest = Annotated[str, AfterValidator(_digest)]
TokenDigests = Annotated[tuple[TokenDigest, ...], BeforeValidator(_digests)]
ErrorClassName = Annotated[str, AfterValidator(_error_class)]
SameTargetClasses = Annotated[
    tuple[Annotated[str, AfterValidator(_same_target_class)], ...],
    AfterValidator(lambda classes: tuple(sorted(set(classes)))),
]
