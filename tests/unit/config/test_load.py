"""Files: lines, all errors at once, nothing secret in a message, and the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.errors import ConfigErrors
from extproc.config.load import load_config, parse_config_file
from tests.unit.config.build import FULL, SMALL, Steps, edited, faults, load

ROOT = Path(__file__).parents[3]
BAD = sorted((ROOT / "tests/data/bad").glob("*.yaml"))
PLANTED = "sk-planted0123456789abcdef"


def leaves(value: Any, path: Steps = ()) -> list[Steps]:
    """Return the path of every value that is neither a mapping nor a list."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for position, item in enumerate(value) for leaf in leaves(item, (*path, position))]
    return [path]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_gets_exactly_its_messages(path: Path) -> None:
    """The expected text stands beside each file; one line an error, in the order of the file."""
    with pytest.raises(ConfigErrors) as caught:
        load_config(path.read_text(encoding="utf-8"), path.name)
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == f"{caught.value}\n"


def test_no_expected_message_holds_a_planted_key() -> None:
    """The bad files hold made-up keys and tokens that all contain the same digits."""
    assert [] == [path.name for path in BAD if "0123456789" in path.with_suffix(".txt").read_text(encoding="utf-8")]


def test_there_are_bad_files_and_each_has_its_messages() -> None:
    assert len(BAD) >= 25
    assert [path.with_suffix(".txt") for path in BAD] == sorted((ROOT / "tests/data/bad").glob("*.txt"))


@pytest.mark.parametrize("name", ["minimal.yaml", "gateway.yaml"])
def test_an_example_loads_and_compiles(name: str) -> None:
    assert compile_snapshot(parse_config_file(ROOT / "examples" / name), 1).models


@pytest.mark.parametrize("path", leaves(FULL), ids=lambda path: ".".join(map(str, path)))
def test_no_message_ever_quotes_a_value(path: Steps) -> None:
    """A key pasted in the wrong place must not travel on into a log."""
    assert "planted" not in str(faults(edited(FULL, path, PLANTED)))


@pytest.mark.parametrize("section", [("providers",), ("models",), ("policies",), ("server",), ()], ids=str)
def test_a_secret_pasted_as_a_key_is_hidden(section: Steps) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(edited(FULL, (*section, PLANTED), 1))
    assert "planted" not in str(caught.value)


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + (ROOT / "examples/minimal.yaml").read_bytes())
    assert parse_config_file(ROOT / "examples/minimal.yaml") == parse_config_file(file)


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_config_file(tmp_path / "none.yaml")
    assert f"{tmp_path}/none.yaml: does not exist; check the path" == str(caught.value)


def test_a_directory_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_config_file(tmp_path)
    expected = f"{tmp_path}: cannot be read (Is a directory); check the path and its permissions"
    assert expected == str(caught.value)


def test_a_file_that_is_not_utf_8_is_said_so(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_bytes(b"schema: 1 # \xff\n")
    with pytest.raises(ConfigErrors) as caught:
        parse_config_file(file)
    assert f"{file}: is not UTF-8 text; save it as UTF-8" == str(caught.value)


def test_a_config_cannot_be_changed_after_loading() -> None:
    config = load(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        config.schema_version = 2
