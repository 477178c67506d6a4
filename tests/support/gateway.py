"""The installed gateway as a child process: `extproc up` with its Envoy, started, watched, hurt and stopped.

Owns: the processes, their working folder (short paths: a Unix socket's must stay below 107 bytes), their
outputs.
Leaves to others: callers (http1.py, load.py) and providers (wall.py).
Invariant: after `stop` none of the processes that were seen under the supervisor is alive.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import yaml

from tests.support import http1
from tests.support.ports import free_port, release_port
from tests.support.wall import Wall

PLANTED_KEYS = {
    "PRIMARY_KEY": "sk-planted-primary-0123456789abcdef",
    "FALLBACK_KEY": "sk-planted-fallback-0123456789abcdef",
}
READY_TIMEOUT_S = 90.0  # a start costs seconds of a core, and others may need the cores too
FIRST_PAUSE_S, LAST_PAUSE_S = 0.02, 0.25  # between two questions of wait_until
HURRY_S = 2.0  # a test that left requests under way does not wait for their drain
_ALARMING = re.compile(r"Traceback|\bcritical\b|unhandled |exception was never retrieved", re.IGNORECASE)
_T = TypeVar("_T")


def two_providers(primary: Wall, fallback: Wall, **policy: Any) -> dict[str, Any]:
    """Build the demonstration's config: `demo-primary` falls back to `demo-fallback` at another provider.

    Keywords are members of the policy `default`.
    """
    config: dict[str, Any] = {
        "schema": 1,
        "providers": {
            "primary": provider(primary, "PRIMARY_KEY"),
            "fallback": provider(fallback, "FALLBACK_KEY"),
        },
        "models": {
            "demo-primary": {
                "targets": [{"provider": "primary", "model": "demo-primary-upstream"}],
                "fallback": ["demo-fallback"],
            },
            "demo-fallback": {"targets": [{"provider": "fallback", "model": "demo-fallback-upstream"}]},
        },
    }
    return config | ({"policies": {"default": policy}} if policy else {})


def provider(wall: Wall, key: str | None = None, **more: Any) -> dict[str, Any]:
    """Build the config of one provider on loopback, its key named by an environment variable."""
    credential = {} if key is None else {"api_key": {"env": key}}
    return {"base_url": wall.url, "allow_private_network": True} | credential | more


@dataclass(frozen=True, slots=True)
class Pids:
    """The three processes; None for a child that is not there now."""

    supervisor: int
    extproc: int | None
    envoy: int | None


class GatewayError(AssertionError):
    """The gateway did not do what a test needs of it; the message holds its outputs."""


class Gateway:
    """One `extproc up` on free ports of 127.0.0.1; a context manager.

    `config` is the file's content; `arguments` go to the end of the command; `environment` is added to ours.
    With `data_dir` (kept afterwards) a second gateway can take over where a first one stopped.
    """

    live: ClassVar[list[Gateway]] = []

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        # TMPDIR may be long, and Unix sockets live below this folder
        self._folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))
        self.config_file = self._folder / "gateway.yaml"
        self.write_config(config)
        self.data_dir = data_dir or self._folder / "data"
        self.port, self._metrics_port = free_port(), free_port()
        self._environment = os.environ | PLANTED_KEYS | dict(environment or {})
        self._arguments = arguments
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self._metrics_port}/metrics"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace the config file; the running gateway takes no notice by itself."""
        self.config_file.write_text(yaml.safe_dump(dict(config), sort_keys=False))

    def command(self, name: str) -> str:
        """Return the path of an installed command of the project, beside the interpreter of the tests."""
        path = Path(sys.executable).parent / name
        if not path.exists():
            raise GatewayError(f"{path} is missing: install the project into this environment (pip install -e .)")
        return str(path)

    def start(self) -> None:
        """Start the processes and return when the gateway says `ready`."""
        argv = [
            self.command("extproc"),
            "up",
            "--config",
            str(self.config_file),
            "--data-dir",
            str(self.data_dir),
        ]
        argv += ["--listen", f"127.0.0.1:{self.port}", "--metrics-listen", f"127.0.0.1:{self._metrics_port}"]
        with self._output("stdout").open("ab") as out, self._output("stderr").open("ab") as err:
            before = self._output("stdout").stat().st_size
            self._process = subprocess.Popen(
                [*argv, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment,
                cwd=self._folder,
            )
        Gateway.live.append(self)
        self.wait_until(lambda: self._said_ready(before), "the line `ready`", self._ready_timeout_s)

    def _said_ready(self, offset: int) -> bool:
        said = self._output("stdout").read_bytes()[offset:]
        if any(line.startswith(b"ready") for line in said.splitlines()):
            return True
        if self._process is not None and self._process.poll() is not None:
            raise GatewayError(f"`extproc up` ended with {self._process.returncode}\n{self.logs(tail=200)}")
        return False

    def wait_until(self, holds: Callable[[], _T], what: str, timeout_s: float = 10.0) -> _T:
        """Poll until a condition holds and return its value; GatewayError with the logs when time is up.

        The longer it takes, the rarer it is asked: many conditions read a log from its beginning.
        """
        deadline, pause_s = time.monotonic() + timeout_s, FIRST_PAUSE_S
        while not (value := holds()):
            if time.monotonic() > deadline:
                raise GatewayError(f"waited {timeout_s} s for {what}\n{self.logs(tail=200)}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.25, LAST_PAUSE_S)
        return value

    def stop(self, timeout_s: float = 60.0, *, hurry_after_s: float | None = None) -> int:
        """SIGTERM, wait for the drain and return the exit code; what is left after the time is killed.

        `hurry_after_s` sends a second SIGTERM, which cuts what is still under way.
        """
        if self._process is None:
            return 0
        family = self._family()
        for pid in family[1:]:
            _signal(pid, signal.SIGCONT)
        self._process.terminate()
        try:
            if hurry_after_s is not None:
                with suppress(subprocess.TimeoutExpired):
                    return self._process.wait(hurry_after_s)
                self._process.terminate()
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise GatewayError(f"still there {timeout_s} s after SIGTERM\n{self.logs(tail=200)}") from None
        finally:
            self._kill_rest(family)

    def kill(self) -> None:
        """SIGKILL the supervisor and its children, as a power cut does."""
        if self._process is not None:
            self._kill_rest(self._family())

    def _kill_rest(self, family: list[int]) -> None:
        """Kill what is left, the supervisor first: it would bring its children back."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        for pid in family[1:]:
            _signal(pid, signal.SIGKILL)
        self._process = None
        Gateway.live.remove(self)

    def close(self) -> None:
        """Stop, and remove the working folder."""
        try:
            self.stop(20, hurry_after_s=HURRY_S)
        finally:
            release_port(self.port)
            release_port(self._metrics_port)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _family(self) -> list[int]:
        """Return the supervisor and its children."""
        assert self._process is not None
        return [self._process.pid, *_children(self._process.pid)]

    def pids(self) -> Pids:
        """Return the processes as they are now; a child that was just killed may be missing for a moment."""
        supervisor, *children = self._family()
        commands = {pid: _argv(pid) for pid in children}
        serving = [pid for pid, argv in commands.items() if "serve" in argv]
        copiers = [pid for pid, argv in commands.items() if any("crash_filter" in arg for arg in argv)]
        others = [pid for pid, argv in commands.items() if argv and "serve" not in argv and pid not in copiers]
        envoys = [pid for pid in others if "envoy" in commands[pid][0]] or others
        return Pids(supervisor, next(iter(serving), None), next(iter(envoys), None))

    def extproc_pid(self) -> int:
        """Return the pid of the `extproc serve` child, waiting for it when it is being restarted."""
        pid = self.wait_until(lambda: self.pids().extproc, "the child `extproc serve`")
        assert pid is not None
        return pid

    def kill_extproc(self) -> int:
        """SIGKILL the serve child; returns its pid."""
        pid = self.extproc_pid()
        os.kill(pid, signal.SIGKILL)
        return pid

    def pause_extproc(self) -> int:
        """SIGSTOP the serve child; returns its pid."""
        pid = self.extproc_pid()
        os.kill(pid, signal.SIGSTOP)
        return pid

    def resume_extproc(self) -> int:
        """SIGCONT the serve child; returns its pid."""
        pid = self.extproc_pid()
        os.kill(pid, signal.SIGCONT)
        return pid

    def _output(self, name: str) -> Path:
        return self._folder / name

    def output_files(self) -> list[Path]:
        """Return every file with words of the gateway: stdout, stderr, the logs of the data dir."""
        own = [path for path in (self._output("stdout"), self._output("stderr")) if path.exists()]
        return own + sorted((self.data_dir / "logs").glob("*.log*"))

    def logs(self, tail: int | None = None) -> str:
        """Return all outputs as text, or the last lines of each."""
        parts = []
        for path in self.output_files():
            lines = path.read_text(errors="replace").splitlines()
            parts.append("\n".join([f"==> {path.name}", *(lines if tail is None else lines[-tail:])]))
        return "\n".join(parts)

    def alarming_lines(self) -> list[str]:
        """Return the log lines (but for the access log) that no healthy run has: tracebacks, critical."""
        return [
            f"{path.name}: {line}"
            for path in self.output_files()
            if path.name != "access.log"
            for line in path.read_text(errors="replace").splitlines()
            if _ALARMING.search(line)
        ]

    def access_log(self, at_least: int = 0, timeout_s: float = 15.0) -> list[dict[str, Any]]:
        """Return the rows of Envoy's access log, waiting for as many as asked for to be flushed."""
        path = self.data_dir / "logs" / "access.log"

        def rows() -> list[dict[str, Any]]:
            text = path.read_text() if path.exists() else ""
            return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

        if at_least:
            self.wait_until(lambda: len(rows()) >= at_least, f"{at_least} rows of the access log", timeout_s)
        return rows()

    def logged(self, reply: http1.Reply) -> dict[str, Any]:
        """Return the access log's row of an answer, waiting for it to be flushed."""
        wanted = reply.header("x-request-id")

        def row() -> dict[str, Any] | None:
            return next((row for row in self.access_log() if row["request_id"] == wanted), None)

        found = self.wait_until(row, f"the access log row of request {wanted}", 15.0)
        assert found is not None
        return found

    def metrics(self, *names: str) -> dict[str, float]:
        """Return the samples of these names, or every one: `name{label="value"}` as printed -> value."""
        wanted = "&".join(f"name[]={name}" for name in names)
        page = http1.request(f"{self.metrics_url}?{wanted}", timeout_s=5).body.decode()
        samples = (line.rpartition(" ") for line in page.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have all these labels, 0 when there are none."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(value for sample, value in self.metrics(name).items() if set(wanted) <= set(_labels(sample)))

    def post(self, path: str, json: Any = None, **options: Any) -> http1.Reply:
        """Send one request and read its answer to the end; options are those of `http1.request`."""
        return http1.request(self.url + path, "POST", json=json, **options)

    def get(self, path: str, **options: Any) -> http1.Reply:
        """Like `post`, for GET."""
        return http1.request(self.url + path, "GET", **options)

    def chat(self, model: str = "demo-primary", *, stream: bool = False, **members: Any) -> http1.Reply:
        """Ask for a chat completion; members are added to the body."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | members
        return self.post("/v1/chat/completions", body | ({"stream": True} if stream else {}))


def _labels(sample: str) -> list[str]:
    return re.findall(r'\w+="(?:[^"\\]|\\.)*"', sample)


def _children(parent: int) -> list[int]:
    """Return the living children of a process, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, ppid = _state_and_parent(entry)
            if ppid == parent and state not in "ZX":
                found.append(int(entry.name))
    return sorted(found)


def _state_and_parent(entry: Path) -> tuple[str, int]:
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[1])


def _argv(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").split("\0")[:-1]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
