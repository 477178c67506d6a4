"""Active checks of self-hosted providers: one GET at a time per provider, jittered, through Envoy.

Owns when and how a check is sent; what its outcome means is the health engine's. Off unless a provider asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from extproc import envoy_admin
from extproc.config.snapshot import HealthCheck
from extproc.core.gateway import Active, Gateway
from extproc.wire import names

JITTER = 0.1
PASSING = range(200, 300)


async def check_provider(
    gateway: Gateway, name: str, socket: Path, clock: Callable[[], float], draw: Callable[[], float]
) -> None:
    """Check one provider until cancelled, or until the active version no longer asks for it."""
    while True:
        active = gateway.active
        provider = gateway.provider(active, name) if active else None
        if active is None or provider is None or provider.health_check is None:
            return
        check = provider.health_check
        await asyncio.sleep(check.interval_s * (1.0 + JITTER * (2.0 * draw() - 1.0)))
        passed = await passes(check, socket, cluster_of(active, name))
        if passed is not None:
            gateway.checked(name, active, clock(), passed=passed)


async def passes(check: HealthCheck, socket: Path, cluster: str | None) -> bool | None:
    """Send one check: anything but a 2xx within the timeout fails; None when no Envoy is there to carry it."""
    if cluster is None or check.path is None:
        return None
    headers = {names.H_CHECK_CLUSTER: cluster}
    try:
        answer = await envoy_admin.get(socket, check.path, check.timeout_s, headers)
    except envoy_admin.AdminUnreachableError:
        return None
    except envoy_admin.AdminError:
        return False
    return answer.status in PASSING


def cluster_of(active: Active, provider: str) -> str | None:
    """Return a cluster of a provider; with several connect timeouts any will do."""
    return next((cluster for (name, _), cluster in sorted(active.clusters.items()) if name == provider), None)
