"""`extproc init`: a file that compiles, made of what the environment holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.cli import main
from extproc.config.compile import compile_snapshot
from extproc.config.load import parse_config_file
from extproc.config.snapshot import SecretRef
from extproc.init import KNOWN, run_init
from extproc.settings import StartError

EVERY_KEY = {known.variable: f"secret-{known.name}" for known in KNOWN}


@pytest.mark.parametrize(
    "environ", [{}, EVERY_KEY, *({name: "x"} for name in EVERY_KEY)], ids=lambda it: f"{len(it)}-{'-'.join(it)[:20]}"
)
def test_the_written_file_compiles_and_names_its_keys(tmp_path: Path, environ: dict[str, str]) -> None:
    out = tmp_path / "gateway.yaml"

    assert 0 == run_init(out, environ)

    snapshot = compile_snapshot(parse_config_file(out), version=1)
    wanted = {SecretRef("env", name) for name in environ or {"OPENAI_API_KEY": ""}}
    assert wanted == {provider.api_key for provider in snapshot.providers.values()}


def test_no_key_value_is_written_or_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gateway.yaml"

    run_init(out, EVERY_KEY)

    assert "secret-" not in out.read_text() + "".join(capsys.readouterr())


def test_azure_is_asked_at_its_endpoint(tmp_path: Path) -> None:
    out = tmp_path / "gateway.yaml"

    run_init(out, {"AZURE_OPENAI_API_KEY": "x", "AZURE_OPENAI_ENDPOINT": "https://mine.openai.azure.com/"})

    assert "https://mine.openai.azure.com/openai/v1" in out.read_text()


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
