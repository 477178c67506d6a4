"""What a failed attempt leads to, through the real Envoy: who is asked next, what the caller gets, what is recorded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, two_providers
from tests.support.http1 import Reply
from tests.support.lanes import FALLBACK_MODEL, THIRD_MODEL, Lanes
from tests.support.wall import (
    Behaviour,
    Wall,
    answer,
    big_error,
    empty_200,
    error,
    html_200,
    ok,
    rate_limited,
    reset,
    silence,
    sse,
)

QUICK_S = 0.7
TIMER_GRAIN_S = 0.05
"""Envoy counts its timers from the start of a turn of its event loop, which may lie before the request."""
"""First byte and first token timeout of the policy `quick`: long enough for a busy machine's healthy answers."""
POLICIES: dict[str, dict[str, Any]] = {
    "quick": {"first_byte_timeout": "700ms", "first_token_timeout": "700ms"},
    "late": {"first_byte_timeout": "700ms", "first_token_timeout": "700ms", "deadline": "300ms"},
    "once": {"same_target": {"max": 0}},
    "brief": {"same_target": {"max": 0}, "cooldown": {"base": "200ms"}},
    "two": {"attempts": 2, "same_target": {"max": 0}},
    "strict": {"when_all_down": "fail"},
}
SIZES = {"default": 56, "quick": 16, "late": 4, "once": 8, "brief": 2, "two": 4, "strict": 2}
NO_SUCH_HOST = "http://does-not-exist.invalid:9/"


Expected = dict[str, dict[str, Any]]
"""Request id -> members of its row in the access log."""


class Road(NamedTuple):
    """The module's gateway, its walls (empty and answering well) and its untouched lanes."""

    gateway: Gateway
    primary: Wall
    fallback: Wall
    lanes: Lanes
    to_log: Expected

    def will_log(self, reply: Reply, **row: Any) -> None:
        """Note what the access log must say of an answer; Envoy flushes late, so the module's last test looks."""
        self.to_log[reply.header("x-request-id") or ""] = row

    @property
    def counts(self) -> tuple[int, int]:
        return self.primary.count(), self.fallback.count()


class Fault(NamedTuple):
    """A way to fail, what the gateway calls it, and the policy under which it is seen soon."""

    name: str
    error_class: str
    behaviour: Behaviour | None
    policy: str = "default"
    asked: int = 1


FAULTS = (
    Fault("429", "rate_limited", rate_limited()),
    Fault("503", "overloaded", error(503)),
    Fault("refused", "connection", None, asked=0),
    Fault("reset", "connection", reset()),
    Fault("silence", "timeout", silence(), "quick"),
    Fault("html page", "bad_answer", html_200()),
    Fault("empty answer", "bad_answer", empty_200()),
)
faults = pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
streamed = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@pytest.fixture(scope="module")
def lanes(module_primary: Wall, module_fallback: Wall) -> Lanes:
    return Lanes(module_primary, module_fallback, POLICIES, SIZES)


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, lanes: Lanes) -> Gateway:
    """Run every lane, and one model whose provider's name does not resolve."""
    config = lanes.config
    config["providers"]["nowhere"] = {"base_url": NO_SUCH_HOST, "api_key": {"env": "PRIMARY_KEY"}}
    target = {"provider": "nowhere", "model": "nobody"}
    config["models"]["unresolved"] = {"targets": [target], "fallback": [lanes.take().spare]}
    return module_gateway_factory(config)


@pytest.fixture(scope="module")
def to_log() -> Expected:
    return {}


@pytest.fixture
def road(module_gateway: Gateway, module_primary: Wall, module_fallback: Wall, lanes: Lanes, to_log: Expected) -> Road:
    module_primary.reset()
    module_fallback.reset()
    return Road(module_gateway, module_primary, module_fallback, lanes, to_log)


def told(reply: Reply) -> tuple[int, str | None, str | None, str | None]:
    """Return status, route mode, who served, and attempts; no answer may have a header twice or lack its id."""
    assert sorted(dict(reply.headers)) == sorted(name for name, _ in reply.headers)
    assert reply.header("x-request-id")
    names = ("x-gateway-route-mode", "x-gateway-served-by", "x-gateway-attempts")
    mode, served_by, attempts = (reply.header(name) for name in names)
    return reply.status, mode, served_by, attempts


def break_primary(road: Road, fault: Fault) -> None:
    if fault.behaviour is None:
        road.primary.stop()
    else:
        road.primary.script(fault.behaviour)


# -- the first attempt fails, another target serves ------------------------------------------------------------------


@streamed
@faults
def test_a_failed_first_attempt_is_served_by_the_fallback_model(road: Road, fault: Fault, stream: bool) -> None:
    """The caller sees 200 and who served; each wall was asked once; the log knows why."""
    lane = road.lanes.take(fault.policy)
    break_primary(road, fault)
    road.fallback.script(ok("from the fallback", chunks=3))

    reply = road.gateway.chat(lane.model, stream=stream)

    assert (200, "model_fallback", lane.by_fallback, "2") == told(reply)
    assert ("from the fallback", "clean") == (reply.text, reply.ended)
    assert (fault.asked, 1) == road.counts
    assert FALLBACK_MODEL == road.fallback.requests[0].json["model"]
    served = {"served_by": lane.by_fallback, "served_model": lane.spare, "model": lane.model}
    road.will_log(reply, classes=[fault.error_class], route_mode="model_fallback", attempts=2, **served)


@faults
def test_a_failed_first_attempt_is_served_by_the_same_models_second_tier(road: Road, fault: Fault) -> None:
    """Another target of the same public model is a provider_failover."""
    lane = road.lanes.take(fault.policy)
    break_primary(road, fault)

    reply = road.gateway.chat(lane.tiered)

    assert (200, "provider_failover", lane.by_fallback, "2") == told(reply)
    assert (fault.asked, 1) == road.counts
    served = {"served_by": lane.by_fallback, "served_model": lane.tiered, "model": lane.tiered}
    road.will_log(reply, classes=[fault.error_class], route_mode="provider_failover", attempts=2, **served)


@streamed
def test_a_provider_whose_name_does_not_resolve_is_failed_over(road: Road, stream: bool) -> None:
    """DNS failure is a failed connection like any other."""
    reply = road.gateway.chat("unresolved", stream=stream)

    assert (200, "model_fallback") == told(reply)[:2]
    assert "hello" == reply.text
    assert (0, 1) == road.counts
    road.will_log(reply, classes=["connection"], route_mode="model_fallback")


def test_a_silent_provider_costs_the_caller_only_the_first_byte_timeout(road: Road) -> None:
    """The silent attempt is given up in time, and its provider sees the caller leave."""
    lane = road.lanes.take("quick")
    road.primary.script(silence())

    reply = road.gateway.chat(lane.model)

    assert 200 == reply.status
    assert QUICK_S - TIMER_GRAIN_S <= reply.seconds < QUICK_S + 2
    assert road.primary.requests[0].disconnected.wait(5)


def test_two_failures_in_a_row_reach_the_third_target(road: Road) -> None:
    """Each failed attempt moves on to the next planned target."""
    lane = road.lanes.take()
    road.primary.script(error(503))
    road.fallback.script([error(503), ok("third")])

    reply = road.gateway.chat(lane.wide)

    assert (200, "provider_failover", f"{lane.fallback}/{THIRD_MODEL}", "3") == told(reply)
    road.will_log(reply, classes=["overloaded", "overloaded"])
    assert [FALLBACK_MODEL, THIRD_MODEL] == [seen.json["model"] for seen in road.fallback.requests]


def test_a_stream_reaches_the_caller_byte_for_byte(road: Road) -> None:
    """Comments, CRLF, a missing space, raw and escaped text: nothing is parsed and written anew."""
    lane = road.lanes.take()
    chunk = b'{"id":"1","choices":[{"index":0,"delta":{"content":"caf\xc3\xa9 \\u00e9"},"finish_reason":null}]}'
    last = b'{"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
    events = [b": hello\n\n", b"data:" + chunk + b"\r\n\r\n", b"id: 7\ndata: " + chunk + b"\n\n", b"data: " + last]
    sent = [*events, b"\n\n", b"data: [DONE]\n\n"]
    road.primary.script(error(503))
    road.fallback.script(sse(sent, done=False))

    reply = road.gateway.chat(lane.model, stream=True)

    assert (200, "clean", b"".join(sent)) == (reply.status, reply.ended, reply.body)
    assert "text/event-stream" == reply.header("content-type")


def test_a_stream_is_not_held_back(road: Road) -> None:
    """Each event arrives while the provider is still pausing before the next."""
    lane = road.lanes.take()
    road.primary.script(ok("abcdef", chunks=6, delay_s=0.1))

    reply = road.gateway.chat(lane.model, stream=True)

    assert "abcdef" == reply.text
    first_s, last_s = reply.pieces[0][0], reply.pieces[-1][0]
    assert last_s - first_s > 0.4


# -- what the second request finds -----------------------------------------------------------------------------------


def test_a_retry_after_keeps_the_next_request_away_from_the_target(road: Road) -> None:
    """One 429 with Retry-After is enough: the primary is not asked again."""
    lane = road.lanes.take()
    road.primary.script(rate_limited(retry_after=30))

    first, second = road.gateway.chat(lane.model), road.gateway.chat(lane.model)

    assert (200, "model_fallback", lane.by_fallback, "2") == told(first)
    assert (200, "model_fallback", lane.by_fallback, "1") == told(second)
    assert (1, 2) == road.counts


def test_three_failures_in_a_row_keep_the_next_request_away(road: Road) -> None:
    """The first three requests still ask the primary, the fourth does not."""
    lane = road.lanes.take()
    road.primary.script(error(503))

    attempts = [road.gateway.chat(lane.tiered).header("x-gateway-attempts") for _ in range(3)]
    fourth = road.gateway.chat(lane.tiered)

    assert ["2", "2", "2"] == attempts
    assert (200, "health_reroute", lane.by_fallback, "1") == told(fourth)
    assert (3, 4) == road.counts


def test_silent_attempts_count_against_the_target_too(road: Road) -> None:
    """Nobody answers a timeout, yet after three of them the target is left out."""
    lane = road.lanes.take("quick")
    road.primary.script(silence())
    for _ in range(3):
        road.gateway.chat(lane.model)

    def cooling() -> bool:
        return road.gateway.metric("gateway_target_state", subject=lane.by_primary, state="cooling") == 1

    road.gateway.wait_until(cooling, "the silent target to cool")
    assert (200, "model_fallback", lane.by_fallback, "1") == told(road.gateway.chat(lane.model))
    assert 3 == road.primary.count()


def test_a_target_comes_back_after_its_retry_after(road: Road) -> None:
    """Cooling ends at the time that the provider named."""
    lane = road.lanes.take("brief")
    road.primary.script([rate_limited(retry_after=1), ok("back")])
    assert "2" == road.gateway.chat(lane.model).header("x-gateway-attempts")

    def is_back() -> bool:
        return road.gateway.chat(lane.model).header("x-gateway-served-by") == lane.by_primary

    road.gateway.wait_until(is_back, "the primary to serve again", 5.0)


@pytest.mark.parametrize("behaviour", [error(400), error(422), error(413)], ids=["400", "422", "413"])
def test_the_callers_own_mistakes_do_not_count_against_the_target(road: Road, behaviour: Behaviour) -> None:
    """Six refused requests later the primary serves as before."""
    lane = road.lanes.take()
    road.primary.script(behaviour)
    for _ in range(6):
        road.gateway.chat(lane.model)
    road.primary.script(ok())

    assert (200, "direct", lane.by_primary, "1") == told(road.gateway.chat(lane.model))


# -- errors that are the caller's ------------------------------------------------------------------------------------


@streamed
def test_a_400_is_returned_unchanged_after_one_attempt(road: Road, stream: bool) -> None:
    """Status, body bytes and content type are the provider's; nobody else is asked; nobody served."""
    lane = road.lanes.take()
    body = b'{"error": {"message":"bad \\u00e9 \xc3\xa9 \\"x\\"",  "type":"invalid_request_error","code":null}}\n'
    road.primary.script(answer(400, body, {"x-ratelimit-limit-requests": "10"}, "application/json; charset=utf-8"))

    reply = road.gateway.chat(lane.model, stream=stream)

    assert (400, "none", None, "1") == told(reply)
    assert (body, "application/json; charset=utf-8") == (reply.body, reply.header("content-type"))
    assert "10" == reply.header("x-ratelimit-limit-requests")
    assert (1, 0) == road.counts
    road.will_log(reply, classes=["invalid_request"], route_mode="none", status=400, served_by=None, attempts=1)


def test_a_400_at_the_fallback_ends_the_request(road: Road) -> None:
    """A later attempt's 400 is final too; the caller gets the first meaningful error, here the 429."""
    lane = road.lanes.take()
    road.primary.script(rate_limited())
    road.fallback.script(error(400, message="no such field"))

    reply = road.gateway.chat(lane.wide)

    assert (429, "none", None, "2") == told(reply)
    assert (1, 1) == road.counts


# -- every provider fails --------------------------------------------------------------------------------------------


@streamed
def test_the_first_meaningful_error_is_the_answer_when_everyone_fails(road: Road, stream: bool) -> None:
    """A 429 then a 500: the caller gets the 429 as it came, and advice not to try at once."""
    lane = road.lanes.take("once")
    road.primary.script(rate_limited(retry_after=17, headers={"x-ratelimit-remaining-requests": "0"}))
    road.fallback.script(error(500, message="broken"))

    reply = road.gateway.chat(lane.model, stream=stream)

    assert (429, "none", None, "2") == told(reply)
    assert ("Rate limit reached", "17", "0", "false") == (
        reply.json["error"]["message"],
        reply.header("retry-after"),
        reply.header("x-ratelimit-remaining-requests"),
        reply.header("x-should-retry"),
    )
    road.will_log(reply, classes=["rate_limited", "server_error"])


def test_an_answered_error_beats_the_silence_that_follows(road: Road) -> None:
    """First 429, then nothing: the caller gets the 429."""
    lane = road.lanes.take("quick")
    road.primary.script(rate_limited())
    road.fallback.script(silence())

    reply = road.gateway.chat(lane.model)

    assert (429, "Rate limit reached") == (reply.status, reply.json["error"]["message"])
    assert (1, 1) == road.counts


def test_an_answered_error_beats_the_silence_before_it(road: Road) -> None:
    """First nothing, then 503: the answered error is the meaningful one."""
    lane = road.lanes.take("quick")
    road.primary.script(silence())
    road.fallback.script(error(503, message="overloaded at the fallback"))

    reply = road.gateway.chat(lane.model)

    assert (503, "overloaded at the fallback") == (reply.status, reply.json["error"]["message"])


@streamed
def test_silence_everywhere_is_a_504(road: Road, stream: bool) -> None:
    """Nobody answered in time, and the gateway says so in its own words."""
    lane = road.lanes.take("quick")
    road.primary.script(silence())
    road.fallback.script(silence())

    reply = road.gateway.chat(lane.model, stream=stream)

    assert (504, "none", None, "2") == told(reply)
    assert ("upstream_timeout", "false") == (reply.json["error"]["code"], reply.header("x-should-retry"))
    assert (1, 1) == road.counts
    road.will_log(reply, classes=["timeout", "timeout"], route_mode="none", served_by=None)


@streamed
def test_refusals_everywhere_are_a_502(road: Road, stream: bool) -> None:
    """Nobody could be reached."""
    lane = road.lanes.take()
    road.primary.stop()
    road.fallback.stop()

    reply = road.gateway.chat(lane.model, stream=stream)

    assert (502, "none", None) == told(reply)[:3]
    assert "upstream_connect_failed" == reply.json["error"]["code"]
    road.will_log(reply, classes=["connection", "connection"], route_mode="none", served_by=None)


def test_pages_instead_of_answers_everywhere_are_a_502(road: Road) -> None:
    """A 200 with a web page never reaches the caller."""
    lane = road.lanes.take()
    road.primary.script(html_200())
    road.fallback.script(html_200())

    reply = road.gateway.chat(lane.model)

    assert (502, "upstream_bad_answer") == (reply.status, reply.json["error"]["code"])


def test_an_error_page_keeps_its_content_type(road: Road) -> None:
    """A proxy's HTML error arrives as HTML."""
    lane = road.lanes.take("once")
    page = "<html><body>502 Bad Gateway</body></html>"
    road.primary.script(answer(502, page, content_type="text/html; charset=utf-8"))

    reply = road.gateway.chat(lane.alone)

    assert (502, page.encode(), "text/html; charset=utf-8") == (reply.status, reply.body, reply.header("content-type"))


def test_an_error_of_3_mb_is_cut_to_64_kib(road: Road) -> None:
    """The caller gets the beginning, whole and in good order, and the gateway lives on."""
    lane = road.lanes.take("once")
    road.primary.script(big_error(500, 3 << 20))

    reply = road.gateway.chat(lane.alone)
    road.primary.script(ok())
    after = road.gateway.chat(road.lanes.take().alone)

    assert (500, "clean") == (reply.status, reply.ended)
    assert 0 < len(reply.body) <= 64 * 1024
    assert reply.body.startswith(b'{"error":{"message":"xxx')
    assert 200 == after.status


# -- limits ----------------------------------------------------------------------------------------------------------


def test_attempts_are_not_exceeded(road: Road) -> None:
    """Two attempts, three targets: the third is never asked."""
    lane = road.lanes.take("two")
    road.primary.script(error(503))
    road.fallback.script([error(503, message="second"), ok()])

    reply = road.gateway.chat(lane.wide)

    assert (503, "none", None, "2") == told(reply)
    assert (1, 1) == road.counts


def test_silent_attempts_are_not_exceeded_either(road: Road) -> None:
    """Envoy retries resets by itself, and still not more often than the policy says."""
    lane = road.lanes.take("two")
    road.primary.script(reset())
    road.fallback.script(reset())

    reply = road.gateway.chat(lane.wide)

    assert (502, "upstream_connect_failed") == (reply.status, reply.json["error"]["code"])
    assert (1, 1) == road.counts


@streamed
def test_no_attempt_starts_after_the_deadline(road: Road, stream: bool) -> None:
    """The first attempt is silent beyond the deadline, so the fallback is never asked."""
    lane = road.lanes.take("late")
    road.primary.script(silence())

    reply = road.gateway.chat(lane.model, stream=stream)

    assert (504, "upstream_timeout") == (reply.status, reply.json["error"]["code"])
    assert (1, 0) == road.counts


def test_an_answered_failure_after_the_deadline_is_the_answer(road: Road) -> None:
    """A late 503 is not retried."""
    lane = road.lanes.take("late")
    road.primary.script(silence(0.4, then=error(503, message="late")))

    reply = road.gateway.chat(lane.model)

    assert (503, "late") == (reply.status, reply.json["error"]["message"])
    assert (1, 0) == road.counts


# -- the same target again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["alone", "model"])
def test_a_fast_500_is_tried_once_more_at_the_same_target(road: Road, shape: str) -> None:
    """The second try serves and keeps the first attempt's mode."""
    lane = road.lanes.take()
    road.primary.script([error(500), ok("second try")])

    reply = road.gateway.chat(getattr(lane, shape))

    assert (200, "direct", lane.by_primary, "2") == told(reply)
    assert "second try" == reply.text
    assert (2, 0) == road.counts


def test_a_second_500_moves_on_to_the_fallback(road: Road) -> None:
    """One more try, not more."""
    lane = road.lanes.take()
    road.primary.script(error(500))

    reply = road.gateway.chat(lane.model)

    assert (200, "model_fallback", lane.by_fallback, "3") == told(reply)
    assert (2, 1) == road.counts
    road.will_log(reply, classes=["server_error", "server_error"])


def test_a_short_retry_after_is_waited_for(road: Road) -> None:
    """The target said one second, so it is asked again after one second."""
    lane = road.lanes.take()
    road.primary.script([rate_limited(retry_after=1), ok("after the wait")])

    reply = road.gateway.chat(lane.model)

    assert (200, "direct", lane.by_primary, "2") == told(reply)
    first, second = (seen.at for seen in road.primary.requests)
    assert 0.9 <= second - first < 3


# -- everything is down ----------------------------------------------------------------------------------------------


def test_with_fail_an_unhealthy_model_is_refused_at_once(road: Road) -> None:
    """503 no_healthy_target, with the time at which it makes sense to come back."""
    lane = road.lanes.take("strict")
    road.primary.script(rate_limited(retry_after=30))
    road.gateway.chat(lane.alone)

    reply = road.gateway.chat(lane.alone)

    assert (503, "none", None) == told(reply)[:3]
    assert ("no_healthy_target", "false") == (reply.json["error"]["code"], reply.header("x-should-retry"))
    assert 25 <= int(reply.header("retry-after") or 0) <= 30
    assert 1 == road.primary.count()


def test_with_least_bad_an_unhealthy_model_is_still_tried(road: Road) -> None:
    """The default: better a doubtful attempt than none."""
    lane = road.lanes.take()
    road.primary.script([rate_limited(retry_after=30), ok("after all")])
    road.gateway.chat(lane.alone)

    reply = road.gateway.chat(lane.alone)

    assert (200, "last_resort", lane.by_primary, "1") == told(reply)
    assert 2 == road.primary.count()


# -- many at once ----------------------------------------------------------------------------------------------------


def test_forty_callers_at_once_are_all_served_by_the_fallback(road: Road) -> None:
    """Failovers of concurrent requests do not mix: each caller gets its own answer."""
    lane = road.lanes.take()
    road.primary.script(error(503))
    road.fallback.script(lambda seen: ok(seen.json["messages"][0]["content"]))

    def ask(number: int) -> tuple[int, str]:
        reply = road.gateway.chat(lane.model, messages=[{"role": "user", "content": f"caller {number}"}])
        return reply.status, reply.text

    with ThreadPoolExecutor(20) as callers:
        answers = list(callers.map(ask, range(40)))

    assert [(200, f"caller {number}") for number in range(40)] == answers


# -- the record ------------------------------------------------------------------------------------------------------


def test_the_access_log_tells_what_happened_to_each_request(road: Road) -> None:
    """Failed classes in order, mode and server of every request above; runs last, when all of them are flushed."""
    assert 200 == road.gateway.chat(road.lanes.take().model).status

    def rows() -> dict[str, dict[str, Any]]:
        logged = {row["request_id"]: row for row in road.gateway.access_log()}
        return logged if road.to_log.keys() <= logged.keys() else {}

    logged = road.gateway.wait_until(rows, "every request to be logged", 20.0) if road.to_log else {}

    seen = {request: {key: logged[request][key] for key in row} for request, row in road.to_log.items()}
    assert road.to_log == seen


def test_the_access_log_counts_attempts_as_the_caller_is_told(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall
) -> None:
    """Also where nobody answered: what the gateway does with itself to say so is no attempt."""
    primary.script(reset())
    fallback.script(reset())
    gateway = gateway_factory(two_providers(primary, fallback))

    reply = gateway.chat()

    assert (502, "none", None, "2") == told(reply)
    assert 2 == gateway.logged(reply)["attempts"]
