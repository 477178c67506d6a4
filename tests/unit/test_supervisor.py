"""The supervisor against small stand-ins for its two children; the end-to-end tests have real Envoy."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from extproc import metrics, supervisor
from extproc.child import Child
from extproc.children import envoy_argv, first_serve, serve_argv, serve_environ
from extproc.data_dir import DataDir
from extproc.envoy_binary import envoy_environ
from extproc.handover import Claimed
from extproc.restart import Backoff
from extproc.settings import Address, AdminListen, StartError, UpSettings
from extproc.supervisor import Supervisor
from tests.support.ports import free_port

Act = Callable[[Supervisor], Coroutine[Any, Any, None]]

LOOPBACK = Address("127.0.0.1", 18080)
QUICK = Backoff(first_s=0.001, max_s=0.001)

SERVE = """
import os, select, socket, sys
bootstrap, path, port, log, *ready = sys.argv[1:]
if os.path.exists(path): os.unlink(path)
open(bootstrap, "w").close()
services = socket.socket(socket.AF_UNIX)
services.bind(path)
services.listen()
metrics = socket.create_server(("127.0.0.1", int(port)))
while True:
    for listener in select.select([services, metrics], [], [])[0]:
        connection = listener.accept()[0]
        if listener is metrics:
            print(connection.recv(65536).split(b"\\r\\n")[0].decode(), file=open(log, "a"))
            value = ready.pop(0) if len(ready) > 1 else ready[0]
            body = "# TYPE gateway_ready gauge\\ngateway_ready %s\\nother 1.0\\n" % value
            connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + body.encode())
        connection.close()
"""

ENVOY = """
import socket, sys, threading, os
path, port, log, *active = sys.argv[1:]
if os.path.exists(path): os.unlink(path)
front = socket.create_server(("127.0.0.1", int(port)))
admin = socket.socket(socket.AF_UNIX)
admin.bind(path)
admin.listen()
print("envoy is up", flush=True)
while True:
    connection = admin.accept()[0]
    line = connection.recv(65536).split(b"\\r\\n")[0].decode()
    if "/ready" in line:
        body = "LIVE"
    elif "/stats" in line:
        count = active.pop(0) if len(active) > 1 else active[0]
        requests, _, unread = count.partition("+")
        names = "downstream_rq_active", "downstream_cx_tx_bytes_buffered"
        row = '{"name":"http.gateway.%s","value":%s}'
        body = '{"stats":[%s]}' % ",".join(row % one for one in zip(names, (requests, unread or 0)))
    else:
        body = "OK"
    if "/ready" not in line:
        print(line.split("?")[0], file=open(log, "a"))
    connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + body.encode())
    connection.close()
"""


def python(script: str, *args: object) -> list[str]:
    return [sys.executable, "-S", "-c", script, *map(str, args)]


class World:
    """A data directory, two stand-in children and the supervisor over them."""

    def __init__(
        self,
        root: Path,
        *,
        active: tuple[int | str, ...] = (0,),
        accepted: tuple[float, ...] = (1.0,),
        drain_s: float = 5.0,
    ) -> None:
        self.data_dir = DataDir(root)
        self.data_dir.create()
        self.calls = root / "calls"
        self.listen, self.metrics = (Address("127.0.0.1", free_port()) for _ in range(2))
        self.questions = root / "questions"
        services = (self.data_dir.bootstrap, self.data_dir.extproc_socket)
        serve_args = (*services, self.metrics.port, self.questions, *accepted)
        envoy_args = (self.data_dir.envoy_admin_socket, self.listen.port, self.calls, *active)
        self.serve = Child("serve", python(SERVE, *serve_args), {})
        self.envoy = Child("Envoy", python(ENVOY, *envoy_args), {}, self.data_dir.envoy_log)
        self.drain_s = drain_s

    def run(self, act: Act) -> int:
        """Run the supervisor, and `act` beside it; returns the exit code."""

        async def both() -> int:
            supervised = Supervisor(
                serve=self.serve,
                envoy=self.envoy,
                data_dir=self.data_dir,
                listen=self.listen,
                metrics=self.metrics,
                drain_s=self.drain_s,
                ready_line="ready here",
                backoff=QUICK,
            )
            refusal: StartError | None = None
            code = -1
            async with asyncio.TaskGroup() as tasks:
                acting = tasks.create_task(act(supervised))
                try:
                    code = await supervised.run()
                except StartError as error:
                    refusal = error
                acting.cancel()
            if refusal:
                raise refusal
            return code

        return asyncio.run(both())

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def scrapes(self) -> int:
        """Return how often `serve` was asked whether Envoy took the version."""
        return self.questions.read_text().count("GET /metrics") if self.questions.exists() else 0

    async def until_ready(self) -> None:
        await until(lambda: is_open(self.listen) and b"envoy is up" in self.data_dir.envoy_log.read_bytes())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - watches a process, which sets no event
            await asyncio.sleep(0.01)


def is_open(address: Address) -> bool:
    try:
        socket.create_connection(address).close()
    except OSError:
        return False
    return True


def is_alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that is set once the ready line is printed."""
    event = asyncio.Event()
    write = supervisor._announce

    def announce(line: str) -> None:
        write(line)
        event.set()

    monkeypatch.setattr(supervisor, "_announce", announce)
    return event


def after_ready(announced: asyncio.Event, then: Callable[[Supervisor], None]) -> Act:
    async def act(supervised: Supervisor) -> None:
        await announced.wait()
        then(supervised)

    return act


def test_one_ready_line_goes_to_stdout_and_a_quiet_gateway_drains_at_once(
    tmp_path: Path, announced: asyncio.Event, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)

    code = world.run(after_ready(announced, Supervisor.request_stop))

    assert (code, capfd.readouterr().out) == (0, "ready here\n")
    assert world.asked()[0] == "POST /drain_listeners HTTP/1.1"


def test_the_ready_line_waits_until_envoy_took_the_version(tmp_path: Path, announced: asyncio.Event) -> None:
    world = World(tmp_path, accepted=(0.0, 0.0, 1.0))

    assert world.run(after_ready(announced, Supervisor.request_stop)) == 0
    assert world.scrapes() == len((0.0, 0.0, 1.0))


def test_the_metric_that_is_waited_for_is_on_the_page() -> None:
    assert metrics.READY == supervisor.READY


def test_a_version_that_envoy_does_not_take_is_never_announced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Envoy listens and says LIVE, and `serve` says that Envoy does not run the version."""
    world = World(tmp_path, accepted=(0.0,))

    async def act(supervised: Supervisor) -> None:
        await until(lambda: world.scrapes() > 2)
        assert is_open(world.listen)
        supervised.request_stop()

    assert (0, "") == (world.run(act), capfd.readouterr().out)


def test_the_end_of_a_start_whose_version_envoy_does_not_take_has_envoys_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT_S", 1.0)
    world = World(tmp_path, accepted=(0.0,))

    with pytest.raises(StartError, match=r"^Envoy did not take the version within 1 s\. .*\nenvoy is up$"):
        world.run(lambda _: asyncio.sleep(0))


def test_no_child_is_left_behind(tmp_path: Path, announced: asyncio.Event) -> None:
    world = World(tmp_path)

    world.run(after_ready(announced, Supervisor.request_stop))

    assert [False, False] == [is_alive(world.serve.pid), is_alive(world.envoy.pid)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_begin_the_drain(tmp_path: Path, announced: asyncio.Event, number: int) -> None:
    world = World(tmp_path)

    assert world.run(after_ready(announced, lambda _: os.kill(os.getpid(), number))) == 0


def test_running_requests_are_waited_for(tmp_path: Path, announced: asyncio.Event) -> None:
    world = World(tmp_path, active=(2, 1, 0))

    assert world.run(after_ready(announced, Supervisor.request_stop)) == 0
    assert len(world.asked()) == 1 + len((2, 1, 0, 0))


def test_requests_that_outlive_the_drain_are_cut_and_counted(
    tmp_path: Path, announced: asyncio.Event, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, active=(3,), drain_s=0.0)

    assert world.run(after_ready(announced, Supervisor.request_stop)) == 1
    assert "cutting the requests that are still running: 3." in capfd.readouterr().err


def test_answers_that_callers_have_not_read_yet_are_waited_for(tmp_path: Path, announced: asyncio.Event) -> None:
    world = World(tmp_path, active=(1, "0+4096", "0+1", 0))

    assert world.run(after_ready(announced, Supervisor.request_stop)) == 0
    assert len(world.asked()) == 1 + len((1, "0+4096", "0+1", 0, 0))


def test_answers_that_nobody_reads_are_cut_and_counted(
    tmp_path: Path, announced: asyncio.Event, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, active=("0+4096",), drain_s=0.0)

    assert world.run(after_ready(announced, Supervisor.request_stop)) == 1
    assert "cutting the answers that callers have not read to their end: 4096 bytes." in capfd.readouterr().err


def test_a_second_signal_ends_at_once(tmp_path: Path, announced: asyncio.Event) -> None:
    world = World(tmp_path, active=(3,), drain_s=600.0)

    def twice(supervised: Supervisor) -> None:
        supervised.request_stop()
        supervised.request_stop()

    assert world.run(after_ready(announced, twice)) == 1
    assert world.envoy.how_it_ended() == "signal SIGKILL"


@pytest.mark.parametrize("victim", ["serve", "envoy"])
def test_each_child_is_restarted_alone(tmp_path: Path, announced: asyncio.Event, victim: str) -> None:
    world = World(tmp_path)
    killed: Child = getattr(world, victim)
    other = world.envoy if victim == "serve" else world.serve
    pids: list[int | None] = []

    async def act(supervised: Supervisor) -> None:
        await announced.wait()
        pids.extend((killed.pid, other.pid))
        killed.kill()
        await until(lambda: killed.running and killed.pid != pids[0])
        assert other.pid == pids[1]
        await world.until_ready()
        supervised.request_stop()

    assert world.run(act) == 0
    assert is_alive(pids[0]) is False


def test_an_envoy_that_refuses_its_bootstrap_is_quoted(tmp_path: Path) -> None:
    world = World(tmp_path)
    bad = "print(*range(20), sep='\\n'); print('no such filter'); raise SystemExit(1)"
    world.envoy = Child("Envoy", python(bad), {}, world.data_dir.envoy_log)

    with pytest.raises(StartError) as refused:
        world.run(lambda _: asyncio.sleep(0))

    first, *quoted = str(refused.value).splitlines()
    assert first == "Envoy ended while starting (exit code 1). Its last words:"
    assert quoted == [*map(str, range(6, 20)), "no such filter"]
    assert is_alive(world.serve.pid) is False


def test_a_serve_that_fails_ends_the_start_before_envoy(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.serve = Child("serve", python("raise SystemExit(1)"), {})

    with pytest.raises(StartError, match=r"^serve ended while starting \(exit code 1\)\.$"):
        world.run(lambda _: asyncio.sleep(0))

    assert world.envoy.pid is None


def test_a_child_that_never_gets_ready_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT_S", 0.0)
    world = World(tmp_path)
    world.serve = Child("serve", python("import time; time.sleep(60)"), {})

    with pytest.raises(StartError, match=r"serve was not ready within 0 s"):
        world.run(lambda _: asyncio.sleep(0))


def test_a_signal_during_the_start_is_a_clean_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.serve = Child("serve", python("import time; time.sleep(60)"), {})

    async def act(supervised: Supervisor) -> None:
        supervised.request_stop()

    assert world.run(act) == 0
    assert capfd.readouterr().out == ""


# What the children are told


STORE = "postgresql+psycopg://gateway:planted-password@db.example.com/gateway"


def settings(tmp_path: Path, **changes: Any) -> UpSettings:
    values: dict[str, Any] = {
        "config": tmp_path / "gateway.yaml",
        "data_dir": tmp_path / "data",
        "listen": Address("127.0.0.1", 0),
        "metrics_listen": Address("127.0.0.1", 0),
        "envoy": None,
        "concurrency": 2,
        "drain_s": 1.0,
        "environ": MappingProxyType({"PATH": "/bin", "OPENAI_API_KEY": "sk-planted"}),
        "store": STORE,
    }
    return UpSettings(**{**values, **changes})


def claimed(admin: Address | None = None) -> Claimed:
    return Claimed(LOOPBACK, Address("127.0.0.1", 18082), admin, "http")


def test_the_word_serve_is_in_the_childs_command(tmp_path: Path) -> None:
    """Process lists tell the two apart by it."""
    argv = serve_argv(settings(tmp_path), claimed())

    assert argv[1:4] == ["-m", "extproc", "serve"]
    assert argv[4:6] == ["--data-dir", f"{tmp_path}/data"]
    assert argv[6:] == ["--listen", "127.0.0.1:18080", "--metrics-listen", "127.0.0.1:18082", "--transport", "fast"]


def test_serve_is_told_where_the_admin_api_listens(tmp_path: Path) -> None:
    admin = AdminListen(Address("127.0.0.1", 0), Path("/c"), Path("/k"), Path("/a"))
    argv = serve_argv(settings(tmp_path, admin=admin), claimed(Address("127.0.0.1", 18084)))

    assert argv[-8:-4] == ["--admin-listen", "127.0.0.1:18084", "--admin-cert", "/c"]
    assert argv[-4:] == ["--admin-key", "/k", "--admin-client-ca", "/a"]


def test_serve_takes_its_version_from_the_store_and_not_from_the_file(tmp_path: Path) -> None:
    """A restarted `serve` must not fall back to what the file said when `up` began."""
    assert "--config" not in serve_argv(settings(tmp_path), claimed())


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let Envoy pass for new enough, and a script be the first `serve`; its channel is its only argument."""
    monkeypatch.setattr(supervisor, "require_envoy", lambda path: (1, 40, 0))

    def be(script: str) -> None:
        def made(settings: UpSettings, envoy: Path, channel: int) -> Child:
            return Child("extproc serve", python(script, channel), {}, pass_fds=(channel,))

        monkeypatch.setattr(supervisor, "first_serve", made)

    return be


def test_a_first_serve_that_refuses_ends_the_run_with_its_exit_code(
    first: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first("import sys; sys.exit('no such file')")

    assert 1 == supervisor.run_up(settings(tmp_path, envoy="/e"))
    assert ("", "no such file\n") == capfd.readouterr()
    assert not (tmp_path / "data").exists()


def test_a_first_serve_that_is_killed_is_told_of(first: Callable[[str], None], tmp_path: Path) -> None:
    first("import os; os.kill(os.getpid(), 9)")

    with pytest.raises(StartError, match=r"^extproc serve ended while starting \(signal SIGKILL\)\.$"):
        supervisor.run_up(settings(tmp_path, envoy="/e"))


def test_a_signal_while_the_first_serve_still_checks_ends_both(first: Callable[[str], None], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    first(
        f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), 15); time.sleep(60)"
    )

    assert 0 == supervisor.run_up(settings(tmp_path, envoy="/e"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_the_first_serve_is_told_the_file_and_the_channel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr("extproc.children.Child", lambda *command, pass_fds: made.append((*command, pass_fds)))

    first_serve(settings(tmp_path), Path("/e"), 7)

    [(_, argv, environ, descriptors)] = made
    assert argv == [*serve_argv(settings(tmp_path), asked()), "--config", str(tmp_path / "gateway.yaml")]
    assert (environ["GATEWAY_HANDOVER"], descriptors) == ("7", (7,))


def asked() -> Claimed:
    anything = Address("127.0.0.1", 0)
    return Claimed(anything, anything, None, "")


def test_the_stores_password_is_in_no_command(tmp_path: Path) -> None:
    """Every user of the machine can read the process list."""
    argv = serve_argv(settings(tmp_path), claimed())
    argv += envoy_argv(Path("/e"), DataDir(tmp_path), concurrency=3)

    assert not [word for word in argv if "planted-password" in word or "--store" in word]


def test_serve_gets_the_keys_and_the_store_and_envoy_none_of_it(tmp_path: Path) -> None:
    environ = serve_environ(settings(tmp_path), Path("/e"))

    assert environ == {
        **settings(tmp_path).environ,
        "GATEWAY_SUPERVISED": "1",
        "ENVOY_BIN": "/e",
        "GATEWAY_STORE": STORE,
    }
    assert envoy_environ(environ) == {"PATH": "/bin"}


def test_a_store_that_was_named_by_flag_outweighs_the_environment(tmp_path: Path) -> None:
    asked = settings(tmp_path, environ={"GATEWAY_STORE": "sqlite:////old.db"}, store="sqlite:////new.db")

    assert serve_environ(asked, Path("/e"))["GATEWAY_STORE"] == "sqlite:////new.db"


def test_envoy_is_told_its_bootstrap_and_its_threads(tmp_path: Path) -> None:
    argv = envoy_argv(Path("/e"), DataDir(tmp_path), concurrency=3)

    assert argv[:5] == ["/e", "-c", f"{tmp_path}/envoy/bootstrap.json", "--concurrency", "3"]
    assert argv[argv.index("--drain-strategy") + 1] == "immediate"
