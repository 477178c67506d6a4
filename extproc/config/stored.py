"""A stored version -> `Snapshot`: where a version becomes usable.

Owns the check that its content is still what was published, so that nothing somebody changed in a store goes live.
"""

from __future__ import annotations

import hashlib

from extproc.config.compile import compile_snapshot
from extproc.config.errors import ConfigError, ConfigErrors
from extproc.config.load import load_config
from extproc.config.snapshot import Snapshot

_CHANGED = (
    "was changed since it was published, its digest does not fit its content: "
    "`configctl audit verify` names all that was"
)


def compile_stored(number: int, digest: str, content: str) -> Snapshot:
    """Compile a stored version with the compiler of today; ConfigErrors when that refuses it, or it was changed."""
    source = f"version {number}"
    if hashlib.sha256(content.encode()).hexdigest() != digest:
        raise ConfigErrors([ConfigError("", source, _CHANGED)])
    return compile_snapshot(load_config(content, source), number)
