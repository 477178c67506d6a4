"""The `extproc` command: argv and environment become settings, settings a run, faults sentences.

Owns the verbs' order and the exit codes (0 done, 1 refused or failed, 2 usage). Each verb's flags and its way from them
to a run are a module here, flags of several verbs `flags.py`'s. This package is the only one that reads `os.environ`.
What a verb does lives elsewhere, and is imported only when that verb runs: help, usage and versions wait for nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from extproc import __version__
from extproc.cli import demo, doctor, init, render, serve, up
from extproc.settings import StartError

_VERBS = (up, serve, render, demo, init, doctor)
_GC_THRESHOLDS = (10_000, 20, 50)
"""How seldom garbage is searched, while requests come and go too: with Python's own 700 a start would search what it
imports again and again, a twentieth of its time."""
_EXAMPLES = """\
examples:
  extproc init
  extproc doctor --config gateway.yaml
  extproc up --config gateway.yaml
  extproc serve --config gateway.yaml --data-dir /var/lib/gateway
  extproc render --config gateway.yaml --out envoy-config
  extproc demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    gc.set_threshold(*_GC_THRESHOLDS)
    environ = dict(os.environ)
    options = build_parser(environ).parse_args(argv)
    # After the parser: --help and --version need not wait for the config model.
    from extproc.config.errors import ConfigErrors

    try:
        code: int = options.run(options, environ)
    except (StartError, ConfigErrors) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 1
    return code


def build_parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the parser; `environ` fills defaults and finds Envoy for `--version`."""
    parser = argparse.ArgumentParser(
        prog="extproc",
        description="A self-hosted, OpenAI-compatible gateway that routes around failing providers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_VersionAction, environ=environ, help="print the versions and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add(verbs, environ)
    return parser


def describe_version(environ: Mapping[str, str]) -> str:
    """Return the gateway's version and the Envoy that would be used."""
    from extproc.envoy_binary import dotted, find_envoy, require_envoy

    try:
        envoy = find_envoy(None, environ)
    except StartError:
        return f"extproc {__version__} (no Envoy found)"
    try:
        return f"extproc {__version__} (Envoy {dotted(require_envoy(envoy))} at {envoy})"
    except StartError as error:
        return f"extproc {__version__} (no usable Envoy: {error})"


class _VersionAction(argparse.Action):
    """Like argparse's own, but looks for Envoy only when it is asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, environ: Mapping[str, str], **rest: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **rest)
        self._environ = environ

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"{describe_version(self._environ)}\n")
        parser.exit(0)
