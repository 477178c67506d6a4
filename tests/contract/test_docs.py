"""Documents and program agree: links lead somewhere, configs compile, commands exist."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import click
import pytest

from configctl.cli import main as configctl
from extproc.cli import build_parser
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.init import KNOWN
from tests.support.markdown import ROOT, Block, blocks, links, owned_pages, pages, run_pages

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
CONFIGS = [
    block for block in BLOCKS if block.language == "yaml" and re.search(r"^schema: 1$", block.text, re.MULTILINE)
]
RUN_PAGES = run_pages()
COMMANDS = [block for block in BLOCKS if block.is_commands]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    local = [link for link in links(page) if not re.match(r"[a-z]+:|#", link)]

    assert [] == [link for link in local if not (page.parent / link.partition("#")[0]).exists()]


@pytest.mark.parametrize("block", CONFIGS, ids=str)
def test_every_shown_config_compiles(block: Block) -> None:
    compile_snapshot(load_config(block.text, str(block)), version=1)


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_every_shown_command_is_one_that_the_program_takes(block: Block) -> None:
    """Verbs and flags go through the real parsers, make's targets through the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command, *arguments in block.commands():
        if command == "extproc":
            _parse_extproc(arguments)
        elif command == "configctl":
            _parse_configctl(arguments)
        elif command == "make":
            assert {word for word in arguments if "=" not in word} <= targets


@pytest.mark.parametrize("block", [block for block in COMMANDS if re.match(r"docs/|README\.md$", block.page)], ids=str)
def test_every_command_block_for_readers_is_run_or_says_why_not(block: Block) -> None:
    """It is run by test_docs.py, which takes every page of docs/ that no other end-to-end test names as its own."""
    assert block.not_run is None or block.not_run.strip()
    if block.not_run is None:
        assert block.page in {_name(page) for page in RUN_PAGES} | owned_pages()


def test_the_documents_are_all_listed() -> None:
    """What lies in docs/ is named in its index, so that a reader finds it."""
    index = set(links(ROOT / "docs" / "README.md"))

    assert [] == [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in index | {"README.md"}]


def test_the_quick_start_names_keys_that_init_looks_for() -> None:
    named = set(re.findall(r"`([A-Z_]+_API_KEY)`", (ROOT / "docs/quick-start.md").read_text(encoding="utf-8")))

    assert named
    assert set() == named - {known.variable for known in KNOWN}


def _every_command() -> list[str]:
    """Return what may be typed: every verb of `configctl` without verbs of its own, and every verb of `extproc`."""
    found = []
    waiting: list[tuple[str, click.Command]] = [("configctl", configctl)]
    while waiting:
        name, command = waiting.pop()
        if isinstance(command, click.Group):
            waiting += [(f"{name} {word}", verb) for word, verb in command.commands.items()]
        else:
            found.append(name)
    verbs = next(action for action in build_parser({})._actions if isinstance(action, argparse._SubParsersAction))
    return sorted(found) + [f"extproc {verb}" for verb in verbs.choices]


@pytest.mark.parametrize("command", _every_command())
def test_every_command_is_in_the_documents(command: str) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))

    assert re.search(rf"\b{command}\b", text)


def _parse_extproc(arguments: list[str]) -> None:
    if arguments and not {"--version", "--help"} & set(arguments):
        build_parser({}).parse_args([word for word in arguments if word != ">"])


def _parse_configctl(arguments: list[str]) -> None:
    command: click.Command = configctl
    context = command.make_context("configctl", list(arguments), resilient_parsing=True)
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)
