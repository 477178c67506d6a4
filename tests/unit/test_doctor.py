"""`extproc doctor`: each thing that can be wrong is found, and its finding says what to do."""

from __future__ import annotations

import os
import re
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc import doctor
from extproc.cli import main
from extproc.data_dir import DataDir
from extproc.doctor import DoctorSettings, Finding, Level, examine
from extproc.settings import Address, StartError
from tests.support.certs import Authority, Pair

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
_NAMED: dict[str, str] = {}
"""Stands for a config that names the authority of the test."""


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


def test_a_key_that_is_a_pipe_is_found_and_not_waited_for(examine_with: Examine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = CONFIG.format(base_url="https://api.openai.com/v1", private="false")

    findings = examine_with(text=text.replace("{env: OPENAI_API_KEY}", f"{{file: {tmp_path}/pipe}}"))

    (finding,) = [finding for finding in findings if finding.check == "keys"]
    assert f"provider openai: {tmp_path}/pipe is not a regular file" == finding.seen


def test_plain_http_to_a_public_provider_is_warned_of(examine_with: Examine) -> None:
    assert (Level.WARN, "tls") in _bad(examine_with("http://api.openai.com/v1"))


def test_missing_authorities_are_found(examine_with: Examine) -> None:
    environ = {"OPENAI_API_KEY": "x", "PATH": "/usr/bin", "SSL_CERT_FILE": "/nowhere/ca.pem"}

    assert [(Level.FAIL, "tls")] == _bad(examine_with(environ=environ))


def test_an_open_door_is_found(examine_with: Examine) -> None:
    assert [(Level.FAIL, "clients")] == _bad(examine_with(listen=Address("0.0.0.0", 0)))  # noqa: S104 - what is refused


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


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority that no system trusts."""
    return Authority(tmp_path_factory.mktemp("authority"))


@contextmanager
def _server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve every connection with `answer` until the end; yields the port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _plain(status: str) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())

    return answer


def _tls(pair: Pair) -> Callable[[socket.socket], None]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1000)

    return answer


def _tls_that_explains_itself(pair: Pair) -> Callable[[socket.socket], None]:
    """As nginx and Apache do: a plain request gets a plain 400."""
    shake_hands = _tls(pair)

    def answer(connection: socket.socket) -> None:
        spoken = connection.recv(1, socket.MSG_PEEK)
        (_plain("400 Bad Request") if spoken == b"H" else shake_hands)(connection)

    return answer


def _told(findings: list[Finding]) -> tuple[list[tuple[Level, str]], str]:
    """Return what is not in order, and all the words for it."""
    bad = [f"{finding.seen}; {finding.remedy}" for finding in findings if finding.level is not Level.OK]
    return _bad(findings), " ".join(bad)


def test_https_to_a_server_that_speaks_http_is_found(examine_with: Examine) -> None:
    with _server(_plain("400 Bad Request")) as port:
        bad, words = _told(examine_with(f"https://127.0.0.1:{port}/v1", private=True, network=True))

    assert [(Level.FAIL, "network")] == bad
    assert "does not speak TLS" in words
    assert "http:// in base_url only on a network that you trust" in words


@pytest.mark.parametrize("kind", [_tls, _tls_that_explains_itself])
def test_http_to_a_server_that_speaks_tls_is_found(
    examine_with: Examine, authority: Authority, kind: Callable[[Pair], Callable[[socket.socket], None]]
) -> None:
    """Whether it trusts the certificate does not matter for that."""
    with _server(kind(authority.sign("speaks-tls", "IP:127.0.0.1"))) as port:
        bad, words = _told(examine_with(f"http://127.0.0.1:{port}/v1", private=True, network=True))

    assert [(Level.FAIL, "network")] == bad
    assert "write https:// in base_url of openai" in words


@pytest.mark.parametrize("status", ["404 Not Found", "400 Bad Request"])
def test_http_to_a_server_that_speaks_it_is_in_order(examine_with: Examine, status: str) -> None:
    with _server(_plain(status)) as port:
        findings = examine_with(f"http://127.0.0.1:{port}/v1", private=True, network=True)

    assert (Level.OK, True) == (findings[-1].level, findings[-1].seen.endswith("speaks plain HTTP"))


def test_a_server_that_speaks_neither_is_found(examine_with: Examine) -> None:
    with _server(lambda connection: connection.sendall(b"220 ready\r\n")) as port:
        bad, words = _told(examine_with(f"http://127.0.0.1:{port}/v1", private=True, network=True))

    assert [(Level.FAIL, "network")] == bad
    assert "neither HTTP nor TLS" in words


def test_no_key_is_sent_to_a_provider(examine_with: Examine) -> None:
    heard: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        heard.append(connection.recv(1000))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with _server(listen) as port:
        examine_with(
            f"http://127.0.0.1:{port}/v1", private=True, network=True, environ={"OPENAI_API_KEY": "sk-planted"}
        )

    assert [b"HEAD / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"] == heard


class TestTls:
    """A provider over TLS on loopback; the config names the authority, unless the case is about that."""

    def test_a_certificate_that_is_good_is_in_order(self, examine_tls: Examine) -> None:
        findings = examine_tls()

        assert [] == _bad(findings)
        assert "TLSv1.3, certificate good for" in findings[-1].seen

    def test_an_authority_that_nobody_named_is_found(self, examine_tls: Examine) -> None:
        bad, words = _told(examine_tls(tls=None))

        assert [(Level.FAIL, "network")] == bad
        assert "name its authority with tls.ca_file" in words

    def test_a_certificate_that_ends_soon_is_only_warned_of(self, examine_tls: Examine) -> None:
        """Requests still get through."""
        bad, words = _told(examine_tls(days=5))

        assert [(Level.WARN, "network")] == bad
        assert re.search(r"its certificate ends in [45] days; tell whoever runs it", words)

    def test_a_certificate_for_another_name_is_found(self, examine_tls: Examine) -> None:
        bad, words = _told(examine_tls(san="DNS:elsewhere.example.com"))

        assert [(Level.FAIL, "network")] == bad
        assert "write the name that the certificate is for into base_url" in words

    def test_an_authorities_file_that_is_missing_is_named(self, examine_tls: Examine) -> None:
        """With and without --network, once."""
        told = [_told(examine_tls(tls={"ca_file": "/nowhere/ca.pem"}, network=network)) for network in (True, False)]

        assert [[(Level.FAIL, "tls")], [(Level.FAIL, "tls")]] == [bad for bad, _ in told]
        assert {True} == {"/nowhere/ca.pem is not there" in words for _, words in told}

    @pytest.mark.parametrize("key", ["ca_file", "client_cert_file"])
    def test_a_pipe_that_nobody_writes_is_found_and_not_waited_for(
        self, examine_tls: Examine, authority: Authority, tmp_path: Path, key: str
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        files = {"ca_file": str(authority.cert), "client_key_file": str(authority.cert)}

        bad, words = _told(examine_tls(tls=files | {"client_cert_file": str(authority.cert), key: f"{tmp_path}/pipe"}))

        assert [(Level.FAIL, "tls")] == bad
        assert f"{tmp_path}/pipe is not a regular file" in words

    def test_an_authorities_file_without_a_certificate_is_named(self, examine_tls: Examine, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").write_text("nothing\n")

        bad, words = _told(examine_tls(tls={"ca_file": str(tmp_path / "empty.pem")}))

        assert [(Level.FAIL, "tls")] == bad
        assert f"{tmp_path}/empty.pem holds no certificate" in words

    def test_a_client_key_of_another_certificate_is_not_taken_for_a_fault_of_the_provider(
        self, examine_tls: Examine, authority: Authority
    ) -> None:
        mine, other = authority.sign("mine"), authority.sign("other")
        files = {"client_cert_file": str(mine.cert), "client_key_file": str(other.key)}

        bad, words = _told(examine_tls(tls={"ca_file": str(authority.cert)} | files))

        assert [(Level.FAIL, "tls")] == bad
        assert f"the key in {other.key} is not that of the certificate in {mine.cert}" in words
        assert "http://" not in words

    def test_a_handshake_that_fails_otherwise_is_no_reason_for_http(
        self, examine_with: Examine, authority: Authority
    ) -> None:
        with _server(lambda connection: None) as port:
            bad, words = _told(examine_with(f"https://127.0.0.1:{port}/v1", private=True, network=True))

        assert [(Level.FAIL, "network")] == bad
        assert "http://" not in words

    @pytest.fixture
    def examine_tls(self, examine_with: Examine, authority: Authority) -> Examine:
        """Examine with a provider that has a certificate of `authority`."""

        def run(
            *, san: str = "IP:127.0.0.1", days: int = 30, tls: dict[str, str] | None = _NAMED, network: bool = True
        ) -> list[Finding]:
            named = {"ca_file": str(authority.cert)} if tls is _NAMED else tls
            provider: dict[str, Any] = {"allow_private_network": True} | ({"tls": named} if named else {})
            with _server(_tls(authority.sign("provider", san, days=days))) as port:
                provider["base_url"] = f"https://127.0.0.1:{port}/v1"
                model = {"targets": [{"provider": "openai", "model": "m"}]}
                config = {"schema": 1, "providers": {"openai": provider}, "models": {"m": model}}
                return examine_with(text=yaml.safe_dump(config), network=network, now=time.time())

        return run


def test_a_name_that_nobody_has_is_found(examine_with: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    bad, words = _told(examine_with("https://api.opnai.invalid/v1", network=True))

    assert (Level.FAIL, "network") == bad[-1]
    assert "the name is not known; look for a slip in base_url" in words


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
