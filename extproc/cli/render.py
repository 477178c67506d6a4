"""`extproc render`: its flags, and the run they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from extproc.cli.flags import Verbs, add_config, add_places, add_verb
from extproc.settings import RenderSettings


def add(verbs: Verbs, environ: Mapping[str, str]) -> None:
    """Add the verb and its flags; `environ` fills defaults."""
    example = "extproc render --config gateway.yaml --out envoy-config"
    summary = "write the files for an Envoy that somebody else runs"
    parser = add_verb(verbs, "render", summary, example, _run)
    add_config(parser, required=True)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write the files")
    add_places(parser, environ)


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from extproc.render import run_render

    return run_render(
        RenderSettings(
            config=options.config,
            out=options.out,
            data_dir=options.data_dir,
            listen=options.listen,
            metrics_listen=options.metrics_listen,
            environ=environ,
        )
    )
