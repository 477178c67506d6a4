"""Reads requirements.lock, which holds what developers need too, and tells what of it the gateway runs with.

`python .ci/locked.py > requirements-runtime.lock` writes what an image installs: the dependencies, the `postgres` extra
and, so that the package itself can be built without asking an index, the build backend. All of it comes from
pyproject.toml and the lock's own `# via` lines, so the answer does not depend on what is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
EXTRAS = ("postgres",)
_PROJECT = "ai-model-gateway"
_HEAD = """\
# What the gateway runs with, PostgreSQL as store included, and what builds it: a part of requirements.lock.
# `make lock` writes it; tests/contract/test_locks.py keeps the two in step.
"""
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VIA = re.compile(r"^    # (?:via )? *([A-Za-z0-9][A-Za-z0-9._-]*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Locked:
    """One package of the lock: what is allowed, who needs it, and the lines that say so."""

    name: str
    version: str
    hashes: tuple[str, ...]
    needed_by: frozenset[str]
    text: str


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> dict[str, Locked]:
    """Return the packages of a lock file by name."""
    entries = re.findall(r"^[A-Za-z0-9][^\n]*==[^\n]*\n(?: [^\n]*\n)*", text, re.MULTILINE)
    return {locked.name: locked for locked in map(_read_entry, entries)}


def _read_entry(text: str) -> Locked:
    name, _, rest = text.partition("==")
    needed_by = frozenset(normal(one) for one in _VIA.findall(text)) - {"via"}
    return Locked(normal(name), rest.split()[0], tuple(_HASH.findall(text)), needed_by, text)


def run_with(lock: dict[str, Locked], pyproject: str) -> dict[str, Locked]:
    """Return what is needed to run, the extras of an image included; the build backend is not."""
    project = tomllib.loads(pyproject)["project"]
    extras = [need for extra in EXTRAS for need in project["optional-dependencies"][extra]]
    return _closure(lock, [*project["dependencies"], *extras])


def build_with(lock: dict[str, Locked], pyproject: str) -> dict[str, Locked]:
    """Return what builds the package."""
    return _closure(lock, tomllib.loads(pyproject)["build-system"]["requires"])


def _closure(lock: dict[str, Locked], needs: Iterable[str]) -> dict[str, Locked]:
    found = {normal(match[0]) for need in needs if (match := _NAME.match(need))}
    while more := {name for name, locked in lock.items() if locked.needed_by & found} - found:
        found |= more
    return {name: locked for name, locked in lock.items() if name in found}


def runtime_lock(lock: dict[str, Locked], pyproject: str) -> str:
    """Return the text of requirements-runtime.lock."""
    wanted = run_with(lock, pyproject) | build_with(lock, pyproject)
    return _HEAD + "".join(wanted[name].text for name in sorted(wanted))


if __name__ == "__main__":
    pyproject_text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    sys.stdout.write(runtime_lock(read_lock(LOCK.read_text(encoding="utf-8")), pyproject_text))
