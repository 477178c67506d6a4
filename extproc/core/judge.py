"""The judge exchange: what one provider's answer means, and what follows from it.

Sees every failure, every event stream, every untyped, empty or HTML 2xx, and every answer to a request for a stream. A
failure's headers are held until its body (to 64 KiB) is understood, a guarded stream's until it has shown real output,
those of JSON in place of a stream until it is known to hold no error, any other answer's until its first byte; then
Envoy is told to go on with the next attempt, or the request ends with the first meaningful error as an immediate
response. Invariants: headers are answered once; an attempt is charged once; after release, bytes pass untouched, and a
stream that does not end whole is broken visibly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from extproc.config.snapshot import StreamGuard
from extproc.core.aftermath import Case, GoOn, after_failure, open_case
from extproc.core.classify import Answer, classify, classify_error_object
from extproc.core.endpoints import Kind
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
    ResponseBody,
    ResponseHeaders,
    SetTimer,
    TimerFired,
    Trailers,
)
from extproc.core.gateway import Gateway
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.provider_error import BAD_GATEWAY, ERROR_BODY_LIMIT_BYTES, error_answer, error_event, is_encoded
from extproc.core.request_state import FirstError
from extproc.core.stream_events import STREAM_KIND_BY_PATH, error_in
from extproc.core.stream_guard import Verdict, WatchedStream
from extproc.core.token_usage import UsageWatch
from extproc.core.usage import UsageCut

ERROR_BODY_WAIT_S = 5.0
EVENT_STREAM = "text/event-stream"


class Phase(StrEnum):
    """Where a judge exchange stands."""

    WANT_HEADERS = "want_headers"
    COLLECTING = "collecting"
    """A failure's body, up to the limit."""
    GUARDING = "guarding"
    """A stream whose headers are held."""
    WANT_BYTES = "want_bytes"
    """A good answer of no guarded kind, held until it is known not to be empty."""
    WANT_WHOLE = "want_whole"
    """JSON that came instead of a stream, held until it is known not to be an error."""
    WAITING = "waiting"
    """Before the same target is tried again."""
    RELEASED = "released"
    DONE = "done"


class JudgeExchange:
    """Judges one attempt's answer; `cluster` is where it came from."""

    def __init__(self, gateway: Gateway, cluster: str) -> None:
        self._gateway = gateway
        self._cluster = cluster
        self._phase = Phase.WANT_HEADERS
        self._case: Case | None = None
        self._answer: ResponseHeaders | None = None
        self._body = bytearray()
        self._ended = False
        self._body_came = False
        self._unpushed = False
        self._stream: WatchedStream | None = None
        self._retry: ReleaseHeaders | None = None
        self._cut: UsageCut | None = None
        self._usage: UsageWatch | None = None
        self._error: Mapping[str, Any] | None = None
        """What the provider said in a 200 that is none."""

    def __repr__(self) -> str:
        return f"<JudgeExchange {self._cluster} {self._phase}>"

    def closed(self, now: float) -> None:
        """Envoy's access log settles an attempt whose answer was dropped."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """Hold, judge and release one answer."""
        if isinstance(event, ResponseHeaders) and self._phase is Phase.WANT_HEADERS:
            return self._on_headers(event, now)
        if isinstance(event, ResponseBody):
            return self._on_body(event, now)
        if isinstance(event, TimerFired):
            return self._on_timer(now)
        if isinstance(event, Trailers):
            return self._on_trailers(event.part, now)
        self._gateway.unexpected_messages += 1
        return []

    # -- events --------------------------------------------------------------------------------------------------

    def _on_headers(self, event: ResponseHeaders, now: float) -> list[Action]:
        self._answer = event
        self._ended = event.end_of_stream
        case = self._case = open_case(self._gateway, event.state)
        if case is None:
            return self._release(now)
        self._gateway.requests.take_over(case.state, now)
        if 200 <= event.status < 300:
            return self._on_success_headers(case, event, now)
        if event.end_of_stream or event.status < 200:
            return self._conclude(case, now)
        self._phase = Phase.COLLECTING
        return [SetTimer(min(ERROR_BODY_WAIT_S, case.hold_left_s(now)))]

    def _on_success_headers(self, case: Case, event: ResponseHeaders, now: float) -> list[Action]:
        content_type = event.headers.get("content-type", "").partition(";")[0].strip().lower()
        if event.end_of_stream or event.headers.get("content-length") == "0":
            return self._failed(case, _bad("empty"), now)
        if content_type == "text/html":
            return self._failed(case, _bad("html"), now)
        # Envoy's log has these headers, too, but only once a stream has ended.
        self._gateway.answered_well(case.state, case.step.key, event.headers, now, now)
        if content_type == EVENT_STREAM:
            self._usage = UsageWatch()
        elif case.state.kind is not Kind.STREAM or case.policy.stream_guard == "off":
            return self._hold(case, Phase.WANT_BYTES)
        elif _is_json(content_type) and not is_encoded(event):
            return self._hold(case, Phase.WANT_WHOLE)
        if case.state.endpoint not in STREAM_KIND_BY_PATH:
            return self._hold(case, Phase.WANT_BYTES)
        if is_encoded(event):
            return self._failed(case, _bad("encoded"), now)
        self._cut = UsageCut() if case.state.hide_usage else None
        self._watch(case)
        if case.policy.stream_guard == "off":
            return self._release(now)
        self._hold(case, Phase.GUARDING)
        return self._guard_timer(case, now)

    def _hold(self, case: Case, phase: Phase) -> list[Action]:
        self._phase = phase
        self._gateway.requests.attempt_held(case.state, held=True)
        return []

    def _watch(self, case: Case) -> None:
        guard: StreamGuard = case.policy.stream_guard
        self._stream = WatchedStream(STREAM_KIND_BY_PATH[case.state.endpoint], guard)

    def _on_body(self, event: ResponseBody, now: float) -> list[Action]:
        self._ended = self._ended or event.end_of_stream
        self._body_came = True
        case = self._case
        if self._phase is Phase.RELEASED:
            return self._pass_on(event, now)
        if self._phase is Phase.DONE and self._unpushed:
            self._unpushed = False
            return [ReleaseBody(b"", False)]
        if case is not None and self._phase is Phase.GUARDING:
            return self._guard(case, event, now)
        if case is not None and self._phase is Phase.WANT_BYTES:
            return self._first_bytes(case, event, now)
        if case is not None and self._phase is Phase.WANT_WHOLE:
            return self._whole(case, event, now)
        if case is None or self._phase is not Phase.COLLECTING:
            return []
        room = ERROR_BODY_LIMIT_BYTES - len(self._body)
        self._body += event.chunk[:room]
        if event.end_of_stream or len(self._body) >= ERROR_BODY_LIMIT_BYTES:
            return self._conclude(case, now)
        return []

    def _first_bytes(self, case: Case, event: ResponseBody, now: float) -> list[Action]:
        if event.chunk:
            self._gateway.requests.attempt_held(case.state, held=False)
            self._phase = Phase.RELEASED
            return [self._headers(), self._piece(event.chunk, event.end_of_stream), *self._idle_timer()]
        return self._failed(case, _bad("empty"), now) if event.end_of_stream else []

    def _whole(self, case: Case, event: ResponseBody, now: float) -> list[Action]:
        """Read the JSON that came instead of a stream: an error in it fails over, and all else goes on as it is."""
        self._body += event.chunk
        begin = self._body.lstrip()[:1]
        if begin and begin != b"{":
            # A stream under a wrong name.
            self._watch(case)
            self._phase = Phase.GUARDING
            return [*self._guard_timer(case, now), *self._guard(case, replace(event, chunk=bytes(self._body)), now)]
        if not event.end_of_stream and len(self._body) < ERROR_BODY_LIMIT_BYTES:
            return []
        body = bytes(self._body)
        if event.end_of_stream:
            self._error = error_in(STREAM_KIND_BY_PATH[case.state.endpoint], body)
        if self._error is not None:
            return self._failed(case, self._understand(case, self._error, now), now)
        return self._first_bytes(case, replace(event, chunk=body), now)

    def _on_trailers(self, part: Part, now: float) -> list[Action]:
        """Trailers end a body whose last piece did not say so."""
        if self._phase is Phase.WAITING:
            return []  # the timer answers the held headers, and with the next attempt nobody needs the trailers
        if self._ended or self._phase is Phase.DONE:
            return [CancelTimer(), Pass(part)]
        actions = self._on_body(ResponseBody(b"", end_of_stream=True), now)
        if self._phase is not Phase.RELEASED:
            return actions
        # The trailers are the end now, so no piece of body claims to be, and the one made up for the end is dropped.
        pieces = [replace(a, end_of_stream=False) if isinstance(a, ReleaseBody) else a for a in actions]
        return [a for a in pieces if a != ReleaseBody(b"", False)] + [Pass(part)]

    def _on_timer(self, now: float) -> list[Action]:
        case = self._case
        if self._phase is Phase.WAITING and self._retry is not None:
            self._phase = Phase.DONE
            return self._let_go(self._retry)
        if case is None:
            return []
        if self._phase is Phase.COLLECTING:
            return self._conclude(case, now)
        if self._phase is Phase.GUARDING:
            silent = not (self._stream and self._stream.has_output)
            kind = ErrorClass.TIMEOUT if silent else ErrorClass.STREAM_STALL
            return self._failed(case, Failure(kind, evidence=("silent inside the answer",)), now)
        if self._phase is Phase.RELEASED:
            return self._break(case, ErrorClass.STREAM_STALL, now)
        return []

    # -- streams -------------------------------------------------------------------------------------------------

    def _guard(self, case: Case, event: ResponseBody, now: float) -> list[Action]:
        stream = self._stream
        if stream is None:
            return []
        verdict = stream.feed(event.chunk, end=event.end_of_stream)
        if verdict is Verdict.HOLD:
            return self._guard_timer(case, now)
        if verdict is Verdict.PASS:
            return self._show(case, stream, now)
        failure = _bad("no output") if verdict is Verdict.BAD else Failure(ErrorClass.STREAM_CUT, evidence=("cut",))
        self._error = stream.error
        if stream.error is not None:
            failure = self._understand(case, stream.error, now)
        return self._failed(case, failure, now)

    def _understand(self, case: Case, error: Mapping[str, Any], now: float) -> Failure:
        provider = self._gateway.provider(case.active, case.step.provider)
        codes = provider.error_codes if provider else {}
        return classify_error_object(error, None, now, case.policy.cooldown.cap_s, codes)

    def _show(self, case: Case, stream: WatchedStream, now: float) -> list[Action]:
        """Release what was held: headers, then the pieces as they came."""
        self._gateway.requests.attempt_held(case.state, held=False, first_token_s=now - case.state.started)
        self._phase = Phase.RELEASED
        pieces = stream.take_held()
        last = len(pieces) - 1
        bodies = [self._piece(piece, self._ended and index == last) for index, piece in enumerate(pieces)]
        return [self._headers(), *bodies, *self._idle_timer()]

    def _guard_timer(self, case: Case, now: float) -> list[Action]:
        """Keep the time under `complete`; under `first_token` Envoy's per-try timer does (docs/envoy.md section 5)."""
        if case.policy.stream_guard != "complete":
            return []
        if self._stream is not None and self._stream.has_output:
            return [SetTimer(case.policy.stream_idle_timeout_s)]
        left_s = case.policy.first_token_timeout_s - (now - case.state.started)
        return [SetTimer(max(0.0, left_s))]

    def _pass_on(self, event: ResponseBody, now: float) -> list[Action]:
        if self._stream is not None and self._case is not None:
            verdict = self._stream.feed(event.chunk, end=event.end_of_stream)
            if verdict is Verdict.CUT:
                return self._break(self._case, ErrorClass.STREAM_CUT, now, event.chunk)
            if event.end_of_stream and self._stream.ended_with_error:
                # The caller sees the provider's own error event; the target is charged all the same.
                self._gateway.requests.attempt_failed(
                    self._case.state, Failure(ErrorClass.STREAM_CUT, evidence=("error event",)), now
                )
                last = replace(self._piece(event.chunk, True), classes=_classes(self._case, ErrorClass.STREAM_CUT))
                return [last, CancelTimer()]
        return [self._piece(event.chunk, event.end_of_stream), *self._idle_timer()]

    def _piece(self, chunk: bytes, end: bool) -> ReleaseBody:
        """Return what the caller gets of a piece of a released answer, with the token counts that it brought."""
        tokens = self._usage.feed(chunk) if self._usage is not None else None
        shown = chunk if self._cut is None else self._cut.feed(chunk, end=end)
        return ReleaseBody(shown, end, tokens or None)

    def _headers(self) -> ReleaseHeaders:
        """Return the release of a good stream's headers; a length would be wrong once something is cut out."""
        return ReleaseHeaders(remove_headers=("content-length",) if self._cut is not None else ())

    def _break(self, case: Case, error_class: ErrorClass, now: float, chunk: bytes = b"") -> list[Action]:
        """End a released stream so that the caller cannot take it for a whole one."""
        self._phase = Phase.DONE
        self._gateway.requests.attempt_failed(case.state, Failure(error_class, evidence=("after release",)), now)
        # The piece tells the access log, too; before any piece came Envoy would not take one.
        last = replace(self._piece(chunk, True), end_of_stream=False, classes=_classes(case, error_class))
        return [CancelTimer(), *([last] if self._body_came else []), Abort(error_class.value)]

    def _idle_timer(self) -> list[Action]:
        """Bound the silence inside a released stream; without a guard Envoy does (docs/envoy.md section 5)."""
        policy = self._case.policy if self._case is not None else None
        if self._ended or self._stream is None or policy is None or policy.stream_guard == "off":
            return [CancelTimer()]
        return [SetTimer(policy.stream_idle_timeout_s)]

    # -- releases ------------------------------------------------------------------------------------------------

    def _release(self, now: float) -> list[Action]:
        self._phase = Phase.RELEASED
        return [*self._let_go(self._headers()), *self._idle_timer()]

    def _let_go(self, headers: ReleaseHeaders) -> list[Action]:
        """Answer the held headers.

        Envoy lets them go at once, unless body has reached it meanwhile: then they go with our first piece of body. So
        an empty piece follows, now or with the message that brings the body; sent unasked it would be a fault.
        """
        self._unpushed = not self._body_came
        return [headers, ReleaseBody(b"", False)] if self._body_came else [headers]

    # -- failures ------------------------------------------------------------------------------------------------

    def _conclude(self, case: Case, now: float) -> list[Action]:
        answer = self._answer
        if answer is None:
            raise RuntimeError("a failure without its answer")
        provider = self._gateway.provider(case.active, case.step.provider)
        seen = Answer(answer.status, answer.headers, bytes(self._body), truncated=not self._ended)
        codes = provider.error_codes if provider else {}
        return self._failed(case, classify(seen, codes, now, case.policy.cooldown.cap_s), now)

    def _failed(self, case: Case, failure: Failure, now: float) -> list[Action]:
        following = after_failure(self._gateway, case, failure, self._provider_error(case, failure), now)
        if not isinstance(following, GoOn):
            self._phase = Phase.DONE
            return [CancelTimer(), following, Close()]
        # A 200 that was found bad must not look like one in Envoy's log of the attempt; a 101 would be no answer.
        answer = self._answer
        status = ((":status", str(BAD_GATEWAY)),) if answer is not None and answer.status < 300 else ()
        self._retry = ReleaseHeaders(status, retry=True, state=following.state, replan=following.replan, failed=True)
        if following.wait_s > 0:
            self._phase = Phase.WAITING
            return [SetTimer(following.wait_s)]
        self._phase = Phase.DONE
        return [CancelTimer(), *self._let_go(self._retry)]

    def _provider_error(self, case: Case, failure: Failure) -> FirstError | None:
        """Return what the provider said, in the form in which the caller may get it; None if it said nothing."""
        answer = self._answer
        if answer is None or answer.status < 200:
            return None
        if answer.status >= 300:
            return error_answer(answer, bytes(self._body), case.state.protocol, ended=self._ended)
        return error_event(self._error, failure.error_class, case.state.protocol) if self._error else None


def _classes(case: Case, error_class: ErrorClass) -> tuple[str, ...]:
    """Return the classes of a request's failed attempts, the present one included."""
    return case.state.failed(error_class.value, None).classes


def _bad(why: str) -> Failure:
    return Failure(ErrorClass.BAD_ANSWER, status=200, evidence=(why,))


def _is_json(content_type: str) -> bool:
    return content_type in ("application/json", "text/json") or content_type.endswith("+json")
