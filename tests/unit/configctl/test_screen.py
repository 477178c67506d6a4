"""What is printed cannot steer a terminal, wherever it came from."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from configctl.changes import Report
from configctl.commands import Status
from configctl.records import Version
from configctl.render import print_status, print_verdicts, waiting_line
from configctl.screen import Screen, print_line
from configctl.waiting import Verdict, Verdicts

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


def test_json_escapes_what_could_steer_a_terminal_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    value = {f"é {STEERING}": ["日本 \U0001f600 \x7f\u2028 \U000e0001"]}
    Screen().json(value)

    said = capsys.readouterr().out
    assert [] == unfit(said)
    assert ("é" in said, "日本 \U0001f600" in said, r"\u202e" in said, r"\udb40\udc01" in said) == (True,) * 4
    assert value == json.loads(said)


def test_an_outcome_has_no_line_of_its_own() -> None:
    outcome: Any = f"applied{STEERING}\nFAKE"
    version = Version(2, 1, "d", b"{}", "ann", "why", 1.0, "publish", None, outcome)
    print_status(made := console(), Status(version, ()), 1.0)

    assert isinstance(made.file, io.StringIO)
    assert ["wanted version: 2 (applieda ]0;mine [2J 31m FAKE)"] == made.file.getvalue().splitlines()[:1]


def test_an_instance_has_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    version = Version(2, 1, "d", b"{}", "ann", "why", 1.0, "publish", None)
    verdicts = Verdicts((Verdict("gw\nFAKE", "host\nFAKE", "applied", None, 1.0),), ())
    print_verdicts(Screen(), Report(version, "applied", verdicts))

    assert ["gw FAKE (host FAKE): applied after 1.0 s"] == [
        line.strip() for line in capsys.readouterr().err.splitlines()
    ]
    assert "\n" not in waiting_line(verdicts)
