"""Restarts and child processes, with small real processes and a clock that is passed in."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from extproc import child as child_module
from extproc.child import Child, keep_running, tether
from extproc.restart import Backoff


def python(script: str, *args: object) -> list[str]:
    return [sys.executable, "-S", "-c", script, *map(str, args)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - watches a process, which sets no event
            await asyncio.sleep(0.01)


def test_the_first_restart_is_nearly_immediate() -> None:
    assert Backoff().after_exit(lived_s=0.0)[1] == 0.05


def test_waits_double_up_to_five_seconds() -> None:
    backoff, waits = Backoff(), []
    for _ in range(9):
        backoff, wait_s = backoff.after_exit(lived_s=1.0)
        waits.append(wait_s)

    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_long_life_forgives_earlier_crashes() -> None:
    assert Backoff(streak=9).after_exit(lived_s=30.0) == (Backoff(streak=1), 0.05)


def test_a_child_that_keeps_crashing_for_ever_costs_no_overflow() -> None:
    assert Backoff(streak=100_000).after_exit(lived_s=0.0)[1] == 5.0


def test_a_child_is_started_again_after_each_end(capfd: pytest.CaptureFixture[str]) -> None:
    """The clock stands still, so every life counts as short."""
    waits: list[float] = []

    async def pause(wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 3:
            raise asyncio.CancelledError

    async def session() -> None:
        child = Child("it", python("print('lived')"), {})
        await child.start()
        await keep_running(child, lambda _: None, lambda: 0.0, Backoff(), pause)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(session())

    assert waits == [0.05, 0.1, 0.2]
    assert capfd.readouterr() == ("", "lived\nlived\nlived\n")


def test_a_binary_that_vanished_is_reported_and_tried_again(tmp_path: Path) -> None:
    said: list[str] = []

    async def pause(wait_s: float) -> None:
        if len(said) > 2:
            raise asyncio.CancelledError

    async def session() -> None:
        await keep_running(Child("it", [str(tmp_path / "gone")], {}), said.append, lambda: 0.0, Backoff(), pause)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(session())

    assert "it cannot be started: No such file or directory." in said


def test_a_child_has_a_session_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C in the terminal must not reach it."""

    async def session() -> str:
        child = Child("it", python("import os; print(os.getsid(0) == os.getpid())"), {}, tmp_path / "log")
        await child.start()
        await child.wait()
        return child.last_words(1)

    assert asyncio.run(session()) == "True"


def test_a_log_is_private_and_last_words_are_those_of_the_latest_life(tmp_path: Path) -> None:
    async def session() -> str:
        child = Child("it", python("import os; print('life', os.getpid())"), {}, tmp_path / "log")
        for _ in range(2):
            await child.start()
            await child.wait()
        assert child.last_words(15) == f"life {child.pid}"
        return (tmp_path / "log").read_text()

    assert len(asyncio.run(session()).splitlines()) == 2
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_child_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True); time.sleep(60)"
    )

    async def session() -> str:
        child = Child("it", python(deaf), {}, tmp_path / "log")
        await child.start()
        await until(lambda: child.last_words(1) == "deaf")
        await child.stop(grace_s=0.01)
        return child.how_it_ended()

    assert asyncio.run(session()) == "signal SIGKILL"


def test_stopping_a_child_that_never_started_is_harmless() -> None:
    asyncio.run(Child("it", [], {}).stop(grace_s=0.01))


def test_a_tethered_child_ends_with_a_parent_that_was_killed() -> None:
    """The end of file on the pipe, which both processes hold, is the proof that both are gone."""
    child = tether([sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"])
    parent = f"import os, subprocess; c = {child!r}; c[5] = str(os.getpid()); subprocess.run(c)"

    with subprocess.Popen(python(parent), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert process.stdout.read() == b""


def test_a_tethered_child_does_not_outlive_a_parent_that_was_faster(tmp_path: Path) -> None:
    command = tether(["/bin/echo", "started"])
    command[5] = "1234567890"

    done = subprocess.run(command, capture_output=True, check=False)

    assert (done.returncode, done.stdout) == (1, b"")


def test_a_burst_of_output_is_in_the_log_when_the_child_has_ended(tmp_path: Path) -> None:
    async def session() -> None:
        child = Child("it", python("for n in range(200_000): print('line', n)"), {}, tmp_path / "log")
        await child.start()
        await child.wait()

    asyncio.run(session())

    assert [f"line {n}" for n in range(200_000)] == (tmp_path / "log").read_text().splitlines()


def test_output_is_logged_to_its_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    """The supervisor may end at any time; what copies the log ends with the process that it copies from."""
    said = "import sys, time; print('up', flush=True); sys.stdin.read() or time.sleep(0.2); print('end')"
    parent = (
        "import asyncio, sys; from pathlib import Path; from extproc.child import Child\n"
        "async def run():\n"
        "    child = Child('it', [sys.executable, '-S', '-c', sys.argv[1]], {}, Path(sys.argv[2]))\n"
        "    await child.start(); print('started', flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(run())"
    )
    log = tmp_path / "log"

    with subprocess.Popen([sys.executable, "-c", parent, said, str(log)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.kill()

    asyncio.run(until(lambda: log.exists() and log.read_text() == "up\nend\n"))


def test_what_holds_the_output_open_longer_than_its_process_delays_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "COPY_GRACE_S", 0.05)
    heir = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"

    async def session() -> tuple[int, int]:
        child = Child("it", python(heir), {}, tmp_path / "log")
        await child.start()
        await until(lambda: child.last_words(1) != "")
        return await child.wait(), int(child.last_words(1))

    code, pid = asyncio.run(session())
    os.kill(pid, 9)

    assert code == 0
