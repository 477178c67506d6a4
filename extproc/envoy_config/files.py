"""Writes documents where Envoy watches for them: whole, atomically, and secrets before what refers to them."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from extproc.envoy_config.render import Rendered, discovery
from extproc.envoy_config.resource import EnvoyPaths, Json

PRIVATE = 0o600


def write_resources(rendered: Rendered, paths: EnvoyPaths, version: str) -> None:
    """Write secrets, clusters, routes and listener, in the order in which they refer to each other."""
    for name, document in rendered.sds.items():
        write_json(paths.sds / name, document)
    write_json(paths.cds, discovery(version, rendered.cds))
    write_json(paths.rds, discovery(version, [rendered.rds]))
    write_json(paths.lds, discovery(version, rendered.lds))


def write_json(path: Path, document: Json) -> None:
    """Replace a file by a document; a reader sees the old or the new one, never a part. Mode 0600.

    It waits for the disk, so a running gateway calls it off its event loop. Raises OSError, the old file in place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
