"""`extproc render`: files that boot an Envoy which somebody else runs, next to an `extproc serve` of its own."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest
import yaml

from extproc.envoy_binary import find_envoy
from tests.support import http1
from tests.support.gateway import PLANTED_KEYS, two_providers
from tests.support.ports import free_port, release_port
from tests.support.wall import Wall, rate_limited

EXTPROC = str(Path(sys.executable).parent / "extproc")
START_WITHIN_S = 15.0


class Rendered(NamedTuple):
    """A config, where its files were rendered to, and where gateway and metrics will listen."""

    config: Path
    out: Path
    data_dir: Path
    port: int
    metrics_port: int

    def render(self, *, out: str | None = None, without: str = "") -> subprocess.CompletedProcess[str]:
        """Run `extproc render`; `without` names a variable that is not set."""
        environment = {name: value for name, value in (os.environ | PLANTED_KEYS).items() if name != without}
        argv = [EXTPROC, "render", *self.places(), "--out", out or str(self.out)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, env=environment)

    def places(self) -> list[str]:
        """Return the flags that `render` and `serve` share."""
        return [
            *("--config", str(self.config), "--data-dir", str(self.data_dir)),
            *("--listen", f"127.0.0.1:{self.port}", "--metrics-listen", f"127.0.0.1:{self.metrics_port}"),
        ]


@pytest.fixture
def rendered(primary: Wall, fallback: Wall) -> Iterator[Rendered]:
    """Render the demonstration's config; the folder's path is short, for Unix sockets live below it."""
    folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))
    config = folder / "gateway.yaml"
    config.write_text(yaml.safe_dump(two_providers(primary, fallback)))
    ports = free_port(), free_port()
    made = Rendered(config, folder / "out", folder / "data", *ports)
    done = made.render()
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    yield made
    for port in ports:
        release_port(port)
    shutil.rmtree(folder, ignore_errors=True)


def test_envoy_accepts_the_rendered_files(rendered: Rendered) -> None:
    checked = subprocess.run(
        [_envoy(), "--mode", "validate", "-c", str(rendered.out / "bootstrap.json"), "--log-level", "warning"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert 0 == checked.returncode, checked.stderr


def test_every_rendered_file_is_json_and_secrets_are_the_owner_s_alone(rendered: Rendered) -> None:
    files = [path for path in rendered.out.rglob("*") if path.is_file()]
    assert {"bootstrap.json", "cds.json", "lds.json", "rds.json"} <= {path.name for path in files}
    assert all(orjson.loads(path.read_bytes()) for path in files)
    secrets = [path for path in files if path.parent.name == "sds"]
    assert 2 == len(secrets)
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in secrets}


def test_a_provider_key_is_in_its_secret_and_in_no_other_rendered_file(rendered: Rendered) -> None:
    holders = {path.parent.name for path in rendered.out.rglob("*") if path.is_file() and _holds_a_key(path)}
    assert {"sds"} == holders


def test_a_plain_envoy_serves_a_failover_from_the_rendered_files(
    rendered: Rendered, primary: Wall, fallback: Wall
) -> None:
    primary.script(rate_limited())
    url = f"http://127.0.0.1:{rendered.port}"
    with ExitStack() as stack:
        stack.enter_context(_running([EXTPROC, "serve", *rendered.places()], rendered.data_dir.parent / "serve.log"))
        _until(lambda: (rendered.data_dir / "run" / "extproc.sock").exists())
        envoy = [_envoy(), "-c", str(rendered.out / "bootstrap.json"), "--disable-hot-restart", "--concurrency", "1"]
        stack.enter_context(_running(envoy, rendered.data_dir.parent / "envoy.log"))
        _until(lambda: _status(f"{url}/readyz") == 200)
        body = {"model": "demo-primary", "messages": [{"role": "user", "content": "hi"}]}
        reply = http1.request(f"{url}/v1/chat/completions", json=body)
    assert 200 == reply.status, reply.body
    assert ("hello", "model_fallback") == (reply.text, reply.header("x-gateway-route-mode"))
    assert "demo-fallback-upstream" == fallback.requests[-1].json["model"]
    assert f"Bearer {PLANTED_KEYS['FALLBACK_KEY']}" == fallback.requests[-1].header("authorization")


@contextmanager
def limited(rendered: Rendered, name: str, value: int) -> Iterator[None]:
    """Run `serve` and an Envoy whose bootstrap has one limit of the overload manager set low."""
    text = (rendered.out / "bootstrap.json").read_text()
    changed, times = re.subn(rf'"{name}": *"?\d+"?', f'"{name}": {value}', text)
    assert 1 == times
    low = rendered.out / "low.json"
    low.write_text(changed)
    with ExitStack() as stack:
        stack.enter_context(_running([EXTPROC, "serve", *rendered.places()], rendered.data_dir.parent / "serve.log"))
        _until(lambda: (rendered.data_dir / "run" / "extproc.sock").exists())
        envoy = [_envoy(), "-c", str(low), "--disable-hot-restart", "--concurrency", "1"]
        stack.enter_context(_running(envoy, rendered.data_dir.parent / "envoy.log"))
        yield


def test_a_connection_beyond_the_limit_is_closed_and_the_others_go_on(rendered: Rendered) -> None:
    """The limit that is rendered is 20,000; what it does shows with 3."""
    url = f"http://127.0.0.1:{rendered.port}"
    with limited(rendered, "max_active_downstream_connections", 3), ExitStack() as held:
        _until(lambda: _status(f"{url}/readyz") == 200)
        calls = [held.enter_context(_accepted(f"{url}/healthz")) for _ in range(3)]
        assert 0 == _status(f"{url}/healthz")
        assert [200] * 3 == [_asked(call) for call in calls]


def test_an_envoy_whose_heap_is_full_refuses_requests_in_our_shape(rendered: Rendered) -> None:
    """The limit that is rendered is 2 GiB; what it does shows with 1 MiB."""
    url = f"http://127.0.0.1:{rendered.port}"
    with limited(rendered, "max_heap_size_bytes", 1 << 20):
        _until(lambda: _status(f"{url}/healthz") == 503)
        reply = http1.request(f"{url}/v1/chat/completions", json={"model": "demo-primary", "messages": []})
    assert (503, "gateway_unavailable") == (reply.status, reply.json["error"]["code"])
    assert "gateway" == reply.header("server")


def test_a_key_that_is_not_set_is_reported_and_the_files_still_boot(rendered: Rendered) -> None:
    again = rendered.render(without="FALLBACK_KEY")
    assert 0 == again.returncode
    assert "fallback" in again.stderr
    assert 2 == len(list((rendered.out / "sds").iterdir()))


def test_an_out_that_cannot_be_made_is_refused_with_a_sentence(rendered: Rendered) -> None:
    refused = rendered.render(out=f"{rendered.config}/out")
    assert (1, "") == (refused.returncode, refused.stdout)
    assert "--out" in refused.stderr
    assert "Traceback" not in refused.stderr


def _envoy() -> str:
    return str(find_envoy(None, os.environ))


def _holds_a_key(path: Path) -> bool:
    content = path.read_bytes()
    return any(key.encode() in content for key in PLANTED_KEYS.values())


@contextmanager
def _running(argv: list[str], log: Path) -> Iterator[None]:
    """Run a process for the block; its output is shown when the block fails."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, env=os.environ | PLANTED_KEYS)
    try:
        yield
    except BaseException as error:
        error.add_note(f"{argv[0]}:\n{log.read_text(errors='replace')[-5000:]}")
        raise
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _accepted(url: str) -> http1.Call:
    """Connect until it is not refused: a connection that was just closed may count for a moment more."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        call = http1.Call(url, timeout_s=3)
        if _asked(call) == 200:
            return call
        call.leave()
    pytest.fail(f"no connection was accepted within {START_WITHIN_S} s")


def _asked(call: http1.Call) -> int:
    """Ask on a connection that stays open and return the answer's status, 0 when there was none."""
    call.send("GET", {}, b"")
    status = call.read_head()
    for _ in call.pieces():
        pass
    return status


def _status(url: str) -> int:
    try:
        return http1.request(url, timeout_s=3).status
    except OSError:
        return 0


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {START_WITHIN_S} s"
        time.sleep(0.02)
