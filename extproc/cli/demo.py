"""`extproc demo`: its flags, and the run they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from extproc.cli.flags import Verbs, add_verb
from extproc.settings import StartError


def add(verbs: Verbs, environ: Mapping[str, str]) -> None:
    """Add the verb and its flags; `environ` fills defaults."""
    summary = "show failover on real Envoy with two fake providers"
    parser = add_verb(verbs, "demo", summary, "extproc demo", _run)
    running = parser.add_argument_group("with a gateway and fake providers that run already (all three or none)")
    running.add_argument("--gateway", metavar="URL", help="the gateway, for example http://127.0.0.1:18080")
    running.add_argument("--primary", metavar="URL", help="the first provider, started with --control")
    running.add_argument("--fallback", metavar="URL", help="the second provider, started with --control")
    running.add_argument("--access-log", type=Path, metavar="FILE", help="the gateway's access log, checked if given")


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    running = (options.gateway, options.primary, options.fallback)
    if all(running):
        from extproc.demo import Remote, run_remote_demo

        return run_remote_demo(Remote(*running, options.access_log))
    if any(running) or options.access_log:
        raise StartError("A demonstration with what runs already needs --gateway, --primary and --fallback together.")
    from extproc.demo import run_demo

    return run_demo()
