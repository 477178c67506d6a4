"""The story of a request: what it holds, that it survives being stored, and that the plan can be made again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from extproc.core.aftermath import GoOn, after_failure, open_case
from extproc.core.feedback import AttemptLogged
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.story import (
    Replay,
    Story,
    attempts_from_json,
    attempts_to_json,
    candidates_from_json,
    candidates_to_json,
    explain_json,
    replay,
)
from tests.support.stories import CONFIG, FIRST, NOW, SECOND, THIRD, Scene, served, snapshot

TRUSTING: dict[str, Any] = {**CONFIG, "server": {"trust_route_headers": True}}


@pytest.fixture
def scene() -> Scene:
    """Make a gateway of two targets and a fallback, all healthy."""
    return Scene()


def told(scene: Scene, **more: Any) -> Story:
    """Tell of one request that its first choice served."""
    scene.begin("r")
    scene.attempt_ends("r", "first-cluster")
    scene.request_ends("r", told=served(), **more)
    return scene.story


class TestAStory:
    def test_names_every_candidate_with_its_place(self, scene: Scene) -> None:
        found = [(c.target, c.public_model, c.tier, c.weight, c.view.eligible) for c in told(scene).candidates]
        assert [(FIRST, "big", 0, 3, True), (SECOND, "big", 1, 1, True), (THIRD, "small", 0, 1, True)] == found

    def test_says_why_a_target_was_out_and_until_when(self, scene: Scene) -> None:
        scene.trip(FIRST)
        scene.begin("r")
        scene.attempt_ends("r", "second-cluster")
        scene.request_ends("r", told=served(SECOND, mode="health_reroute"))
        first, *others = scene.story.candidates
        assert ("rate_limited", "cooling", False) == (first.reason, first.view.state, first.view.eligible)
        assert first.view.until is not None
        assert first.view.until > NOW
        assert [None, None] == [c.reason for c in others]

    @pytest.mark.parametrize(
        ("kind", "failures", "evidence"),
        [
            (ErrorClass.RATE_LIMITED, 1, ("refused=1",)),
            (ErrorClass.OVERLOADED, 3, ("failures_in_a_row=3", "consecutive=3")),
            (ErrorClass.CONNECTION, 3, ("account.failures_in_a_row=3", "account.consecutive=3")),
        ],
    )
    def test_says_which_value_met_which_threshold(
        self, scene: Scene, kind: ErrorClass, failures: int, evidence: tuple[str, ...]
    ) -> None:
        for _ in range(failures):
            scene.trip(FIRST, kind)
        scene.begin("r")
        scene.attempt_ends("r", "second-cluster")
        scene.request_ends("r", told=served(SECOND, mode="health_reroute"))
        first, *others = scene.story.candidates
        assert (evidence, [(), ()]) == (first.evidence, [c.evidence for c in others])

    def test_has_the_outcome_that_envoy_saw(self, scene: Scene) -> None:
        story = told(scene, tokens={"input": 7, "output": 3}, response_bytes=9)
        assert ("served", 200, "first/big-1", "big", "balanced") == (
            story.outcome,
            story.status,
            story.served_by,
            story.served_model,
            story.route_mode,
        )
        assert ({"input": 7, "output": 3}, 9) == (story.tokens, story.response_bytes)

    def test_has_each_attempt_with_its_class_and_what_was_decided(self, scene: Scene) -> None:
        state = scene.begin("r")
        case = open_case(scene.gateway, state)
        assert case is not None
        failure = Failure(ErrorClass.OVERLOADED, 503, evidence=("status=503",))
        following = after_failure(scene.gateway, case, failure, None, NOW + 0.2)
        assert isinstance(following, GoOn)
        scene.gateway.requests.open_attempt(following.state.opened(2, NOW + 0.3, following.state.classes), NOW + 0.3)
        scene.attempt_ends("r", "first-cluster", 503)
        scene.attempt_ends("r", "second-cluster")
        scene.request_ends("r", attempts=2, told=served(SECOND, mode="provider_failover", attempts="2"))
        first, second = scene.story.attempts
        assert ("overloaded", 503, ("status=503",)) == (first.error_class, first.status, first.evidence)
        assert "next: another target, second/big-2" == first.next
        assert (None, NOW + 0.3, None) == (second.error_class, second.started, second.next)
        assert ("overloaded",) == scene.story.classes

    def test_of_a_caller_who_left_is_aborted(self, scene: Scene) -> None:
        scene.begin("r")
        left = frozenset({"downstream_connection_termination"})
        scene.attempt_ends("r", "first-cluster", 0, flags=left, first_byte_s=None)
        scene.request_ends("r", 0, flags=left, told={"route_mode": ""})
        assert ("aborted", "client_abort", "none") == (
            scene.story.outcome,
            scene.story.attempts[0].error_class,
            scene.story.route_mode,
        )

    def test_of_a_stream_that_broke_is_broken(self, scene: Scene) -> None:
        scene.begin("r", stream=True)
        scene.attempt_ends("r", "first-cluster", flags=frozenset({"upstream_remote_reset"}))
        scene.request_ends("r", told=served(kind="stream"))
        assert ("broken", ("stream_cut",)) == (scene.story.outcome, scene.story.classes)

    def test_of_a_request_without_a_healthy_target_has_its_candidates(self) -> None:
        scene = Scene({**CONFIG, "policies": {"default": {"when_all_down": "fail"}}})
        for key in (FIRST, SECOND, THIRD):
            scene.trip(key)
        scene.send("r")
        note = {"model": "big", "error": "no_healthy_target", "attempts": "0", "endpoint": "/v1/chat/completions"}
        scene.request_ends("r", 503, 0, told={**note, "route_mode": "none", "version": "1"})
        story = scene.story
        assert ("refused", "no_healthy_target") == (story.outcome, story.error)
        assert ["rate_limited"] * 3 == [c.reason for c in story.candidates]
        assert Replay(True, None) == replay(story, scene.snapshot)

    def test_of_a_request_that_another_process_began_has_its_attempts_in_order(self, scene: Scene) -> None:
        state = Scene().begin("r").failed("overloaded", None)
        second = state.opened(2, NOW + 0.5, state.classes)
        scene.gateway.requests.open_attempt(second, NOW + 0.5)
        told = served(SECOND, mode="provider_failover", attempts="2")
        last = AttemptLogged("r", "second-cluster", 200, frozenset(), 0.1, 0.2)
        scene.request_ends("r", attempts=2, told=told, classes=("overloaded",), last=last)
        story = scene.story
        assert [(1, FIRST, "overloaded"), (2, SECOND, None)] == [(a.n, a.target, a.error_class) for a in story.attempts]
        assert (2, ("overloaded",), None, ()) == (story.attempt_count, story.classes, story.ticket, story.candidates)
        assert ("details lost in a restart of extproc",) == story.attempts[0].evidence
        moves = scene.metric(
            "gateway_fallbacks_total", **{"from": "first/big-1", "to": "second/big-2", "reason": "overloaded"}
        )
        assert 1.0 == moves

    def test_is_told_from_envoys_word_alone_after_a_restart(self, scene: Scene) -> None:
        scene.request_ends("r", told=served(attempts="2"), classes=("timeout",))
        story = scene.story
        assert ("served", "first/big-1", 2, ("timeout",)) == (
            story.outcome,
            story.served_by,
            story.attempt_count,
            story.classes,
        )
        assert Replay(None, not_run="no plan was recorded for this request") == replay(story, scene.snapshot)

    def test_keeps_a_providers_own_words_out(self, scene: Scene) -> None:
        state = scene.begin("r")
        failure = Failure(ErrorClass.SERVER_ERROR, 500, evidence=("status=500", "code=sk-4f0c-secret-99"))
        scene.gateway.requests.attempt_failed(state, failure, NOW)
        scene.attempt_ends("r", "first-cluster", 500)
        scene.request_ends("r", 500, told={"route_mode": "none", "attempts": "1"})
        assert ("status=500", "code=other") == scene.story.attempts[0].evidence

    @pytest.mark.parametrize("code", ["insufficient_quota", "rate_limit_exceeded", "1302", "SomethingNew"])
    def test_keeps_codes_that_are_words_or_numbers(self, scene: Scene, code: str) -> None:
        state = scene.begin("r")
        scene.gateway.requests.attempt_failed(
            state, Failure(ErrorClass.SERVER_ERROR, 500, evidence=(f"code={code}",)), NOW
        )
        scene.attempt_ends("r", "first-cluster", 500)
        scene.request_ends("r", 500, told={"route_mode": "none", "attempts": "1"})
        assert (f"code={code}",) == scene.story.attempts[0].evidence

    def test_survives_its_json(self, scene: Scene) -> None:
        scene.trip(FIRST)
        story = told(scene)
        assert story.candidates == candidates_from_json(candidates_to_json(story.candidates))
        assert story.attempts == attempts_from_json(attempts_to_json(story.attempts))

    def test_explains_itself_in_the_fixed_shape(self, scene: Scene) -> None:
        explained = explain_json(told(scene), Replay(True, None))
        shape = ("request_id", "config_version", "route_mode", "served_by", "model", "candidates", "attempts", "replay")
        assert set(shape) <= explained.keys()
        assert {"target": "first/big-1", "eligible": True, "reason": None}.items() <= explained["candidates"][0].items()
        attempt = explained["attempts"][0]
        assert {"n", "target", "class", "status", "start_ms", "duration_ms", "evidence", "next"} <= attempt.keys()
        assert (1, None, 200, 0.0, 200.0) == tuple(
            attempt[key] for key in ("n", "class", "status", "start_ms", "duration_ms")
        )
        assert {"same": True, "differs": None, "not_run": None} == explained["replay"]


class TestARequestWhoseCallerLeftBeforeWeHeardOfIt:
    """Envoy's log may overtake the exchange that would begin a request or an attempt."""

    @pytest.fixture
    def left(self) -> Scene:
        scene = Scene()
        scene.request_ends("r", 0, attempts=0, flags=frozenset({"downstream_connection_termination"}))
        return scene

    def test_is_told_once_and_is_not_under_way(self, left: Scene) -> None:
        left.begin("r")
        assert (["aborted"], {}) == ([story.outcome for story in left.stories], dict(left.gateway.requests.by_id))

    def test_is_not_under_way_after_a_later_attempt_either(self, left: Scene) -> None:
        state = Scene().begin("r")
        left.gateway.requests.open_attempt(state.opened(2, NOW, ("overloaded",)), NOW)
        assert {} == dict(left.gateway.requests.by_id)

    def test_takes_none_of_its_providers_room(self, left: Scene) -> None:
        left.begin("r")
        assert 0 == left.gateway.in_flight.count("first")


class TestReplay:
    @pytest.mark.parametrize("out", [(), (FIRST,), (FIRST, SECOND), (FIRST, SECOND, THIRD), (THIRD,)], ids=str)
    def test_gives_the_same_plan_under_the_recorded_evidence(self, out: tuple[Any, ...]) -> None:
        scene = Scene()
        for key in out:
            scene.trip(key)
        for number in range(5):
            scene.begin(f"r{number}")
            cluster = scene.gateway.requests.by_id[f"r{number}"].attempts[0].step.cluster
            scene.attempt_ends(f"r{number}", cluster)
            scene.request_ends(f"r{number}", told=served())
        assert [Replay(True, None)] * 5 == [replay(story, scene.snapshot) for story in scene.stories]

    def test_says_what_differs_when_the_evidence_is_another(self, scene: Scene) -> None:
        story = told(scene)
        first, *others = story.candidates
        ill = first._replace(view=first.view._replace(eligible=False))
        found = replay(replace(story, candidates=(ill, *others)), scene.snapshot)
        assert found.same is False
        assert found.differs is not None
        assert found.differs.startswith("place 1 was first/big-1 (balanced), planned again second/big-2")

    def test_needs_the_content_of_that_version(self, scene: Scene) -> None:
        story = told(scene)
        other = snapshot({**CONFIG, "server": {"retry_budget": 0.5}})
        found = replay(story, other)
        why = "version 1 here has other content than the one this request was planned with"
        assert found == Replay(None, None, why)

    def test_says_that_a_version_is_gone(self, scene: Scene) -> None:
        assert Replay(None, not_run="version 1 is no longer at hand here") == replay(told(scene), None)

    def test_of_a_pinned_request_is_its_pin(self) -> None:
        scene = Scene(TRUSTING)
        state = scene.begin("r")
        assert state.plan
        record = scene.gateway.requests.by_id["r"]
        assert record.evidence is not None
        record.evidence = replace(record.evidence, pinned=True)
        record.first_plan = (state.plan[1]._replace(mode=state.plan[1].mode),)
        scene.attempt_ends("r", "first-cluster")
        scene.request_ends("r", told=served(mode="pinned"))
        assert Replay(True, None) == replay(scene.story, scene.snapshot)
