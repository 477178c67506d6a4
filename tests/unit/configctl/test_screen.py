"""What is printed cannot steer a terminal, wherever it came from."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from configctl.screen import Screen, print_line

STEERING = "a\x1b]0;mine\x07\x1b[2J\r\x9b31m\u202e"


def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)


def unfit(text: str) -> list[str]:
    """Return the characters that no line of text has."""
    return [char for char in text if not char.isprintable() and char != "\n"]


def test_a_sentence_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().say(f"first: {STEERING}\nsecond: mödel 日本")

    said = capsys.readouterr().err
    assert [] == unfit(said)
    assert ["first: a ]0;mine  [2J  31m ", "second: mödel 日本"] == said.splitlines()


def test_a_line_of_data_cannot_steer_the_terminal() -> None:
    print_line(made := console(), STEERING)

    assert isinstance(made.file, io.StringIO)
    assert [] == unfit(made.file.getvalue())
