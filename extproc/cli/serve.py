"""`extproc serve`: its flags, and the run they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack

from extproc.cli.chosen import admin_of, instance_of, prepare_version, store_of
from extproc.cli.flags import Verbs, add_admin, add_config, add_envoy, add_places, add_store, add_transport, add_verb
from extproc.data_dir import DataDir
from extproc.settings import SUPERVISED_ENV, ServeSettings


def add(verbs: Verbs, environ: Mapping[str, str]) -> None:
    """Add the verb and its flags; `environ` fills defaults."""
    example = "extproc serve --config gateway.yaml --data-dir /var/lib/gateway"
    parser = add_verb(verbs, "serve", "run the services that Envoy calls, without Envoy", example, _run)
    add_config(parser)
    add_places(parser, environ)
    add_store(parser, environ)
    add_envoy(parser)
    add_transport(parser, environ)
    add_admin(parser, environ)


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from extproc.preflight import refuse_open_door

    supervised = environ.get(SUPERVISED_ENV) == "1"
    data_dir = DataDir(options.data_dir)
    with ExitStack() as held:
        if not supervised:
            data_dir.create()
            held.enter_context(data_dir.lock_exclusive())
            admin_of(options)
            refuse_open_door(prepare_version(options, data_dir, environ), (options.listen, options.metrics_listen))
        return _serve(options, environ, supervised=supervised)


def _serve(options: argparse.Namespace, environ: Mapping[str, str], *, supervised: bool) -> int:
    from configctl.source import StoreSource
    from extproc.serve import run_serve

    return run_serve(
        ServeSettings(
            store=store_of(options),
            config=options.config,
            data_dir=options.data_dir,
            listen=options.listen,
            metrics_listen=options.metrics_listen,
            envoy=options.envoy,
            environ=environ,
            supervised=supervised,
            transport=options.transport,
            admin=admin_of(options),
        ),
        StoreSource(store_of(options), instance_of(options)),
    )
