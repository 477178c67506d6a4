"""`extproc init`: a file that compiles, made of what the environment holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from extproc.cli import main
from extproc.config.compile import compile_snapshot
from extproc.config.lint import find_dead_policy
from extproc.config.load import parse_config_file
from extproc.config.snapshot import SecretRef
from extproc.init import KNOWN, run_init
from extproc.settings import StartError

ENDPOINTS = {known.endpoint: "https://mine.openai.azure.com/" for known in KNOWN if known.endpoint}
EVERY_KEY = {known.variable: f"secret-{known.name}" for known in KNOWN}
EACH = (
    {known.variable: "x"} | ({known.endpoint: ENDPOINTS[known.endpoint]} if known.endpoint else {}) for known in KNOWN
)


@pytest.mark.parametrize("environ", [{}, EVERY_KEY | ENDPOINTS, *EACH], ids=lambda it: f"{len(it)}-{'-'.join(it)[:20]}")
def test_the_written_file_compiles_and_names_its_keys(tmp_path: Path, environ: dict[str, str]) -> None:
    out = tmp_path / "gateway.yaml"

    assert 0 == run_init(out, environ)

    snapshot = compile_snapshot(parse_config_file(out), version=1)
    wanted = {SecretRef("env", name) for name in (environ.keys() - ENDPOINTS.keys()) or {"OPENAI_API_KEY"}}
    assert wanted == {provider.api_key for provider in snapshot.providers.values()}


def test_no_key_value_is_written_or_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gateway.yaml"

    run_init(out, EVERY_KEY)

    assert "secret-" not in out.read_text() + "".join(capsys.readouterr())


def test_azure_is_asked_at_its_endpoint(tmp_path: Path) -> None:
    out = tmp_path / "gateway.yaml"

    run_init(out, {"AZURE_OPENAI_API_KEY": "x"} | ENDPOINTS)

    providers = compile_snapshot(parse_config_file(out), version=1).providers
    assert {"azure": "mine.openai.azure.com"} == {name: one.host for name, one in providers.items()}


@pytest.mark.parametrize("environ", [{"AZURE_OPENAI_API_KEY": "x"}, EVERY_KEY], ids=["alone", "beside others"])
def test_no_host_is_invented_for_azure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: dict[str, str]
) -> None:
    """An invented one may be a stranger's, who would get the key: the entry is a comment that says what to set."""
    out = tmp_path / "gateway.yaml"

    run_init(out, environ)

    assert "azure" not in compile_snapshot(parse_config_file(out), version=1).providers
    assert "# AZURE_OPENAI_ENDPOINT was not set: put your resource's address below" in out.read_text()
    assert "AZURE_OPENAI_ENDPOINT is not" in capsys.readouterr().out


def test_what_was_commented_out_compiles_without_its_signs(tmp_path: Path) -> None:
    out = tmp_path / "gateway.yaml"
    run_init(out, EVERY_KEY)
    lines = out.read_text().partition("  # A model of two providers")[0].splitlines()

    out.write_text(
        "\n".join(re.sub("^  # ", "  ", line) for line in lines if "was not set" not in line and "# signs" not in line)
    )

    azure = compile_snapshot(parse_config_file(out), version=1).providers["azure"]
    assert azure.host.endswith(".invalid")


@pytest.mark.parametrize(
    ("asked", "provider", "sent"),
    [
        ("gpt-4o-mini", "openai", "gpt-4o-mini"),
        ("text-embedding-3-small", "openai", "text-embedding-3-small"),
        ("azure-gpt", "azure", "my-deployment"),
        ("meta-llama/llama-3.3-70b-instruct", "openrouter", "meta-llama/llama-3.3-70b-instruct"),
    ],
)
def test_a_provider_is_sent_a_name_of_its_own(tmp_path: Path, asked: str, provider: str, sent: str) -> None:
    """Never a name that only this file made up."""
    out = tmp_path / "gateway.yaml"
    run_init(out, EVERY_KEY | ENDPOINTS)

    found = compile_snapshot(parse_config_file(out), version=1).resolve(asked)

    assert found is not None
    (target,) = found.entry.targets
    assert (provider, sent) == (target.provider, asked if target.model == "*" else target.model)


def test_a_file_for_every_provider_has_no_dead_entry(tmp_path: Path) -> None:
    out = tmp_path / "gateway.yaml"

    run_init(out, EVERY_KEY | ENDPOINTS)

    dead = {"shadowed_pattern", "unreachable_model", "unused_policy"}
    found = find_dead_policy(compile_snapshot(parse_config_file(out), version=1))
    assert [] == [one for one in found if one.code in dead]


def test_an_existing_file_is_left_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "gateway.yaml"
    out.write_text("mine")

    with pytest.raises(StartError, match="is there already"):
        run_init(out, {})

    assert "mine" == out.read_text()


def test_the_command_says_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert 0 == main(["init"])

    assert "extproc doctor --config gateway.yaml" in capsys.readouterr().out
