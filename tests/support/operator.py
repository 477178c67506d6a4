"""`configctl` as an operator or a script uses it: run on a gateway's store, with what came of it.

Owns the command line's start and its outputs. Leaves gateways to gateway.py. Nobody sits at the terminal: stdin is
empty unless a test gives text. A verb costs a few milliseconds in this process and half a second of a core as one of
its own, so only those who ask for the installed command get it: what the process itself adds, its exit code and its two
outputs, is told by tests/e2e/test_configctl.py and by the documents' commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from configctl.cli import main

CONFIGCTL = str(Path(sys.executable).parent / "configctl")
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Ran:
    """One finished run."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.stdout)


class Operator:
    """Somebody with `configctl`, a store and a folder for files; `installed` runs it as a process of its own."""

    def __init__(
        self, folder: Path, *, data_dir: Path | None = None, store: str | None = None, installed: bool = False
    ) -> None:
        self._folder = folder
        self._installed = installed
        self._places = {"GATEWAY_AUTHOR": "operator"}
        self._places |= {"GATEWAY_DATA_DIR": str(data_dir)} if data_dir else {}
        self._places |= {"GATEWAY_STORE": store} if store else {}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process of its own."""
        return os.environ | self._places

    def file(self, config: Mapping[str, Any], name: str = "next.yaml") -> str:
        """Write a config file and return its path."""
        path = self._folder / name
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        return str(path)

    def run(self, *arguments: str, text: str = "") -> Ran:
        """Run a verb to its end; what nobody caught is raised here, or is the process's own affair."""
        if self._installed:
            return self._run_installed(arguments, text)
        with chdir(self._folder):
            done = CliRunner().invoke(main, list(arguments), input=text, env=self._places, prog_name="configctl")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Ran(done.exit_code, done.stdout, done.stderr)

    def _run_installed(self, arguments: tuple[str, ...], text: str) -> Ran:
        done = subprocess.run(
            [CONFIGCTL, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=self.environment,
            cwd=self._folder,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a verb whose end is not waited for."""
        return subprocess.Popen(
            [CONFIGCTL, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self._folder,
        )

    def publish(self, config: Mapping[str, Any], *arguments: str, message: str = "a test") -> Ran:
        """Publish without being asked, and print JSON."""
        return self.run("publish", self.file(config), "-m", message, "--yes", "--json", *arguments)

    def rollback(self, *arguments: str, message: str = "a test") -> Ran:
        """Roll back without being asked, and print JSON."""
        return self.run("rollback", *arguments, "-m", message, "--yes", "--json")
