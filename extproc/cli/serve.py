"""`extproc serve`: its flags, and the run they ask for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from extproc.cli.chosen import admin_of, instance_of, prepare_version, store_of
from extproc.cli.flags import Verbs, add_run, add_verb
from extproc.data_dir import DataDir
from extproc.settings import HANDOVER_ENV, SUPERVISED_ENV, ServeSettings


def add(verbs: Verbs, environ: Mapping[str, str]) -> None:
    """Add the verb and its flags; `environ` fills defaults."""
    example = "extproc serve --config gateway.yaml --data-dir /var/lib/gateway"
    parser = add_verb(verbs, "serve", "run the services that Envoy calls, without Envoy", example, _run)
    add_run(parser, environ)


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from configctl.source import StoreSource
    from extproc.serve import run_serve

    settings = _settings(options, environ)
    source = StoreSource(settings.store, instance_of(options))
    if HANDOVER_ENV in environ:
        return run_serve(_claimed(options, settings), source)
    if settings.supervised:
        return run_serve(settings, source)
    with _checked(options, settings):
        return run_serve(settings, source)


def _settings(options: argparse.Namespace, environ: Mapping[str, str]) -> ServeSettings:
    return ServeSettings(
        store=store_of(options),
        config=options.config,
        data_dir=options.data_dir,
        listen=options.listen,
        metrics_listen=options.metrics_listen,
        envoy=options.envoy,
        environ=environ,
        supervised=environ.get(SUPERVISED_ENV) == "1",
        transport=options.transport,
        admin=admin_of(options),
    )


def _claimed(options: argparse.Namespace, settings: ServeSettings) -> ServeSettings:
    """Claim what the gateway needs, hand it to the supervisor, and return the settings with ports chosen."""
    from extproc.handover import hand_over
    from extproc.preflight import claim

    prepare = lambda data_dir: prepare_version(options, data_dir, settings.environ)  # noqa: E731
    with claim(settings, prepare, holder=os.getppid()) as (claimed, lock):
        hand_over(int(settings.environ[HANDOVER_ENV]), claimed, lock)
    admin = replace(settings.admin, address=claimed.admin) if settings.admin and claimed.admin else None
    return replace(settings, listen=claimed.listen, metrics_listen=claimed.metrics, admin=admin)


@contextmanager
def _checked(options: argparse.Namespace, settings: ServeSettings) -> Iterator[None]:
    """Check and hold what a `serve` without a supervisor needs."""
    from extproc.preflight import refuse_open_door

    data_dir = DataDir(settings.data_dir)
    data_dir.create()
    with data_dir.lock_exclusive():
        refuse_open_door(
            prepare_version(options, data_dir, settings.environ), (settings.listen, settings.metrics_listen)
        )
        yield
