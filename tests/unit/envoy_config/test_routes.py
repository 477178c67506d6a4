"""A route for each policy and kind, with the one timer that fits, and retries that only Python's word starts."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.endpoints import Kind
from extproc.envoy_config.routes import merge_routes
from extproc.wire import names
from tests.unit.config.build import edited
from tests.unit.envoy_config.build import ORDINARY, find, rendered

SLOW: dict[str, Any] = {
    "deadline": "80s",
    "max_duration": "20m",
    "first_byte_timeout": "50s",
    "first_token_timeout": "20s",
    "stream_idle_timeout": "40s",
}


def routes(policy: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Render the routes, by name; `policy` replaces the policy `patient`."""
    config = edited(ORDINARY, ("policies", "patient"), policy or SLOW)
    (host,) = rendered(config).rds["virtual_hosts"]
    return {route["name"]: route for route in host["routes"]}


def planned() -> list[dict[str, Any]]:
    """Return the routes of requests that have a plan, under each guard."""
    guards = ("off", "first_token", "complete")
    return [r for guard in guards for r in routes(SLOW | {"stream_guard": guard}).values() if "route" in r]


def timers(name: str, guard: str) -> dict[str, str]:
    """Return the per-try timers of a route."""
    retry = routes(SLOW | {"stream_guard": guard})[name]["route"]["retry_policy"]
    return {key: value for key, value in retry.items() if key.startswith("per_try_")}


def test_there_is_one_for_each_policy_in_use_and_kind() -> None:
    kinds = [f"{policy}-{kind}" for policy in ("default", "patient") for kind in Kind]
    assert ["healthz", *kinds, "no-plan"] == list(routes())


def test_the_policy_and_the_kind_that_python_chose_pick_it() -> None:
    matched = routes()["patient-stream"]["match"]["dynamic_metadata"]
    assert [
        {"filter": "gateway", "path": [{"key": "policy"}], "value": {"string_match": {"exact": "patient"}}},
        {"filter": "gateway", "path": [{"key": "kind"}], "value": {"string_match": {"exact": "stream"}}},
    ] == matched


class TestTimers:
    def test_never_run_both_at_once(self) -> None:
        """Once the one has run out inside an answer, the other is dead."""
        for route in planned():
            retry = route["route"]["retry_policy"]
            assert ("per_try_timeout" in retry) != ("per_try_idle_timeout" in retry)

    @pytest.mark.parametrize(
        ("name", "guard", "expected"),
        [
            ("patient-unary", "first_token", {"per_try_idle_timeout": "50s"}),
            ("patient-stream", "first_token", {"per_try_timeout": "20s"}),
            ("patient-stream", "complete", {"per_try_timeout": "80.1s"}),
            ("patient-stream", "off", {"per_try_idle_timeout": "40s"}),
            ("patient-stream_unguarded", "first_token", {"per_try_idle_timeout": "40s"}),
            ("patient-stream_unguarded", "complete", {"per_try_idle_timeout": "40s"}),
        ],
    )
    def test_bound_the_silence_of_each_kind(self, name: str, guard: str, expected: dict[str, str]) -> None:
        assert expected == timers(name, guard)

    def test_leave_the_whole_request_to_the_policy(self) -> None:
        route = routes()["patient-unary"]["route"]
        assert ("0s", {"max_stream_duration": "1200s"}) == (route["timeout"], route["max_stream_duration"])

    def test_set_no_limit_where_the_policy_has_none(self) -> None:
        assert "max_stream_duration" not in routes(SLOW | {"max_duration": "0s"})["patient-unary"]["route"]

    def test_have_a_net_above_the_longest_silence(self) -> None:
        assert {"160s"} == {routes()[f"patient-{kind}"]["route"]["idle_timeout"] for kind in Kind}

    @pytest.mark.parametrize(("written", "expected"), [("250ms", "0.25s"), ("1500ms", "1.5s"), ("20s", "20s")])
    def test_are_spelled_as_protobuf_reads_them(self, written: str, expected: str) -> None:
        assert {"per_try_timeout": expected} == {
            key: value
            for key, value in routes({"first_token_timeout": written})["patient-stream"]["route"][
                "retry_policy"
            ].items()
            if key.startswith("per_try_")
        }


class TestRetries:
    def test_happen_for_silence_and_for_python_s_word_only(self) -> None:
        """A list of statuses would retry what Python said to stop."""
        for route in planned():
            retry = route["route"]["retry_policy"]
            assert "reset,connect-failure,retriable-headers" == retry["retry_on"]
            assert [{"name": names.H_RETRY, "present_match": True}] == retry["retriable_headers"]
            assert "retriable_status_codes" not in retry

    def test_follow_the_plan_group_by_group(self) -> None:
        for route in planned():
            plugin = route["route"]["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
            assert names.METADATA_PLAN == plugin["override_metadata_namespace"]
            assert names.CLUSTER_STOP == plugin["priority_groups"][0]["clusters"][0]["cluster_name"]
            assert route["route"]["retry_policy"]["refresh_cluster_on_retry"] is True

    def test_reach_one_attempt_beyond_the_plan(self) -> None:
        """That one is ours: there we answer for a request whose attempts were all silent."""
        assert 5 == routes(SLOW | {"attempts": 5})["patient-unary"]["route"]["retry_policy"]["num_retries"]

    def test_start_at_once(self) -> None:
        backoff = routes()["patient-unary"]["route"]["retry_policy"]["retry_back_off"]
        assert {"base_interval": "0.001s", "max_interval": "0.002s"} == backoff

    def test_go_to_the_host_of_their_own_target(self) -> None:
        assert all(route["route"]["auto_host_rewrite"] for route in planned())


class TestTheRest:
    def test_of_the_paths_have_no_provider(self) -> None:
        assert {"status": 404} == routes()["no-plan"]["direct_response"]

    def test_liveness_is_envoy_s_own_and_asks_no_python(self) -> None:
        route = routes()["healthz"]
        assert ({"path": "/healthz"}, 200) == (route["match"], route["direct_response"]["status"])
        told = {one["header"]["key"]: one["header"]["value"] for one in route["response_headers_to_add"]}
        assert {"content-type": "application/json", "x-gateway-route-mode": "none"} == told
        assert [True] == [one["disabled"] for one in route["typed_per_filter_config"].values()]

    def test_counts_attempts_and_tells_the_caller_how_it_was_served(self) -> None:
        (host,) = rendered().rds["virtual_hosts"]
        headers = {one["header"]["key"]: one["append_action"] for one in host["response_headers_to_add"]}
        assert {names.H_ATTEMPTS: "ADD_IF_ABSENT", names.H_VERSION: "ADD_IF_ABSENT"} == headers
        assert host["include_request_attempt_count"] is True

    def test_no_header_or_metadata_of_a_client_picks_a_cluster(self) -> None:
        assert [] == [node for node in find(rendered().rds) if "cluster_header" in node]


def configuration(*policies: str, timer: str = "1s") -> dict[str, Any]:
    """Return a route configuration with one route a policy."""
    own = [{"name": f"{name}-unary", "timer": timer} for name in policies]
    return {"virtual_hosts": [{"routes": [{"name": "healthz"}, *own, {"name": "no-plan"}]}]}


def merged_names(*configurations: dict[str, Any]) -> list[str]:
    return [route["name"] for route in merge_routes(configurations)["virtual_hosts"][0]["routes"]]


def test_a_policy_that_only_an_older_version_has_keeps_its_route() -> None:
    """A request that began under it would match none, and its caller would get 404."""
    assert ["healthz", "new-unary", "old-unary", "no-plan"] == merged_names(configuration("old"), configuration("new"))


def test_of_two_routes_with_one_name_the_newer_counts() -> None:
    merged = merge_routes([configuration("same", timer="1s"), configuration("same", timer="9s")])
    assert ["9s"] == [route["timer"] for route in merged["virtual_hosts"][0]["routes"] if "timer" in route]


def test_one_version_alone_is_not_changed() -> None:
    assert configuration("a", "b") == merge_routes([configuration("a", "b")])
