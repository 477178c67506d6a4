"""docs/operations.md is followed word for word while the first of two providers is down."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import http1
from tests.support.gateway import provider
from tests.support.ports import free_port, release_port
from tests.support.wall import Wall, error

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
_FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
_START = "sh background"


class Shift:
    """One operator's shift: a folder with `gateway.yaml`, a shell, and what each block of commands printed."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self._folder = folder
        self._ports = ports
        self.key_file = folder / "primary.key"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KEY_FILE": str(self.key_file),
            "NEW_KEY": "sk-planted-new",
            "GATEWAY_AUTHOR": "operator",
        }
        self.outputs: list[tuple[str, int, str]] = []

    def write_config(self, primary: Wall, fallback: Wall) -> None:
        self.key_file.write_text("sk-planted-old")
        first = provider(primary) | {"api_key": {"file": str(self.key_file)}}
        targets = [{"provider": "first", "model": "m", "tier": 0}, {"provider": "second", "model": "m", "tier": 1}]
        config = {
            "schema": 1,
            "providers": {"first": first, "second": provider(fallback)},
            "models": {"assistant": {"targets": targets}},
        }
        (self._folder / "gateway.yaml").write_text(yaml.safe_dump(config, default_flow_style=None, sort_keys=False))

    def start(self, block: str) -> subprocess.Popen[bytes]:
        with (self._folder / "out").open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self._here(block)}"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._folder,
                env=self._environment,
            )
        deadline = time.monotonic() + 60
        while b"ready http" not in self.said():
            assert process.poll() is None, self.said().decode()
            assert time.monotonic() < deadline, self.said().decode()
            time.sleep(0.05)
        return process

    def said(self) -> bytes:
        return (self._folder / "out").read_bytes()

    def run(self, block: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._here(block)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            cwd=self._folder,
            env=self._environment,
        )
        self.outputs.append((block, done.returncode, done.stdout))

    def fail_some(self) -> None:
        """Send what makes the gateway notice that the first provider is down."""
        body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(6):
            http1.request(f"http://127.0.0.1:{self._ports[0]}/v1/chat/completions", "POST", json=body)
        time.sleep(0.5)  # the access log is written by its own clock

    def printed(self, command: str) -> str:
        """Return what the block with a command printed."""
        return next(output for block, _, output in self.outputs if command in block)

    def _here(self, block: str) -> str:
        return block.replace(":18080", f":{self._ports[0]}").replace(":18082", f":{self._ports[1]}")


@pytest.fixture(scope="module")
def shift() -> Iterator[Shift]:
    """Follow the document from its first block to its last."""
    # short paths: Unix sockets live below
    folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))
    ports = [free_port(), free_port()]
    blocks = _FENCE.findall(DOCUMENT.read_text())
    (_, start), *rest = blocks
    with Wall() as primary, Wall() as fallback:
        primary.script(error(503))
        seen = Shift(folder, ports)
        seen.write_config(primary, fallback)
        process = seen.start(start)
        try:
            seen.fail_some()
            for _, block in rest:
                seen.run(block)
            assert 0 == process.wait(40)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(40)
    yield seen
    shutil.rmtree(folder, ignore_errors=True)
    for port in ports:
        release_port(port)


def test_every_block_of_the_document_is_commands_that_are_run() -> None:
    languages = [language for language, _ in _FENCE.findall(DOCUMENT.read_text())]
    assert [_START] == languages[:1]
    assert {"sh"} == set(languages[1:])


def test_every_command_of_the_document_succeeds(shift: Shift) -> None:
    assert [] == [(block, code, output) for block, code, output in shift.outputs if code != 0]


def test_the_metrics_name_the_target_that_is_down(shift: Shift) -> None:
    assert 'subject="first/m"' in shift.printed("gateway_target_state")


def test_the_access_log_tells_who_served(shift: Shift) -> None:
    assert '"served_by":"second/m"' in shift.printed("access.log")


def test_the_look_at_health_names_the_target_that_is_down(shift: Shift) -> None:
    assert re.search(r"^first/m +(cooling|probing) ", shift.printed("configctl health list\n"), re.MULTILINE)


def test_a_request_is_explained(shift: Shift) -> None:
    told = shift.printed("configctl explain")
    assert "planned: " in told
    assert "planned again under the recorded version and evidence: the same plan" in told


def test_the_orders_are_told_and_in_the_audit(shift: Shift) -> None:
    told = shift.printed("configctl health drain")
    assert re.search(r"^first +down .*drain by operator: their incident 512 until ", told, re.MULTILINE)
    assert "first is healthy on this gateway." in told
    audit = shift.printed("configctl audit\n")
    for act in ("health_drain", "health_down", "health_restore"):
        assert re.search(rf" operator +{act} ", audit)


def test_the_new_policy_is_live_and_callers_notice(shift: Shift) -> None:
    assert "Version 2 is live on 1 instance." in shift.printed("configctl publish")
    told = shift.printed("curl -s -D -").lower()
    assert "x-gateway-served-by: second/m" in told
    assert "x-gateway-config-version: 2" in told


def test_the_rollbacks_are_live_and_the_audit_is_whole(shift: Shift) -> None:
    assert "Version 3 is live" in shift.printed("first provider is back")
    assert "Version 5 is live" in shift.printed("as it was before")
    assert "whole: 5 versions" in shift.printed("configctl audit\n")
    assert "whole: 2 versions" in shift.printed("store-copy.db audit verify")


def test_no_key_is_printed(shift: Shift) -> None:
    everything = "".join(output for _, _, output in shift.outputs) + shift.said().decode()
    assert "sk-planted" not in everything
