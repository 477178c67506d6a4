"""`GET /v1/models` lists the names this client may use, and whether a target can serve each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from extproc.config.snapshot import Client, TargetKey
from extproc.core.clients import ANONYMOUS
from extproc.core.health import HEALTHY, View
from extproc.core.model_list import list_models, show_model
from tests.unit.core.build import A, B, C, chain, config, provider, snapshot

MODELS = {
    "big": chain(A, fallback=["small"]),
    "small": chain(B),
    "claude-*": {"targets": [{"provider": "c", "model": "*"}]},
}
SNAPSHOT = snapshot(config(MODELS, providers={"c": provider("c", protocol="anthropic")}))


def healthy(key: TargetKey) -> View:
    """View every target as healthy."""
    return HEALTHY


def without(*ill: TargetKey) -> Callable[[TargetKey], View]:
    """View these targets as out of service."""
    return lambda key: View.ineligible("rate_limited") if key in ill else HEALTHY


def available(view: Callable[[TargetKey], View], client: Client = ANONYMOUS) -> dict[str, bool]:
    """Return the listed names with their `available` flags."""
    listed: dict[str, Any] = json.loads(list_models(SNAPSHOT, client, view))
    return {entry["id"]: entry["available"] for entry in listed["data"]}


def test_a_listed_model_has_the_members_that_openai_s_clients_read() -> None:
    listed = json.loads(list_models(SNAPSHOT, ANONYMOUS, healthy))
    entry = {"id": "big", "object": "model", "created": 0, "owned_by": "gateway", "available": True}
    assert ("list", entry) == (listed["object"], listed["data"][0])


def test_patterns_are_not_listed() -> None:
    assert {"big", "small"} == available(healthy).keys()


def test_a_model_is_available_while_a_fallback_can_serve_it() -> None:
    assert {"big": True, "small": True} == available(without(A))


def test_a_model_without_a_healthy_target_is_not_available() -> None:
    assert {"big": False, "small": False} == available(without(A, B))


def test_only_the_client_s_own_models_are_listed() -> None:
    assert {"small": True} == available(healthy, Client("t", (), ("s*",), None))


def test_one_model_is_shown_by_its_name() -> None:
    shown = show_model(SNAPSHOT, ANONYMOUS, healthy, "small")
    assert shown is not None
    assert "small" == json.loads(shown)["id"]


def test_a_name_that_only_a_pattern_knows_is_shown_under_that_name() -> None:
    shown = show_model(SNAPSHOT, ANONYMOUS, without(TargetKey("c", "claude-x")), "claude-x")
    assert shown is not None
    assert ("claude-x", False) == (json.loads(shown)["id"], json.loads(shown)["available"])


def test_a_name_nobody_configured_is_not_shown() -> None:
    assert show_model(SNAPSHOT, ANONYMOUS, healthy, "none") is None


def test_a_model_that_is_not_for_this_client_is_not_shown() -> None:
    assert show_model(SNAPSHOT, Client("t", (), ("s*",), None), healthy, "big") is None


def test_a_target_of_another_protocol_counts_for_its_own_endpoint() -> None:
    models = {"mixed": chain(A, C)}
    both = snapshot(config(models, providers={"c": provider("c", protocol="anthropic")}))
    shown = show_model(both, ANONYMOUS, without(A), "mixed")
    assert shown is not None
    assert json.loads(shown)["available"] is True
