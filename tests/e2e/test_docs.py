"""The command blocks of docs/, run page by page, from top to bottom, as a reader would."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.markdown import ROOT, blocks, run_pages
from tests.support.ports import free_port, release_port
from tests.support.programs import needed

PAGE_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0
_PORT = re.compile(r"\b1[89]\d{3}\b")
# The gateway's default ports belong to whoever runs the tests.
_PRELUDE = """\
set -euo pipefail
extproc() {
    case $1 in
        up | doctor) command extproc "$@" --listen 127.0.0.1:18080 --metrics-listen 127.0.0.1:18082 ;;
        *) command extproc "$@" ;;
    esac
}
"""


class Reader:
    """Somebody who types a page's commands in an empty folder; `stop` ends what they left running."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))  # short: Unix sockets live below
        self._ports: dict[str, int] = {}
        self._shell: subprocess.Popen[bytes] | None = None

    def run(self, text: str, prelude: str = _PRELUDE, **variables: str) -> tuple[int, str]:
        """Run a script; returns its exit code and all that was printed."""
        script = self.mapped(prelude + text)
        environ = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ} | variables
        environ["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        with (self.folder / "printed").open("wb") as printed:
            self._shell = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
        code = self._shell.wait(PAGE_TIMEOUT_S)
        return code, (self.folder / "printed").read_text(encoding="utf-8", errors="replace")

    def mapped(self, text: str) -> str:
        """Return a text with ports of this reader's own."""
        return _PORT.sub(lambda found: str(self._port(found[0])), text)

    def stop(self) -> None:
        """End every process of the session and remove the folder."""
        if self._shell is not None:
            self._end(self._shell.pid)
        for port in self._ports.values():
            release_port(port)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, group: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
            give_up_at = time.monotonic() + _STOP_TIMEOUT_S
            while time.monotonic() < give_up_at:
                os.killpg(group, 0)
                time.sleep(0.1)
            os.killpg(group, signal.SIGKILL)

    def _port(self, written: str) -> int:
        if written not in self._ports:
            self._ports[written] = free_port()
        return self._ports[written]


@pytest.fixture
def reader() -> Iterator[Reader]:
    """Give a reader; whatever they started is ended."""
    reader = Reader()
    try:
        yield reader
    finally:
        reader.stop()


@pytest.mark.parametrize("page", run_pages(), ids=lambda page: page.name)
def test_the_commands_of_a_page_work_as_written(reader: Reader, page: Path) -> None:
    script = "".join(block.text for block in blocks(page) if block.is_commands and block.not_run is None)
    if "extproc init" not in script:  # which leaves a file alone that is there
        shutil.copy(ROOT / "examples" / "minimal.yaml", reader.folder / "gateway.yaml")

    if "curl" in script:
        needed("curl", "curl")

    code, printed = reader.run(script)

    assert 0 == code, printed
    for promised in _PROMISED.get(page.name, ()):
        assert promised in printed


_PROMISED = {
    "fallback-demo.md": ("claims held.", "x-gateway-route-mode: model_fallback", "x-gateway-attempts: 2"),
    "quick-start.md": ("Nothing keeps the gateway from working.", '"object":"list"'),
    "migrating.md": ("bootstrap.json",),
}
