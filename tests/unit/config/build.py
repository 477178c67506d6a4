"""Configs for tests: a small one, one that spells out every key, and edits of both."""

from __future__ import annotations

import copy
import json
from typing import Any

from extproc.config.errors import ConfigErrors
from extproc.config.load import load_config
from extproc.config.model import GatewayConfig

Steps = tuple[str | int, ...]

SMALL: dict[str, Any] = {
    "schema": 1,
    "providers": {"openai": {"base_url": "https://api.openai.com/v1"}},
    "models": {"gpt-4o": {"targets": [{"provider": "openai", "model": "gpt-4o"}]}},
}

FULL: dict[str, Any] = {
    "schema": 1,
    "providers": {
        "first": {
            "base_url": "https://api.example.com/v1",
            "protocol": "openai",
            "api_key": {"env": "FIRST_KEY"},
            "auth": {"header": "authorization", "prefix": "Bearer "},
            "headers": {"x-team": "a"},
            "query": {"api-version": "preview"},
            "error_codes": {"broke": "quota_exhausted"},
            "health_check": {"path": "/health", "interval": "10s", "timeout": "2s"},
            "tls": {"ca_file": "/ca", "client_cert_file": "/cert", "client_key_file": "/key"},
            "allow_private_network": False,
            "limits": {"max_connections": 10, "max_pending": 20},
        },
        "second": {"base_url": "https://other.example.com", "api_key": {"file": "/run/secrets/second"}},
    },
    "models": {
        "big": {
            "targets": [
                {"provider": "first", "model": "big-1", "weight": 3, "tier": 0},
                {"provider": "second", "model": "big-2", "weight": 1, "tier": 1},
            ],
            "fallback": ["small"],
            "context_fallback": ["small"],
            "context_window": 1000,
            "affinity": {"header": "x-session-id", "ttl": "30m"},
            "policy": "patient",
        },
        "small": {"targets": [{"provider": "second", "model": "s"}], "affinity": {"body": "user"}},
        "any-*": {"targets": [{"provider": "second", "model": "*"}]},
    },
    "policies": {
        "patient": {
            "attempts": 4,
            "deadline": "80s",
            "max_duration": "20m",
            "connect_timeout": "3s",
            "first_byte_timeout": "50s",
            "first_token_timeout": "20s",
            "stream_idle_timeout": "40s",
            "stream_guard": "complete",
            "same_target": {
                "max": 2,
                "on": ["server_error"],
                "backoff": "200ms",
                "max_backoff": "3s",
                "retry_after_up_to": "4s",
                "only_if_faster_than": "2s",
            },
            "cooldown": {
                "base": "10s",
                "factor": 3,
                "max": "100s",
                "jitter": 0.2,
                "consecutive": 4,
                "failure_ratio": 0.6,
                "window": "20s",
                "min_requests": 6,
                "quota": "20m",
                "cap": "12h",
            },
            "when_all_down": "fail",
            "force_usage": True,
        },
    },
    "clients": [
        {
            "name": "team-a",
            "token_sha256": ["a" * 64],
            "models": ["big"],
            "requests_per_minute": 60,
            "concurrent_requests": 5,
        },
        {"name": "team-b", "token_sha256": ["b" * 64, "c" * 64], "expires": "2030-12-31T00:00:00Z"},
    ],
    "server": {
        "max_body": "1MiB",
        "retry_budget": 0.3,
        "trust_route_headers": True,
        "tls": {"cert_file": "/server.crt", "key_file": "/server.key"},
    },
    "telemetry": {
        "ledger": {"max_rows": 5000, "max_age": "7d"},
        "otlp": {"endpoint": "http://127.0.0.1:4317", "sample": 0.5},
    },
}


def edited(config: dict[str, Any], path: Steps, value: object) -> dict[str, Any]:
    """Return a copy of a config with one value set; sections on the way are made, a `...` removes the key."""
    result = copy.deepcopy(config)
    here: Any = result
    for step in path[:-1]:
        here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]
    if value is ...:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return result


def load(config: object) -> GatewayConfig:
    """Load plain data as a file would be loaded."""
    return load_config(json.dumps(config, ensure_ascii=False))


def faults(config: object) -> dict[str, str]:
    """Return what is wrong with plain data: path -> reason; empty when it loads."""
    try:
        load(config)
    except ConfigErrors as errors:
        return {error.path: error.reason for error in errors.errors}
    return {}
