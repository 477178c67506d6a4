"""The front-door example: the commands of its systemd units, run here, with its own site in front of the gateway."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from extproc.envoy_binary import find_envoy
from tests.support.ports import free_port, release_port
from tests.support.programs import needed
from tests.support.wall import Wall, ok, rate_limited

FRONT_DOOR = Path(__file__).resolve().parents[2] / "examples" / "front-door"
START_WITHIN_S = 30.0
_POLL_S = 0.1
_STOP_TIMEOUT_S = 10.0


class FrontDoor:
    """The two units as processes below one folder; ports and paths of the example are mapped."""

    def __init__(self, folder: Path, wall: Wall) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {"443": free_port(), "18080": free_port(), "18082": free_port()}
        for part in ("etc/keys", "etc/tls", "credentials"):
            (folder / part).mkdir(parents=True)
        for name in ("openai", "anthropic"):
            (folder / "credentials" / name).write_text(f"sk-planted-{name}")
        config = yaml.safe_load(self.mapped((FRONT_DOOR / "gateway.yaml").read_text()))
        for provider in config["providers"].values():
            provider |= {"base_url": wall.url, "allow_private_network": True}
        (folder / "etc/gateway.yaml").write_text(yaml.safe_dump(config))
        (folder / "etc/site.yaml").write_text(self.mapped((FRONT_DOOR / "site.yaml").read_text()))
        self._certify()

    def mapped(self, text: str) -> str:
        """Return a text of the example with this folder's paths and ports."""
        text = text.replace("/run/credentials/ai-gateway-extproc.service", str(self.folder / "credentials"))
        text = text.replace("/etc/ai-gateway", str(self.folder / "etc")).replace("/var/lib/ai-gateway", str(self.state))
        text = text.replace("/opt/ai-gateway/bin/extproc", str(Path(sys.executable).with_name("extproc")))
        text = text.replace("/usr/bin/envoy", str(find_envoy(None, {})))
        return re.sub(r"\b(18080|18082|443)\b", lambda found: str(self.ports[found[1]]), text)

    @property
    def state(self) -> Path:
        """What the unit calls its state directory."""
        return self.folder / "state"

    def commands(self, unit: str) -> list[list[str]]:
        """Return what a unit runs, in order, as systemd would."""
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(FRONT_DOOR / unit)
        lines = [parser["Service"].get("ExecStartPre", ""), parser["Service"]["ExecStart"]]
        return [shlex.split(self.mapped(line.replace("$$", "$"))) for line in lines if line]

    def ask(self, path: str, body: bytes | None = None, token: str = "") -> tuple[int, str, str]:
        """Ask the site, over TLS; returns status, body and route mode."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(f"https://127.0.0.1:{self.ports['443']}{path}", body, headers)
        trusting = ssl.create_default_context(cafile=str(self.folder / "etc/tls/cert.pem"))
        try:
            with urllib.request.urlopen(request, timeout=10, context=trusting) as answer:  # noqa: S310 - our own https URL
                return answer.status, answer.read().decode(), answer.headers.get("x-gateway-route-mode", "")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), ""

    def ready(self) -> bool:
        """Tell whether the gateway behind the site is ready."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['18080']}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _certify(self) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
        subprocess.run(command, cwd=self.folder / "etc/tls", check=True, capture_output=True)


@pytest.fixture
def door(primary: Wall) -> Iterator[FrontDoor]:
    """Start both units and wait until the gateway is ready."""
    needed("openssl", "openssl")
    folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))  # short: Unix sockets live below
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        door = FrontDoor(folder, primary)
        for port in door.ports.values():
            stack.callback(release_port, port)
        for unit in ("ai-gateway-extproc.service", "ai-gateway-envoy.service"):
            *before, command = door.commands(unit)
            for one in before:
                subprocess.run(one, check=True, timeout=START_WITHIN_S)
            log = stack.enter_context((folder / f"{unit}.log").open("wb"))
            process = door.processes[unit] = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait, _STOP_TIMEOUT_S)
            stack.callback(process.terminate)
        give_up_at = time.monotonic() + START_WITHIN_S
        while not door.ready():
            assert time.monotonic() < give_up_at, "".join(path.read_text() for path in folder.glob("*.log"))
            time.sleep(_POLL_S)
        yield door


def test_the_site_and_the_gateway_share_one_envoy(door: FrontDoor, primary: Wall) -> None:
    """The site's own routes answer as before; `/v1` fails over behind it; a caller without the token is refused."""
    body = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}'
    primary.script([rate_limited(), ok("served by the smaller model")])

    site = door.ask("/")
    stranger = door.ask("/v1/chat/completions", body)
    status, text, mode = door.ask("/v1/chat/completions", body, "replace-this-token")

    assert (200, "the rest of your site\n") == site[:2]
    assert 401 == stranger[0]
    assert (200, "model_fallback") == (status, mode)
    assert "served by the smaller model" in text
    assert ["gpt-4o", "gpt-4o-mini"] == [seen.json["model"] for seen in primary.requests]
    assert {"Bearer sk-planted-openai"} == {seen.header("authorization") for seen in primary.requests}
    assert 0o700 == (door.state / "run").stat().st_mode & 0o777


def test_a_rotated_access_log_is_begun_anew_after_the_signal(door: FrontDoor, primary: Wall) -> None:
    """What logrotate does: it renames the file, makes an empty one for the owner alone, and sends the signal."""
    rules = door.mapped((FRONT_DOOR / "ai-gateway.logrotate").read_text())
    log = door.state / "logs" / "access.log"
    signal_name, unit = re.findall(r"systemctl kill --signal=(\w+) --kill-whom=main (\S+)", rules)[0]
    primary.script([ok("before"), ok("after")])

    _served(door)
    _until(lambda: _lines(log) == 1)
    log.rename(log.with_suffix(".log.1"))
    log.touch(mode=0o600)
    door.processes[unit].send_signal(getattr(signal, signal_name))
    _until(lambda: _is_open(door.processes[unit].pid, log))
    _served(door)
    _until(lambda: _lines(log) == 1)

    assert str(log.parent) in rules
    assert (1, 1) == (_lines(log.with_suffix(".log.1")), _lines(log))
    assert 0o600 == log.stat().st_mode & 0o777


def _served(door: FrontDoor) -> None:
    body = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}'
    assert 200 == door.ask("/v1/chat/completions", body, "replace-this-token")[0]


def _lines(log: Path) -> int:
    return sum("/v1/chat/completions" in line for line in log.read_text().splitlines())


def _is_open(pid: int, path: Path) -> bool:
    """Tell whether a process has a file open; `exec` made the unit's shell that process."""
    return any(entry.exists() and entry.samefile(path) for entry in Path(f"/proc/{pid}/fd").iterdir())


def _until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + START_WITHIN_S
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(_POLL_S)
