"""Rendered documents for tests, and ways to find things in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.data_dir import DataDir
from extproc.envoy_config.render import Rendered, render
from extproc.envoy_config.resource import EnvoyPaths, Listen
from extproc.render import envoy_paths

CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
PATHS: EnvoyPaths = envoy_paths(DataDir(Path("/data")), {"SSL_CERT_FILE": CA_FILE})
TLS_FILES = Path(__file__).parents[2] / "data" / "tls"
LISTEN = Listen("127.0.0.1", 18080)

ORDINARY: dict[str, Any] = {
    "schema": 1,
    "providers": {
        "openai": {
            "base_url": "https://api.openai.com/v1",
            "api_key": {"env": "OPENAI_KEY"},
            "headers": {"OpenAI-Organization": "org-1"},
        },
        "local": {"base_url": "http://127.0.0.1:9000/v1", "allow_private_network": True},
    },
    "models": {
        "big": {
            "targets": [{"provider": "openai", "model": "big-1"}, {"provider": "local", "model": "big-2", "tier": 1}],
            "policy": "patient",
        },
        "small": {"targets": [{"provider": "openai", "model": "small-1"}]},
    },
    "policies": {"patient": {"connect_timeout": "7s"}},
}
KEYS = {"OPENAI_KEY": "sk-ordinary"}


def rendered(config: Any = None, environ: Mapping[str, str] | None = None, paths: EnvoyPaths = PATHS) -> Rendered:
    """Render a config (the ordinary one) as version 1."""
    # A certificate is read when it is rendered, so the one that `FULL` names has to be somewhere.
    text = json.dumps(config or ORDINARY).replace('"/server.', f'"{TLS_FILES}/server.')
    snapshot = compile_snapshot(load_config(text), version=1)
    return render(snapshot, LISTEN, paths, KEYS if environ is None else environ)


def walk(node: Any) -> Iterator[Any]:
    """Yield every mapping in a document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def find(node: Any, **wanted: Any) -> list[dict[str, Any]]:
    """Return every mapping in a document that has these members."""
    return [found for found in walk(node) if wanted.items() <= _plain(found).items()]


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if not isinstance(value, dict | list)}
