"""The snapshot, its immutability, the canonical form and the digest."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.config.compile import canonical_json, compile_snapshot, digest
from extproc.config.errors import ConfigErrors
from extproc.config.load import load_config
from extproc.config.snapshot import (
    Cooldown,
    Policy,
    ProviderTls,
    SameTarget,
    SecretRef,
    Server,
    Snapshot,
    Telemetry,
)
from tests.unit.config.build import FULL, SMALL, Steps, edited, load

BUILT_IN_DEFAULT = Policy(
    name="default",
    attempts=3,
    deadline_s=90.0,
    max_duration_s=1800.0,
    connect_timeout_s=2.0,
    first_byte_timeout_s=60.0,
    first_token_timeout_s=15.0,
    stream_idle_timeout_s=30.0,
    stream_guard="first_token",
    same_target=SameTarget(
        max=1,
        on=frozenset({"server_error", "rate_limited"}),
        backoff_s=0.25,
        max_backoff_s=2.0,
        retry_after_up_to_s=3.0,
        only_if_faster_than_s=1.0,
    ),
    cooldown=Cooldown(
        base_s=15.0,
        factor=2.0,
        max_s=120.0,
        jitter=0.1,
        consecutive=3,
        failure_ratio=0.5,
        window_s=30.0,
        min_requests=5,
        quota_s=1800.0,
        cap_s=86_400.0,
    ),
    when_all_down="least_bad",
    force_usage=False,
)


def compiled(config: dict[str, Any]) -> Snapshot:
    """Compile plain data as version 1."""
    return compile_snapshot(load(config), 1)


def test_the_default_policy_is_the_documented_one() -> None:
    assert {"default": BUILT_IN_DEFAULT} == dict(compiled(SMALL).policies)


def test_a_policy_starts_from_the_built_in_defaults_and_not_from_the_users_default() -> None:
    policies = compiled(edited(SMALL, ("policies",), {"default": {"attempts": 7}, "fast": {}})).policies
    assert dataclasses.replace(BUILT_IN_DEFAULT, attempts=7) == policies["default"]
    assert dataclasses.replace(BUILT_IN_DEFAULT, name="fast") == policies["fast"]


def test_a_partial_section_keeps_the_other_defaults() -> None:
    policy = compiled(edited(SMALL, ("policies", "default"), {"same_target": {"max": 3}, "cooldown": {"base": "1s"}}))
    assert dataclasses.replace(BUILT_IN_DEFAULT.same_target, max=3) == policy.policies["default"].same_target
    assert dataclasses.replace(BUILT_IN_DEFAULT.cooldown, base_s=1.0) == policy.policies["default"].cooldown


def test_a_model_without_a_policy_uses_the_default() -> None:
    assert "default" == compiled(SMALL).models["gpt-4o"].policy


def test_what_a_small_file_leaves_out_has_its_documented_default() -> None:
    snapshot = compiled(SMALL)
    provider = snapshot.providers["openai"]
    where = (provider.scheme, provider.host, provider.port, provider.path_prefix)
    assert ("https", "api.openai.com", 443, "/v1") == where
    assert (None, "authorization", "Bearer ") == (
        provider.api_key,
        provider.auth_header,
        provider.auth_prefix,
    )
    assert (ProviderTls(), False, 1024, 1024) == (
        provider.tls,
        provider.allow_private_network,
        provider.max_connections,
        provider.max_pending,
    )
    assert Server(50 << 20, 0.2, False, None, None) == snapshot.server
    assert Telemetry(1_000_000, 2_592_000.0, None, 0.0) == snapshot.telemetry
    assert snapshot.clients is None


@pytest.mark.parametrize(
    ("protocol", "auth", "expected"),
    [
        ("openai", None, ("authorization", "Bearer ")),
        ("anthropic", None, ("x-api-key", "")),
        ("openai", {"header": "Api-Key"}, ("api-key", "")),
        ("openai", {"header": "Authorization"}, ("authorization", "Bearer ")),
        ("anthropic", {"header": "authorization"}, ("authorization", "Bearer ")),
        ("openai", {"prefix": "Token "}, ("authorization", "Token ")),
        ("anthropic", {"header": "x-key", "prefix": "k="}, ("x-key", "k=")),
    ],
)
def test_auth_has_its_default_by_protocol(
    protocol: str, auth: dict[str, str] | None, expected: tuple[str, str]
) -> None:
    config = edited(SMALL, ("providers", "openai", "protocol"), protocol)
    if auth is not None:
        config = edited(config, ("providers", "openai", "auth"), auth)
    provider = compiled(config).providers["openai"]
    assert expected == (provider.auth_header, provider.auth_prefix)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ({"env": "OPENAI_API_KEY"}, SecretRef("env", "OPENAI_API_KEY")),
        ({"file": "/run/secrets/openai"}, SecretRef("file", "/run/secrets/openai")),
    ],
)
def test_a_key_is_a_reference(key: dict[str, str], expected: SecretRef) -> None:
    assert expected == compiled(edited(SMALL, ("providers", "openai", "api_key"), key)).providers["openai"].api_key


def test_anthropic_gets_no_version_header_from_the_config() -> None:
    provider = compiled(edited(SMALL, ("providers", "openai", "protocol"), "anthropic")).providers["openai"]
    assert () == provider.headers


def test_one_digest_may_stand_without_a_list() -> None:
    config = edited(SMALL, ("clients",), [{"name": "a", "token_sha256": "AB" * 32}])
    clients = compiled(config).clients
    assert clients is not None
    assert (("ab" * 32,), ("*",), None) == (
        clients[0].token_sha256,
        clients[0].models,
        clients[0].requests_per_minute,
    )


def test_patterns_are_tried_longest_literal_prefix_first() -> None:
    names = ["*", "gpt-*", "gpt-*-mini", "gpt-4*", "a*", "b*"]
    targets = {"targets": [{"provider": "openai", "model": "*"}]}
    snapshot = compiled(edited(SMALL, ("models",), {"gpt-4o": targets, **dict.fromkeys(names, targets)}))
    assert ["gpt-4*", "gpt-*-mini", "gpt-*", "a*", "b*", "*"] == [model.name for model in snapshot.globs]


def values(value: object) -> Iterator[object]:
    """Walk everything that a snapshot holds."""
    yield value
    if dataclasses.is_dataclass(value):
        children: list[object] = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, MappingProxyType):
        children = [*value.keys(), *value.values()]
    elif isinstance(value, tuple | frozenset):
        children = list(value)
    else:
        children = []
    for child in children:
        yield from values(child)


def test_a_snapshot_is_immutable_all_the_way_down() -> None:
    scalars = (str, int, float, type(None), tuple, frozenset)
    for value in values(compiled(FULL)):
        if isinstance(value, MappingProxyType):
            with pytest.raises(TypeError):
                value["new"] = 1  # type: ignore[index]
        elif dataclasses.is_dataclass(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, dataclasses.fields(value)[0].name, None)
        else:
            assert isinstance(value, scalars)


def test_the_compiler_checks_references_of_a_config_that_no_file_gave() -> None:
    config = load(SMALL)
    lost = config.model_copy(update={"providers": {}})
    with pytest.raises(ConfigErrors) as caught:
        compile_snapshot(lost, 1)
    expected = "models.gpt-4o.targets[0].provider: names a provider that does not exist; add it under providers"
    assert expected == str(caught.value)


def test_the_digest_is_the_sha_256_of_the_canonical_json() -> None:
    snapshot = compile_snapshot(load(SMALL), 7)
    assert (7, digest(load(SMALL))) == (snapshot.version, snapshot.digest)
    assert canonical_json(load(SMALL)).startswith(b'{"models":{"gpt-4o":{')


def shuffled(value: Any, order: random.Random) -> Any:
    """Return the same data with the keys of every mapping in another order."""
    if isinstance(value, dict):
        keys = order.sample(list(value), len(value))
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@settings(max_examples=25)
@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(order: random.Random) -> None:
    assert compiled(FULL) == compiled(shuffled(FULL, order))


def test_comments_and_spelling_do_not_matter() -> None:
    one = """
schema: 1
providers: {o: {base_url: "https://H.example:443/v1/", headers: {X-Team: a}, api_key: {env: K}}}
models:
  m: {targets: [{provider: o, model: m}]}   # the only one
server: {max_body: 1MiB}
policies: {p: {deadline: 1m30s, same_target: {on: [server_error, rate_limited, server_error]}}}
clients: [{name: a, token_sha256: "%s"}]
""" % ("AB" * 32)
    other = """
schema: 1
providers:
  o: {base_url: https://h.example/v1, headers: {x-team: "a"}, api_key: {env: K}, auth: {prefix: "Bearer "}}
models: {m: {targets: [{model: m, provider: o, weight: 1, tier: 0}], policy: default, fallback: []}}
server: {max_body: 1048576, retry_budget: 0.2}
policies: {default: {attempts: 3}, p: {deadline: 90s, same_target: {on: [rate_limited, server_error]}}}
clients: [{name: a, token_sha256: [%s], models: ["*"]}]
telemetry: {}
""" % ("ab" * 32)
    assert canonical_json(load_config(one)) == canonical_json(load_config(other))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("models", "big", "targets"), list(reversed(FULL["models"]["big"]["targets"]))),
        (("clients",), ...),
        (("models", "small"), {"targets": [{"provider": "first", "model": "s"}]}),
        (("policies", "more"), {}),
        (("providers", "third"), {"base_url": "https://third.example.com"}),
    ],
)
def test_a_change_of_structure_changes_the_digest(path: Steps, value: object) -> None:
    assert digest(load(FULL)) != digest(load(edited(FULL, path, value)))
