"""Keeps the health engine's cooldowns across restarts, in one small JSON file."""

from __future__ import annotations

import logging
from pathlib import Path

import orjson

from extproc.core.health import HealthEngine
from extproc.envoy_config.files import write_json

log = logging.getLogger(__name__)


def save_health(path: Path, health: HealthEngine) -> None:
    """Write the engine's state; a full disk costs the memory of cooldowns, never a request."""
    try:
        write_json(path, health.dump())
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
