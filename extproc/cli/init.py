"""`extproc init`: its flags, and the run they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from extproc.cli.flags import Verbs, add_verb


def add(verbs: Verbs, environ: Mapping[str, str]) -> None:
    """Add the verb and its flags; `environ` fills defaults."""
    summary = "write a commented gateway.yaml for the providers whose keys are in the environment"
    parser = add_verb(verbs, "init", summary, "extproc init gateway.yaml", _run)
    parser.add_argument("out", nargs="?", type=Path, default=Path("gateway.yaml"), metavar="FILE", help="%(default)s")


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from extproc.init import run_init

    return run_init(options.out, environ)
