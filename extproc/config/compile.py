"""`GatewayConfig` -> frozen `Snapshot`, and the canonical form that versions are compared by.

Owns the joining of defaults into concrete values, the order of patterns and the digest. Leaves checking to
the model and `references.py`, which run again here for a config that did not come from a file.
Invariants: everything the file says is in the snapshot; the canonical JSON is itself a config file with the
same digest, defaults filled in, so files that mean the same have one digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import orjson

from extproc.config import model as shape
from extproc.config import policy as policies
from extproc.config.base_url import parse_base_url
from extproc.config.errors import ConfigError, ConfigErrors, format_path
from extproc.config.references import find_cross_faults, glob_order
from extproc.config.snapshot import (
    Affinity,
    Client,
    Cooldown,
    HealthCheck,
    Model,
    Policy,
    Provider,
    ProviderTls,
    SameTarget,
    SecretRef,
    Server,
    Snapshot,
    Target,
    Telemetry,
)

_T = TypeVar("_T")


def compile_snapshot(config: shape.GatewayConfig, version: int) -> Snapshot:
    """Compile one version; ConfigErrors (without lines) for references that lead nowhere."""
    faults = tuple(find_cross_faults(_plain(config)))
    if faults:
        raise ConfigErrors(ConfigError(format_path(fault.path), None, fault.reason) for fault in faults)
    models = {name: _model(name, entry) for name, entry in config.models.items()}
    globs = sorted((model for model in models.values() if model.is_glob), key=lambda model: glob_order(model.name))
    return Snapshot(
        version=version,
        digest=digest(config),
        providers=_frozen({name: _provider(name, entry) for name, entry in config.providers.items()}),
        models=_frozen(models),
        policies=_frozen({name: _policy(name, entry) for name, entry in config.policies.items()}),
        clients=None if config.clients is None else tuple(_client(client) for client in config.clients),
        server=_server(config.server),
        telemetry=_telemetry(config.telemetry),
        globs=tuple(globs),
    )


def canonical_json(config: shape.GatewayConfig) -> bytes:
    """Write a config as compact JSON: sorted keys, defaults filled in, values in their normal form."""
    return orjson.dumps(_plain(config), option=orjson.OPT_SORT_KEYS)


def digest(config: shape.GatewayConfig) -> str:
    """Return the SHA-256 of the canonical JSON, lower-case hex."""
    return hashlib.sha256(canonical_json(config)).hexdigest()


def _plain(config: shape.GatewayConfig) -> dict[str, object]:
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)


def _frozen(entries: Mapping[str, _T]) -> Mapping[str, _T]:
    return MappingProxyType({name: entries[name] for name in sorted(entries)})


def _provider(name: str, entry: shape.Provider) -> Provider:
    url = parse_base_url(entry.base_url)
    return Provider(
        name=name,
        scheme=url.scheme,
        host=url.host,
        port=url.port,
        path_prefix=url.path_prefix,
        protocol=entry.protocol,
        api_key=_secret(entry.api_key),
        auth_header=entry.auth.header,
        auth_prefix=entry.auth.prefix,
        headers=tuple(sorted(entry.headers.items())),
        query=tuple(sorted(entry.query.items())),
        error_codes=_frozen(entry.error_codes),
        health_check=_health_check(entry.health_check),
        tls=ProviderTls(entry.tls.ca_file, entry.tls.client_cert_file, entry.tls.client_key_file),
        allow_private_network=entry.allow_private_network,
        max_connections=entry.limits.max_connections,
        max_pending=entry.limits.max_pending,
    )


def _secret(entry: shape.ApiKey | None) -> SecretRef | None:
    if entry is None:
        return None
    return SecretRef("env", entry.env) if entry.env is not None else SecretRef("file", entry.file or "")


def _health_check(entry: shape.HealthCheck | None) -> HealthCheck | None:
    if entry is None:
        return None
    return HealthCheck(entry.path, entry.model, entry.interval, entry.timeout, entry.daily_cap)


def _model(name: str, entry: shape.Model) -> Model:
    affinity = entry.affinity
    return Model(
        name=name,
        targets=tuple(Target(line.provider, line.model, line.weight, line.tier) for line in entry.targets),
        fallback=entry.fallback,
        context_fallback=entry.context_fallback,
        context_window=entry.context_window,
        affinity=None if affinity is None else Affinity(affinity.header, affinity.body, affinity.ttl),
        policy=entry.policy,
    )


def _policy(name: str, entry: policies.Policy) -> Policy:
    return Policy(
        name=name,
        attempts=entry.attempts,
        deadline_s=entry.deadline,
        max_duration_s=entry.max_duration,
        connect_timeout_s=entry.connect_timeout,
        first_byte_timeout_s=entry.first_byte_timeout,
        first_token_timeout_s=entry.first_token_timeout,
        stream_idle_timeout_s=entry.stream_idle_timeout,
        stream_guard=entry.stream_guard,
        same_target=_same_target(entry.same_target),
        cooldown=_cooldown(entry.cooldown),
        when_all_down=entry.when_all_down,
        force_usage=entry.force_usage,
    )


def _same_target(entry: policies.SameTarget) -> SameTarget:
    return SameTarget(
        max=entry.max,
        on=frozenset(entry.on),
        backoff_s=entry.backoff,
        max_backoff_s=entry.max_backoff,
        retry_after_up_to_s=entry.retry_after_up_to,
        only_if_faster_than_s=entry.only_if_faster_than,
    )


def _cooldown(entry: policies.Cooldown) -> Cooldown:
    return Cooldown(
        base_s=entry.base,
        factor=entry.factor,
        max_s=entry.max,
        jitter=entry.jitter,
        consecutive=entry.consecutive,
        failure_ratio=entry.failure_ratio,
        window_s=entry.window,
        min_requests=entry.min_requests,
        quota_s=entry.quota,
        cap_s=entry.cap,
    )


def _client(entry: shape.Client) -> Client:
    return Client(
        name=entry.name,
        token_sha256=entry.token_sha256,
        models=entry.models,
        requests_per_minute=entry.requests_per_minute,
        concurrent_requests=entry.concurrent_requests,
        expires_at=entry.expires,
    )


def _server(entry: shape.Server) -> Server:
    return Server(
        max_body_bytes=entry.max_body,
        retry_budget=entry.retry_budget,
        trust_route_headers=entry.trust_route_headers,
        tls_cert_file=entry.tls.cert_file if entry.tls else None,
        tls_key_file=entry.tls.key_file if entry.tls else None,
    )


def _telemetry(entry: shape.Telemetry) -> Telemetry:
    otlp = entry.otlp
    return Telemetry(
        ledger_max_rows=entry.ledger.max_rows,
        ledger_max_age_s=entry.ledger.max_age,
        otlp_endpoint=otlp.endpoint if otlp else None,
        otlp_sample=otlp.sample if otlp else 0.0,
    )
