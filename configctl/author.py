"""Who acts: the name that the audit gets when nobody gave one."""

from __future__ import annotations

import getpass
import os


def login_name() -> str:
    """Return who runs this process, or `uid N` where that user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
