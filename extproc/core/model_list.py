"""`GET /v1/models`: the public names this client may use, each with whether a target can serve it now."""

from __future__ import annotations

from typing import Any

import orjson

from extproc.config.snapshot import Client, ResolvedModel, Snapshot
from extproc.core.clients import may_use
from extproc.core.plan import Viewer, candidates

OWNER = "gateway"


def list_models(snapshot: Snapshot, client: Client, view: Viewer) -> bytes:
    """Return OpenAI's list object; globs stand for names nobody can list, so they are left out."""
    data = [
        _entry(snapshot, ResolvedModel(model.name, model), view)
        for model in snapshot.models.values()
        if not model.is_glob and may_use(client, model.name)
    ]
    return orjson.dumps({"object": "list", "data": data})


def show_model(snapshot: Snapshot, client: Client, view: Viewer, name: str) -> bytes | None:
    """Return one model object, None when the name is unknown or not for this client."""
    resolved = snapshot.resolve(name)
    if resolved is None or not may_use(client, name):
        return None
    return orjson.dumps(_entry(snapshot, resolved, view))


def _entry(snapshot: Snapshot, resolved: ResolvedModel, view: Viewer) -> dict[str, Any]:
    names = resolved.entry.fallback
    available = any(
        view(key).eligible
        for protocol in ("openai", "anthropic")
        for _model, _target, key in candidates(snapshot, resolved, names, protocol)
    )
    return {
        "id": resolved.name,
        "object": "model",
        # A snapshot has no birthday of its own; OpenAI's clients ask for an integer.
        "created": 0,
        "owned_by": OWNER,
        "available": available,
    }
