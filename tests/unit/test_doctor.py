"""`extproc doctor`: each thing that can be wrong is found, and its finding says what to do."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc import doctor
from extproc.cli import main
from extproc.data_dir import DataDir
from extproc.doctor import DoctorSettings, Finding, Level, examine
from extproc.settings import Address, StartError

NOW = 1_800_000_000.0
CONFIG = """\
schema: 1
providers:
  openai:
    base_url: {base_url}
    api_key: {{env: OPENAI_API_KEY}}
    allow_private_network: {private}
models:
  gpt-4o-mini: {{targets: [{{provider: openai, model: gpt-4o-mini}}]}}
"""
Examine = Callable[..., list[Finding]]


@pytest.fixture
def examine_with(tmp_path: Path) -> Examine:
    """Examine a healthy machine, but for what the keywords say."""

    def run(
        base_url: str = "https://api.openai.com/v1", *, private: bool = False, text: str | None = None, **changed: Any
    ) -> list[Finding]:
        config = tmp_path / "gateway.yaml"
        config.write_text(text or CONFIG.format(base_url=base_url, private=str(private).lower()))
        settings: dict[str, Any] = {
            "config": config,
            "data_dir": DataDir(tmp_path / "data"),
            "listen": Address("127.0.0.1", 0),
            "metrics_listen": Address("127.0.0.1", 0),
            "envoy": None,
            "environ": {"OPENAI_API_KEY": "x", "PATH": "/usr/bin"},
            "network": False,
            "store": lambda: "the store is there",
            "now": NOW,
        }
        return list(examine(DoctorSettings(**settings | changed)))

    return run


def _bad(findings: list[Finding]) -> list[tuple[Level, str]]:
    assert [] == [finding for finding in findings if finding.level is not Level.OK and not finding.remedy]
    return [(finding.level, finding.check) for finding in findings if finding.level is not Level.OK]


@pytest.fixture(autouse=True)
def _roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))


def test_a_machine_in_order_has_nothing_to_put_right(examine_with: Examine) -> None:
    assert [] == _bad(examine_with())


def test_an_envoy_that_is_not_there_is_found(examine_with: Examine) -> None:
    assert [(Level.FAIL, "envoy")] == _bad(examine_with(envoy="/nowhere/envoy"))


def test_every_fault_of_the_config_is_told(examine_with: Examine) -> None:
    findings = examine_with(text="schema: 1\nproviders: {}\nmodels: {m: {targets: [{provider: nobody, model: m}]}}\n")

    assert (Level.FAIL, "config") in _bad(findings)


def test_a_key_under_another_name_is_guessed(examine_with: Examine) -> None:
    """The value is never shown, only the name of a variable that holds one."""
    findings = examine_with(environ={"OPENAI_KEY": "sk-planted-secret", "PATH": "/usr/bin"})

    (finding,) = [finding for finding in findings if finding.check == "keys"]
    assert (Level.FAIL, True) == (finding.level, "OPENAI_KEY in the config" in finding.remedy)
    assert "sk-planted-secret" not in repr(findings)


def test_plain_http_to_a_public_provider_is_warned_of(examine_with: Examine) -> None:
    assert (Level.WARN, "tls") in _bad(examine_with("http://api.openai.com/v1"))


def test_missing_authorities_are_found(examine_with: Examine) -> None:
    environ = {"OPENAI_API_KEY": "x", "PATH": "/usr/bin", "SSL_CERT_FILE": "/nowhere/ca.pem"}

    assert [(Level.FAIL, "tls")] == _bad(examine_with(environ=environ))


def test_an_open_door_is_found(examine_with: Examine) -> None:
    assert [(Level.FAIL, "clients")] == _bad(examine_with(listen=Address("0.0.0.0", 0)))  # noqa: S104


def test_a_port_in_use_is_found(examine_with: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        findings = examine_with(listen=Address("127.0.0.1", taken.getsockname()[1]))

    assert [(Level.FAIL, "ports")] == _bad(findings)


def test_a_key_file_that_others_can_read_is_found(examine_with: Examine, tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    data_dir.create()
    (data_dir.sds / "key.json").write_text("{}")
    (data_dir.sds / "key.json").chmod(0o644)

    assert [(Level.WARN, "directory")] == _bad(examine_with())


def test_a_directory_too_deep_for_sockets_is_found(examine_with: Examine, tmp_path: Path) -> None:
    assert [(Level.FAIL, "sockets")] == _bad(examine_with(data_dir=DataDir(tmp_path / ("d" * 120))))


def test_a_store_that_is_away_is_found(examine_with: Examine) -> None:
    def away() -> str:
        raise StartError("The store cannot be used.")

    assert [(Level.FAIL, "store")] == _bad(examine_with(store=away))


def test_a_clock_of_long_ago_is_found(examine_with: Examine) -> None:
    assert [(Level.FAIL, "clock")] == _bad(examine_with(now=0.0))


def test_too_few_watches_and_files_are_found(
    examine_with: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "limit").write_text("16\n")
    monkeypatch.setattr(doctor, "INOTIFY_LIMIT", tmp_path / "limit")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))

    assert [(Level.FAIL, "limits"), (Level.WARN, "limits")] == _bad(examine_with())


@pytest.fixture
def plain_server() -> Iterator[int]:
    """Answer every connection with words that are no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def test_https_to_a_server_that_speaks_http_is_found(examine_with: Examine, plain_server: int) -> None:
    findings = examine_with(f"https://127.0.0.1:{plain_server}/v1", private=True, network=True)

    assert [(Level.FAIL, "network")] == _bad(findings)
    assert "http://" in findings[-1].remedy


def test_a_provider_that_nobody_runs_is_found_only_when_asked(examine_with: Examine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}/v1"

    assert [] == _bad(examine_with(url, private=True))
    assert [(Level.FAIL, "network")] == _bad(examine_with(url, private=True, network=True))


def test_the_command_fails_when_there_is_something_to_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]

    codes = [main(["doctor", *places]), main(["doctor", *places, "--envoy", "/nowhere"])]

    assert [0, 1] == codes
    assert "store.db will be made" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()
