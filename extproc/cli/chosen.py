"""What the flags of a run come to: its store, its name in it, the version about to run, the admin API's address.

The database and the config's model are imported when a verb asks for them.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from extproc.data_dir import DataDir
from extproc.settings import AdminListen, StartError

if TYPE_CHECKING:
    from extproc.config.snapshot import Snapshot


def store_of(options: argparse.Namespace) -> str:
    """Return the store's URL; a file in the data directory unless told otherwise."""
    return options.store or f"sqlite:///{DataDir(options.data_dir).store_db}"


def instance_of(options: argparse.Namespace) -> str:
    """Return what names this instance in `configctl status`: the machine and the data directory."""
    return f"{socket.gethostname()}:{DataDir(options.data_dir).root}"


def admin_of(options: argparse.Namespace) -> AdminListen | None:
    """Return where the admin API listens over TCP; StartError for half of it, or for files that cannot be used."""
    asked = (options.admin_listen, options.admin_cert, options.admin_key, options.admin_client_ca)
    if not any(asked):
        return None
    if not all(asked):
        raise StartError(
            "The admin API over TCP needs --admin-listen, --admin-cert, --admin-key and --admin-client-ca together: "
            "it is served to callers with a certificate only."
        )
    from extproc.admin_tls import read_admin_tls

    admin = AdminListen(*asked)
    read_admin_tls(admin)
    return admin


def prepare_version(options: argparse.Namespace, data_dir: DataDir, environ: Mapping[str, str]) -> Snapshot:
    """Make the store ready and return the version about to run."""
    from configctl.author import login_name
    from configctl.source import prepare

    author = environ.get("GATEWAY_AUTHOR") or login_name()
    snapshot, note = prepare(store_of(options), options.config, data_dir.last_good, author)
    if note:
        sys.stderr.write(f"{note}\n")
    return snapshot


def look_at_store(url: str) -> str:
    """Return a sentence about the store, which is not made if it is not there; raises StartError."""
    from configctl.engine import describe, parse_store_url, sqlite_path
    from configctl.refusals import StoreError
    from configctl.store import Store

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
