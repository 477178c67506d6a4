"""Programs of the machine that some tests need beside Python: found, or the test is skipped; in CI it fails."""

from __future__ import annotations

import os
import shutil

import pytest


def needed(program: str, package: str) -> str:
    """Return the program's path; `package` is what holds it on Debian, and `.ci/run` installs."""
    found = shutil.which(program)
    reason = f"{program} is not installed (Debian package {package})"
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if found is None:
        pytest.skip(reason)
    return found
