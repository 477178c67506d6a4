from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from configctl.source import StoreSource
from configctl.store import Store
from extproc import __version__, cli
from extproc.config.errors import ConfigError, ConfigErrors
from extproc.data_dir import DataDir
from extproc.handover import Claimed, hand_over, take_over
from extproc.settings import Address, AdminListen, RenderSettings, ServeSettings, StartError, UpSettings, parse_address
from extproc.versions import Report
from tests.support.certs import Authority

CONFIG = """\
schema: 1
providers: {p: {base_url: 'https://api.example.com/v1'}}
models: {m: {targets: [{provider: p, model: m}]}}
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Put a module that only has one function in place of the real one, in a working directory of its own."""
    for name in ("GATEWAY_DATA_DIR", "GATEWAY_SUPERVISED", "GATEWAY_STORE", "GATEWAY_AUTHOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.yaml").write_text(CONFIG)

    def replace(module: str, function: str, run: Callable[..., int]) -> None:
        stub = ModuleType(f"extproc.{module}")
        setattr(stub, function, run)
        monkeypatch.setitem(sys.modules, f"extproc.{module}", stub)

    return replace


def asked(stand_in: Callable[..., None], module: str, argv: list[str]) -> Any:
    """Return the settings that `argv` hands to the verb's module."""
    return handed(stand_in, module, argv)[0]


def handed(stand_in: Callable[..., None], module: str, argv: list[str]) -> tuple[Any, ...]:
    """Return all that `argv` hands to the verb's module."""
    heard: list[tuple[Any, ...]] = []

    def run(*arguments: Any) -> int:
        heard.append(arguments)
        return 0

    stand_in(module, f"run_{argv[0]}", run)
    assert cli.main(argv) == 0
    return heard[0]


def test_up_has_the_documented_defaults(stand_in: Callable[..., None]) -> None:
    settings = asked(stand_in, "supervisor", ["up", "--config", "g.yaml"])

    assert isinstance(settings, UpSettings)
    assert settings.config == Path("g.yaml")
    assert settings.data_dir == Path(".gateway")
    assert settings.listen == Address("127.0.0.1", 18080)
    assert settings.metrics_listen == Address("127.0.0.1", 18082)
    assert settings.envoy is None
    assert settings.concurrency >= 1
    assert settings.drain_s == 30.0
    assert settings.store == f"sqlite:///{Path.cwd()}/.gateway/store.db"


def test_every_flag_of_up_reaches_its_setting(stand_in: Callable[..., None]) -> None:
    argv = "up --data-dir d --listen 0.0.0.0:1 --metrics-listen [::1]:2 --envoy /e --concurrency 3 --drain 1m30s"

    settings = asked(stand_in, "supervisor", [*argv.split(), "--store", "sqlite:////s.db"])

    assert isinstance(settings, UpSettings)
    assert (settings.config, settings.data_dir) == (None, Path("d"))
    assert (settings.listen, settings.metrics_listen) == (Address("0.0.0.0", 1), Address("::1", 2))  # noqa: S104 - only parsed
    assert (settings.envoy, settings.concurrency, settings.drain_s) == ("/e", 3, 90.0)
    assert settings.store == "sqlite:////s.db"


def test_the_data_dir_comes_from_the_environment_unless_a_flag_says_otherwise(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_DATA_DIR", "/srv/gateway")

    by_env = asked(stand_in, "supervisor", ["up"])
    by_flag = asked(stand_in, "supervisor", ["up", "--data-dir", "/srv/other"])

    assert isinstance(by_env, UpSettings)
    assert isinstance(by_flag, UpSettings)
    assert (by_env.data_dir, by_flag.data_dir) == (Path("/srv/gateway"), Path("/srv/other"))


def test_the_store_is_in_the_data_directory_unless_environment_or_flag_say_otherwise(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_default = asked(stand_in, "supervisor", ["up", "--data-dir", "/srv/gateway"])
    monkeypatch.setenv("GATEWAY_STORE", "postgresql+psycopg://db.example.com/gateway")
    by_env = asked(stand_in, "supervisor", ["up"])
    by_flag = asked(stand_in, "supervisor", ["up", "--store", "sqlite:////other.db"])

    assert [one.store for one in (by_default, by_env, by_flag)] == [
        "sqlite:////srv/gateway/store.db",
        "postgresql+psycopg://db.example.com/gateway",
        "sqlite:////other.db",
    ]


def test_help_does_not_show_the_stores_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_STORE", "postgresql+psycopg://gateway:planted-password@db.example.com/gateway")

    with pytest.raises(SystemExit):
        cli.main(["up", "--help"])

    assert "planted-password" not in capsys.readouterr().out


def test_the_first_serve_of_a_supervisor_publishes_the_file_and_hands_over_what_it_claimed(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setenv("GATEWAY_SUPERVISED", "1")
    monkeypatch.setenv("GATEWAY_HANDOVER", str(theirs.detach()))
    anywhere = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]

    settings = asked(stand_in, "serve", ["serve", "--config", "g.yaml", *anywhere])

    with ours:
        taken = asyncio.run(take_over(ours))
    assert taken is not None
    claimed, lock = taken
    assert (settings.listen, settings.metrics_listen) == (claimed.listen, claimed.metrics)
    assert 0 not in (claimed.listen.port, claimed.metrics.port)
    with Store.open(f"sqlite:///{Path.cwd()}/.gateway/store.db") as store:
        assert 1 == store.active_number()
    os.close(lock)


def test_the_lock_that_was_handed_over_outlives_its_serve(tmp_path: Path) -> None:
    """Only the supervisor's end frees the data directory, and the lock names the supervisor."""
    data_dir = DataDir(tmp_path)
    data_dir.create()
    ours, theirs = socket.socketpair()
    with data_dir.lock_exclusive(4711) as lock:
        hand_over(theirs.detach(), Claimed(Address("::1", 1), Address("::1", 2), Address("::1", 3), "https"), lock)

    with ours:
        taken = asyncio.run(take_over(ours))

    assert taken is not None
    assert taken[0] == Claimed(Address("::1", 1), Address("::1", 2), Address("::1", 3), "https")
    with pytest.raises(StartError, match="pid 4711"), data_dir.lock_exclusive():
        pass
    os.close(taken[1])
    with data_dir.lock_exclusive():
        pass


def test_a_serve_whose_supervisor_is_gone_does_not_start() -> None:
    ours, theirs = socket.socketpair()
    ours.close()

    with pytest.raises(StartError, match="supervisor has ended"):
        hand_over(theirs.detach(), Claimed(Address("::1", 1), Address("::1", 2), None, "http"), 0)


def test_an_operator_is_told_that_a_changed_file_is_not_applied(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked(stand_in, "serve", ["serve", "--config", "g.yaml"])
    (tmp_path / "g.yaml").write_text(CONFIG.replace("model: m", "model: other"))

    asked(stand_in, "serve", ["serve", "--config", "g.yaml"])

    assert capsys.readouterr().err.startswith("g.yaml differs from the active version 1 and is not applied")


def test_serve_alone_refuses_an_open_door(stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    stand_in("serve", "run_serve", lambda *_: pytest.fail("serve was started"))

    assert cli.main(["serve", "--config", "g.yaml", "--metrics-listen", "0.0.0.0:1"]) == 1
    assert capsys.readouterr().err.startswith("Refusing to listen on 0.0.0.0:1")


def test_serve_under_a_supervisor_leaves_the_store_to_it(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SUPERVISED", "1")

    settings, source = handed(stand_in, "serve", ["serve"])

    assert isinstance(source, StoreSource)
    assert not settings.data_dir.exists()


def test_the_instance_is_named_after_its_machine_and_its_data_directory(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gateways of one machine are two lines of `configctl status`, and a restart is none."""
    monkeypatch.setattr("socket.gethostname", lambda: "box")

    _, source = handed(stand_in, "serve", ["serve", "--config", "g.yaml"])
    source.report(Report(1, 1))

    with Store.open(f"sqlite:///{Path.cwd()}/.gateway/store.db") as store:
        assert [f"box:{Path.cwd()}/.gateway"] == [instance.id for instance in store.instances(time.time())]


def test_the_author_of_the_first_version_is_who_runs_the_command_unless_the_environment_says_otherwise(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "who-runs-it")
    asked(stand_in, "serve", ["serve", "--config", "g.yaml", "--data-dir", "one"])
    monkeypatch.setenv("GATEWAY_AUTHOR", "pipeline")
    asked(stand_in, "serve", ["serve", "--config", "g.yaml", "--data-dir", "two"])

    assert ["who-runs-it", "pipeline"] == [first_author(name) for name in ("one", "two")]


def first_author(data_dir: str) -> str | None:
    with Store.open(f"sqlite:///{DataDir(Path(data_dir)).store_db}") as store:
        version = store.active()
    return version.author if version else None


def _admin_files(folder: Path) -> list[str]:
    """Make what the admin API needs over TCP, and return the flags that name it."""
    authority = Authority(folder / "ca")
    own = authority.sign("gateway", "IP:127.0.0.1")
    return ["--admin-cert", str(own.cert), "--admin-key", str(own.key), "--admin-client-ca", str(authority.cert)]


@pytest.mark.parametrize("verb", ["up", "serve"])
def test_the_admin_api_listens_on_tcp_where_flags_or_environment_say_so(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    module = {"up": "supervisor", "serve": "serve"}[verb]
    monkeypatch.setenv("GATEWAY_SUPERVISED", "1")
    flags = [*_admin_files(tmp_path), "--admin-listen", "127.0.0.1:18083"]
    admin = AdminListen(Address("127.0.0.1", 18083), *map(Path, flags[1:6:2]))

    assert (None, admin) == (
        asked(stand_in, module, [verb]).admin,
        asked(stand_in, module, [verb, *flags]).admin,
    )
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        monkeypatch.setenv(f"GATEWAY_{flag[2:].upper().replace('-', '_')}", value)
    assert admin == asked(stand_in, module, [verb]).admin


@pytest.mark.parametrize("left_out", ["--admin-listen", "--admin-cert", "--admin-key", "--admin-client-ca"])
def test_the_admin_api_is_never_on_tcp_without_certificates(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path, left_out: str
) -> None:
    stand_in("supervisor", "run_up", lambda *_: pytest.fail("up was started"))
    flags = [*_admin_files(tmp_path), "--admin-listen", "127.0.0.1:18083"]
    at = flags.index(left_out)

    assert 1 == cli.main(["up", *flags[:at], *flags[at + 2 :]])
    assert capsys.readouterr().err.startswith("The admin API over TCP needs --admin-listen, --admin-cert, --admin-key")


def test_the_transport_is_fast_unless_the_environment_or_a_flag_says_otherwise(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATEWAY_TRANSPORT", raising=False)
    by_default = asked(stand_in, "serve", ["serve", "--config", "g.yaml"])
    monkeypatch.setenv("GATEWAY_TRANSPORT", "grpcio")
    by_env = asked(stand_in, "serve", ["serve", "--config", "g.yaml"])
    by_flag = asked(stand_in, "supervisor", ["up", "--transport", "fast"])

    assert isinstance(by_default, ServeSettings)
    assert isinstance(by_env, ServeSettings)
    assert isinstance(by_flag, UpSettings)
    assert (by_default.transport, by_env.transport, by_flag.transport) == ("fast", "grpcio", "fast")


@pytest.mark.parametrize("where", ["flag", "environment"])
def test_an_unknown_transport_is_a_usage_error(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_TRANSPORT", "quic" if where == "environment" else "fast")
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *(["--transport", "quic"] if where == "flag" else [])])
    assert ended.value.code == 2
    assert "'quic' is no transport: use fast or grpcio." in capsys.readouterr().err


def test_serve_knows_whether_it_has_a_supervisor(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = asked(stand_in, "serve", ["serve", "--config", "g.yaml"])
    monkeypatch.setenv("GATEWAY_SUPERVISED", "1")
    child = asked(stand_in, "serve", ["serve"])

    assert isinstance(alone, ServeSettings)
    assert isinstance(child, ServeSettings)
    assert (alone.supervised, child.supervised) == (False, True)


def test_the_environment_travels_as_a_value(stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Provider keys are resolved from the settings, never from `os.environ` below the command line."""
    monkeypatch.setenv("SOME_PROVIDER_KEY", "k-1")

    settings = asked(stand_in, "serve", ["serve", "--config", "g.yaml"])

    assert isinstance(settings, ServeSettings)
    assert settings.environ["SOME_PROVIDER_KEY"] == "k-1"


def test_render_is_told_where_to_write(stand_in: Callable[..., None]) -> None:
    settings = asked(stand_in, "render", ["render", "--config", "g.yaml", "--out", "files"])

    assert isinstance(settings, RenderSettings)
    assert (settings.config, settings.out) == (Path("g.yaml"), Path("files"))


def test_the_exit_code_of_a_verb_is_ours(stand_in: Callable[..., None]) -> None:
    stand_in("demo", "run_demo", lambda: 1)

    assert cli.main(["demo"]) == 1


@pytest.mark.parametrize(
    "error",
    [
        StartError("The port is taken."),
        ConfigErrors([ConfigError("models", "g.yaml:3", "is missing"), ConfigError("schema", None, "must be 1")]),
    ],
)
def test_a_refusal_is_said_on_stderr_and_exits_with_1(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def refuse(*_: object) -> int:
        raise error

    stand_in("supervisor", "run_up", refuse)

    assert cli.main(["up"]) == 1
    assert capsys.readouterr() == ("", f"{error}\n")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "the following arguments are required: VERB"),
        (["fly"], "invalid choice: 'fly'"),
        (["render", "--out", "d"], "--config"),
        (["up", "--listen", "18080"], "'18080' is not an address: write HOST:PORT"),
        (["up", "--listen", "gateway.example:80"], "is not an IP address"),
        (["up", "--drain", "soon"], "must be a duration"),
        (["up", "--concurrency", "0"], "'0' is not a whole number above 0"),
        (["up", "--conf", "g.yaml"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_explained_and_exits_with_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(argv)

    assert left.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["up", "serve", "render", "demo"])
def test_help_shows_an_example_of_the_verb(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    with pytest.raises(SystemExit):
        cli.main(["--help"])

    own, _, general = capsys.readouterr().out.partition("A self-hosted")
    assert f"example:\n  extproc {verb}" in own
    assert f"\n  extproc {verb}" in general


def version_with(envoy: Path | None, says: str = "") -> str:
    env = {"PATH": "/nowhere"}
    if envoy is not None:
        envoy.write_text(f"#!/bin/sh\necho 'envoy  version: {says}'\n")
        envoy.chmod(0o755)
        env["ENVOY_BIN"] = str(envoy)
    return cli.describe_version(env)


def test_the_version_names_the_envoy_that_would_run(tmp_path: Path) -> None:
    envoy = tmp_path / "envoy"

    assert version_with(envoy, "a/1.40.2/C/R/B") == f"extproc {__version__} (Envoy 1.40.2 at {envoy})"


def test_the_version_says_that_an_envoy_is_too_old(tmp_path: Path) -> None:
    said = version_with(tmp_path / "envoy", "a/1.30.0/C/R/B")

    assert said.startswith(f"extproc {__version__} (no usable Envoy: Envoy 1.30.0 at ")
    assert "too old" in said


def test_the_version_says_that_there_is_no_envoy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.envoy_binary._wheel", lambda: None)

    assert version_with(None) == f"extproc {__version__} (no Envoy found)"


def test_version_goes_to_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "describe_version", lambda environ: "extproc 9")

    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])

    assert (left.value.code, capsys.readouterr().out) == (0, "extproc 9\n")


def test_ctrl_c_before_the_loop_is_a_quiet_failure(stand_in: Callable[..., None]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    stand_in("supervisor", "run_up", interrupted)

    assert cli.main(["up"]) == 1


def test_an_address_is_written_as_it_is_read() -> None:
    texts = ["127.0.0.1:18080", "[::1]:18080", "0.0.0.0:1"]

    assert texts == [str(parse_address(text)) for text in texts]


def test_localhost_means_the_loopback_address() -> None:
    assert parse_address("localhost:80") == Address("127.0.0.1", 80)


@pytest.mark.parametrize("text", ["::1:80", "127.0.0.1:70000", "127.0.0.1:", ":80", "127.0.0.1:-1"])
def test_an_unclear_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|not an IP address"):
        parse_address(text)


def test_a_wildcard_is_reached_through_loopback() -> None:
    assert Address("127.0.0.1", 1) == parse_address("0.0.0.0:1").reachable
    assert Address("::1", 1) == parse_address("[::]:1").reachable


def test_a_demonstration_with_what_runs_already_needs_all_its_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == cli.main(["demo", "--gateway", "http://127.0.0.1:1"])

    assert "--primary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("from configctl.cli import main; main(['--help'])", "sqlalchemy pydantic grpc google.protobuf rich"),
        ("from configctl.cli import main; main(['history', '--json'])", "pydantic grpc google.protobuf"),
        ("from configctl.cli import main; main(['health'])", "sqlalchemy pydantic"),
        ("from extproc.cli import main; main(['--help'])", "sqlalchemy pydantic grpc asyncio"),
        ("import extproc.supervisor", "sqlalchemy pydantic grpc google.protobuf prometheus_client"),
    ],
    ids=["configctl --help", "configctl history", "configctl health", "extproc --help", "supervisor"],
)
def test_a_command_does_not_wait_for_libraries_that_it_does_not_use(
    tmp_path: Path, command: str, unneeded: str
) -> None:
    """Each of them takes longer to import than all else that these commands do."""
    script = (
        f"import atexit, sys\nneeded = lambda: set({unneeded.split()}) & set(sys.modules)\n"
        f"atexit.register(lambda: print('imported', *sorted(needed())))\n{command}"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)

    assert "imported" == done.stdout.splitlines()[-1].strip()
