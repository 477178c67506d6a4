"""Metrics count each request and attempt once, with labels that no caller can make up."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.exchange import Close, Part, Pass, RequestHeaders, Respond
from extproc.core.health_state import State, Transition
from extproc.core.outcome import ErrorClass, Failure
from extproc.telemetry import TimedExchange
from tests.support.stories import CONFIG, FIRST, NOW, SECOND, THIRD, Scene, served


@pytest.fixture
def scene() -> Scene:
    """Make a gateway whose metrics are all 0."""
    return Scene()


def requests(scene: Scene, **labels: str) -> float:
    """Return the requests with exactly these labels."""
    default = {"model": "big", "served_model": "big", "provider": "first", "route_mode": "balanced", "code": "200"}
    return scene.metric("gateway_requests_total", **{**default, **labels})


def one(scene: Scene, **more: Any) -> None:
    """Let one request be served by its first choice."""
    scene.begin("r")
    scene.attempt_ends("r", "first-cluster")
    scene.request_ends("r", **{"told": served(), **more})


def test_a_request_counts_once(scene: Scene) -> None:
    one(scene)
    assert (1.0, 1) == (requests(scene), len(scene.stories))
    assert 1.0 == scene.metric("gateway_request_seconds_count", model="big")


def test_the_order_of_envoys_reports_does_not_matter(scene: Scene) -> None:
    scene.begin("r")
    scene.request_ends("r", told=served())
    assert [] == scene.stories
    scene.attempt_ends("r", "first-cluster")
    assert (1.0, 1) == (requests(scene), len(scene.stories))


def test_an_attempt_counts_once_by_its_verdict(scene: Scene) -> None:
    state = scene.begin("r")
    scene.gateway.requests.attempt_failed(state, Failure(ErrorClass.OVERLOADED, 503), NOW)
    scene.gateway.requests.attempt_failed(state, Failure(ErrorClass.TIMEOUT), NOW)
    scene.attempt_ends("r", "first-cluster", 503)
    scene.request_ends("r", 503, told={"model": "big", "route_mode": "none", "attempts": "1"})
    assert 1.0 == scene.metric("gateway_attempts_total", provider="first", model="big-1", **{"class": "overloaded"})
    assert 0.0 == scene.metric("gateway_attempts_total", provider="first", model="big-1", **{"class": "timeout"})


def test_a_success_counts_as_such(scene: Scene) -> None:
    one(scene)
    assert 1.0 == scene.metric("gateway_attempts_total", provider="first", model="big-1", **{"class": "success"})


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/v1/models/big", "/v1/models?x=1"])
def test_a_question_about_the_gateway_is_no_request(scene: Scene, path: str) -> None:
    scene.request_ends("q", attempts=0, path=path, told={"route_mode": "none"})
    assert (0.0, []) == (requests(scene, model="none", served_model="none", provider="none", route_mode="none"), [])
    assert [] == scene.stories


def test_a_name_that_nobody_configured_makes_no_series(scene: Scene) -> None:
    told = served(model="invented", mode="strange") | {"model": "invented-7", "served_by": "evil/x"}
    scene.request_ends("r", 999, told=told)
    assert 1.0 == requests(scene, model="other", served_model="none", provider="none", route_mode="none", code="other")


def test_a_request_counts_for_its_client() -> None:
    """Names are the config's own; `none` is a caller without one."""
    digest = "0" * 64
    known = Scene({**CONFIG, "clients": [{"name": "team-a", "token_sha256": digest}]})
    for number, name in enumerate(("team-a", "team-a", "gone", "")):
        known.request_ends(f"r{number}", 200 if number else 429, attempts=0, told=served(client=name))
    found = [
        known.metric("gateway_client_requests_total", client=client, code=code)
        for client, code in (("team-a", "429"), ("team-a", "200"), ("other", "200"), ("none", "200"))
    ]
    assert [1.0, 1.0, 1.0, 1.0] == found


def test_names_behind_a_glob_share_a_series(scene: Scene) -> None:
    for number in range(3):
        scene.begin(f"r{number}", f"any-{number}")
        scene.attempt_ends(f"r{number}", "third-cluster")
        by = THIRD._replace(model=f"any-{number}")
        told = served(by, f"any-{number}", "direct", model_="") | {"model": f"any-{number}"}
        scene.request_ends(f"r{number}", told=told)
    labels = {"model": "any-*", "served_model": "any-*", "provider": "third", "route_mode": "direct"}
    assert 3.0 == requests(scene, **labels)
    assert 3.0 == scene.metric("gateway_attempts_total", provider="third", model="*", **{"class": "success"})


def test_tokens_count_for_the_target_that_made_them(scene: Scene) -> None:
    one(scene, tokens={"input": 7, "output": 3, "unheard_of": 9})
    assert 7.0 == scene.metric("gateway_tokens_total", provider="first", model="big-1", type="input")
    assert 3.0 == scene.metric("gateway_tokens_total", provider="first", model="big-1", type="output")


def test_the_first_token_counts_for_streams_only(scene: Scene) -> None:
    one(scene, first_byte_s=0.2)
    assert 0.0 == scene.metric("gateway_first_token_seconds_count", model="big", provider="first")
    scene.request_ends("s", first_byte_s=0.2, told=served(kind="stream"))
    assert 1.0 == scene.metric("gateway_first_token_seconds_count", model="big", provider="first")


def test_a_caller_who_left_is_counted(scene: Scene) -> None:
    one(scene, status=0, flags=frozenset({"downstream_remote_reset"}), told={"model": "big", "route_mode": ""})
    assert 1.0 == scene.metric("gateway_client_aborts_total")
    assert 1.0 == requests(scene, served_model="none", provider="none", route_mode="none", code="0")


def test_a_move_says_from_where_to_where_and_why(scene: Scene) -> None:
    state = scene.begin("r")
    scene.gateway.requests.attempt_failed(state, Failure(ErrorClass.OVERLOADED, 503), NOW)
    scene.gateway.requests.open_attempt(state.opened(2, NOW + 0.5, ("overloaded",)), NOW + 0.5)
    scene.attempt_ends("r", "first-cluster", 503)
    scene.attempt_ends("r", "second-cluster")
    scene.request_ends("r", attempts=2, told=served(SECOND, mode="provider_failover"))
    move = {"from": "first/big-1", "to": "second/big-2", "reason": "overloaded"}
    assert 1.0 == scene.metric("gateway_fallbacks_total", **move)
    assert (1.0, 0.5) == (
        scene.metric("gateway_failover_seconds_count"),
        scene.metric("gateway_failover_seconds_sum"),
    )


def test_a_move_without_a_failed_attempt_has_healths_reason(scene: Scene) -> None:
    scene.trip(FIRST)
    scene.begin("r")
    scene.attempt_ends("r", "second-cluster")
    scene.request_ends("r", told=served(SECOND, mode="health_reroute"))
    move = {"from": "first/big-1", "to": "second/big-2", "reason": "rate_limited"}
    assert 1.0 == scene.metric("gateway_fallbacks_total", **move)


def test_a_first_choice_is_no_move(scene: Scene) -> None:
    one(scene)
    assert not [s for family in scene.metrics.fallbacks.collect() for s in family.samples]


@pytest.mark.parametrize(
    ("reason", "label"), [("quota_exhausted", "quota_exhausted"), ("odd", "other"), (None, "other")]
)
def test_a_cooldown_counts_by_a_closed_set_of_reasons(scene: Scene, reason: str | None, label: str) -> None:
    scene.metrics.on_transition(Transition(FIRST, State.HEALTHY, State.COOLING, reason, None))
    assert 1.0 == scene.metric("gateway_cooldowns_total", reason=label)


def test_targets_that_callers_named_are_not_in_the_health_gauge(scene: Scene) -> None:
    scene.trip(THIRD._replace(model="any-secret"))
    scene.trip(FIRST)
    subjects = {
        sample.labels["subject"]
        for family in scene.metrics.registry.collect()
        if family.name == "gateway_target_state"
        for sample in family.samples
    }
    assert "first/big-1" in subjects
    assert "third/any-secret" not in subjects


class _Scripted:
    """An exchange that answers the first event with a pass and the second with an answer."""

    def __init__(self) -> None:
        self.events = 0

    def handle(self, event: Any, now: float) -> list[Any]:
        self.events += 1
        return [Pass(Part.REQUEST_HEADERS)] if self.events == 1 else [Respond(200, (), b"", 0), Close()]

    def closed(self, now: float) -> None:
        pass


def test_the_time_of_a_decision_is_told_once_with_its_answer() -> None:
    told: list[float] = []
    exchange = TimedExchange(_Scripted(), told.append)
    exchange.handle(object(), NOW)  # type: ignore[arg-type]
    assert [] == told
    exchange.handle(object(), NOW)  # type: ignore[arg-type]
    assert 1 == len(told)


@pytest.mark.parametrize(
    ("path", "times"),
    [("/readyz", 0), ("/healthz?x=1", 0), ("/v1/models", 0), ("/v1/models/big", 0), ("/v1/chat/completions", 1)],
)
def test_only_requests_have_a_decision_time(path: str, times: int) -> None:
    """Probes and the model list would drown them."""
    told: list[float] = []
    exchange = TimedExchange(_Scripted(), told.append)
    exchange.handle(RequestHeaders({":path": path}, end_of_stream=True), NOW)
    exchange.handle(object(), NOW)  # type: ignore[arg-type]
    assert times == len(told)
