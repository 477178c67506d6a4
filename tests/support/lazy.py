"""Modules that are imported when they are first used, not by every process that collects tests."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Lazy:
    """Stands for a module: the provider SDKs take seconds to import, and each process of a run collects every file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        # What looks at every name of a test file, as pytest does, asks for private ones and must not import anything.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(import_module(self._name), name)
