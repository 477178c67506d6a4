"""From a provider's failed answer to one of the closed error classes.

Owns which fields of an answer count and in what order; the codes themselves are data (error_codes.py),
recovery times are reset_times.py's. Invariants: total functions, no bytes raise; a class comes from the
status and from the error's structured fields, never from a search in free text; a body that is compressed,
cut, undecodable or longer than 64 KiB still gets the class of its status; evidence never holds body text,
only codes of a safe alphabet.

Statuses that the table of classes leaves open: 408, 409, 425 and 499 are what a provider's own front tier
says of an attempt that may be repeated (https://docs.claude.com/en/api/errors, and the SDKs repeat them):
`server_error`. 410 is a retired model. A 413 with a rate-limit code means that the request never fits this
target's limit (Groq): handled like a context that is too long, or one large prompt would cool the target.
Redirects are not followed: `bad_answer`. A 404 that does not name the model (by code, `param` or a type such as
`not_found_error`) may be the answer to a path that the provider does not serve: `model_unavailable` like the others, so
the next target is asked, but `vague`, or one request to `/v1/rerank` would take a chat target out of service.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import orjson

from extproc.core.error_codes import CODES, GENERIC, MESSAGES
from extproc.core.outcome import CHARGED_TO, Charge, ErrorClass, Failure
from extproc.core.reset_times import delay_end, recovery_time, retry_after_time, told_time

BODY_LIMIT_BYTES: Final = 65536

_BY_STATUS: Final[Mapping[int, ErrorClass]] = {
    401: ErrorClass.AUTH_REJECTED,
    402: ErrorClass.QUOTA_EXHAUSTED,
    403: ErrorClass.AUTH_REJECTED,
    404: ErrorClass.MODEL_UNAVAILABLE,
    408: ErrorClass.SERVER_ERROR,
    409: ErrorClass.SERVER_ERROR,
    410: ErrorClass.MODEL_UNAVAILABLE,
    425: ErrorClass.SERVER_ERROR,
    429: ErrorClass.RATE_LIMITED,
    499: ErrorClass.SERVER_ERROR,
    503: ErrorClass.OVERLOADED,
    529: ErrorClass.OVERLOADED,
}
_SAFE_CODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_CLASSES: Final[Mapping[str | None, ErrorClass]] = {kind.value: kind for kind in ErrorClass}
_NO_CODES: Final[Mapping[str, str]] = MappingProxyType({})
_MISSING: Final = ErrorClass.MODEL_UNAVAILABLE
_LIMITS: Final = (ErrorClass.RATE_LIMITED, ErrorClass.QUOTA_EXHAUSTED)
_DETAILS_READ: Final = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """A failed answer: status, lower-case headers, the body or (`truncated`) only its beginning."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class _Error:
    """The structured part of an error; `codes` come from the most specific field to the least."""

    codes: tuple[str, ...] = ()
    number: int | None = None
    type: str | None = None
    message: str = ""
    param: str | None = None
    moderated: bool = False
    retry_delay: str | None = None


def classify(answer: Answer, error_codes: Mapping[str, str], now: float, cap_s: float) -> Failure:
    """Say what a failed answer means; `error_codes` (code -> class) is the operator's table and wins.

    `now` is epoch seconds; a recovery time further away than `cap_s` is cut to it. A 2xx is `bad_answer`: it
    gets here only when the judge has found it unusable.
    """
    error = _read(_decode(answer))
    by_code = None
    if 200 <= answer.status < 300:
        error_class = ErrorClass.BAD_ANSWER
    else:
        by_code = _by_code(error, answer.status, error_codes)
        error_class = by_code or _by_status(answer.status, error)
    failure = _failure(error_class, answer.status, answer.headers, error, now, cap_s)
    if answer.status == 404 and by_code is None and error_class is _MISSING and not _names_the_model(error):
        return replace(failure, retry_at=None, vague=True)
    return failure


def _names_the_model(error: _Error) -> bool:
    """Tell whether a 404 is about the model, and not perhaps about a path that the provider does not serve."""
    meanings = (GENERIC.get(code.lower()) for code in error.codes)
    return error.param == "model" or any(meaning.error_class is _MISSING for meaning in meanings if meaning)


def classify_error_object(
    value: object,
    status_hint: int | None,
    now: float,
    cap_s: float,
    error_codes: Mapping[str, str] = _NO_CODES,
) -> Failure:
    """Say what a decoded error event inside a stream means; what nobody documents is `bad_answer`.

    `value` is the event's JSON: OpenAI's `{error}`, Anthropic's `{type: error, error}`, the Responses API's
    flat `{type: error, code}` or `{type: response.failed, response: {error}}`.
    """
    error = _read(value)
    status = status_hint if status_hint is not None and status_hint >= 400 else error.number
    error_class = _by_code(error, status, error_codes)
    if error_class is None and status is not None and 400 <= status < 600:
        error_class = _by_status(status, error)
    if error_class is None:
        meanings = (GENERIC.get(code.lower()) for code in error.codes)
        error_class = next((m.error_class for m in meanings if m), ErrorClass.BAD_ANSWER)
    return _failure(error_class, status_hint, {}, error, now, cap_s)


def _by_code(error: _Error, status: int | None, error_codes: Mapping[str, str]) -> ErrorClass | None:
    for code in error.codes:
        named = error_codes.get(code) or error_codes.get(code.lower())
        if named in _CLASSES:
            return _CLASSES[named]
    if error.moderated:
        return ErrorClass.CONTENT_FILTERED
    for code in error.codes:
        meaning = CODES.get(code.lower())
        if meaning is not None:
            too_large = status == 413 and meaning.error_class is ErrorClass.RATE_LIMITED
            return ErrorClass.CONTEXT_LENGTH if too_large else meaning.error_class
    return _by_message(error) if status == 400 else None


def _by_message(error: _Error) -> ErrorClass | None:
    for rule in MESSAGES:
        if error.type in rule.types and rule.pattern.fullmatch(error.message):
            return rule.error_class
    return None


def _by_status(status: int, error: _Error) -> ErrorClass:
    if status == 404 and error.param not in (None, "", "model"):
        return ErrorClass.INVALID_REQUEST  # the caller named another thing that does not exist: the model is well
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    if 500 <= status < 600:
        return ErrorClass.SERVER_ERROR
    return ErrorClass.INVALID_REQUEST if 400 <= status < 500 else ErrorClass.BAD_ANSWER


def _failure(
    error_class: ErrorClass,
    status: int | None,
    headers: Mapping[str, str],
    error: _Error,
    now: float,
    cap_s: float,
) -> Failure:
    retry_at = _retry_at(error_class, headers, error, now, cap_s)
    evidence = [] if status is None else [f"status={status}"]
    evidence += [f"code={code}" for code in error.codes[:1] if _SAFE_CODE.fullmatch(code)]
    if retry_at is not None:
        explicit = retry_after_time(headers, now, cap_s) == retry_at
        evidence.append(f"{'retry-after' if explicit else 'reset-in'}={retry_at - now:.6g}")
    return Failure(error_class, status, retry_at, tuple(evidence))


def _retry_at(
    error_class: ErrorClass, headers: Mapping[str, str], error: _Error, now: float, cap_s: float
) -> float | None:
    if CHARGED_TO[error_class] is Charge.NOBODY:
        return None
    if error_class not in _LIMITS:
        return told_time(headers, now, cap_s)
    times = (recovery_time(headers, now, cap_s), delay_end(error.retry_delay, now, cap_s))
    return max((time for time in times if time is not None), default=None)


def _decode(answer: Answer) -> object:
    encoding = answer.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity") or len(answer.body) > BODY_LIMIT_BYTES:
        return None
    try:
        return orjson.loads(answer.body)  # a cut body either fails here or lost nothing but white space
    except orjson.JSONDecodeError:
        return None


def _read(value: object) -> _Error:
    """Find the error in any of the documented shapes; an empty one when there is none."""
    if isinstance(value, list):
        value = value[0] if value else None  # Gemini's OpenAI-compatible surface wraps the object in a list
    if not isinstance(value, dict):
        return _Error()
    response = value.get("response")
    if isinstance(response, dict) and isinstance(response.get("error"), dict):
        value = response
    inner = value.get("error")
    # vLLM, Mistral and the Responses API put the fields at the top, where `type: error` names the event.
    source = inner if isinstance(inner, dict) else {k: v for k, v in value.items() if v != "error"}
    codes = tuple(dict.fromkeys(code for code in _codes(source) if code))
    return _Error(
        codes=codes,
        number=next((int(code) for code in codes if len(code) == 3 and code.isascii() and code.isdigit()), None),
        type=_text(source.get("type")),
        message=_text(source.get("message")) or "",
        param=_text(source.get("param")),
        moderated=isinstance(_object(source.get("metadata")).get("reasons"), list),
        retry_delay=next((d for item in _details(source) if (d := _text(item.get("retryDelay")))), None),
    )


def _codes(source: Mapping[str, object]) -> Iterator[str | None]:
    """Yield every field that may name the error, the most specific first."""
    for inner in ("innererror", "inner_error"):
        yield _text(_object(source.get(inner)).get("code"))
    yield _text(_object(source.get("details")).get("error_code"))
    for item in _details(source):
        yield _text(item.get("reason"))
    yield _text(_object(source.get("metadata")).get("error_type"))
    for name in ("code", "status", "type", "error_type"):
        yield _text(source.get(name))


def _details(source: Mapping[str, object]) -> list[dict[str, object]]:
    details = source.get("details")
    return [item for item in details[:_DETAILS_READ] if isinstance(item, dict)] if isinstance(details, list) else []


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value)
