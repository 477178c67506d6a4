"""Writes a CycloneDX 1.6 list of what a release runs with, from the locked environment; no network is asked.

`python .ci/sbom.py requirements.lock > dist/sbom.cdx.json`. Only what the project needs to run is listed, with the
hashes that the lock file allows.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

PROJECT = "ai-model-gateway"
_NEED = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?([^;]*)(?:;(.*))?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield what a package needs here, with the extras it asks for."""
    for line in metadata.requires(name) or ():
        match = _NEED.match(line)
        if match is None:
            continue
        marker = match[4] or ""
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        if wanted is not None and wanted[1] not in extras:
            continue
        yield normal(match[1]), frozenset(filter(None, re.split(r"[,\s]+", match[2] or "")))


def closure(root: str) -> list[str]:
    """Return every package that is installed because `root` needs it, sorted."""
    found: dict[str, frozenset[str]] = {}
    waiting = list(needs(root, frozenset()))
    while waiting:
        name, extras = waiting.pop()
        if name in found and extras <= found[name]:
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # a marker that is not true here
        found[name] = found.get(name, frozenset()) | extras
        waiting += needs(name, found[name])
    return sorted(found)


def locked_hashes(lock: str) -> dict[str, list[str]]:
    """Return the allowed SHA-256 of each package in a lock file."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", lock)
    return {normal(entry.partition("==")[0].strip()): _HASH.findall(entry) for entry in entries if "==" in entry}


def component(name: str, hashes: dict[str, list[str]]) -> dict[str, Any]:
    """Return one package in CycloneDX's form."""
    version = metadata.version(name)
    about = metadata.metadata(name)
    told = about.get("License-Expression") or about.get("License") or ""
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
        "properties": [{"name": "locked:sha256", "value": value} for value in hashes.get(name, [])],
    }
    if 0 < len(told) < 100:
        entry["licenses"] = [{"license": {"name": told}}]
    return entry


def main(lock: str) -> None:
    """Print the document."""
    hashes = locked_hashes(Path(lock).read_text(encoding="utf-8"))
    version = metadata.version(PROJECT)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": PROJECT, "version": version}},
        "components": [component(name, hashes) for name in closure(PROJECT)],
    }
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
