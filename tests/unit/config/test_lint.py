from __future__ import annotations

from typing import Any

import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.lint import Finding, find_dead_policy
from tests.unit.config.build import Steps, edited, load

SOUND: dict[str, Any] = {
    "schema": 1,
    "providers": {
        "one": {"base_url": "https://one.example.com/v1"},
        "two": {"base_url": "https://two.example.com/v1"},
        "claude": {"base_url": "https://claude.example.com/v1", "protocol": "anthropic"},
        "claude-two": {"base_url": "https://claude-two.example.com/v1", "protocol": "anthropic"},
    },
    "models": {
        "big": {
            "targets": [{"provider": "one", "model": "big"}, {"provider": "two", "model": "big"}],
            "fallback": ["small"],
            "context_fallback": ["long"],
            "context_window": 1000,
            "policy": "patient",
        },
        "small": {"targets": [{"provider": "two", "model": "small"}], "fallback": ["big"], "context_window": 1000},
        "long": {
            "targets": [{"provider": "one", "model": "long"}, {"provider": "two", "model": "long"}],
            "context_window": 9000,
            "affinity": {"body": "user"},
        },
        "claude-*": {"targets": [{"provider": "claude", "model": "*"}, {"provider": "claude-two", "model": "*"}]},
    },
    "policies": {"patient": {"deadline": "2m"}},
    "clients": [
        {"name": "a", "token_sha256": "a" * 64, "models": ["big", "small", "long"]},
        {"name": "b", "token_sha256": "b" * 64, "models": ["claude-3*"]},
    ],
}
ONE_TARGET = [{"provider": "one", "model": "big"}]


def findings(config: dict[str, Any]) -> list[Finding]:
    return list(find_dead_policy(compile_snapshot(load(config), 1)))


def test_a_sound_config_has_no_findings() -> None:
    assert [] == findings(SOUND)


@pytest.mark.parametrize(
    ("steps", "value", "code", "path"),
    [
        (("providers", "three"), {"base_url": "https://three.example.com"}, "unused_provider", "providers.three"),
        (("policies", "spare"), {}, "unused_policy", "policies.spare"),
        (("clients", 0, "models"), ["big", "small", "long", "gpt-*"], "unused_client_pattern", "clients[0].models[3]"),
        (("clients", 0, "models"), ["big", "small"], None, None),
        (("clients", 1, "models"), ["big"], "unreachable_model", "models.claude-*"),
        (("models", "long", "affinity"), {"header": "x-session-id"}, None, None),
        (("models", "small", "fallback"), [], "single_account", "models.small"),
        (("models", "small", "affinity"), {"body": "user"}, "affinity_without_choice", "models.small.affinity"),
        (("models", "big", "fallback"), ["claude-x"], "fallback_other_protocol", "models.big.fallback[0]"),
        (("models", "small", "context_window"), 999, "fallback_smaller_context", "models.big.fallback[0]"),
        (("models", "long", "context_window"), 1000, "context_fallback_not_larger", "models.big.context_fallback[0]"),
        (
            ("policies", "patient", "first_byte_timeout"),
            "2m",
            "timeout_exceeds_deadline",
            "policies.patient.first_byte_timeout",
        ),
        (
            ("policies", "patient", "first_token_timeout"),
            "3m",
            "timeout_exceeds_deadline",
            "policies.patient.first_token_timeout",
        ),
        (("policies", "patient", "max_duration"), "1m50s", "timeout_exceeds_max_duration", "policies.patient.deadline"),
        (("policies", "patient", "max_duration"), "0", None, None),
    ],
)
def test_what_has_no_effect_is_found_at_its_path(
    steps: Steps, value: object, code: str | None, path: str | None
) -> None:
    found = findings(edited(SOUND, steps, value))

    assert ([(code, path)] if code else []) == [(finding.code, finding.path) for finding in found]
    assert all(finding.sentence.endswith(".") and finding.advice.endswith(".") for finding in found)


def test_a_fallback_at_the_same_account_is_found() -> None:
    config = edited(SOUND, ("models", "big"), {"targets": ONE_TARGET, "fallback": ["tiny"]})
    config = edited(config, ("models", "tiny"), {"targets": [{"provider": "one", "model": "tiny"}]})

    found = findings(edited(config, ("clients",), ...))

    assert ("fallback_same_account", "models.big.fallback[0]") in [(finding.code, finding.path) for finding in found]
    assert ("single_account", "models.big") in [(finding.code, finding.path) for finding in found]


def test_a_fallback_with_nothing_but_the_models_own_targets_is_found() -> None:
    config = edited(SOUND, ("models", "twin"), {"targets": SOUND["models"]["big"]["targets"], "fallback": ["big"]})

    found = findings(edited(config, ("clients",), ...))

    assert [("fallback_adds_nothing", "models.twin.fallback[0]")] == [(one.code, one.path) for one in found]


def test_a_pattern_that_another_one_takes_whole_is_found() -> None:
    config = edited(SOUND, ("models", "claude-**"), SOUND["models"]["claude-*"])

    assert [("shadowed_pattern", "models.claude-**")] == [(one.code, one.path) for one in findings(config)]


def test_one_attempt_is_never_followed_so_its_timeout_may_use_up_the_deadline() -> None:
    config = edited(SOUND, ("policies", "patient"), {"attempts": 1, "deadline": "30s"})

    assert [] == findings(config)


def test_a_model_only_others_fall_back_to_is_reachable() -> None:
    assert [] == findings(edited(SOUND, ("clients", 0, "models"), ["big"]))
