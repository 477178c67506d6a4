"""The compose file as data, and its services as processes of this machine.

Owns how a container's view becomes a native one: service names and ports become ports of 127.0.0.1, mounted paths
become real ones, programs of the images become those of the test's environment. What the file should say is the tests'.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from extproc.envoy_binary import find_envoy
from tests.support.ports import free_port, release_port

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
_START_TIMEOUT_S = 40.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.2


def read_compose() -> dict[str, Any]:
    """Return the compose file, its merge keys resolved."""
    document: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
    return document


class NativeCompose:
    """The services of the compose file without containers; a context manager that stops what it started."""

    def __init__(self, folder: Path) -> None:
        self.services: dict[str, dict[str, Any]] = read_compose()["services"]
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self._programs = {
            "python": sys.executable,
            "extproc": str(Path(sys.executable).with_name("extproc")),
            "envoy": str(find_envoy(None, os.environ)),
        }

    def __enter__(self) -> NativeCompose:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running.values()):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
            if process.poll() is None:
                process.kill()
                process.wait()
        for port in self._ports.values():
            release_port(port)

    def start(self, name: str) -> None:
        """Start a service after those it depends on, and wait until its health check says so."""
        if name in self._running:
            return
        for other in self.services[name].get("depends_on", {}):
            self.start(other)
        with (self._folder / f"{name}.log").open("ab") as log:  # as a pipe: what opens /dev/stdout adds to it
            self._running[name] = subprocess.Popen(
                self._command(name, self.services[name]["command"]), env=self._environ(name), stdout=log, stderr=log
            )
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while not self.healthy(name):
            assert self._running[name].poll() is None, self.log(name)
            assert time.monotonic() < give_up_at, self.log(name)
            time.sleep(_POLL_S)

    def healthy(self, name: str) -> bool:
        """Run a service's health check once."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        words = self._command(name, [word.replace("$$", "$") for word in test])
        done = subprocess.run(words, env=self._environ(name), capture_output=True, timeout=10.0)
        return done.returncode == 0

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Do what `docker compose run --rm NAME` does, after its dependencies are healthy."""
        for other in self.services[name]["depends_on"]:
            self.start(other)
        words = self._command(name, self.services[name]["command"])
        return subprocess.run(words, env=self._environ(name), capture_output=True, text=True, timeout=120.0)

    def log(self, name: str) -> str:
        """Return what a service wrote."""
        return (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _environ(self, name: str) -> Mapping[str, str]:
        wanted = self.services[name].get("environment", {})
        # As in a container: nothing of the caller's environment but what lets programs run.
        return {"PATH": os.environ["PATH"], "TMPDIR": str(self._folder), **wanted}

    def _command(self, name: str, words: list[str]) -> list[str]:
        # Arguments alone go to the image's entry point; Prometheus is the only such service.
        program, *rest = words if not words[0].startswith("-") else ["prometheus", *words]
        native = [self._native(word, name) for word in rest]
        return [self._programs.get(program) or shutil.which(program) or program, *native]

    def _native(self, word: str, name: str) -> str:
        for volume in self.services[name].get("volumes", []):
            source, target = volume.split(":")[:2]
            option, equals, path = word.rpartition("=")
            if path == target or path.startswith(f"{target}/"):
                return option + equals + path.replace(target, str(self._mounted(source)), 1)
        if re.fullmatch(r"1\d{4}", word):  # an option's bare port
            return str(self.port(word))
        return self._addresses(word)

    def _mounted(self, source: str) -> Path:
        if not source.startswith("./"):
            return self._folder / source
        text = (ROOT / source).read_text(encoding="utf-8")
        copy = self._folder / Path(source).name
        copy.write_text(self._addresses(text), encoding="utf-8")
        return copy

    def _addresses(self, text: str) -> str:
        hosts = "|".join([*self.services, r"0\.0\.0\.0", r"127\.0\.0\.1"])
        return re.sub(
            rf"\b({hosts})([:/])(1\d{{4}}|9090)\b", lambda found: f"127.0.0.1{found[2]}{self.port(found[3])}", text
        )

    def port(self, inside: str) -> int:
        """Return the port of this machine that stands for one in the containers."""
        if inside not in self._ports:
            self._ports[inside] = free_port()
        return self._ports[inside]
