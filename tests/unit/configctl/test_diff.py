from __future__ import annotations

from typing import Any

import pytest

from configctl.diff import Change, diff_contents, section_of
from extproc.config.compile import canonical_json
from tests.unit.config.build import FULL, SMALL, Steps, edited, load


def diff(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[Change]:
    contents = [canonical_json(load(config)) if config is not None else None for config in (before, after)]
    return list(diff_contents(*contents))


def test_equal_configs_do_not_differ() -> None:
    assert [] == diff(FULL, FULL)


def test_a_default_that_is_spelled_out_is_no_change() -> None:
    assert [] == diff(SMALL, edited(SMALL, ("policies", "default", "deadline"), "1m30s"))


@pytest.mark.parametrize(
    ("steps", "value", "path", "before", "after"),
    [
        (("policies", "patient", "deadline"), "70s", "policies.patient.deadline", "80s", "70s"),
        (("server", "max_body"), "2MiB", "server.max_body", 1 << 20, 2 << 20),
        (("models", "big", "targets", 0, "weight"), 5, "models.big.targets[first/big-1].weight", 3, 5),
        (("models", "big", "fallback"), ["any-x"], "models.big.fallback", ["small"], ["any-x"]),
        (("clients", 0, "requests_per_minute"), 9, "clients[team-a].requests_per_minute", 60, 9),
        (
            ("providers", "first", "api_key"),
            {"env": "OTHER_KEY"},
            "providers.first.api_key.env",
            "FIRST_KEY",
            "OTHER_KEY",
        ),
    ],
)
def test_a_changed_value_is_one_change_at_its_path(
    steps: Steps, value: object, path: str, before: object, after: object
) -> None:
    assert [Change(path, "changed", before, after)] == diff(FULL, edited(FULL, steps, value))


def test_a_target_that_comes_is_added_whole() -> None:
    target = {"provider": "second", "model": "extra"}
    targets = [*FULL["models"]["big"]["targets"], target]

    assert [Change("models.big.targets[second/extra]", "added", None, {**target, "weight": 1, "tier": 0})] == diff(
        FULL, edited(FULL, ("models", "big", "targets"), targets)
    )


def test_a_target_that_moves_is_reordered_and_not_changed() -> None:
    targets = FULL["models"]["big"]["targets"]

    assert [
        Change("models.big.targets", "reordered", ["first/big-1", "second/big-2"], ["second/big-2", "first/big-1"])
    ] == diff(FULL, edited(FULL, ("models", "big", "targets"), targets[::-1]))


def test_a_model_that_goes_is_removed_whole() -> None:
    (change,) = diff(FULL, edited(FULL, ("models", "any-*"), ...))

    assert ("models.any-*", "removed", None) == (change.path, change.kind, change.after)


def test_a_name_with_a_dot_is_written_so_that_it_can_be_found() -> None:
    after = edited(SMALL, ("models", "gpt-4.1"), {"targets": [{"provider": "openai", "model": "gpt-4.1"}]})

    assert ['models["gpt-4.1"]'] == [change.path for change in diff(SMALL, after)]
    retargeted = edited(after, ("models", "gpt-4.1", "targets", 0, "weight"), 2)
    assert ['models["gpt-4.1"].targets[openai/gpt-4.1].weight'] == [change.path for change in diff(after, retargeted)]


def test_token_digests_are_cut() -> None:
    (change,) = diff(FULL, edited(FULL, ("clients", 0, "token_sha256"), "d" * 64))

    assert ("clients[team-a].token_sha256", ["aaaaaaaa..."], ["dddddddd..."]) == (
        change.path,
        change.before,
        change.after,
    )
    assert "d" * 10 not in repr(diff(None, edited(FULL, ("clients", 0, "token_sha256"), "d" * 64)))


def test_the_first_config_is_all_added_section_by_section() -> None:
    changes = diff(None, SMALL)

    assert {"added"} == {change.kind for change in changes}
    assert ["schema", "models", "policies", "providers", "server", "telemetry"] == list(
        dict.fromkeys(section_of(change) for change in changes)
    )


def test_clients_that_go_are_named_one_by_one() -> None:
    changes = diff(FULL, edited(FULL, ("clients",), ...))

    assert [("clients[team-a]", "removed"), ("clients[team-b]", "removed")] == [
        (change.path, change.kind) for change in changes
    ]
