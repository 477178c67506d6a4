"""One child process of the supervisor: start, watch, start again, stop.

Owns the process and its output; when to start again is `restart.py`'s, what the children are for is
`supervisor.py`'s, what may stand in a log is `crash_filter.py`'s. Invariants: a child runs in its own session, so that
Ctrl-C in a terminal reaches the supervisor alone; it never writes to our stdout; it is started from the thread that
runs the event loop, because a tethered child ends with the thread that made it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from extproc import crash_filter
from extproc.restart import Backoff

COPY_GRACE_S = 2.0
"""How long the log may take after the end of its process; longer only where something else holds the pipe open."""
_STDERR = 2
_PIPE_BYTES = 1024 * 1024
"""What a burst of output may fill before Envoy would have to wait; Linux allows that much to anybody."""
_TAIL_BYTES = 64 * 1024
# prctl(PR_SET_PDEATHSIG, SIGTERM), https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html. It
# survives the exec. The second look at the parent covers one that ended before the call.
_TETHER = """\
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the supervisor has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def tether(argv: Sequence[str]) -> list[str]:
    """Return a command that becomes `argv` and ends when this process does, however it does (Linux)."""
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *argv]


class Child:
    """A named command; with `log`, its output is appended there (0600) but for a crash's dump, else to our stderr."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._argv = tuple(argv)
        self._env = dict(env)
        self._log = log
        self._pass_fds = tuple(pass_fds)
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None
        self._copier: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the latest process, None before the first start."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """How the latest process ended, negative for a signal; None while it runs or before it is started."""
        return self._process.returncode if self._process else None

    @property
    def running(self) -> bool:
        """Whether a process was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process; raises OSError when the system cannot."""
        output = await self._start_log(self._log) if self._log else _STDERR
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=self._pass_fds,
            )
        finally:
            if output != _STDERR:
                os.close(output)

    def start_next_as(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the next process, and those after it, with another command, and with none of our descriptors."""
        self._argv, self._env, self._pass_fds = tuple(argv), dict(env), ()

    async def wait(self) -> int:
        """Wait for the end of the latest process, and of its log, and return its exit code."""
        code = await self._process.wait() if self._process else 0
        if self._copier is not None:
            await _end(self._copier)
        return code

    async def stop(self, grace_s: float) -> None:
        """Ask the process to end, and end it after `grace_s`."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._signal(signal.SIGKILL)

    def last_words(self, lines: int) -> str:
        """Return the last lines that the latest process wrote to its log."""
        if self._log is None:
            return ""
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def how_it_ended(self) -> str:
        """Say how the latest process ended: `exit code 1` or `signal SIGKILL`."""
        code = self.exit_code
        if code is None or code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _start_log(self, path: Path) -> int:
        """Open the log and start what copies into it; returns the end of the pipe that the process writes to."""
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._log_start = os.lseek(log, 0, os.SEEK_END)
        source, target = os.pipe()
        try:
            self._copier = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", crash_filter.__file__),
                env={},
                stdin=source,
                stdout=log,
                start_new_session=True,
            )
            _widen(target)
        except OSError:
            os.close(target)
            raise
        finally:
            os.close(source)
            os.close(log)
        return target


def _widen(pipe: int) -> None:
    # Another system, or a user who has many pipes: the burst may be as large as a pipe is anyway.
    if sys.platform == "linux":
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


async def _end(copier: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(COPY_GRACE_S):
            await copier.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            copier.kill()
        await copier.wait()


async def keep_running(
    child: Child,
    say: Callable[[str], None],
    clock: Callable[[], float],
    backoff: Backoff,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Start `child` again whenever it ends, until cancelled; `clock` gives monotonic seconds."""
    started = clock()
    while True:
        await child.wait()
        backoff, wait_s = backoff.after_exit(clock() - started)
        say(f"{child.name} ended ({child.how_it_ended()}); it is started again in {wait_s:g} s.")
        await pause(wait_s)
        started = clock()
        try:
            await child.start()
        except OSError as error:
            say(f"{child.name} cannot be started: {error.strerror}.")
