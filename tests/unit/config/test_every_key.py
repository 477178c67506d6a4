"""Every key of the file reaches the snapshot, and every key whose behaviour is still to come is named.

`PENDING` is the honest list: a key that is parsed, compiled and not yet acted upon. A key leaves it together
with the test that proves its effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
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

PENDING = {
    "providers.*.error_codes": "the classification table comes with failure semantics",
    "providers.*.health_check.path": "active checks come with the health engine",
    "providers.*.health_check.interval": "active checks come with the health engine",
    "providers.*.health_check.timeout": "active checks come with the health engine",
    "models.*.context_fallback": "comes with failure semantics",
    "models.*.affinity.header": "comes with session affinity",
    "models.*.affinity.body": "comes with session affinity",
    "models.*.affinity.ttl": "comes with session affinity",
    "policies.*.stream_guard": "comes with the stream guard",
    "policies.*.same_target.max": "comes with retries at the same target",
    "policies.*.same_target.on": "comes with retries at the same target",
    "policies.*.same_target.backoff": "comes with retries at the same target",
    "policies.*.same_target.max_backoff": "comes with retries at the same target",
    "policies.*.same_target.retry_after_up_to": "comes with retries at the same target",
    "policies.*.same_target.only_if_faster_than": "comes with retries at the same target",
    "policies.*.cooldown.factor": "comes with the health engine",
    "policies.*.cooldown.max": "comes with the health engine",
    "policies.*.cooldown.jitter": "comes with the health engine",
    "policies.*.cooldown.consecutive": "comes with the health engine",
    "policies.*.cooldown.failure_ratio": "comes with the health engine",
    "policies.*.cooldown.window": "comes with the health engine",
    "policies.*.cooldown.min_requests": "comes with the health engine",
    "policies.*.cooldown.quota": "comes with the health engine",
    "policies.*.cooldown.cap": "comes with the health engine",
    "policies.*.force_usage": "comes with token accounting",
    "server.retry_budget": "comes with retry budgets",
    "telemetry.ledger.max_rows": "comes with the ledger",
    "telemetry.ledger.max_age": "comes with the ledger",
    "telemetry.otlp.endpoint": "comes with tracing",
    "telemetry.otlp.sample": "comes with tracing",
}
"""Key -> when its behaviour comes. All of them are in the snapshot already."""

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


def test_pending_names_only_keys_that_exist() -> None:
    """A key that was renamed or removed does not stay pending."""
    assert set() == set(PENDING) - set(CHANGES)


def test_every_pending_key_says_when_it_comes() -> None:
    """A reason is one short phrase."""
    assert [] == [key for key, reason in PENDING.items() if not reason.startswith(("comes with", "the ", "active"))]
