"""Keeps the health engine's cooldowns across restarts, in one small JSON file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from extproc.core.health import HealthEngine
from extproc.envoy_config.files import write_json

log = logging.getLogger(__name__)


def save_health(path: Path, state: Mapping[str, Any]) -> None:
    """Write what an engine dumped; a full disk costs the memory of cooldowns, never a request.

    It waits for the disk, so it is not for the event loop.
    """
    try:
        write_json(path, dict(state))
    except OSError as error:
        log.warning("health state is not saved: %s", error.strerror)


def load_health(path: Path, health: HealthEngine, now: float) -> None:
    """Read the state of an earlier run; a file that is missing or broken means a fresh start."""
    try:
        health.load(orjson.loads(path.read_bytes()), now)
    except FileNotFoundError:
        return
    except (OSError, orjson.JSONDecodeError):
        log.warning("health state could not be read: starting without it")
