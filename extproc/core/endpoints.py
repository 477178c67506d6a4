"""The HTTP endpoints the gateway serves and what each means for routing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote_plus, unquote_plus

from extproc.config.snapshot import CREDENTIAL_PARAMETERS, Protocol, Provider


class Kind(StrEnum):
    """Which timers and route an exchange with the provider needs."""

    UNARY = "unary"
    STREAM = "stream"
    """Server-sent events whose shape the judge understands."""
    STREAM_UNGUARDED = "stream_unguarded"
    """Streams of media: passed on, never held."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A POST endpoint with a JSON body that names a `model`; `operation` is what traces call it."""

    path: str
    operation: str
    protocol: Protocol = "openai"
    guarded: bool = False


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", "chat", guarded=True),
        Endpoint("/v1/completions", "text_completion", guarded=True),
        Endpoint("/v1/responses", "chat", guarded=True),
        Endpoint("/v1/messages", "chat", "anthropic", guarded=True),
        Endpoint("/v1/embeddings", "embeddings"),
        Endpoint("/v1/moderations", "moderation"),
        Endpoint("/v1/images/generations", "image_generation"),
        Endpoint("/v1/audio/speech", "speech"),
        Endpoint("/v1/rerank", "rerank"),
    )
}
MESSAGES_PATH = "/v1/messages"
MODELS_PATH = "/v1/models"
READY_PATH = "/readyz"
HEALTH_PATH = "/healthz"
"""Answered by Envoy itself; listed so that the routes and the documentation agree."""


def protocol_of(path: str) -> Protocol:
    """Return the protocol whose callers ask for a path, whether or not it is served."""
    return "anthropic" if path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/") else "openai"


def kind_of(endpoint: Endpoint, stream: bool) -> Kind:
    """Tell which kind of exchange a request asks for."""
    if not stream:
        return Kind.UNARY
    return Kind.STREAM if endpoint.guarded else Kind.STREAM_UNGUARDED


def without_credentials(query: str) -> str:
    """Return a caller's raw query without the parameters that are keys: they are for us or for nobody."""
    parts = query.split("&")
    kept = [part for part in parts if _name_of(part).lower() not in CREDENTIAL_PARAMETERS]
    return query if len(kept) == len(parts) else "&".join(kept)


def upstream_path(provider: Provider, endpoint: Endpoint, client_query: str) -> str:
    """Return path and query to ask `provider` for `endpoint`.

    The provider's prefix stands for our `/v1`. Anthropic's own base URL has no `/v1`, so it is added when missing.
    Static query parameters of the provider win over the client's.
    """
    suffix = endpoint.path.removeprefix("/v1")
    prefix = provider.path_prefix
    if provider.protocol == "anthropic" and not prefix.endswith("/v1"):
        prefix += "/v1"
    query = merge_query(client_query, provider.query)
    return f"{prefix}{suffix}?{query}" if query else f"{prefix}{suffix}"


def merge_query(client_query: str, static: tuple[tuple[str, str], ...]) -> str:
    """Join the client's raw query with a provider's static parameters, whose names replace the client's."""
    if not static:
        return client_query
    names = {name for name, _ in static}
    kept = [part for part in client_query.split("&") if part and _name_of(part) not in names]
    added = [f"{quote_plus(name)}={quote_plus(value)}" for name, value in static]
    return "&".join(kept + added)


def _name_of(part: str) -> str:
    return unquote_plus(part.partition("=")[0])
