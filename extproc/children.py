"""What the supervisor's two children are told: their commands and their environments.

Invariants: provider keys in the environment reach `serve` and never Envoy; no command holds the store's password.
"""

from __future__ import annotations

import sys
from pathlib import Path

from extproc.child import Child, tether
from extproc.data_dir import DataDir
from extproc.envoy_binary import ENVOY_BIN_ENV, envoy_environ
from extproc.handover import Claimed
from extproc.settings import HANDOVER_ENV, STORE_ENV, SUPERVISED_ENV, UpSettings

# How long Envoy lets connections of a *replaced* listener live: a publish must not cut a long stream. It has
# nothing to do with --drain, at the end of which the process ends.
_LISTENER_DRAIN_S = 3600


def first_serve(settings: UpSettings, envoy: Path, channel: int) -> Child:
    """Return the `serve` that checks everything before it serves, and tells us on `channel` what it claimed."""
    asked = Claimed(settings.listen, settings.metrics_listen, settings.admin.address if settings.admin else None, "")
    argv = serve_argv(settings, asked)
    if settings.config is not None:
        argv += ["--config", str(settings.config)]
    environ = serve_environ(settings, envoy) | {HANDOVER_ENV: str(channel)}
    return Child("extproc serve", argv, environ, pass_fds=(channel,))


def serve_argv(settings: UpSettings, claimed: Claimed) -> list[str]:
    """Return the command of the `serve` child."""
    argv = [sys.executable, "-m", "extproc", "serve", "--data-dir", str(settings.data_dir)]
    argv += ["--listen", str(claimed.listen), "--metrics-listen", str(claimed.metrics)]
    argv += ["--transport", settings.transport]
    admin = settings.admin
    if admin is not None:
        argv += ["--admin-listen", str(claimed.admin), "--admin-cert", str(admin.cert)]
        argv += ["--admin-key", str(admin.key), "--admin-client-ca", str(admin.client_ca)]
    return argv


def serve_environ(settings: UpSettings, envoy: Path) -> dict[str, str]:
    """Return the environment of `serve`: ours, that it has a supervisor, its Envoy, and its store.

    The store's URL may hold a password, which the process list must not show.
    """
    return {**settings.environ, SUPERVISED_ENV: "1", ENVOY_BIN_ENV: str(envoy), STORE_ENV: settings.store}


def envoy_child(settings: UpSettings, envoy: Path, data_dir: DataDir) -> Child:
    """Return Envoy, tethered to us, with a log of its own."""
    argv = tether(envoy_argv(envoy, data_dir, settings.concurrency))
    return Child("Envoy", argv, envoy_environ(settings.environ), data_dir.envoy_log)


def envoy_argv(envoy: Path, data_dir: DataDir, concurrency: int) -> list[str]:
    """Return Envoy's command; `immediate`: every answer during a drain says `connection: close`."""
    argv = [str(envoy), "-c", str(data_dir.bootstrap), "--concurrency", str(concurrency)]
    argv += ["--disable-hot-restart", "--log-level", "warning", "--drain-strategy", "immediate"]
    # An operator reads the access log while an incident runs: Envoy's default would show lines up to 10 s late.
    argv += ["--file-flush-interval-msec", "500"]
    return [*argv, "--drain-time-s", str(_LISTENER_DRAIN_S)]
