"""Every command explains itself with an example, and the examples are ones the parsers take."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import click
import pytest

from configctl.cli import main as configctl
from extproc.cli import build_parser


def _extproc_verbs() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser({})._actions  # argparse has no public way to its verbs
    return next(dict(action.choices) for action in actions if isinstance(action, argparse._SubParsersAction))


def _configctl_commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(words), command
    if isinstance(command, click.Group):
        for name, verb in command.commands.items():
            yield from _configctl_commands(verb, (*words, name))


@pytest.mark.parametrize("verb", sorted(_extproc_verbs()))
def test_a_verb_of_extproc_has_an_example_that_it_takes(verb: str) -> None:
    """The lines below `example` in the help go through the parser itself."""
    epilog = _extproc_verbs()[verb].epilog or ""
    lines = [line for line in epilog.splitlines() if line.startswith("  ")]

    assert lines
    for line in lines:
        command, *arguments = shlex.split(line.partition(" > ")[0])
        assert "extproc" == command
        assert verb == arguments[0]
        build_parser({}).parse_args(arguments)


@pytest.mark.parametrize(("name", "command"), list(_configctl_commands(configctl, ("configctl",))), ids=str)
def test_a_verb_of_configctl_has_an_example(name: str, command: click.Command) -> None:
    assert name.split()[0] in (command.epilog or "")
    assert "Example" in (command.epilog or "")
