"""Snapshot -> the route configuration: one route for each policy and kind, matched by what Python decided.

Which timers a route has is the table in docs/envoy.md section 5: `per_try_timeout` and `per_try_idle_timeout` never
together.
"""

from __future__ import annotations

from collections.abc import Sequence

from extproc.config.snapshot import Policy, Snapshot
from extproc.core.attempt import TIMER_SLACK_S, silence_limit_s
from extproc.core.endpoints import HEALTH_PATH, Kind
from extproc.core.outcome import RouteMode
from extproc.envoy_config.filters import EXT_PROC
from extproc.envoy_config.resource import Json, any_of, extension, seconds
from extproc.wire import names

ROUTE_CONFIG = "gateway"
_NET_S = 30.0
"""Above the longest silence that our own timers allow: the route's idle timer is only a net under them."""
_EARLY_S = 2 * TIMER_SLACK_S
"""How early a busy Envoy's timers may run out: where one stands for the deadline, the deadline is then over."""


def route_configuration(snapshot: Snapshot) -> Json:
    """Return the one RouteConfiguration of a snapshot."""
    used = sorted({model.policy for model in snapshot.models.values()})
    routes = [_health_route()]
    routes += [_policy_route(snapshot.policies[name], kind) for name in used for kind in Kind]
    routes.append(_no_plan_route())
    return any_of(
        "envoy.config.route.v3.RouteConfiguration",
        name=ROUTE_CONFIG,
        virtual_hosts=[
            {
                "name": "gateway",
                "domains": ["*"],
                "include_request_attempt_count": True,
                "response_headers_to_add": [
                    _if_absent(names.H_ATTEMPTS, "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
                    _if_absent(names.H_VERSION, f"%DYNAMIC_METADATA({names.METADATA}:{names.M_VERSION})%"),
                ],
                "routes": routes,
            }
        ],
    )


def merge_routes(configurations: Sequence[Json]) -> Json:
    """Return the last configuration with the routes of all: a request matches by the policy it was decided under.

    Of two routes with one name the later counts; what a request without a plan matches stays the last.
    """
    newest = configurations[-1]
    (host,) = newest["virtual_hosts"]
    *own, no_plan = host["routes"]
    names_of_own = {route["name"] for route in host["routes"]}
    others = {
        route["name"]: route
        for configuration in configurations[:-1]
        for route in configuration["virtual_hosts"][0]["routes"]
        if route["name"] not in names_of_own
    }
    return newest | {"virtual_hosts": [host | {"routes": [*own, *others.values(), no_plan]}]}


def _health_route() -> Json:
    return {
        "name": "healthz",
        "match": {"path": HEALTH_PATH},
        "direct_response": {"status": 200, "body": {"inline_string": '{"status":"alive"}'}},
        "response_headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in (("content-type", "application/json"), (names.H_ROUTE_MODE, RouteMode.NONE.value))
        ],
        "typed_per_filter_config": {
            EXT_PROC: any_of("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", disabled=True)
        },
    }


def _policy_route(policy: Policy, kind: Kind) -> Json:
    retry: Json = {
        # Exactly these: a list of statuses would retry what Python said to stop (docs/envoy.md section 2).
        "retry_on": "reset,connect-failure,retriable-headers",
        "retriable_headers": [{"name": names.H_RETRY, "present_match": True}],
        "num_retries": policy.attempts,
        "refresh_cluster_on_retry": True,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
        **_silence_timer(policy, kind),
    }
    route: Json = {
        "inline_cluster_specifier_plugin": {"extension": _plan_executor()},
        "retry_policy": retry,
        "timeout": "0s",
        "idle_timeout": seconds(_idle_net_s(policy)),
        "auto_host_rewrite": True,
    }
    if policy.max_duration_s:
        route["max_stream_duration"] = {"max_stream_duration": seconds(policy.max_duration_s)}
    return {
        "name": f"{policy.name}-{kind}",
        "match": {
            "prefix": "/",
            "dynamic_metadata": [_equals(names.M_POLICY, policy.name), _equals(names.M_KIND, kind)],
        },
        "route": route,
    }


def _silence_timer(policy: Policy, kind: Kind) -> Json:
    limit_s = silence_limit_s(kind, policy)
    held = kind is Kind.STREAM and policy.stream_guard != "off"
    if held and policy.stream_guard == "complete":
        limit_s += _EARLY_S
    return {"per_try_timeout" if held else "per_try_idle_timeout": seconds(limit_s)}


def _idle_net_s(policy: Policy) -> float:
    longest_s = max(policy.first_byte_timeout_s, policy.first_token_timeout_s, policy.stream_idle_timeout_s)
    return policy.deadline_s + longest_s + _NET_S


def _plan_executor() -> Json:
    return extension(
        "envoy.router.cluster_specifier_plugin.priority_group",
        "envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
        priority_groups=[{"name": "default", "clusters": [{"cluster_name": names.CLUSTER_STOP, "weight": 1}]}],
        override_metadata_namespace=names.METADATA_PLAN,
    )


def _no_plan_route() -> Json:
    """Return what a request matches before it has a plan, and all it gets when Python never saw it."""
    return {"name": "no-plan", "match": {"prefix": "/"}, "direct_response": {"status": 404}}


def _equals(key: str, value: str) -> Json:
    return {
        "filter": names.METADATA,
        "path": [{"key": key}],
        "value": {"string_match": {"exact": value}},
    }


def _if_absent(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "ADD_IF_ABSENT"}
