"""`extproc up` as an operator meets it: what it says, what it refuses, how it ends, what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import PLANTED_KEYS, Gateway, Pids, two_providers
from tests.support.http1 import Call, Reply
from tests.support.operator import Operator
from tests.support.ports import free_port, release_port
from tests.support.wall import Wall, ok, silence

GONE_WITHIN_S = 8.0
UNREAD_BYTES = 8 << 20
READER_STOPS_S = 1.0
EXTPROC = str(Path(sys.executable).parent / "extproc")


class Refusal(NamedTuple):
    """How a start that must not succeed ended."""

    code: int
    stdout: str
    stderr: str


class Bench:
    """A folder with a good config and free ports; starts that must be refused are run here."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = folder / "gateway.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.ports = [free_port(), free_port()]

    def up(self, **flags: str) -> Refusal:
        """Run `extproc up` and wait for its end; flags replace the good ones."""
        listen, metrics = (f"127.0.0.1:{port}" for port in self.ports)
        wanted = {"config": str(self.config), "data_dir": str(self.folder / "data")}
        wanted |= {"listen": listen, "metrics_listen": metrics} | flags
        argv = [text for name, value in wanted.items() for text in (f"--{name.replace('_', '-')}", value)]
        done = subprocess.run(
            [EXTPROC, "up", *argv], capture_output=True, text=True, timeout=40, env=os.environ | PLANTED_KEYS
        )
        return Refusal(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def bench(tmp_path: Path, primary: Wall, fallback: Wall) -> Iterator[Bench]:
    """Prepare a start that would succeed as it is."""
    made = Bench(tmp_path, two_providers(primary, fallback))
    yield made
    for port in made.ports:
        release_port(port)


# ----------------------------------------------------------------------------------------------------
# What it says and leaves on disk


def test_one_ready_line_names_the_addresses_and_the_data_dir(module_gateway: Gateway) -> None:
    said = (module_gateway.data_dir.parent / "stdout").read_text()
    metrics = module_gateway.metrics_url.removesuffix("/metrics")
    assert f"ready {module_gateway.url} metrics {metrics} data {module_gateway.data_dir}\n" == said


def test_readyz_agrees_as_soon_as_the_ready_line_is_out(gateway: Gateway) -> None:
    assert (200, 200) == (gateway.get("/readyz").status, gateway.get("/healthz").status)


def test_sockets_and_secrets_are_the_owner_s_alone(module_gateway: Gateway) -> None:
    root = module_gateway.data_dir
    assert {0o700} == {_mode(root / "run"), _mode(root / "envoy" / "sds")}
    secrets = [path for path in (root / "envoy" / "sds").iterdir() if path.is_file()]
    assert 2 == len(secrets)
    assert {0o600} == {_mode(path) for path in secrets}
    assert {0o600} == {_mode(path) for path in (root / "run").iterdir() if path.is_socket()}


def test_provider_keys_reach_neither_envoy_s_environment_nor_a_command_line(module_gateway: Gateway) -> None:
    pids = module_gateway.pids()
    keys = [key.encode() for key in PLANTED_KEYS.values()]
    assert not [key for key in keys if key in Path(f"/proc/{pids.envoy}/environ").read_bytes()]
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _family(pids)]
    assert not [key for key in keys for line in lines if key in line]


def test_the_metrics_page_shows_target_states_and_the_config_version(module_gateway: Gateway) -> None:
    module_gateway.wait_until(
        lambda: module_gateway.metric("gateway_config_version", kind="applied") == 1, "version 1 to be applied"
    )
    assert 1.0 == module_gateway.metric("gateway_config_version", kind="wanted")
    subject = "primary/demo-primary-upstream"
    assert 1.0 == module_gateway.metric("gateway_target_state", subject=subject, state="healthy")
    assert 1.0 == module_gateway.metric("gateway_target_state", subject=subject)


# ----------------------------------------------------------------------------------------------------
# What it refuses, with exit code 1 and a sentence


@pytest.mark.parametrize("flag", ["listen", "metrics_listen"])
def test_a_port_in_use_is_named_together_with_its_flag(bench: Bench, flag: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        refusal = bench.up(**{flag: address})
    _refused(refusal, address, "in use", f"--{flag.replace('_', '-')}")


def test_an_envoy_that_is_not_there_is_named(bench: Bench) -> None:
    missing = str(bench.folder / "no-such-envoy")
    _refused(bench.up(envoy=missing), missing, "--envoy")


def test_an_envoy_that_is_too_old_is_refused_with_its_version(bench: Bench) -> None:
    old = _script(bench.folder / "envoy", "echo 'envoy  version: 0a1b2c/1.39.4/Clean/RELEASE/BoringSSL'")
    _refused(bench.up(envoy=str(old)), "1.39.4", "too old", "1.40", str(old))


def test_a_program_that_is_no_envoy_is_refused(bench: Bench) -> None:
    other = _script(bench.folder / "other", "echo 'something else 1.2.3'")
    _refused(bench.up(envoy=str(other)), str(other), "Envoy")


def test_a_first_version_that_envoy_refuses_is_repaired_by_a_publish_that_waits_for_nobody(
    bench: Bench, primary: Wall, fallback: Wall
) -> None:
    version = "envoy  version: 0a1b2c/1.40.0/Clean/RELEASE/BoringSSL"
    envoy = _script(
        bench.folder / "envoy", f'[ "$1" = --version ] && echo "{version}" || {{ echo no such filter; exit 1; }}'
    )
    _refused(bench.up(envoy=str(envoy)), "No version can be started", "no such filter")

    ran = Operator(bench.folder, data_dir=bench.folder / "data").publish(two_providers(primary, fallback, attempts=2))

    assert (0, "no_gateway", []) == (ran.code, ran.json["outcome"], ran.json["instances"])


def test_every_fault_of_a_config_is_listed_at_once(bench: Bench, primary: Wall, fallback: Wall) -> None:
    config = two_providers(primary, fallback, attempts=99, deadlin="3s")
    config["models"]["demo-primary"]["targets"][0]["provider"] = "primari"
    config["providers"]["fallback"]["api_key"] = "sk-literal-0123456789"
    bench.config.write_text(yaml.safe_dump(config))
    refusal = bench.up()
    _refused(refusal, "policies.default.attempts", "'deadlin'", "'deadline'", "targets[0].provider", "api_key")
    assert "sk-literal" not in refusal.stderr


def test_a_config_file_that_is_not_there_is_named(bench: Bench) -> None:
    missing = str(bench.folder / "nothing.yaml")
    _refused(bench.up(config=missing), missing)


def test_a_data_dir_that_cannot_be_made_is_named(bench: Bench) -> None:
    """A folder below a plain file cannot be made, not even by root."""
    below = f"{bench.config}/data"
    _refused(bench.up(data_dir=below), below, "--data-dir")


def test_a_data_dir_whose_sockets_would_have_too_long_a_path_is_refused(bench: Bench) -> None:
    long = str(bench.folder / ("d" * 100))
    _refused(bench.up(data_dir=long), "107", "--data-dir")
    assert not Path(long).exists()


def test_a_second_gateway_on_the_same_data_dir_is_refused_and_the_first_goes_on(
    bench: Bench, module_gateway: Gateway
) -> None:
    refusal = bench.up(data_dir=str(module_gateway.data_dir))
    _refused(refusal, str(module_gateway.pids().supervisor), str(module_gateway.data_dir), "--data-dir")
    assert 200 == module_gateway.chat().status


@pytest.mark.parametrize("flag", ["listen", "metrics_listen"])
def test_a_public_address_without_clients_is_refused(bench: Bench, flag: str) -> None:
    _refused(bench.up(**{flag: f"0.0.0.0:{bench.ports[0]}"}), "0.0.0.0", "clients")  # noqa: S104 - what is refused


# ----------------------------------------------------------------------------------------------------
# How it ends


def test_a_drain_lets_running_requests_and_streams_finish_and_refuses_new_ones(gateway: Gateway, primary: Wall) -> None:
    slow_stream = ok("hello world", chunks=2, delay_s=60)
    primary.script(lambda seen: slow_stream if seen.wish("stream") else silence())
    pids = gateway.pids()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(gateway.chat), pool.submit(gateway.chat, stream=True)]
        primary.wait_for(2)
        os.kill(pids.supervisor, signal.SIGTERM)
        gateway.wait_until(lambda: not _accepts(gateway), "new connections to be refused", 5)
        assert [False, False] == [one.done() for one in waiting]
        _release_until_done(primary, waiting)
        unary, stream = (one.result(10) for one in waiting)
    assert (200, "clean", "hello") == (unary.status, unary.ended, unary.text)
    assert (200, "clean", "[DONE]") == (stream.status, stream.ended, stream.events[-1])
    assert 0 == _end_of(gateway, _family(pids))


def test_a_drain_lets_a_slow_reader_have_its_whole_answer(gateway: Gateway, primary: Wall) -> None:
    """To Envoy a request is over when the rest of its answer waits for the caller."""
    primary.script(ok("x" * UNREAD_BYTES))
    pids = gateway.pids()
    with Call(f"{gateway.url}/v1/chat/completions", receive_bytes=4096) as call:
        call.send("POST", {"content-type": "application/json"}, b'{"model":"demo-primary","messages":[]}')
        assert 200 == call.read_head()
        os.kill(pids.supervisor, signal.SIGTERM)
        gateway.wait_until(lambda: not _accepts(gateway), "new connections to be refused", 5)
        threading.Event().wait(READER_STOPS_S)
        assert UNREAD_BYTES < sum(len(piece) for piece in call.pieces())
        assert "clean" == call.reply().ended
    assert 0 == _end_of(gateway, _family(pids))


def test_ctrl_c_ends_an_idle_gateway_with_0(gateway: Gateway) -> None:
    pids = gateway.pids()
    os.kill(pids.supervisor, signal.SIGINT)
    assert 0 == _end_of(gateway, _family(pids))


def test_what_outlasts_the_drain_is_cut_and_the_exit_code_says_so(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall
) -> None:
    gateway = gateway_factory(two_providers(primary, fallback), arguments=("--drain", "1s"))
    primary.script(silence())
    pids = gateway.pids()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.chat)
        primary.wait_for(1)
        os.kill(pids.supervisor, signal.SIGTERM)
        reply = waiting.result(15)
    assert 200 != reply.status
    assert 0 != _end_of(gateway, _family(pids))
    assert 1.0 <= reply.seconds < 1.0 + GONE_WITHIN_S


def test_a_second_sigterm_cuts_the_drain_short(gateway: Gateway, primary: Wall) -> None:
    """The drain could take 30 s; whoever asks twice means it."""
    primary.script(silence())
    pids = gateway.pids()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.chat)
        primary.wait_for(1)
        os.kill(pids.supervisor, signal.SIGTERM)
        gateway.wait_until(lambda: not _accepts(gateway), "the drain to begin", 5)
        os.kill(pids.supervisor, signal.SIGTERM)
        assert 0 != _end_of(gateway, _family(pids))
        assert 200 != waiting.result(5).status


def test_the_children_of_a_killed_supervisor_end_by_themselves(gateway: Gateway) -> None:
    pids = gateway.pids()
    os.kill(pids.supervisor, signal.SIGKILL)
    gateway.wait_until(lambda: not any(map(_is_alive, _family(pids))), "the end of the children", GONE_WITHIN_S)


def test_a_new_gateway_takes_over_the_data_dir_of_a_killed_one(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    """Stale sockets and the old lock file are no obstacle."""
    config = two_providers(primary, fallback)
    with Gateway(config, data_dir=tmp_path / "data") as first:
        first.kill()
    second = gateway_factory(config, data_dir=tmp_path / "data")
    assert 200 == second.chat().status


def _refused(refusal: Refusal, *words: str) -> None:
    assert 1 == refusal.code, refusal.stderr
    assert "" == refusal.stdout
    assert "Traceback" not in refusal.stderr
    assert [] == [word for word in words if word not in refusal.stderr], refusal.stderr


def _script(path: Path, line: str) -> Path:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _accepts(gateway: Gateway) -> bool:
    try:
        socket.create_connection(("127.0.0.1", gateway.port), 1).close()
    except OSError:
        return False
    return True


def _release_until_done(wall: Wall, waiting: list[Future[Reply]]) -> None:
    """End every wait of the wall, those that begin later too."""
    for one in waiting:
        wall.release()
        one.result(10)


def _family(pids: Pids) -> list[int]:
    assert pids.extproc is not None
    assert pids.envoy is not None
    return [pids.supervisor, pids.extproc, pids.envoy]


def _end_of(gateway: Gateway, pids: list[int]) -> int:
    """Wait until none of the processes is left and return the supervisor's exit code."""
    gateway.wait_until(lambda: not any(map(_is_alive, pids)), "the end of all processes", GONE_WITHIN_S)
    return gateway.stop()


def _is_alive(pid: int) -> bool:
    try:
        found = re.search(r"^State:\s+(\w)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and found[1] not in "ZX"
