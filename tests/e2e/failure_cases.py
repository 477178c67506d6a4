"""The table of failures: each way in which a provider can fail, and all that must follow from it.

Owns the cases and their policies; test_failure_semantics.py runs them on the real Envoy, and
docs/failure-semantics.md is printed from them: `python -m tests.e2e.failure_cases` writes it, `--check` compares.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.failure_case import (
    BOTH,
    STREAM,
    UNARY,
    Ask,
    Case,
    Gets,
    Health,
    Kind,
    Reach,
    Section,
    account,
    answers,
    broken,
    error_event,
    fails,
    finish,
    limited,
    limited_until_date,
    own,
    passed_on,
    role,
    served,
    streams,
    target,
    tokens,
)
from tests.support.wall import (
    Behaviour,
    answer,
    comments_forever,
    empty_200,
    garbage,
    gzipped,
    hang_up,
    headers_then_silence,
    html_200,
    pause,
    reset,
    reset_after,
    silence,
    sse,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "failure-semantics.md"

_QUICK: dict[str, Any] = {
    # Far enough from the other times: how long an attempt took tells a lost connection from silence.
    "connect_timeout": "300ms",
    "first_byte_timeout": "700ms",
    "first_token_timeout": "700ms",
    "stream_idle_timeout": "500ms",
    "cooldown": {"consecutive": 1, "base": "60s"},
}
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": _QUICK,
    "complete": {**_QUICK, "stream_guard": "complete", "deadline": "4s"},
    "hurried": {**_QUICK, "stream_guard": "complete", "deadline": "1s"},
    "off": {**_QUICK, "first_token_timeout": "1500ms", "stream_guard": "off"},
    "two": {"attempts": 2, "first_byte_timeout": "700ms", "first_token_timeout": "700ms"},
}
"""`quick` and its kin trip at the first failure, so that every failure can be seen in health."""

FAILOVER = (served("second", "provider_failover"),)
REROUTED = (served("second", "health_reroute"),)
FIRST = (served("first", "balanced"),)
LONG = (served("long", "model_fallback"),)
ERROR_EVENT = (Gets(200, "first", "balanced", "error event"),)

ONCE = (Ask("first"),)
THEN_SECOND = (Ask("first"), Ask("second"))
THEN_LONG = (Ask("first"), Ask("long"))
SILENT = (Ask("first"), Ask("second", (0.7, 0.7)))
STALL = (Ask("first"), Ask("second", (0.5, 0.5)))
BACK_OFF = Ask("first", (0.125, 0.25))

NO_ADVICE: Mapping[str, str | None] = {"x-should-retry": None}
SPENT: Mapping[str, str | None] = {"x-should-retry": "false"}

HEALTHY = Health()
LIMITED = target("cooling", "rate_limited")
OVERLOADED = target("cooling", "overloaded")
TIMED_OUT = target("cooling", "timeout")
BAD = target("cooling", "bad_answer")
CUT = target("cooling", "stream_cut")
STALLED = target("cooling", "stream_stall")
NO_MONEY = account("cooling", "quota_exhausted")
NO_ENTRY = account("cooling", "auth_rejected")
UNREACHED = account("cooling", "connection")

# The pause lets what was said reach the caller before what comes next.
AT_40 = (role(), *tokens(stop=40), pause(0.1))
CUT_RST, CUT_FIN, HANGING = (streams(*AT_40, done=False, end=end) for end in ("rst", "fin", "hang"))
LATE = streams(pause(0.3), role(), *tokens(), finish())
NO_TERMINAL = streams(*AT_40, done=False)
NO_DONE = streams(role(), *tokens(), finish(), done=False)
ROLE_ONLY = streams(role(), done=False, end="hang")
OVERLOADED_EVENT = streams(error_event("overloaded_error"), done=False)
CONTEXT_EVENT = streams(error_event("context_length_exceeded", "invalid_request_error"), done=False)


def fails_over(
    name: str,
    does: str,
    first: Behaviour | tuple[Behaviour, ...],
    health: Health,
    kinds: tuple[Kind, ...] = BOTH,
    *,
    asks: tuple[Ask, ...] = THEN_SECOND,
    classes: tuple[str, ...] | None = None,
) -> Case:
    """Return a case that the second provider serves; its class is what health knows, unless it is named."""
    named = classes or ((health.reason,) if health.reason else ())
    return Case(name, does, first, FAILOVER, asks, named, health, kinds)


def waits(name: str, does: str, first: Behaviour, after_s: tuple[float, float]) -> Case:
    """Return a case of a 429 whose time is short enough to wait for, and then a good answer."""
    asks = (Ask("first"), Ask("first", after_s))
    # The wait was the target's own word and it kept it: traffic comes back step by step.
    return Case(name, does, (first, answers()), FIRST, asks, ("rate_limited",), target("degraded", "rate_limited"))


def serves(name: str, does: str, first: Behaviour, health: Health = HEALTHY, kinds: tuple[Kind, ...] = STREAM) -> Case:
    """Return a case that is no failure at all."""
    return Case(name, does, first, FIRST, ONCE, (), health, kinds)


def breaks(name: str, does: str, first: Behaviour, health: Health, kinds: tuple[Kind, ...] = STREAM) -> Case:
    """Return a case in which the caller has seen too much for another try."""
    return Case(name, does, first, (broken(),), ONCE, (health.reason,) if health.reason else (), health, kinds)


def ends(name: str, does: str, first: Behaviour, error_class: str, kinds: tuple[Kind, ...] = BOTH) -> Case:
    """Return a case whose error is the caller's own affair: a 400, passed on without advice."""
    return Case(name, does, first, (passed_on(400, headers=NO_ADVICE),), ONCE, (error_class,), kinds=kinds)


def unreachable(name: str, does: str, reach: Reach = "wall", first: Behaviour | None = None) -> Case:
    asks = THEN_SECOND if reach == "wall" else (Ask("second"),)
    return Case(name, does, first or answers(), FAILOVER, asks, ("connection",), UNREACHED, reach=reach)


_SPENT_RESET = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}
_SPENT_WORDS = "`x-ratelimit-remaining-requests: 0` and `x-ratelimit-reset-requests: 6m0s`"
LIMITS = (
    fails_over("429", "429 without a time", limited(), LIMITED),
    waits("429-s", "429 with `Retry-After: 1`, then a good answer", limited({"retry-after": "1"}), (1.0, 1.0)),
    fails_over(
        "429-s-twice",
        "429 with `Retry-After: 1`, again and again",
        limited({"retry-after": "1"}),
        LIMITED,
        asks=(Ask("first"), Ask("first", (1.0, 1.0)), Ask("second")),
        classes=("rate_limited", "rate_limited"),
    ),
    fails_over("429-s-long", "429 with `Retry-After: 30`", limited({"retry-after": "30"}), LIMITED),
    Case(
        "429-s-long-alone",
        "429 with `Retry-After: 30`, and there is nobody else",
        limited({"retry-after": "30"}),
        (passed_on(429, headers={"retry-after": "30", **SPENT}),),
        ONCE,
        ("rate_limited",),
        LIMITED,
        models="alone",
    ),
    Case(
        "429-gzip-alone",
        "429 whose body is compressed though nobody asked for it, and there is nobody else",
        gzipped(limited()),
        (passed_on(429, headers={"content-encoding": "gzip", **SPENT}),),
        ONCE,
        ("rate_limited",),
        LIMITED,
        models="alone",
    ),
    waits(
        "429-date",
        "429 with a `Retry-After` date two seconds ahead, then a good answer",
        limited_until_date(2),
        (1.0, 2.0),
    ),
    waits(
        "429-ms", "429 with `retry-after-ms: 400`, then a good answer", limited({"retry-after-ms": "400"}), (0.4, 0.4)
    ),
    fails_over("429-reset", f"429 with {_SPENT_WORDS}", limited(_SPENT_RESET), LIMITED),
    serves(
        "200-spent",
        f"a good answer with {_SPENT_WORDS}",
        answers(headers=_SPENT_RESET),
        target("cooling", "paced"),
        BOTH,
    ),
    fails_over("429-quota", "429 with the code `insufficient_quota`", fails(429, "insufficient_quota"), NO_MONEY),
    fails_over("402", "402", fails(402), NO_MONEY),
    fails_over("401", "401 with the code `invalid_api_key`", fails(401, "invalid_api_key"), NO_ENTRY),
    fails_over("403", "403", fails(403), NO_ENTRY),
    fails_over(
        "404",
        "404 with the code `model_not_found`",
        fails(404, "model_not_found"),
        target("cooling", "model_unavailable"),
    ),
    fails_over(
        "404-path",
        "404 that does not name the model, as for a path that the provider does not serve",
        fails(404),
        HEALTHY,
        classes=("model_unavailable",),
    ),
)

SERVER = (
    Case(
        "500-once",
        "500 at once, then a good answer",
        (fails(500), answers()),
        FIRST,
        (Ask("first"), BACK_OFF),
        ("server_error",),
    ),
    fails_over(
        "500-twice",
        "500 again and again",
        fails(500),
        HEALTHY,
        asks=(Ask("first"), BACK_OFF, Ask("second")),
        classes=("server_error", "server_error"),
    ),
    fails_over("503", "503 once", (fails(503), answers()), HEALTHY, classes=("overloaded",)),
    fails_over("529", "529 once", (fails(529), answers()), HEALTHY, classes=("overloaded",)),
    Case(
        "503-for-ever",
        "503 for ever; five requests one after the other",
        fails(503),
        (*FAILOVER * 3, *REROUTED * 2),
        (*THEN_SECOND * 3, *(Ask("second"),) * 2),
        ("overloaded",),
        OVERLOADED,
    ),
    Case(
        "flapping",
        "503 at every other request; ten requests one after the other",
        (fails(503), answers()) * 5,
        (*(FAILOVER + FIRST) * 2, *FAILOVER, *REROUTED * 5),
        (*(*THEN_SECOND, Ask("first")) * 2, *THEN_SECOND, *(Ask("second"),) * 5),
        ("overloaded",),
        OVERLOADED,
    ),
    Case(
        "503-alone",
        "503, and there is nobody else",
        fails(503),
        (passed_on(503, headers=SPENT),),
        ONCE,
        ("overloaded",),
        models="alone",
    ),
)


def spent(name: str, does: str, then: Behaviour, error_class: str) -> Case:
    """Return a case whose second attempt, at the same target, fails in silence: no other may follow."""
    classes = ("server_error", error_class)
    return Case(name, does, (fails(500), then), (passed_on(500, headers=SPENT),), (Ask("first"), BACK_OFF), classes)


TWO = (
    spent("two-resets", "500 at once, then resets the connection", reset(), "connection"),
    spent("two-silence", "500 at once, then says nothing", silence(), "timeout"),
)

_TOO_LONG = "400 with the code `context_length_exceeded`"
CALLERS_OWN = (
    Case(
        "context",
        f"{_TOO_LONG}; the model has a `context_fallback`",
        fails(400, "context_length_exceeded"),
        LONG,
        THEN_LONG,
        ("context_length",),
        models="context",
    ),
    Case(
        "context-long-fails",
        f"{_TOO_LONG}; the `context_fallback` answers 503",
        fails(400, "context_length_exceeded"),
        (passed_on(400, headers=NO_ADVICE),),
        THEN_LONG,
        ("context_length", "overloaded"),
        models="context",
        long=fails(503),
    ),
    ends(
        "context-without",
        f"{_TOO_LONG}; the model has no `context_fallback`",
        fails(400, "context_length_exceeded"),
        "context_length",
    ),
    ends("content-filter", "400 with the code `content_filter`", fails(400, "content_filter"), "content_filtered"),
    ends("invalid-request", "400 that blames the request", fails(400), "invalid_request"),
)

BOTH_FAIL = (
    Case(
        "fallback-refuses",
        "503; the second provider answers 401",
        fails(503),
        (passed_on(503, headers=SPENT),),
        THEN_SECOND,
        ("overloaded", "auth_rejected"),
        second=fails(401, "invalid_api_key"),
    ),
    Case(
        "fallback-invalid",
        "429; the second provider answers 400, blaming the request",
        limited(),
        (passed_on(429, headers=SPENT),),
        THEN_SECOND,
        ("rate_limited", "invalid_request"),
        LIMITED,
        second=fails(400),
    ),
    Case(
        "fallback-filters",
        "503; the second provider answers 400 `content_filter`",
        fails(503),
        (passed_on(400, "second", headers=NO_ADVICE),),
        THEN_SECOND,
        ("overloaded", "content_filtered"),
        second=fails(400, "content_filter"),
    ),
    Case(
        "fallback-resets",
        "503; the second provider resets the connection",
        fails(503),
        (passed_on(503, headers=SPENT),),
        THEN_SECOND,
        ("overloaded", "connection"),
        second=reset(),
    ),
    Case(
        "reset-then-429",
        "resets the connection; the second provider answers 429",
        reset(),
        (passed_on(429, "second", headers=SPENT),),
        THEN_SECOND,
        ("connection", "rate_limited"),
        second=limited(),
    ),
)

CONNECTION = (
    unreachable("reset", "resets the connection before any byte", first=reset()),
    unreachable("hang-up", "closes the connection before any byte", first=hang_up()),
    unreachable("garbage", "answers bytes that are not HTTP", first=garbage()),
    unreachable("refused", "refuses the connection", "refused"),
    unreachable("plain-text", "speaks plain text where the config says https", "plain_text"),
    unreachable("wrong-name", "shows a certificate of another name", "wrong_name"),
    unreachable("no-name", "has a name that does not resolve", "no_name"),
    Case(
        "refused-alone",
        "refuses the connection, and there is nobody else",
        answers(),
        (own(502, "upstream_connect_failed"),),
        (),
        ("connection",),
        UNREACHED,
        models="alone",
        reach="refused",
    ),
)

_LATE = "sends its headers at once and its first token after 0.3 s"
SILENCE = (
    fails_over("silence", "says nothing", silence(), TIMED_OUT, asks=SILENT),
    Case(
        "silence-alone",
        "says nothing, and there is nobody else",
        silence(),
        (own(504, "upstream_timeout"),),
        ONCE,
        ("timeout",),
        TIMED_OUT,
        models="alone",
    ),
    fails_over(
        "headers",
        "sends the headers of a stream, then nothing",
        headers_then_silence(),
        TIMED_OUT,
        STREAM,
        asks=SILENT,
    ),
    Case(
        "headers-json",
        "sends the headers of a JSON answer, then nothing",
        headers_then_silence("application/json"),
        # Envoy holds a JSON answer until it is whole, to read its usage: the caller has seen nothing of it.
        (Gets(504, None, code="upstream_timeout"),),
        ONCE,
        ("stream_stall",),
        STALLED,
        UNARY,
    ),
    Case(
        "cut-json",
        "resets the connection within a JSON answer",
        reset_after(200),
        (Gets(502, None, code="upstream_connect_failed"),),
        ONCE,
        ("stream_cut",),
        CUT,
        UNARY,
    ),
    serves("late", _LATE, LATE),
    fails_over(
        "too-late",
        "would send its first token after 3 s",
        streams(role(), pause(3), *tokens(), finish()),
        TIMED_OUT,
        STREAM,
        asks=SILENT,
    ),
    fails_over("role-only", "sends the role, then nothing", ROLE_ONLY, TIMED_OUT, STREAM, asks=SILENT),
    fails_over("comments", "sends comments for ever", comments_forever(), TIMED_OUT, STREAM, asks=SILENT),
)

_FIRST_EVENT = "a 200 whose first event is the error"
BAD_ANSWERS = (
    fails_over("event-overloaded", f"{_FIRST_EVENT} `overloaded_error`", OVERLOADED_EVENT, OVERLOADED, STREAM),
    fails_over(
        "event-rate-limit",
        "a 200 with the role and then the error `rate_limit_exceeded`",
        streams(role(), error_event("rate_limit_exceeded"), done=False),
        LIMITED,
        STREAM,
    ),
    Case(
        "event-context",
        f"{_FIRST_EVENT} `context_length_exceeded`; the model has a `context_fallback`",
        CONTEXT_EVENT,
        LONG,
        THEN_LONG,
        ("context_length",),
        kinds=STREAM,
        models="context",
    ),
    ends(
        "event-context-without",
        f"{_FIRST_EVENT} `context_length_exceeded`; the model has no `context_fallback`",
        CONTEXT_EVENT,
        "context_length",
        STREAM,
    ),
    fails_over(
        "event-unknown",
        "a 200 whose first event is an error that nobody documents",
        streams(error_event("what_is_this", "odd"), done=False),
        BAD,
        STREAM,
    ),
    fails_over(
        "event-unasked",
        f"{_FIRST_EVENT} `overloaded_error`, where no stream was asked for",
        OVERLOADED_EVENT,
        OVERLOADED,
        UNARY,
    ),
    fails_over(
        "json-error",
        "a 200 of JSON that holds the error `overloaded_error`, where a stream was asked for",
        answer(200, {"error": {"message": "try later", "code": "overloaded_error"}}),
        OVERLOADED,
        STREAM,
    ),
    fails_over(
        "text-error",
        "a 200 of plain text, where a stream was asked for",
        answer(200, "upstream request failed", content_type="text/plain"),
        BAD,
        STREAM,
    ),
    fails_over("empty", "an empty 200", empty_200(), BAD),
    fails_over(
        "empty-untyped",
        "an empty 200 without a `content-type`, whose head does not say that it is empty",
        empty_200(None, chunked=True),
        BAD,
    ),
    fails_over("no-event", "a stream that ends before any event", streams(done=False), BAD, STREAM),
    fails_over("no-output", "a stream that ends properly without any output", streams(role(), finish()), BAD, STREAM),
    fails_over("html", "a web page with status 200", html_200(), BAD),
    fails_over("html-case", "a web page whose type is written `Text/HTML`", html_200("Text/HTML"), BAD),
    fails_over(
        "event-case",
        f"{_FIRST_EVENT} `overloaded_error`, its type written `Text/Event-Stream`",
        sse([error_event("overloaded_error")], done=False, content_type="Text/Event-Stream"),
        OVERLOADED,
        STREAM,
    ),
    fails_over(
        "gzip",
        "a compressed stream that nobody asked for",
        streams(gzip.compress(b"data: {}\n\n"), done=False, headers={"content-encoding": "gzip"}),
        BAD,
        STREAM,
    ),
)

SCALARS = ("null", "1", '"x"', '""', "true", "-1.5", "[]")
"""Envoy's own reader of streams crashes at these (docs/envoy.md section 9)."""
_RST = "resets the connection at token 40 of 60"
_FIN = "closes the connection at token 40 of 60"
_ENDS = "ends properly at token 40 of 60, without a terminal event"
_STALLS = "falls silent at token 40 of 60"
_UNFINISHED = "ends with a `finish_reason` but without `[DONE]`"
BROKEN = (
    breaks("cut-rst", _RST, CUT_RST, CUT),
    breaks("cut-fin", _FIN, CUT_FIN, CUT),
    breaks("no-terminal", _ENDS, NO_TERMINAL, CUT),
    breaks(
        "no-finish",
        "ends properly after its last token, with neither a `finish_reason` nor `[DONE]`",
        streams(role(), *tokens(), pause(0.1), done=False),
        CUT,
    ),
    serves("no-done", _UNFINISHED, NO_DONE),
    serves(
        "scalars",
        "sends events whose data is JSON but no object, before and between its tokens",
        streams(role(), *SCALARS, *tokens(), *SCALARS, finish()),
    ),
    breaks("stall", _STALLS, HANGING, STALLED),
    Case(
        "error-event",
        "sends an error event at token 40 of 60 and ends",
        streams(*AT_40, error_event("server_error"), done=False),
        ERROR_EVENT,
        ONCE,
        ("stream_cut",),
        CUT,
        STREAM,
    ),
    serves(
        "malformed",
        "sends one malformed event at token 40 of 60 and goes on",
        streams(*AT_40, '{"choices": [', *tokens(40), finish()),
    ),
)

COMPLETE = (
    fails_over("complete-rst", _RST, CUT_RST, UNREACHED, STREAM),
    fails_over(
        "complete-late-reset",
        "resets the connection after 2.5 s without any byte",
        reset(2.5),
        UNREACHED,
        STREAM,
        asks=(Ask("first"), Ask("second", (2.5, 2.5))),
    ),
    fails_over("complete-fin", _FIN, CUT_FIN, UNREACHED, STREAM),
    fails_over("complete-no-terminal", _ENDS, NO_TERMINAL, CUT, STREAM),
    serves("complete-late", _LATE, LATE),
    serves("complete-no-done", _UNFINISHED, NO_DONE),
    fails_over("complete-stall", _STALLS, HANGING, STALLED, STREAM, asks=STALL),
    fails_over(
        "complete-error-event",
        "sends an `overloaded_error` event at token 40 of 60 and ends",
        streams(*AT_40, error_event("overloaded_error"), done=False),
        OVERLOADED,
        STREAM,
    ),
    fails_over(
        "complete-headers",
        "sends the headers of a stream, then nothing",
        headers_then_silence(),
        TIMED_OUT,
        STREAM,
        asks=SILENT,
    ),
    fails_over("complete-role-only", "sends the role, then nothing", ROLE_ONLY, TIMED_OUT, STREAM, asks=SILENT),
    fails_over("complete-comments", "sends comments for ever", comments_forever(), TIMED_OUT, STREAM, asks=SILENT),
)

HURRIED = (
    Case(
        "complete-silence",
        "says nothing, not even headers",
        silence(),
        (own(504, "upstream_timeout"),),
        ONCE,
        ("timeout",),
        TIMED_OUT,
        STREAM,
    ),
)

OFF = (
    serves(
        "off-late",
        "sends its headers at once and its first token after 1 s",
        streams(pause(1.0), role(), *tokens(), finish()),
    ),
    fails_over(
        "off-silence",
        "says nothing",
        silence(),
        TIMED_OUT,
        STREAM,
        asks=(Ask("first"), Ask("second", (1.5, 1.5))),
    ),
    fails_over("off-html", "a web page with status 200", html_200(), BAD, STREAM),
    breaks("off-role-only", "sends the role, then nothing", ROLE_ONLY, STALLED),
    Case(
        "off-error-event",
        f"{_FIRST_EVENT} `overloaded_error`",
        OVERLOADED_EVENT,
        ERROR_EVENT,
        ONCE,
        ("stream_cut",),
        CUT,
        STREAM,
    ),
    breaks("off-rst", _RST, CUT_RST, CUT),
    breaks("off-no-terminal", _ENDS, NO_TERMINAL, CUT),
    breaks("off-stall", _STALLS, HANGING, STALLED),
)

SECTIONS = (
    Section("Limits, money, keys, models", "default", LIMITS),
    Section("Servers in trouble", "default", SERVER),
    Section("Attempts that are spent at the same target", "two", TWO),
    Section("What is the request's own fault", "default", CALLERS_OWN),
    Section("When the second provider fails too", "default", BOTH_FAIL),
    Section("Connections", "quick", CONNECTION),
    Section("Silence", "quick", SILENCE),
    Section("Answers that are none", "quick", BAD_ANSWERS),
    Section("Streams that break after their first token", "quick", BROKEN),
    Section("Streams under `stream_guard: complete`", "complete", COMPLETE),
    Section("A known boundary of `stream_guard: complete`", "hurried", HURRIED),
    Section("Streams under `stream_guard: off`", "off", OFF),
)

if __name__ == "__main__":
    from tests.support.failure_doc import main

    raise SystemExit(main(DOCUMENT, POLICIES, SECTIONS, sys.argv[1:]))
