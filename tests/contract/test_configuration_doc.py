"""docs/configuration.md lists every key of the config file, with its type, default and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from extproc.config.fields import NAME_SENTENCE
from extproc.config.model import GatewayConfig
from extproc.config.section import Section
from tests.support import configuration_doc
from tests.support.configuration_doc import DOCUMENT


def test_the_document_is_what_the_models_say() -> None:
    assert 0 == configuration_doc.main(["--check"])


def test_a_document_that_differs_is_found_and_then_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check writes nothing; after writing it is content, and the prose around is as it was."""
    stale = tmp_path / "configuration.md"
    stale.write_text(DOCUMENT.read_text().replace("| `attempts` |", "| `tries` |"))
    assert 3 == configuration_doc.main(["--check"], stale)
    assert "differs: run" in capsys.readouterr().err
    assert 0 == configuration_doc.main([], stale)
    assert DOCUMENT.read_text() == stale.read_text()


def test_every_section_has_a_table() -> None:
    paths = [path for path, _ in configuration_doc.sections(GatewayConfig, "")]
    assert ["", "providers.NAME", "models.NAME.targets[]", "policies.NAME.cooldown", "clients[]", "server.tls"] == [
        path
        for path in paths
        if path in ("", "providers.NAME", "models.NAME.targets[]", "policies.NAME.cooldown", "clients[]", "server.tls")
    ]
    assert len(paths) == DOCUMENT.read_text().count("\n### ")


class Undocumented(Section):
    key: Literal["a"] = "a"


def test_a_key_without_a_sentence_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^Undocumented\.key has no sentence below it$"):
        configuration_doc.table("undocumented", Undocumented)


def test_a_name_is_defined_as_it_is_checked() -> None:
    written = NAME_SENTENCE.removeprefix("must be a name of ").replace(" - ", " `-` ").replace(" _", " `_`")
    assert f"- A *name* has {written}.\n" in DOCUMENT.read_text()
