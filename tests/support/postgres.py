"""A PostgreSQL of the system's package, started for a test's sake on loopback and thrown away afterwards.

Owns the search for its programs and the server's life. Where it is not installed the tests that need it are skipped,
with a reason, but never in CI.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.ports import free_port, release_port

_USERS = ("postgres", "nobody")


@contextmanager
def postgres() -> Iterator[str]:
    """Start a PostgreSQL and give its URL without a database."""
    programs = _programs()
    if programs is None:
        reason = "PostgreSQL is not installed: no initdb, pg_ctl and postgres on PATH or in /usr/lib/postgresql"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    user, port = _user(), free_port()
    root = Path(tempfile.mkdtemp(prefix="gateway-pg-", dir="/tmp"))
    if user is not None:
        shutil.chown(root, user)
    data, log = root / "data", root / "log"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [programs / program, *arguments],
            user=user,
            cwd=root,
            check=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    try:
        run("initdb", "-D", str(data), "-U", "gateway", "--auth=trust", "--no-sync", "--encoding=UTF8")
        options = f"-h 127.0.0.1 -p {port} -k {root} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-l", str(log), "-w", "-t", "60", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://gateway@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        release_port(port)
        shutil.rmtree(root, ignore_errors=True)


def fresh_database(server: str) -> str:
    """Make an empty database and return its URL."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


def _programs() -> Path | None:
    """Return the directory that holds initdb, pg_ctl and postgres."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "pg_ctl").exists() and (place / "postgres").exists()), None)


def _user() -> str | None:
    """PostgreSQL refuses to run as root: name somebody else then."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _USERS if name in names)
