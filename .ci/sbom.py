"""Writes a CycloneDX 1.6 list of what a release runs with, from the lock; no network is asked.

`python .ci/sbom.py > dist/sbom.cdx.json`. What only builds or tests is left out; what the `postgres` extra brings is
in, because the image and the Kubernetes example run with it. Versions and the hashes that are allowed come from the
lock, the project's own version from its source; only licences are read from what is installed, where that is the same
version.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from typing import Any

from locked import LOCK, ROOT, Locked, read_lock, run_with

PROJECT = "ai-model-gateway"
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def component(locked: Locked) -> dict[str, Any]:
    """Return one package in CycloneDX's form."""
    purl = f"pkg:pypi/{locked.name}@{locked.version}"
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": locked.name,
        "version": locked.version,
        "purl": purl,
        "properties": [{"name": "locked:sha256", "value": value} for value in locked.hashes],
    }
    if told := _licence(locked):
        entry["licenses"] = [{"license": {"name": told}}]
    return entry


def _licence(locked: Locked) -> str:
    try:
        about = metadata.metadata(locked.name)
    except metadata.PackageNotFoundError:
        return ""
    told = about.get("License-Expression") or about.get("License") or ""
    # Older packages put the whole text there.
    return told if about.get("Version") == locked.version and len(told) < 100 else ""


def project_version() -> str:
    """Return the version that the source says: what is installed may be older."""
    found = _VERSION.search((ROOT / "extproc" / "__init__.py").read_text(encoding="utf-8"))
    if found is None:
        sys.exit('extproc/__init__.py holds no line __version__ = "..."')
    return found[1]


def main() -> None:
    """Print the document."""
    lock = read_lock(LOCK.read_text(encoding="utf-8"))
    wanted = run_with(lock, (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": PROJECT, "version": project_version()}},
        "components": [component(wanted[name]) for name in sorted(wanted)],
    }
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
