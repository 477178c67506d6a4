"""`extproc up`: its flags, and the run they ask for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from extproc.cli.chosen import admin_of, store_of
from extproc.cli.flags import Verbs, add_run, add_verb, typed
from extproc.config.units import parse_duration
from extproc.settings import UpSettings


def add(verbs: Verbs, environ: Mapping[str, str]) -> None:
    """Add the verb and its flags; `environ` fills defaults."""
    example = "extproc up --config gateway.yaml --listen 127.0.0.1:18080"
    parser = add_verb(verbs, "up", "run the whole gateway here: extproc and Envoy", example, _run)
    add_run(parser, environ)
    parser.add_argument(
        "--concurrency",
        type=typed(_parse_count),
        default=_cores(),
        metavar="N",
        help="Envoy's worker threads (default: the cores this process may use, %(default)s)",
    )
    parser.add_argument(
        "--drain",
        type=typed(parse_duration),
        default="30s",
        metavar="TIME",
        help="how long running requests may take after SIGTERM (default: %(default)s)",
    )


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from extproc.supervisor import run_up

    return run_up(
        UpSettings(
            store=store_of(options),
            config=options.config,
            data_dir=options.data_dir,
            listen=options.listen,
            metrics_listen=options.metrics_listen,
            envoy=options.envoy,
            concurrency=options.concurrency,
            drain_s=options.drain,
            environ=environ,
            transport=options.transport,
            admin=admin_of(options),
        )
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0.")
    return int(text)
