"""The data directory: where each file of one gateway instance lives, and who may use it.

Owns the paths, the modes of the directories and the lock; the content of the files is their writers'.
Invariants: every path is absolute, so that supervisor, `serve` and Envoy agree whatever their working
directory; directories that hold secrets or sockets are 0700 even if they were there before; one lock holder
at a time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from extproc.settings import StartError

MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` of Linux holds 108 bytes, the last of which is a zero."""

_PRIVATE = 0o700


@dataclass(frozen=True, slots=True)
class DataDir:
    """One instance's directory; a relative `root` is taken from the working directory once, here."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.root.absolute())

    @property
    def envoy(self) -> Path:
        """Everything Envoy reads."""
        return self.root / "envoy"

    @property
    def bootstrap(self) -> Path:
        """Envoy's bootstrap."""
        return self.envoy / "bootstrap.json"

    @property
    def cds(self) -> Path:
        """Clusters."""
        return self.envoy / "cds.json"

    @property
    def rds(self) -> Path:
        """Routes."""
        return self.envoy / "rds.json"

    @property
    def lds(self) -> Path:
        """Listeners."""
        return self.envoy / "lds.json"

    @property
    def sds(self) -> Path:
        """Directory of the provider keys: the only place under the root that holds them."""
        return self.envoy / "sds"

    @property
    def run(self) -> Path:
        """Sockets and the lock."""
        return self.root / "run"

    @property
    def extproc_socket(self) -> Path:
        """Where Envoy's ext_proc filters ask."""
        return self.run / "extproc.sock"

    @property
    def logs_socket(self) -> Path:
        """Where Envoy sends its access logs, as gRPC."""
        return self.run / "logs.sock"

    @property
    def admin_socket(self) -> Path:
        """The gateway's own admin API."""
        return self.run / "admin.sock"

    @property
    def envoy_admin_socket(self) -> Path:
        """Envoy's admin interface."""
        return self.run / "envoy-admin.sock"

    @property
    def checks_socket(self) -> Path:
        """Where Envoy takes active checks of providers from `serve`."""
        return self.run / "checks.sock"

    @property
    def lock(self) -> Path:
        """Held by the one instance that uses this directory; contains its pid."""
        return self.run / "lock"

    @property
    def logs(self) -> Path:
        """Directory of the log files."""
        return self.root / "logs"

    @property
    def access_log(self) -> Path:
        """Envoy's JSON access log."""
        return self.logs / "access.log"

    @property
    def envoy_log(self) -> Path:
        """What Envoy wrote to stdout and stderr."""
        return self.logs / "envoy.log"

    @property
    def store_db(self) -> Path:
        """Config versions and audit."""
        return self.root / "store.db"

    @property
    def requests_db(self) -> Path:
        """The request ledger."""
        return self.root / "requests.db"

    @property
    def last_good(self) -> Path:
        """The version that last ran here, for a start without the store."""
        return self.root / "last-good.json"

    @property
    def health_state(self) -> Path:
        """Cooldowns that survive a restart."""
        return self.root / "health.json"

    @property
    def untold_orders(self) -> Path:
        """Operators' orders that the store's audit has yet to hear of."""
        return self.root / "untold-orders.json"

    def create(self) -> None:
        """Make the directories, or raise StartError; an existing root keeps its mode.

        A root that was there before may be shared (`--data-dir /srv`); closing it to others is not our
        business.
        """
        self._check_socket_paths()
        try:
            for directory in (self.root, self.run, self.envoy, self.sds, self.logs):
                directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            for directory in (self.run, self.sds):
                directory.chmod(_PRIVATE)
            os.close(self._open_lock())
        except OSError as error:
            raise self._unusable(error) from None

    @contextmanager
    def lock_exclusive(self, holder: int | None = None) -> Iterator[int]:
        """Hold the directory for this process; a second holder gets a StartError that names the first.

        `holder` is the pid to name, of a process that the descriptor is going to be handed to; ours otherwise.
        """
        try:
            descriptor = self._open_lock()
        except OSError as error:
            raise self._unusable(error) from None
        try:
            self._take(descriptor, os.getpid() if holder is None else holder)
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        return os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _take(self, descriptor: int, holder: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"Another gateway (pid {self._holder()}) already uses the data directory {self.root}: "
                "stop it, or give this one a directory of its own with --data-dir."
            ) from None
        except OSError as error:
            raise self._unusable(error) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}\n".encode(), 0)

    def _holder(self) -> str:
        try:
            return self.lock.read_text(encoding="ascii", errors="replace").strip() or "unknown"
        except OSError:
            return "unknown"

    def _check_socket_paths(self) -> None:
        longest = max(
            (self.extproc_socket, self.logs_socket, self.admin_socket, self.envoy_admin_socket, self.checks_socket),
            key=_length_bytes,
        )
        if _length_bytes(longest) > MAX_SOCKET_PATH_BYTES:
            raise StartError(
                f"The socket path {longest} has {_length_bytes(longest)} bytes and the system allows "
                f"{MAX_SOCKET_PATH_BYTES}: choose a shorter directory with --data-dir."
            )

    def _unusable(self, error: OSError) -> StartError:
        where = error.filename if isinstance(error.filename, str) else str(self.root)
        return StartError(
            f"The data directory {self.root} cannot be used: {where}: {error.strerror}. "
            "Make it writable, or choose another with --data-dir."
        )


def _length_bytes(path: Path) -> int:
    return len(os.fsencode(path))
