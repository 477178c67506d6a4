"""The name of who acts."""

from __future__ import annotations

import os

import pytest

from configctl.author import login_name


def test_who_runs_the_process_has_a_name_even_without_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)

    assert f"uid {os.getuid()}" == login_name()
