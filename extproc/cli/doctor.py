"""`extproc doctor`: its flags, and the run they ask for."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from extproc.cli.chosen import look_at_store, store_of
from extproc.cli.flags import Verbs, add_config, add_envoy, add_places, add_store, add_verb
from extproc.data_dir import DataDir


def add(verbs: Verbs, environ: Mapping[str, str]) -> None:
    """Add the verb and its flags; `environ` fills defaults."""
    summary = "look at all that a gateway needs here, and say what to do"
    parser = add_verb(verbs, "doctor", summary, "extproc doctor --config gateway.yaml --network", _run)
    add_config(parser)
    add_places(parser, environ)
    add_store(parser, environ)
    add_envoy(parser)
    parser.add_argument(
        "--network", action="store_true", help="also resolve and connect to the providers; no key is sent"
    )


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from extproc.doctor import DoctorSettings, run_doctor

    return run_doctor(
        DoctorSettings(
            config=options.config,
            data_dir=DataDir(options.data_dir),
            listen=options.listen,
            metrics_listen=options.metrics_listen,
            envoy=options.envoy,
            environ=environ,
            network=options.network,
            store=lambda: look_at_store(store_of(options)),
            now=time.time(),
        )
    )
