"""One row a rule: an edit of a valid config, and what is said about it."""

from __future__ import annotations

import pytest

from extproc.config.fields import ERROR_CLASSES, SHARED_HEADERS
from extproc.core.outcome import ErrorClass
from tests.unit.config.build import FULL, SMALL, Steps, edited, faults

PROVIDER: Steps = ("providers", "openai")
MODEL: Steps = ("models", "gpt-4o")
TARGET: Steps = (*MODEL, "targets", 0)
POLICY: Steps = ("policies", "default")
CLIENT = {"name": "a", "token_sha256": "a" * 64}

REQUIRED = "is required; add it"
TEXT = "must be text; put it in quotes"
WHOLE = "must be a whole number"
NUMBER = "must be a number"
BOOLEAN = "must be true or false"
MAPPING = "must be a mapping of keys to values"
LIST = "must be a list"
UNIT = "needs a unit: write 250ms, 10s, 2m, 1h or 30d"
NAME = "must be a name of lower-case letters, digits, - and _, up to 40 characters, not starting with - or _"
MODEL_NAME = "must be 1 to 200 printable characters without spaces"
UPSTREAM = "must be one name, or * alone for the name the client sent"
PUBLIC = "must be one model name, not a pattern"
PRINTABLE = "must be 1 to 2048 characters of text without control characters"
ABSOLUTE = "must be an absolute path, such as /run/secrets/x"
LITERAL_KEY = "must be {env: NAME} or {file: PATH}; a literal key is refused (the value is not shown)"
ONE_KEY = "must have exactly one of env and file: {env: OPENAI_API_KEY} or {file: /run/secrets/x}"
ENV_NAME = "must be the name of an environment variable, such as OPENAI_API_KEY"
HEADER = "is not a header name; use letters, digits and dashes"
CONNECTION_HEADER = "is a header of the connection itself and cannot be set; remove it"
RESERVED = "is reserved for the gateway; use a name without x-gateway- or x-envoy-"
CREDENTIAL = "is a credential header; use api_key (and auth for its header)"
OWN_HEADER = "is set by the gateway itself; remove it"
SHARED_HEADER = "is a header that every provider receives, and so the key; use another, such as authorization"
TWICE = "is given twice (header names ignore case; the auth header counts too); keep one"
HEADER_VALUE = "must be visible ASCII text in one line, without spaces at its ends"
SECRET_VALUE = "looks like a credential; use api_key (the value is not shown)"
PARAMETER = "is a credential parameter; use api_key (and auth for its header)"
PREFIX = "must be at most 64 visible ASCII characters, such as 'Bearer '"
CLASSES = f"must be one of: {', '.join(ERROR_CLASSES)}"
SAME_TARGET = "must be one of: rate_limited, overloaded, server_error, connection; other failures go to the next target"
NOT_YET = "is not supported yet; use path"
TOGETHER = "must have client_cert_file and client_key_file together; add the other one"
ONE_AFFINITY = "must have exactly one of header and body"
MOMENT = "must be a time with its offset, such as 2030-12-31T00:00:00Z"
DIGEST = "must be the SHA-256 of the token: 64 hexadecimal digits, as `configctl key hash` prints"
DIGESTS = "must be one digest, or two while a token is being replaced"
POSITIVE = "must be longer than 0"

REFUSALS: list[tuple[Steps, object, str, str]] = [
    # the file
    (("schema",), ..., "schema", REQUIRED),
    (("schema",), 2, "schema", "must be 1, the only schema that this gateway reads"),
    (("schema",), "1", "schema", WHOLE),
    (("schema",), True, "schema", WHOLE),
    (("models",), ..., "models", REQUIRED),
    (("models",), {}, "models", "is empty; add at least one model with its targets"),
    (("models",), [], "models", MAPPING),
    (
        ("providers",),
        ...,
        "models.gpt-4o.targets[0].provider",
        "names a provider that does not exist; add it under providers",
    ),
    (("modles",), {}, "modles", "unknown key 'modles'; did you mean 'models'?"),
    # providers
    (("providers", "Open AI"), {"base_url": "https://h"}, 'providers["Open AI"]', NAME),
    (("providers", "-x"), {"base_url": "https://h"}, "providers.-x", NAME),
    (("providers", "x" * 41), {"base_url": "https://h"}, "providers." + "x" * 41, NAME),
    ((*PROVIDER, "base_url"), ..., "providers.openai.base_url", REQUIRED),
    ((*PROVIDER, "base_url"), 7, "providers.openai.base_url", TEXT),
    ((*PROVIDER, "protocol"), "grpc", "providers.openai.protocol", "must be one of: openai, anthropic"),
    ((*PROVIDER, "api_key"), "sk-planted0123456789", "providers.openai.api_key", LITERAL_KEY),
    ((*PROVIDER, "api_key"), 123456, "providers.openai.api_key", LITERAL_KEY),
    ((*PROVIDER, "api_key"), {}, "providers.openai.api_key", ONE_KEY),
    ((*PROVIDER, "api_key"), {"env": "A", "file": "/a"}, "providers.openai.api_key", ONE_KEY),
    ((*PROVIDER, "api_key", "env"), "A-B", "providers.openai.api_key.env", ENV_NAME),
    ((*PROVIDER, "api_key", "env"), "AIza0123456789abcdef", "providers.openai.api_key.env", ENV_NAME),
    ((*PROVIDER, "api_key", "file"), "secrets/x", "providers.openai.api_key.file", ABSOLUTE),
    ((*PROVIDER, "auth", "header"), "a b", "providers.openai.auth.header", HEADER),
    ((*PROVIDER, "auth", "header"), ":path", "providers.openai.auth.header", HEADER),
    ((*PROVIDER, "auth", "header"), "Host", "providers.openai.auth.header", CONNECTION_HEADER),
    ((*PROVIDER, "auth", "header"), "x-envoy-key", "providers.openai.auth.header", RESERVED),
    ((*PROVIDER, "auth", "header"), "X-Request-Id", "providers.openai.auth.header", OWN_HEADER),
    ((*PROVIDER, "auth", "header"), "accept-encoding", "providers.openai.auth.header", OWN_HEADER),
    *(((*PROVIDER, "auth", "header"), name, "providers.openai.auth.header", SHARED_HEADER) for name in SHARED_HEADERS),
    (
        (*PROVIDER, "auth", "prefix"),
        "Bearer sk-planted0123456789",
        "providers.openai.auth.prefix",
        "looks like a credential; give only what stands before the key, such as 'Bearer '",
    ),
    ((*PROVIDER, "auth", "prefix"), "a\nb", "providers.openai.auth.prefix", PREFIX),
    ((*PROVIDER, "headers"), {"a:b": "x"}, "providers.openai.headers.a:b", HEADER),
    ((*PROVIDER, "headers"), {"": "x"}, 'providers.openai.headers[""]', HEADER),
    (
        (*PROVIDER, "headers"),
        {"Transfer-Encoding": "x"},
        "providers.openai.headers.Transfer-Encoding",
        CONNECTION_HEADER,
    ),
    (
        (*PROVIDER, "headers"),
        {"content-length": "1"},
        "providers.openai.headers.content-length",
        CONNECTION_HEADER,
    ),
    ((*PROVIDER, "headers"), {"x-request-id": "x"}, "providers.openai.headers.x-request-id", OWN_HEADER),
    ((*PROVIDER, "headers"), {"Accept-Encoding": "br"}, "providers.openai.headers.Accept-Encoding", OWN_HEADER),
    ((*PROVIDER, "headers"), {"connection": "x"}, "providers.openai.headers.connection", CONNECTION_HEADER),
    ((*PROVIDER, "headers"), {"X-Gateway-A": "x"}, "providers.openai.headers.X-Gateway-A", RESERVED),
    ((*PROVIDER, "headers"), {"Authorization": "x"}, "providers.openai.headers.Authorization", CREDENTIAL),
    ((*PROVIDER, "headers"), {"api-key": "x"}, "providers.openai.headers.api-key", CREDENTIAL),
    ((*PROVIDER, "headers"), {"X-Api-Key": "x"}, "providers.openai.headers.X-Api-Key", CREDENTIAL),
    ((*PROVIDER, "headers"), {"x-goog-api-key": "x"}, "providers.openai.headers.x-goog-api-key", CREDENTIAL),
    ((*PROVIDER, "headers"), {"Cookie": "x"}, "providers.openai.headers.Cookie", CREDENTIAL),
    ((*PROVIDER, "headers"), {"x-a": "1", "X-A": "2"}, "providers.openai.headers.X-A", TWICE),
    ((*PROVIDER, "headers"), {"x-a": "a\r\nb: c"}, "providers.openai.headers.x-a", HEADER_VALUE),
    ((*PROVIDER, "headers"), {"x-a": "a\x00"}, "providers.openai.headers.x-a", HEADER_VALUE),
    ((*PROVIDER, "headers"), {"x-a": " a"}, "providers.openai.headers.x-a", HEADER_VALUE),
    ((*PROVIDER, "headers"), {"x-a": "\u00e4"}, "providers.openai.headers.x-a", HEADER_VALUE),
    ((*PROVIDER, "headers"), {"x-a": 1}, "providers.openai.headers.x-a", TEXT),
    ((*PROVIDER, "headers"), {"x-a": "Bearer abc"}, "providers.openai.headers.x-a", SECRET_VALUE),
    ((*PROVIDER, "headers"), {"x-a": "sk-planted0123456789"}, "providers.openai.headers.x-a", SECRET_VALUE),
    ((*PROVIDER, "query"), {"key": "x"}, "providers.openai.query.key", PARAMETER),
    ((*PROVIDER, "query"), {"a": "sk-planted0123456789"}, "providers.openai.query.a", SECRET_VALUE),
    ((*PROVIDER, "query"), {"a": 2024}, "providers.openai.query.a", TEXT),
    ((*PROVIDER, "error_codes"), {"x": "broken"}, "providers.openai.error_codes.x", CLASSES),
    ((*PROVIDER, "health_check"), {"model": "m"}, "providers.openai.health_check.model", NOT_YET),
    (
        (*PROVIDER, "health_check"),
        {"path": "/h", "daily_cap": 3},
        "providers.openai.health_check.daily_cap",
        NOT_YET,
    ),
    ((*PROVIDER, "health_check"), {}, "providers.openai.health_check", "must have a path, such as /health"),
    (
        (*PROVIDER, "health_check"),
        {"path": "health"},
        "providers.openai.health_check.path",
        "must be a path that starts with a slash and has no query, such as /health",
    ),
    (
        (*PROVIDER, "health_check"),
        {"path": "/h", "interval": "1s"},
        "providers.openai.health_check",
        "must have a timeout of at most its interval",
    ),
    ((*PROVIDER, "tls"), {"client_cert_file": "/c"}, "providers.openai.tls", TOGETHER),
    ((*PROVIDER, "tls"), {"client_key_file": "/k"}, "providers.openai.tls", TOGETHER),
    ((*PROVIDER, "tls"), {"ca_file": "ca.pem"}, "providers.openai.tls.ca_file", ABSOLUTE),
    ((*PROVIDER, "allow_private_network"), "yes", "providers.openai.allow_private_network", BOOLEAN),
    (
        (*PROVIDER, "limits", "max_connections"),
        0,
        "providers.openai.limits.max_connections",
        "must be at least 1",
    ),
    ((*PROVIDER, "limits", "max_pending"), 0, "providers.openai.limits.max_pending", "must be at least 1"),
    # models
    (("models", "a b"), {"targets": [{"provider": "openai", "model": "m"}]}, 'models["a b"]', MODEL_NAME),
    (
        ("models", "x" * 201),
        {"targets": [{"provider": "openai", "model": "m"}]},
        'models["' + "x" * 80 + '..."]',
        MODEL_NAME,
    ),
    ((*MODEL, "targets"), ..., "models.gpt-4o.targets", REQUIRED),
    (
        (*MODEL, "targets"),
        [],
        "models.gpt-4o.targets",
        "is empty; add at least one {provider: ..., model: ...}",
    ),
    ((*MODEL, "targets"), {}, "models.gpt-4o.targets", LIST),
    ((*TARGET, "provider"), ..., "models.gpt-4o.targets[0].provider", REQUIRED),
    ((*TARGET, "model"), ..., "models.gpt-4o.targets[0].model", REQUIRED),
    (
        (*TARGET, "provider"),
        "opnai",
        "models.gpt-4o.targets[0].provider",
        "names a provider that does not exist; did you mean 'openai'?",
    ),
    ((*TARGET, "model"), "gpt-*", "models.gpt-4o.targets[0].model", UPSTREAM),
    ((*TARGET, "model"), "a b", "models.gpt-4o.targets[0].model", MODEL_NAME),
    ((*TARGET, "weight"), 0, "models.gpt-4o.targets[0].weight", "must be at least 1"),
    ((*TARGET, "weight"), 1001, "models.gpt-4o.targets[0].weight", "must be at most 1000"),
    ((*TARGET, "weight"), 1.5, "models.gpt-4o.targets[0].weight", WHOLE),
    ((*TARGET, "weight"), True, "models.gpt-4o.targets[0].weight", WHOLE),
    ((*TARGET, "tier"), -1, "models.gpt-4o.targets[0].tier", "must be at least 0"),
    ((*TARGET, "tier"), 17, "models.gpt-4o.targets[0].tier", "must be at most 16"),
    (
        (*MODEL, "targets"),
        [{"provider": "openai", "model": "m"}, {"provider": "openai", "model": "m", "tier": 1}],
        "models.gpt-4o.targets[1]",
        "repeats targets[0]; keep one and set its weight",
    ),
    ((*MODEL, "fallback"), ["gpt-4o"], "models.gpt-4o.fallback[0]", "is the model itself; name another one"),
    (
        (*MODEL, "fallback"),
        ["nope"],
        "models.gpt-4o.fallback[0]",
        "names a model that does not exist; known: gpt-4o",
    ),
    (
        (*MODEL, "context_fallback"),
        ["gpt-4"],
        "models.gpt-4o.context_fallback[0]",
        "names a model that does not exist; did you mean 'gpt-4o'?",
    ),
    ((*MODEL, "fallback"), ["*"], "models.gpt-4o.fallback[0]", PUBLIC),
    ((*MODEL, "fallback"), "gpt-4o", "models.gpt-4o.fallback", LIST),
    (
        (*MODEL, "policy"),
        "defalt",
        "models.gpt-4o.policy",
        "names a policy that does not exist; did you mean 'default'?",
    ),
    ((*MODEL, "context_window"), 0, "models.gpt-4o.context_window", "must be at least 1"),
    ((*MODEL, "affinity"), {}, "models.gpt-4o.affinity", ONE_AFFINITY),
    ((*MODEL, "affinity"), {"header": "x-a", "body": "user"}, "models.gpt-4o.affinity", ONE_AFFINITY),
    (
        (*MODEL, "affinity"),
        {"body": "a b"},
        "models.gpt-4o.affinity.body",
        "must be the name of a body field",
    ),
    ((*MODEL, "affinity"), {"body": "user", "ttl": "0s"}, "models.gpt-4o.affinity.ttl", POSITIVE),
    # policies
    (("policies", "Fast"), {}, "policies.Fast", NAME),
    ((*POLICY, "atempts"), 3, "policies.default.atempts", "unknown key 'atempts'; did you mean 'attempts'?"),
    ((*POLICY, "attempts"), 0, "policies.default.attempts", "must be at least 1"),
    ((*POLICY, "attempts"), 9, "policies.default.attempts", "must be at most 8"),
    ((*POLICY, "deadline"), 90, "policies.default.deadline", UNIT),
    *[
        ((*POLICY, key), "0s", f"policies.default.{key}", POSITIVE)
        for key in (
            "deadline",
            "connect_timeout",
            "first_byte_timeout",
            "first_token_timeout",
            "stream_idle_timeout",
        )
    ],
    (
        (*POLICY, "stream_guard"),
        "on",
        "policies.default.stream_guard",
        "must be one of: off, first_token, complete",
    ),
    ((*POLICY, "when_all_down"), "x", "policies.default.when_all_down", "must be one of: least_bad, fail"),
    ((*POLICY, "force_usage"), 1, "policies.default.force_usage", BOOLEAN),
    ((*POLICY, "same_target", "max"), 8, "policies.default.same_target.max", "must be at most 7"),
    *[
        ((*POLICY, "same_target", "on"), [word], "policies.default.same_target.on[0]", SAME_TARGET)
        for word in ("timeout", "context_length", "content_filtered", "quota_exhausted", "nonsense")
    ],
    (
        (*POLICY, "same_target", "backoff"),
        "3s",
        "policies.default.same_target",
        "must have a max_backoff of at least its backoff; raise max_backoff or lower backoff",
    ),
    ((*POLICY, "cooldown", "factor"), 0.9, "policies.default.cooldown.factor", "must be at least 1"),
    ((*POLICY, "cooldown", "jitter"), 1.1, "policies.default.cooldown.jitter", "must be at most 1"),
    ((*POLICY, "cooldown", "jitter"), "0.1", "policies.default.cooldown.jitter", NUMBER),
    ((*POLICY, "cooldown", "factor"), True, "policies.default.cooldown.factor", NUMBER),
    (
        (*POLICY, "cooldown", "failure_ratio"),
        0,
        "policies.default.cooldown.failure_ratio",
        "must be more than 0",
    ),
    (
        (*POLICY, "cooldown", "failure_ratio"),
        1.5,
        "policies.default.cooldown.failure_ratio",
        "must be at most 1",
    ),
    ((*POLICY, "cooldown", "consecutive"), 0, "policies.default.cooldown.consecutive", "must be at least 1"),
    (
        (*POLICY, "cooldown", "min_requests"),
        0,
        "policies.default.cooldown.min_requests",
        "must be at least 1",
    ),
    (
        (*POLICY, "cooldown", "base"),
        "3m",
        "policies.default.cooldown",
        "must have a max of at least its base; raise max or lower base",
    ),
    (
        (*POLICY, "cooldown", "quota"),
        "2d",
        "policies.default.cooldown",
        "must have a cap of at least its max and its quota; raise cap",
    ),
    # clients
    (
        ("clients",),
        [],
        "clients",
        "is empty; add a client, or remove the section to serve loopback only without tokens",
    ),
    (("clients",), None, "clients", "has no value; give it one or remove the key"),
    (("clients",), [{"name": "a"}], "clients[0].token_sha256", REQUIRED),
    (
        ("clients",),
        [{**CLIENT, "name": "a b"}],
        "clients[0].name",
        "must be a name of letters, digits and . _ @ -, up to 64 characters",
    ),
    (
        ("clients",),
        [CLIENT, {**CLIENT, "token_sha256": "b" * 64}],
        "clients[1].name",
        "is the name of clients[0] too; choose another",
    ),
    (
        ("clients",),
        [CLIENT, {"name": "b", "token_sha256": "A" * 64}],
        "clients[1].token_sha256",
        "is the token of clients[0] too; give every client its own",
    ),
    (("clients",), [{**CLIENT, "token_sha256": "gw-planted"}], "clients[0].token_sha256[0]", DIGEST),
    (("clients",), [{**CLIENT, "token_sha256": []}], "clients[0].token_sha256", DIGESTS),
    (
        ("clients",),
        [{**CLIENT, "token_sha256": ["a" * 64, "b" * 64, "c" * 64]}],
        "clients[0].token_sha256",
        DIGESTS,
    ),
    (
        ("clients",),
        [{**CLIENT, "models": []}],
        "clients[0].models",
        'is empty; name the models this client may use, or remove the key for ["*"]',
    ),
    (("clients",), [{**CLIENT, "models": ["a b"]}], "clients[0].models[0]", MODEL_NAME),
    (
        ("clients",),
        [{**CLIENT, "expires": "tomorrow"}],
        "clients[0].expires",
        MOMENT,
    ),
    (
        ("clients",),
        [{**CLIENT, "expires": "2030-02-30T00:00:00Z"}],
        "clients[0].expires",
        MOMENT,
    ),
    (
        ("clients",),
        [{**CLIENT, "expires": "2030-01-01T00:00:00"}],
        "clients[0].expires",
        MOMENT,
    ),
    (
        ("clients",),
        [{**CLIENT, "requests_per_minute": 0}],
        "clients[0].requests_per_minute",
        "must be at least 1",
    ),
    # server and telemetry
    (("server", "max_body"), 1023, "server.max_body", "must be from 1KiB to 1GiB"),
    (("server", "max_body"), "2GiB", "server.max_body", "must be from 1KiB to 1GiB"),
    (
        ("server", "max_body"),
        "50MB",
        "server.max_body",
        "must be a size such as 50MiB, 8KiB or 1GiB, or a whole number of bytes",
    ),
    (("server", "retry_budget"), 1.1, "server.retry_budget", "must be at most 1"),
    (("server", "retry_budget"), -0.1, "server.retry_budget", "must be at least 0"),
    (("server", "trust_route_headers"), "on", "server.trust_route_headers", BOOLEAN),
    (("server", "tls"), {"cert_file": "/c"}, "server.tls.key_file", REQUIRED),
    (("server", "tls"), {"key_file": "/c"}, "server.tls.cert_file", REQUIRED),
    (("telemetry", "ledger", "max_rows"), 0, "telemetry.ledger.max_rows", "must be at least 1"),
    (("telemetry", "ledger", "max_age"), "0s", "telemetry.ledger.max_age", POSITIVE),
    (("telemetry", "otlp"), {"sample": 0.1}, "telemetry.otlp.endpoint", REQUIRED),
    (
        ("telemetry", "otlp"),
        {"endpoint": "localhost:4317"},
        "telemetry.otlp.endpoint",
        "must start with http:// or https://",
    ),
    (
        ("telemetry", "otlp"),
        {"endpoint": "http://h:1", "sample": 2},
        "telemetry.otlp.sample",
        "must be at most 1",
    ),
]


@pytest.mark.parametrize(("path", "value", "where", "reason"), REFUSALS, ids=range(len(REFUSALS)))
def test_a_broken_rule_is_the_one_thing_said(path: Steps, value: object, where: str, reason: str) -> None:
    """The small config is valid but for the edit, so exactly one error comes out."""
    assert {where: reason} == faults(edited(SMALL, path, value))


ACCEPTED: list[tuple[Steps, object]] = [
    (("providers", "0-a_b"), {"base_url": "https://h"}),
    ((*PROVIDER, "headers"), {"OpenAI-Organization": "org-1", "x-empty": ""}),
    ((*PROVIDER, "auth"), {"header": "api-key", "prefix": ""}),
    ((*PROVIDER, "query"), {"api-version": "2024-10-21"}),
    ((*PROVIDER, "error_codes"), {name: name for name in ERROR_CLASSES}),
    ((*PROVIDER, "tls"), {"ca_file": "/ca.pem"}),
    ((*MODEL, "targets"), [{"provider": "openai", "model": "*"}]),
    (("models", "claude-*"), {"targets": [{"provider": "openai", "model": "*"}]}),
    (
        ("models", "org/model:free@2"),
        {"targets": [{"provider": "openai", "model": "x/y"}], "fallback": ["gpt-4o"]},
    ),
    (("models", "g*"), {"targets": [{"provider": "openai", "model": "*"}], "fallback": ["gpt-4", "gpt-4o"]}),
    ((*POLICY, "max_duration"), "0"),
    ((*POLICY, "max_duration"), 0),
    ((*POLICY, "same_target"), {"max": 0, "on": []}),
    ((*POLICY, "same_target"), {"on": ["rate_limited", "overloaded", "server_error", "connection"]}),
    (("clients",), [{**CLIENT, "token_sha256": ["a" * 64, "b" * 64]}]),
    (("server", "max_body"), "1GiB"),
    (("server", "max_body"), 1024),
    (("telemetry", "otlp"), {"endpoint": "http://127.0.0.1:4317"}),
]


@pytest.mark.parametrize(("path", "value"), ACCEPTED, ids=range(len(ACCEPTED)))
def test_what_the_rules_allow_is_accepted(path: Steps, value: object) -> None:
    assert {} == faults(edited(SMALL, path, value))


def test_the_full_config_is_valid() -> None:
    assert {} == faults(FULL)


def test_targets_of_one_model_may_speak_different_protocols() -> None:
    assert {} == faults(edited(FULL, ("providers", "second", "protocol"), "anthropic"))


def test_a_pattern_that_sends_one_upstream_name_cannot_fall_back_to_itself() -> None:
    entry = {"targets": [{"provider": "openai", "model": "one"}], "fallback": ["g-2"]}
    expected = {"models.g-*.fallback[0]": "is the model itself; name another one"}
    assert expected == faults(edited(SMALL, ("models", "g-*"), entry))


def test_a_fallback_is_named_once() -> None:
    config = edited(FULL, ("models", "big", "fallback"), ["small", "any-1", "small"])
    assert {"models.big.fallback[2]": "repeats an earlier name of this list; remove it"} == faults(config)


def test_the_auth_header_may_not_repeat_in_headers() -> None:
    config = edited(edited(SMALL, (*PROVIDER, "auth"), {"header": "x-mine"}), (*PROVIDER, "headers"), {"X-Mine": "a"})
    assert {"providers.openai.headers.X-Mine": TWICE} == faults(config)


def test_tls_files_need_an_https_base_url() -> None:
    config = edited(edited(SMALL, (*PROVIDER, "tls"), {"ca_file": "/ca"}), (*PROVIDER, "base_url"), "http://h")
    expected = {"providers.openai.tls": "has no effect on an http base_url; use https or remove tls"}
    assert expected == faults(config)


def test_the_error_classes_are_those_of_core() -> None:
    """The list is written twice because core imports config; this keeps the two equal."""
    assert tuple(ErrorClass) == ERROR_CLASSES
