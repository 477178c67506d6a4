"""The story of the demonstration: what the providers do, what the caller gets, and the claims about it.

Owns the order of the steps and every claim; each is checked against what the fake providers saw and what the caller
got. Requests go through the gateway as any client's would.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from extproc.demo.caller import CLIENT_TOKEN, Answer
from extproc.demo.report import Report, Row
from extproc.demo.stage import KEYS
from extproc.demo_provider import Behaviour, Seen

PRIMARY_WORDS = "Yes, the primary is here."
FALLBACK_WORDS = "Yes, the fallback is here."
RETRY_AFTER_S = 5
"""Above the 3 s for which a policy waits for the same target (`retry_after_up_to`)."""
TIMEOUT_S = 1.5
"""`first_byte_timeout` and `first_token_timeout` of the demonstration's config."""

_RETURN_TIMEOUT_S = 20.0
_POLL_S = 0.25
_BLOCK = 20
_MOST_BLOCKS = 20
_SHOWN = ("status", "model", "route_mode", "served_by", "classes", "attempts", "version")


class Provider(Protocol):
    """A provider that does as it is told, and tells what it saw."""

    @property
    def requests(self) -> Sequence[Seen]:
        """Everything it was sent, oldest first."""
        ...

    def behave(self, behaviour: Behaviour, retry_after_s: int = 0) -> None:
        """Say what to do with requests from now on."""
        ...


class Door(Protocol):
    """The gateway as the story uses it."""

    def ask(self, model: str, *, stream: bool = False) -> Answer:
        """Send one chat completion."""
        ...

    def stop(self) -> int | None:
        """Stop the gateway and return its exit code; None for one that is not ours to stop."""
        ...

    def logged(self, request_id: str) -> dict[str, Any] | None:
        """Return the access log's line about a request, empty if there is none; None when the log is out of reach."""
        ...

    def last_words(self) -> str:
        """Return the end of what the gateway said of itself."""
        ...


class Story:
    """One run of the demonstration."""

    def __init__(self, gateway: Door, primary: Provider, fallback: Provider, report: Report) -> None:
        self._gateway = gateway
        self._primary = primary
        self._fallback = fallback
        self._report = report

    def play(self) -> None:
        """Run every step; a gateway of our own is stopped in the last one."""
        first = self._rate_limited()
        self._skipped()
        self._streamed()
        self._returned()
        self._silent()
        self._kept_apart()
        self._recorded(first)
        if self._report.failed:
            self._report.step("The last words of the gateway:")
            self._report.say(self._gateway.last_words())

    def _ask(self, primary: str, *, stream: bool = False) -> Answer:
        """Ask for demo-primary while the primary is as `primary` says, and keep a row of the answer."""
        before = len(self._primary.requests)
        answer = self._gateway.ask("demo-primary", stream=stream)
        self._keep(primary, answer, len(self._primary.requests) - before)
        return answer

    def _keep(self, primary: str, answer: Answer, primary_asked: int) -> None:
        server = self._primary if answer.served_by.startswith("primary/") else self._fallback
        received = server.requests[-1].model if answer.served_by and server.requests else ""
        row = Row(primary, primary_asked, answer.status, answer.route_mode, answer.served_by, received, answer.attempts)
        self._report.rows.append(row)

    def _claim_fallback(self, answer: Answer, attempts: int) -> None:
        seen = f"{answer.status}, {answer.route_mode}, served by {answer.served_by}, {answer.attempts} attempts"
        held = answer.status == 200 and answer.complete and answer.served_by == "fallback/fallback-model"
        on = "second" if attempts == 2 else "first"
        self._report.claim(
            f"The caller got a complete 200, from the fallback, on the {on} attempt.",
            held and answer.attempts == attempts,
            seen,
        )
        self._report.claim("It says so itself: x-gateway-route-mode: model_fallback.", _is_fallback(answer), seen)

    def _rate_limited(self) -> Answer:
        report = self._report
        report.step(f"1. The primary is rate limited: it answers 429 with Retry-After: {RETRY_AFTER_S}.")
        self._primary.behave(Behaviour.RATE_LIMITED, RETRY_AFTER_S)
        answer = self._ask("answers 429")
        self._claim_fallback(answer, 2)
        asked, served = self._primary.requests[-1:], self._fallback.requests[-1:]
        models = [seen.model for seen in (*asked, *served)]
        report.claim(
            "The model was rewritten: the providers received primary-model and fallback-model.",
            models == ["primary-model", "fallback-model"],
            models,
        )
        return answer

    def _skipped(self) -> None:
        self._report.step("2. The next request: the gateway knows, and does not ask the primary at all.")
        before = len(self._primary.requests)
        self._claim_fallback(self._ask("is cooling"), 1)
        asked = len(self._primary.requests) - before
        self._report.claim("The primary saw nothing of it.", asked == 0, f"{asked} requests")

    def _streamed(self) -> None:
        self._report.step("3. A streamed request, while the primary is still cooling.")
        answer = self._ask("cooling, streamed", stream=True)
        self._claim_fallback(answer, 1)
        spread_s = answer.total_s - answer.first_s
        self._report.claim(
            f"It was streamed, not buffered: the first word came {spread_s:.1f} s before the end.",
            answer.text == FALLBACK_WORDS and spread_s >= 0.1,
            f"{answer.text!r}, first word after {answer.first_s:.2f} s of {answer.total_s:.2f} s",
        )

    def _returned(self) -> None:
        report, limited_at = self._report, self._primary.requests[0].at
        report.step("4. The primary is well again, but the gateway keeps to the Retry-After it was told.")
        self._primary.behave(Behaviour.ANSWER)
        seen_before, meanwhile = len(self._primary.requests), 0
        give_up_at = time.monotonic() + _RETURN_TIMEOUT_S
        while (answer := self._gateway.ask("demo-primary")).served_by != "primary/primary-model":
            meanwhile += answer.status == 200
            if time.monotonic() > give_up_at:
                report.claim("The primary was tried again after its Retry-After.", False, f"never in {meanwhile} tries")
                return
            time.sleep(_POLL_S)
        self._keep("is probed", answer, len(self._primary.requests) - seen_before)
        rested_s = self._primary.requests[seen_before].at - limited_at
        report.claim(
            f"It was left alone for {rested_s:.1f} s; {meanwhile} more requests went to the fallback meanwhile.",
            rested_s >= RETRY_AFTER_S,
            f"{rested_s:.2f} s",
        )
        probed = answer.status == 200 and answer.route_mode == "direct" and answer.attempts == 1
        report.claim("Then one live request probed it, and was answered: route mode direct.", probed, answer)
        self._recovered()

    def _recovered(self) -> None:
        shares: list[int] = []
        while len(shares) < _MOST_BLOCKS and shares[-1:] != [_BLOCK]:
            served = [self._gateway.ask("demo-primary").served_by for _ in range(_BLOCK)]
            shares.append(served.count("primary/primary-model"))
        self._report.claim(
            f"Its traffic came back step by step, of {_BLOCK} requests at a time: {', '.join(map(str, shares))}.",
            shares[-1] == _BLOCK and shares[0] <= _BLOCK / 2,
            shares,
        )

    def _silent(self) -> None:
        self._report.step("5. The primary falls silent: it takes requests and says nothing.")
        self._time_out("   A plain request:", "is silent", Behaviour.SILENT)
        self._time_out("   A streamed request:", "silent, streamed", Behaviour.SILENT, stream=True)
        self._report.step("6. The primary says 200 and begins a stream, then falls silent before the first word.")
        self._time_out("", "stalls in its 200", Behaviour.STALLED, stream=True)

    def _time_out(self, heading: str, primary: str, behaviour: Behaviour, *, stream: bool = False) -> None:
        if heading:
            self._report.say(heading)
        self._primary.behave(behaviour)
        answer = self._ask(primary, stream=stream)
        self._claim_fallback(answer, 2)
        if stream:
            words = answer.text == FALLBACK_WORDS
            self._report.claim("The caller saw one whole stream, the fallback's.", words, answer.text)
        self._report.claim(
            f"The silence cost {answer.first_s:.1f} s (the configured timeout is {TIMEOUT_S} s), not the request.",
            answer.first_s >= TIMEOUT_S * 0.9,
            f"{answer.first_s:.2f} s",
        )

    def _kept_apart(self) -> None:
        self._report.step("Over all these requests:")
        providers = {KEYS["DEMO_PRIMARY_KEY"]: self._primary, KEYS["DEMO_FALLBACK_KEY"]: self._fallback}
        secrets = {*KEYS.values(), CLIENT_TOKEN}
        own, foreign = 0, 0
        for key, provider in providers.items():
            heads = [str(seen.headers) for seen in provider.requests]
            own += sum(seen.headers.get("authorization") == f"Bearer {key}" for seen in provider.requests)
            foreign += sum(secret in head for head in heads for secret in secrets - {key})
        total = len(self._primary.requests) + len(self._fallback.requests)
        self._report.claim(
            "Each provider was sent its own key, never the other's and never the client's token.",
            own == total and foreign == 0,
            f"own key in {own} of {total} requests, {foreign} foreign secrets",
        )

    def _recorded(self, first: Answer) -> None:
        code = self._gateway.stop()
        if code is not None:
            self._report.claim("The gateway stopped in good order.", code == 0, f"exit code {code}")
        logged = self._gateway.logged(first.headers.get("x-request-id", ""))
        if logged is None:
            return
        self._report.claim(
            "The access log has request 1 as route_mode=model_fallback, by its x-request-id:",
            logged.get("route_mode") == "model_fallback" and logged.get("classes") == ["rate_limited"],
            logged,
        )
        for line in _lines_of(logged):
            self._report.say(f"           {line}")


def _is_fallback(answer: Answer) -> bool:
    return answer.route_mode == "model_fallback"


def _lines_of(logged: dict[str, Any]) -> list[str]:
    words = [f"{name}={_plain(logged.get(name))}" for name in _SHOWN]
    half = len(words) // 2 + 1
    return [" ".join(words[:half]), " ".join(words[half:])]


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
