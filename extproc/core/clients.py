"""Who is calling and which models they may use.

Tokens are compared as SHA-256 digests in constant time; a token itself is never kept, logged or returned.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from extproc.config.snapshot import Client, Snapshot, matches
from extproc.core.errors import GatewayError

ANONYMOUS = Client(name="", token_sha256=(), models=("*",), requests_per_minute=None)
_REFUSED = GatewayError("invalid_api_key", "The client token is missing or not known to this gateway.")


def authenticate(headers: Mapping[str, str], snapshot: Snapshot, now: float) -> Client | GatewayError:
    """Return the calling client; without a `clients` section everybody (on loopback) is `ANONYMOUS`."""
    if snapshot.clients is None:
        return ANONYMOUS
    token = _token(headers)
    if not token:
        return _REFUSED
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    found: Client | None = None
    # Every digest is compared, found or not, so that time says nothing about which one came close.
    for client in snapshot.clients:
        for known in client.accepted(now):
            if hmac.compare_digest(digest, known):
                found = client
    return found or _REFUSED


def may_use(client: Client, model: str) -> bool:
    """Tell whether a client may ask for a public model name."""
    return "*" in client.models or any(matches(pattern, model) for pattern in client.models)


def _token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip()
