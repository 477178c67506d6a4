"""The compose file's services, run as processes: same commands, same config files, same health checks."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compose import NativeCompose
from tests.support.programs import needed

SCRAPED_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def compose() -> Iterator[NativeCompose]:
    """Start nothing yet; what was started is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))  # short: Unix sockets live below
    try:
        with NativeCompose(folder) as compose:
            yield compose
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_service_that_does_not_run_is_not_healthy(compose: NativeCompose) -> None:
    """First in this file: nothing runs yet, and a health check that cannot fail says nothing."""
    assert [] == [name for name in ("envoy", "extproc", "primary", "fallback") if compose.healthy(name)]


@pytest.mark.parametrize("attempt", ["the first time", "and again, with what runs already"])
def test_the_demo_service_shows_the_fallback(compose: NativeCompose, attempt: str) -> None:
    """Its dependencies come up healthy in their order, and every claim holds."""
    played = compose.run("demo")

    assert (0, "") == (played.returncode, played.stderr), played.stdout
    assert "All 25 claims held." in played.stdout
    assert "x-gateway-route-mode: model_fallback" in played.stdout


def test_every_service_of_the_demonstration_is_healthy(compose: NativeCompose) -> None:
    for name in ("envoy", "extproc", "primary", "fallback"):
        compose.start(name)

    assert [] == [name for name in ("envoy", "extproc", "primary", "fallback") if not compose.healthy(name)]


def test_prometheus_scrapes_the_gateway(compose: NativeCompose) -> None:
    """Its own word for the target's health is `up`, within a few scrapes."""
    needed("prometheus", "prometheus")
    compose.start("extproc")
    compose.start("prometheus")

    give_up_at = time.monotonic() + SCRAPED_WITHIN_S
    while (health := _target_health(compose)) == "unknown" and time.monotonic() < give_up_at:
        time.sleep(0.5)

    assert "up" == health


def _target_health(compose: NativeCompose) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{compose.port('9090')}/api/v1/targets", timeout=5) as answer:
        targets = json.load(answer)["data"]["activeTargets"]
    return str(targets[0]["health"]) if targets else "unknown"
