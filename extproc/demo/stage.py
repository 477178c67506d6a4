"""The stage of the demonstration: the real gateway as a child process.

Owns the config of the demonstration, the gateway's processes and its temporary data directory. What is played on
the stage is `story.py`'s, who calls the gateway is `caller.py`'s. Invariant: after the `with` block no process of ours
runs and the directory is gone; should this process be killed, the gateway ends by its tether.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from extproc.child import tether
from extproc.demo.caller import Caller, logged_in

CONFIG = """\
schema: 1
providers:
  primary:
    base_url: {primary}
    api_key: {{env: DEMO_PRIMARY_KEY}}
    allow_private_network: true
  fallback:
    base_url: {fallback}
    api_key: {{env: DEMO_FALLBACK_KEY}}
    allow_private_network: true
models:
  demo-primary:
    targets: [{{provider: primary, model: primary-model}}]
    fallback: [demo-fallback]
  demo-fallback:
    targets: [{{provider: fallback, model: fallback-model}}]
policies:
  default:
    first_byte_timeout: 1500ms
    first_token_timeout: 1500ms
    cooldown: {{base: 1s, max: 10s}}
"""
KEYS = {"DEMO_PRIMARY_KEY": "demo-key-of-primary", "DEMO_FALLBACK_KEY": "demo-key-of-fallback"}

_READY_TIMEOUT_S = 45.0
_STOP_TIMEOUT_S = 15.0
_LONGEST_BASE = 60
"""Bytes of a temporary directory's path that leave room for our sockets."""


class StageError(Exception):
    """The gateway could not be started; the message says what it said."""


class Gateway(Caller):
    """`extproc up` in front of the two providers, on free ports of 127.0.0.1; a context manager."""

    def __init__(self, primary_url: str, fallback_url: str) -> None:
        self._folder = _short_temporary_folder()
        self._config = self._folder / "gateway.yaml"
        self._config.write_text(CONFIG.format(primary=primary_url, fallback=fallback_url), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__("")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        argv = [sys.executable, "-m", "extproc", "up", "--config", str(self._config), "--drain", "2s"]
        argv += ["--data-dir", str(self._folder / "data")]
        argv += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            # A session of its own: Ctrl-C reaches us alone, and we stop the gateway in good order.
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                tether(argv),
                env=os.environ | KEYS,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        give_up_at = time.monotonic() + _READY_TIMEOUT_S
        while not (ready := self._ready_words()):
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise StageError(f"`extproc up` did not become ready. It said:\n{self.last_words()}")
            time.sleep(0.02)
        self.address = urlsplit(ready[1]).netloc

    @property
    def _out(self) -> Path:
        return self._folder / "stdout"

    @property
    def _err(self) -> Path:
        return self._folder / "stderr"

    def _ready_words(self) -> list[str]:
        whole_lines = self._out.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        return next((line.split() for line in whole_lines if line.startswith("ready ")), [])

    def last_words(self) -> str:
        """Return the end of what the gateway wrote to stderr."""
        return "\n".join(self._err.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])

    def stop(self) -> int:
        """Stop the gateway and return its exit code; 0 also when it never ran."""
        process = self._process
        if process is None:
            return 0
        # The second request to stop cuts the drain short.
        for wait_s in (_STOP_TIMEOUT_S, 5.0):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                return process.wait(wait_s)
        process.kill()
        return process.wait()

    def logged(self, request_id: str) -> dict[str, Any]:
        """Return the access log's line about a request, empty when there is none; complete after `stop`."""
        return logged_in(self._folder / "data" / "logs" / "access.log", request_id)


def _short_temporary_folder() -> Path:
    # TMPDIR may be long, and the path of a Unix socket may not.
    too_long = len(os.fsencode(tempfile.gettempdir())) > _LONGEST_BASE
    return Path(tempfile.mkdtemp(prefix="gw-demo-", dir="/tmp" if too_long else None))  # noqa: S108 - mkdtemp is safe
