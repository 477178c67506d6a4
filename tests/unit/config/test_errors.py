"""How errors are written."""

from __future__ import annotations

import pytest

from extproc.config.errors import ConfigError, ConfigErrors, Path, format_path, hint, shown


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("models", "gpt-4o", "targets", 1, "weight"), "models.gpt-4o.targets[1].weight"),
        (("models", "gpt-4.1", "policy"), 'models["gpt-4.1"].policy'),
        (("models", "claude-*"), "models.claude-*"),
        (("clients", 0), "clients[0]"),
        ((), ""),
        (("api_key", "sk-abcdefghijklmnop"), 'api_key["(hidden)"]'),
        (("a\nb",), '["a?b"]'),
    ],
)
def test_a_path_is_written_with_dots_and_brackets(path: Path, text: str) -> None:
    assert text == format_path(path)


def test_errors_read_as_one_line_each() -> None:
    errors = ConfigErrors(
        [
            ConfigError("schema", "gateway.yaml:1", "is required; add it"),
            ConfigError("models.m.policy", None, "names a policy that does not exist"),
            ConfigError("", "gateway.yaml", "does not exist; check the path"),
        ]
    )
    expected = (
        "gateway.yaml:1: schema: is required; add it\n"
        "models.m.policy: names a policy that does not exist\n"
        "gateway.yaml: does not exist; check the path"
    )
    assert expected == str(errors)


@pytest.mark.parametrize(
    ("word", "known", "text"),
    [
        ("atempts", ["attempts", "deadline"], "; did you mean 'attempts'?"),
        ("zzz", ["b", "a"], "; known: a, b"),
        ("zzz", [], ""),
    ],
)
def test_a_hint_names_the_nearest_key_or_all(word: str, known: list[str], text: str) -> None:
    assert text == hint(word, known)


def test_a_long_list_of_known_names_is_cut() -> None:
    assert hint("zzz", [f"name-{i:02}" for i in range(30)]).endswith(", name-19, ...")


def test_a_long_name_is_cut() -> None:
    assert "x" * 80 + "..." == shown("x" * 100)
