from __future__ import annotations

from typing import Any

import pytest

from configctl.preview import Place, Preview, ResourceChange, Skip, preview_snapshot
from extproc.config.compile import compile_snapshot
from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.health import View
from tests.unit.config.build import FULL, SMALL, Steps, edited, load
from tests.unit.envoy_config.build import TLS_FILES, rendered


def compiled(config: dict[str, Any]) -> Snapshot:
    return compile_snapshot(load(config), 1)


def preview(before: dict[str, Any] | None, after: dict[str, Any]) -> Preview:
    return preview_snapshot(compiled(before) if before is not None else None, compiled(after))


def test_nothing_changes_for_the_same_config() -> None:
    effects = preview(FULL, FULL)

    assert ((), (), ()) == (effects.gained, effects.lost, effects.resources)
    assert all(candidates.before == candidates.after for candidates in effects.candidates)


def test_models_are_gained_and_lost() -> None:
    effects = preview(FULL, edited(edited(FULL, ("models", "any-*"), ...), ("models", "new"), FULL["models"]["small"]))

    assert (("new",), ("any-*",)) == (effects.gained, effects.lost)


def test_every_model_has_its_candidates_in_order_with_their_modes() -> None:
    (big, *_) = [candidates for candidates in preview(None, FULL).candidates if candidates.model == "big"]

    assert (
        None,
        (
            Place("first/big-1", "big", "balanced"),
            Place("second/big-2", "big", "provider_failover"),
            Place("second/s", "small", "model_fallback"),
        ),
    ) == (big.before, big.after)


def test_a_pattern_is_shown_with_the_name_the_client_sent() -> None:
    (pattern,) = [candidates for candidates in preview(None, FULL).candidates if candidates.model == "any-*"]

    assert (Place("second/any-*", "any-*", "direct"),) == pattern.after


def test_current_health_takes_targets_out_and_says_why() -> None:
    def health(key: TargetKey) -> View:
        return View.ineligible("rate_limited") if key.provider == "first" else View.healthy()

    effects = preview_snapshot(compiled(FULL), compiled(FULL), health)

    (big,) = [candidates for candidates in effects.candidates if candidates.model == "big"]
    assert ["second/big-2", "second/s"] == [place.target for place in big.after]
    assert (Skip("first/big-1", "rate_limited"),) == big.skipped
    assert effects.health_known


def test_without_a_gateway_all_targets_are_taken_as_healthy() -> None:
    assert not preview(None, SMALL).health_known


def test_a_changed_provider_brings_a_new_cluster_and_takes_the_old() -> None:
    changed = preview(SMALL, edited(SMALL, ("providers", "openai", "base_url"), "https://other.example.com/v1"))

    assert [("cluster", "added"), ("cluster", "removed")] == sorted(
        (resource.kind, resource.change) for resource in changed.resources
    )


def test_a_changed_timeout_changes_the_policys_routes_only() -> None:
    changed = preview(SMALL, edited(SMALL, ("policies", "default", "first_byte_timeout"), "20s"))

    assert {("route", "changed")} == {(resource.kind, resource.change) for resource in changed.resources}


def test_a_larger_body_changes_the_listener() -> None:
    changed = preview(SMALL, edited(SMALL, ("server", "max_body"), "200MiB"))

    assert ResourceChange("listener", "gateway", "changed") in changed.resources


def test_a_changed_key_reference_is_another_secret() -> None:
    before = edited(SMALL, ("providers", "openai", "api_key"), {"env": "ONE"})
    after = edited(SMALL, ("providers", "openai", "api_key"), {"env": "TWO"})

    kinds = sorted((resource.kind, resource.change) for resource in preview(before, after).resources)
    assert [("secret", "added"), ("secret", "removed")] == [pair for pair in kinds if pair[0] == "secret"]


def test_everything_that_envoy_is_given_is_among_the_resources() -> None:
    """The renderer itself says what that is; every optional part is in use: collector, checks, the front's TLS."""
    files = {"cert_file": str(TLS_FILES / "server.crt"), "key_file": str(TLS_FILES / "server.key")}
    config = edited(FULL, ("server", "tls"), files)
    given = rendered(config)

    shown = {(one.kind, one.name) for one in preview(None, config).resources if one.kind != "route"}

    assert {
        *(("listener", one["name"]) for one in given.lds),
        *(("cluster", one["name"]) for one in given.cds),
        *(("secret", name.removesuffix(".json")) for name in given.sds),
    } == shown
    assert {"gateway-otlp", "gateway-listener"} < {name.rpartition("-")[0] for _, name in shown}


@pytest.mark.parametrize(
    ("steps", "value", "kind"),
    [
        (("telemetry", "otlp"), ..., "cluster"),
        (("telemetry", "otlp", "endpoint"), "http://127.0.0.2:4317", "cluster"),
        (("server", "tls", "key_file"), "/other.key", "secret"),
        (("providers", "first", "health_check"), ..., "listener"),
    ],
)
def test_an_optional_part_that_changes_is_told(steps: Steps, value: object, kind: str) -> None:
    assert kind in [one.kind for one in preview(FULL, edited(FULL, steps, value)).resources]


def test_findings_are_those_of_the_proposed_config() -> None:
    assert ["single_account"] == [finding.code for finding in preview(None, SMALL).findings]
