"""Every key of the file reaches the snapshot, and has a test that proves what it does.

`PROOFS` names that test for each key. Here only the two ends are checked: that no key is without one, and that the one
it names is there.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from extproc.config.compile import canonical_json, compile_snapshot, digest
from extproc.config.keys import bare_type, field_types
from extproc.config.load import load_config
from extproc.config.model import GatewayConfig
from extproc.config.snapshot import Snapshot
from tests.unit.config.build import FULL, Steps, edited, load

REFUSED = {
    "schema": "there is one schema so far",
    "providers.*.health_check.model": "refused with `is not supported yet; use path`",
    "providers.*.health_check.daily_cap": "refused with `is not supported yet; use path`",
}
"""Keys that have one value, or none."""

TESTS = Path(__file__).parents[2]
RULES = "unit/config/test_rules.py::test_a_broken_rule_is_the_one_thing_said"
ROUTE = "unit/core/test_route.py::TestARequestThatCanBeServed"
CLIENT_LIMITS = "unit/core/test_route.py::TestAClientBeyondItsLimits"
PLAN = "unit/core/test_plan.py"
HEALTH = "unit/core/test_health.py"
RETRY = "unit/core/test_retry.py"
SECRETS = "unit/envoy_config/test_secrets.py"
CLUSTERS = "unit/envoy_config/test_clusters.py"
ROUTES = "unit/envoy_config/test_routes.py::TestTimers"
CHECKS = "unit/test_checks.py"
PROOFS = {
    "schema": RULES,
    "providers.*.base_url": f"{ROUTE}::test_follows_the_base_url_and_the_static_query_of_its_target",
    "providers.*.protocol": f"{PLAN}::TestTheProtocol::test_of_a_target_must_be_the_endpoint_s",
    "providers.*.api_key.env": f"{SECRETS}::TestASecret::test_is_the_header_s_whole_value",
    "providers.*.api_key.file": f"{SECRETS}::TestASecret::test_comes_from_a_file_as_well",
    "providers.*.auth.header": (
        f"{CLUSTERS}::TestTheUpstreamChain::test_injects_the_key_into_the_header_that_the_provider_names"
    ),
    "providers.*.auth.prefix": f"{SECRETS}::TestASecret::test_has_its_own_prefix",
    "providers.*.headers": (f"{CLUSTERS}::TestTheUpstreamChain::test_sends_static_headers_and_asks_for_no_compression"),
    "providers.*.query": f"{ROUTE}::test_follows_the_base_url_and_the_static_query_of_its_target",
    "providers.*.error_codes": (
        "unit/core/test_judge.py::TestAFailureThatAnotherTargetMayMend::test_is_understood_by_the_operator_s_own_codes"
    ),
    "providers.*.health_check.path": f"{CHECKS}::test_a_check_asks_for_its_path_at_its_cluster",
    "providers.*.health_check.interval": f"{CHECKS}::test_a_changed_interval_holds_from_the_next_check_on",
    "providers.*.health_check.timeout": f"{CHECKS}::test_a_check_may_take_as_long_as_the_config_says",
    "providers.*.health_check.model": RULES,
    "providers.*.health_check.daily_cap": RULES,
    "providers.*.tls.ca_file": f"{CLUSTERS}::TestReachingAProvider::test_over_tls_uses_the_operator_s_files",
    "providers.*.tls.client_cert_file": f"{CLUSTERS}::TestReachingAProvider::test_over_tls_uses_the_operator_s_files",
    "providers.*.tls.client_key_file": f"{CLUSTERS}::TestReachingAProvider::test_over_tls_uses_the_operator_s_files",
    "providers.*.allow_private_network": (
        f"{CLUSTERS}::TestTheUpstreamChain::test_refuses_addresses_that_the_provider_may_not_have"
    ),
    "providers.*.limits.max_connections": (
        f"{CLUSTERS}::TestLimits::test_follow_the_provider_and_never_run_out_of_retries"
    ),
    "providers.*.limits.max_pending": (
        "unit/core/test_in_flight.py::test_an_account_is_full_with_its_connections_taken_and_its_queue_long_enough"
    ),
    "models.*.targets[].provider": f"{ROUTE}::test_has_a_step_for_each_attempt_with_cluster_path_and_mode",
    "models.*.targets[].model": (
        "unit/core/test_attempt.py::TestAnAttemptThatIsSent::test_names_its_own_model_at_its_own_path"
    ),
    "models.*.targets[].weight": f"{PLAN}::TestWeights::test_share_out_the_first_place",
    "models.*.targets[].tier": f"{PLAN}::TestTheOrder::test_goes_by_tier_not_by_place_in_the_file",
    "models.*.fallback": f"{PLAN}::TestTheOrder::test_puts_fallback_models_behind_the_model_s_own_targets",
    "models.*.context_fallback": (
        "unit/core/test_aftermath.py::TestALargerContext::test_is_looked_for_where_the_model_says"
    ),
    "models.*.context_window": "unit/config/test_lint.py::test_what_has_no_effect_is_found_at_its_path",
    "models.*.affinity.header": (
        "unit/core/test_affinity.py::TestWhatStandsForASession::test_is_in_whatever_header_or_field_the_model_names"
    ),
    "models.*.affinity.body": (
        "unit/core/test_affinity.py::TestWhatStandsForASession::test_is_in_whatever_header_or_field_the_model_names"
    ),
    "models.*.affinity.ttl": "unit/core/test_gateway.py::TestASession::test_is_forgotten_after_its_time_to_live",
    "models.*.policy": f"{ROUTE}::test_is_held_to_the_policy_that_its_model_names",
    "policies.*.attempts": f"{ROUTE}::test_is_planned_no_further_than_its_policy_has_attempts",
    "policies.*.deadline": "unit/core/test_aftermath.py::TestTheEnd::test_comes_when_the_deadline_has_passed",
    "policies.*.max_duration": f"{ROUTES}::test_leave_the_whole_request_to_the_policy",
    "policies.*.connect_timeout": (
        f"{CLUSTERS}::TestWhichClustersThereAre::test_each_policy_goes_to_the_one_with_its_connect_timeout"
    ),
    "policies.*.first_byte_timeout": f"{ROUTES}::test_bound_the_silence_of_each_kind",
    "policies.*.first_token_timeout": f"{ROUTES}::test_bound_the_silence_of_each_kind",
    "policies.*.stream_idle_timeout": f"{ROUTES}::test_bound_the_silence_of_each_kind",
    "policies.*.stream_guard": (
        "e2e/test_stream_breaks.py::test_under_complete_a_stream_that_breaks_is_replaced_by_a_whole_one"
    ),
    "policies.*.same_target.max": f"{RETRY}::test_max_zero_never_tries_the_same_target_again",
    "policies.*.same_target.on": f"{RETRY}::test_a_class_that_the_policy_does_not_list_is_not_tried_again",
    "policies.*.same_target.backoff": f"{RETRY}::test_the_back_off_begins_where_the_policy_says",
    "policies.*.same_target.max_backoff": f"{RETRY}::test_the_back_off_ends_where_the_policy_says",
    "policies.*.same_target.retry_after_up_to": (
        f"{RETRY}::test_a_retry_after_is_waited_for_as_long_as_the_policy_says"
    ),
    "policies.*.same_target.only_if_faster_than": f"{RETRY}::test_a_failure_is_slow_when_the_policy_says",
    "policies.*.cooldown.base": "unit/core/test_gateway.py::TestPlans::test_know_when_a_target_can_serve_again",
    "policies.*.cooldown.factor": f"{HEALTH}::test_cooldowns_grow_by_the_factor_that_the_policy_says",
    "policies.*.cooldown.max": f"{HEALTH}::test_cooldowns_grow_up_to_the_maximum_that_the_policy_says",
    "policies.*.cooldown.jitter": f"{HEALTH}::test_the_length_is_jittered_by_the_share_that_the_policy_says",
    "policies.*.cooldown.consecutive": (
        f"{HEALTH}::test_a_target_trips_after_as_many_failures_in_a_row_as_the_policy_says"
    ),
    "policies.*.cooldown.failure_ratio": (
        f"{HEALTH}::test_a_target_trips_at_the_share_of_failures_that_the_policy_says"
    ),
    "policies.*.cooldown.window": f"{HEALTH}::test_failures_count_for_as_long_as_the_policy_says",
    "policies.*.cooldown.min_requests": (f"{HEALTH}::test_a_share_counts_from_as_many_requests_as_the_policy_says"),
    "policies.*.cooldown.quota": f"{HEALTH}::test_a_spent_quota_cools_as_long_as_the_policy_says",
    "policies.*.cooldown.cap": f"{HEALTH}::test_a_told_time_is_capped",
    "policies.*.when_all_down": f"{PLAN}::TestWhenAllAreDown::test_fail_offers_none_but_says_why",
    "policies.*.force_usage": f"{ROUTE}::test_asks_for_the_usage_of_a_stream_only_where_the_policy_says_so",
    "clients[].name": f"{ROUTE}::test_holds_the_client_s_name",
    "clients[].token_sha256": "unit/core/test_clients.py::test_any_of_a_client_s_tokens_is_accepted",
    "clients[].models": "unit/core/test_route.py::TestARefusalOfTheBody::test_that_names_a_model_of_others",
    "clients[].expires": "unit/core/test_clients.py::test_of_two_tokens_the_last_ends_when_it_expires",
    "clients[].requests_per_minute": f"{CLIENT_LIMITS}::test_of_requests_a_minute_waits_until_the_next_one_fits",
    "clients[].concurrent_requests": f"{CLIENT_LIMITS}::test_of_requests_at_one_time_waits_until_one_has_ended",
    "server.max_body": "unit/core/test_route.py::TestARefusalOfTheBody::test_that_is_larger_than_allowed",
    "server.retry_budget": (
        "unit/core/test_gateway.py::TestPlans::test_may_pile_on_a_failed_account_by_the_share_that_the_config_says"
    ),
    "server.trust_route_headers": (
        "unit/core/test_route.py::TestAPinnedTarget::test_is_the_whole_plan_of_a_trusted_caller"
    ),
    "server.tls.cert_file": f"{SECRETS}::TestTheFrontCertificate::test_is_what_the_two_files_of_the_config_hold",
    "server.tls.key_file": f"{SECRETS}::TestTheFrontCertificate::test_is_what_the_two_files_of_the_config_hold",
    "telemetry.ledger.max_rows": "unit/test_ledger.py::test_keeps_as_much_as_the_config_says",
    "telemetry.ledger.max_age": "unit/test_ledger.py::test_keeps_as_much_as_the_config_says",
    "telemetry.otlp.endpoint": ("unit/envoy_config/test_tracing.py::test_a_collector_must_be_who_the_endpoint_says"),
    "telemetry.otlp.sample": "unit/envoy_config/test_tracing.py::test_as_many_requests_are_traced_as_the_config_says",
}
"""Key -> the test, below `tests/`, that fails when the key has no effect on what the gateway does."""

FIRST: Steps = ("providers", "first")
BIG: Steps = ("models", "big")
PATIENT: Steps = ("policies", "patient")
CHANGES: dict[str, tuple[Steps, object]] = {
    "providers.*.base_url": ((*FIRST, "base_url"), "https://api.example.com:8443/v2"),
    "providers.*.protocol": ((*FIRST, "protocol"), "anthropic"),
    "providers.*.api_key.env": ((*FIRST, "api_key", "env"), "OTHER_KEY"),
    "providers.*.api_key.file": (("providers", "second", "api_key", "file"), "/run/secrets/other"),
    "providers.*.auth.header": ((*FIRST, "auth", "header"), "x-key"),
    "providers.*.auth.prefix": ((*FIRST, "auth", "prefix"), "Token "),
    "providers.*.headers": ((*FIRST, "headers"), {"x-team": "b"}),
    "providers.*.query": ((*FIRST, "query"), {"api-version": "2024-10-21"}),
    "providers.*.error_codes": ((*FIRST, "error_codes"), {"broke": "rate_limited"}),
    "providers.*.health_check.path": ((*FIRST, "health_check", "path"), "/up"),
    "providers.*.health_check.interval": ((*FIRST, "health_check", "interval"), "20s"),
    "providers.*.health_check.timeout": ((*FIRST, "health_check", "timeout"), "1s"),
    "providers.*.tls.ca_file": ((*FIRST, "tls", "ca_file"), "/ca2"),
    "providers.*.tls.client_cert_file": ((*FIRST, "tls", "client_cert_file"), "/cert2"),
    "providers.*.tls.client_key_file": ((*FIRST, "tls", "client_key_file"), "/key2"),
    "providers.*.allow_private_network": ((*FIRST, "allow_private_network"), True),
    "providers.*.limits.max_connections": ((*FIRST, "limits", "max_connections"), 11),
    "providers.*.limits.max_pending": ((*FIRST, "limits", "max_pending"), 21),
    "models.*.targets[].provider": ((*BIG, "targets", 0, "provider"), "second"),
    "models.*.targets[].model": ((*BIG, "targets", 0, "model"), "big-3"),
    "models.*.targets[].weight": ((*BIG, "targets", 0, "weight"), 4),
    "models.*.targets[].tier": ((*BIG, "targets", 0, "tier"), 2),
    "models.*.fallback": ((*BIG, "fallback"), ["any-x"]),
    "models.*.context_fallback": ((*BIG, "context_fallback"), ["any-x", "small"]),
    "models.*.context_window": ((*BIG, "context_window"), 1001),
    "models.*.affinity.header": ((*BIG, "affinity", "header"), "x-other"),
    "models.*.affinity.body": (("models", "small", "affinity", "body"), "session"),
    "models.*.affinity.ttl": ((*BIG, "affinity", "ttl"), "31m"),
    "models.*.policy": ((*BIG, "policy"), "default"),
    "policies.*.attempts": ((*PATIENT, "attempts"), 5),
    "policies.*.deadline": ((*PATIENT, "deadline"), "81s"),
    "policies.*.max_duration": ((*PATIENT, "max_duration"), "0"),
    "policies.*.connect_timeout": ((*PATIENT, "connect_timeout"), "4s"),
    "policies.*.first_byte_timeout": ((*PATIENT, "first_byte_timeout"), "51s"),
    "policies.*.first_token_timeout": ((*PATIENT, "first_token_timeout"), "21s"),
    "policies.*.stream_idle_timeout": ((*PATIENT, "stream_idle_timeout"), "41s"),
    "policies.*.stream_guard": ((*PATIENT, "stream_guard"), "off"),
    "policies.*.same_target.max": ((*PATIENT, "same_target", "max"), 0),
    "policies.*.same_target.on": ((*PATIENT, "same_target", "on"), ["overloaded"]),
    "policies.*.same_target.backoff": ((*PATIENT, "same_target", "backoff"), "201ms"),
    "policies.*.same_target.max_backoff": ((*PATIENT, "same_target", "max_backoff"), "4s"),
    "policies.*.same_target.retry_after_up_to": ((*PATIENT, "same_target", "retry_after_up_to"), "5s"),
    "policies.*.same_target.only_if_faster_than": ((*PATIENT, "same_target", "only_if_faster_than"), "3s"),
    "policies.*.cooldown.base": ((*PATIENT, "cooldown", "base"), "11s"),
    "policies.*.cooldown.factor": ((*PATIENT, "cooldown", "factor"), 3.5),
    "policies.*.cooldown.max": ((*PATIENT, "cooldown", "max"), "101s"),
    "policies.*.cooldown.jitter": ((*PATIENT, "cooldown", "jitter"), 0),
    "policies.*.cooldown.consecutive": ((*PATIENT, "cooldown", "consecutive"), 5),
    "policies.*.cooldown.failure_ratio": ((*PATIENT, "cooldown", "failure_ratio"), 1),
    "policies.*.cooldown.window": ((*PATIENT, "cooldown", "window"), "21s"),
    "policies.*.cooldown.min_requests": ((*PATIENT, "cooldown", "min_requests"), 7),
    "policies.*.cooldown.quota": ((*PATIENT, "cooldown", "quota"), "21m"),
    "policies.*.cooldown.cap": ((*PATIENT, "cooldown", "cap"), "13h"),
    "policies.*.when_all_down": ((*PATIENT, "when_all_down"), "least_bad"),
    "policies.*.force_usage": ((*PATIENT, "force_usage"), False),
    "clients[].name": (("clients", 0, "name"), "team-c"),
    "clients[].token_sha256": (("clients", 0, "token_sha256"), ["a" * 64, "d" * 64]),
    "clients[].models": (("clients", 0, "models"), ["big", "any-*"]),
    "clients[].expires": (("clients", 1, "expires"), "2031-01-01T00:00:00Z"),
    "clients[].requests_per_minute": (("clients", 0, "requests_per_minute"), 61),
    "clients[].concurrent_requests": (("clients", 0, "concurrent_requests"), 6),
    "server.max_body": (("server", "max_body"), 2000),
    "server.retry_budget": (("server", "retry_budget"), 0),
    "server.trust_route_headers": (("server", "trust_route_headers"), False),
    "server.tls.cert_file": (("server", "tls", "cert_file"), "/server2.crt"),
    "server.tls.key_file": (("server", "tls", "key_file"), "/server2.key"),
    "telemetry.ledger.max_rows": (("telemetry", "ledger", "max_rows"), 5001),
    "telemetry.ledger.max_age": (("telemetry", "ledger", "max_age"), "8d"),
    "telemetry.otlp.endpoint": (("telemetry", "otlp", "endpoint"), "http://127.0.0.1:4318"),
    "telemetry.otlp.sample": (("telemetry", "otlp", "sample"), 0.6),
}
"""Key -> where it stands in `FULL`, and another value for it."""


def leaf_keys(section: type[BaseModel] = GatewayConfig, prefix: str = "") -> Iterator[str]:
    """Walk the pydantic models and yield every key that holds a value of its own."""
    for key, kind in field_types(section).items():
        path, inner = f"{prefix}{key}", kind
        if get_origin(kind) is dict:
            path, inner = f"{path}.*", bare_type(get_args(kind)[1])
        elif get_origin(kind) is tuple:
            path, inner = f"{path}[]", bare_type(get_args(kind)[0])
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaf_keys(inner, f"{path}.")
        else:
            yield f"{prefix}{key}"


def compiled(config: dict[str, Any]) -> Snapshot:
    """Compile without the digest, which changes with everything."""
    return dataclasses.replace(compile_snapshot(load(config), 1), digest="")


def test_the_table_of_changes_names_every_key_of_the_file() -> None:
    """A key that is added to the model must be added here too."""
    assert sorted([*CHANGES, *REFUSED]) == sorted(leaf_keys())


@pytest.mark.parametrize("key", CHANGES)
def test_changing_a_key_changes_the_snapshot(key: str) -> None:
    """A key that is parsed and then forgotten would pass silently without this."""
    assert compiled(FULL) != compiled(edited(FULL, *CHANGES[key]))


@pytest.mark.parametrize("key", CHANGES)
def test_changing_a_key_changes_the_digest(key: str) -> None:
    """Two versions that differ in anything are told apart."""
    assert digest(load(FULL)) != digest(load(edited(FULL, *CHANGES[key])))


@settings(max_examples=60)
@given(st.sets(st.sampled_from(sorted(CHANGES)), max_size=8))
def test_canonical_json_is_a_config_file_that_means_the_same(keys: set[str]) -> None:
    """A stored version compiles to what was published."""
    config = FULL
    for key in sorted(keys):
        config = edited(config, *CHANGES[key])
    first = load(config)
    again = load_config(canonical_json(first).decode())
    assert first == again
    assert canonical_json(first) == canonical_json(again)


def names_of_tests(path: Path) -> set[str]:
    """Read a test file and return what pytest would call its tests."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else []
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        named = [one.name for one in [node, *inside] if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        found.update(f"{prefix}{name}" for name in named if name.startswith("test_"))
    return found


def test_every_key_has_one_proof_of_its_effect() -> None:
    """A key that is added to the model must be added here, with the test that shows what it does."""
    assert sorted(PROOFS) == sorted(leaf_keys())


def test_every_proof_is_a_test() -> None:
    """A test that is renamed or removed takes its keys along."""
    places = {proof: proof.partition("::") for proof in PROOFS.values()}
    assert [] == sorted(proof for proof, (file, _, name) in places.items() if name not in names_of_tests(TESTS / file))
