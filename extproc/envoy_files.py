"""Puts rendered versions where Envoy watches, and learns from Envoy whether it took them.

Owns the files under `envoy/`, the order in which they change, and the comparison with Envoy's own counters. A rejected
cluster update is applied in part, so clusters are only ever added beside the old ones (docs/envoy.md section 8); a
refusal puts the old files back.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from extproc import envoy_admin
from extproc.data_dir import DataDir
from extproc.envoy_binary import envoy_environ
from extproc.envoy_config.files import write_json
from extproc.envoy_config.render import Rendered, discovery, together
from extproc.envoy_config.resource import EnvoyPaths, Json
from extproc.envoy_config.validation import validation_bootstrap

POLL_S = 0.02
ACCEPT_TIMEOUT_S = 30.0
WORDS_TIMEOUT_S = 1.0
VALIDATE_TIMEOUT_S = 20.0
_WORDS_LIMIT = 2000
_LOG_PREFIX = re.compile(r"^\[?[^\[\]]*\](?:\[[^\[\]]*\])*\s*(?:\[[^\[\]]*\]\s*)?")
INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
SPARE_WATCHES = 16
"""Clusters, routes and listeners, and what else this user's programs watch."""

# Envoy's name of each discovery kind in its statistics.
_CLUSTERS = "cluster_manager.cds"
_ROUTES = "http.gateway.rds.gateway"
_LISTENERS = "listener_manager.lds"


class Refused(Exception):  # noqa: N818 - a verdict, not a fault
    """Envoy does not take a version; the message is Envoy's own words."""


class EnvoyAway(Exception):  # noqa: N818 - a state, not a fault
    """No Envoy answers on its admin socket: nothing can be said about a version now."""


@dataclass(frozen=True, slots=True)
class _Update:
    kind: str
    path: Path
    document: Json


class EnvoyFiles:
    """The files of one Envoy."""

    def __init__(
        self, data_dir: DataDir, paths: EnvoyPaths, envoy: Path | None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._data_dir = data_dir
        self._paths = paths
        self._envoy = envoy
        self._environ = envoy_environ(environ or {})
        self._serial = 0

    async def validate(self, rendered: Rendered) -> None:
        """Ask the Envoy binary about a version before anything live changes; raises Refused."""
        _check_watches(len(rendered.sds))
        if self._envoy is None:
            return
        folder = await asyncio.to_thread(self._write_for_validation, rendered)
        try:
            await self._run_validation(folder / "bootstrap.json")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_for_validation(self, rendered: Rendered) -> Path:
        self.write_secrets(rendered.sds)
        folder = Path(tempfile.mkdtemp(prefix="validate-", dir=self._data_dir.run))
        try:
            write_json(folder / "bootstrap.json", validation_bootstrap(rendered))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    async def _run_validation(self, bootstrap: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            str(self._envoy),
            *("--mode", "validate", "-c", str(bootstrap), "--log-level", "error", "--disable-hot-restart"),
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(VALIDATE_TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            raise Refused("Envoy did not finish validating the version.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            lines = output.decode("utf-8", "replace").splitlines()
            said = "\n".join(_LOG_PREFIX.sub("", line) if line.startswith("[") else line for line in lines)
            raise Refused(_words(said, str(bootstrap)))

    def write_secrets(self, documents: Mapping[str, Json]) -> None:
        """Write the keys a version refers to, by file name; other versions' stay."""
        for name, document in documents.items():
            write_json(self._paths.sds / name, document)

    def write_first(self, rendered: Rendered) -> None:
        """Write everything for an Envoy that is about to start."""
        text = self._next_text()
        self.write_secrets(rendered.sds)
        for update in self._updates(rendered, text):
            write_json(update.path, update.document)
        write_json(self._data_dir.bootstrap, rendered.bootstrap)

    async def move(self, old: Rendered, new: Rendered) -> None:
        """Bring Envoy from the documents it has to those of both, whose clusters and routes all live.

        Raises Refused or EnvoyAway, or OSError when the disk fails, in each case with the old files back in place.
        """
        try:
            await asyncio.to_thread(self.write_secrets, new.sds)
            for update in self._updates(together([await self._held(old), new]), self._next_text()):
                await self._write_and_wait(update)
        except (Refused, EnvoyAway, OSError):
            await asyncio.to_thread(self._put_back, old)
            raise

    async def _held(self, old: Rendered) -> Rendered:
        """Leave out the clusters that Envoy does not have: what it rejected would condemn the update they come in."""
        names = await self._cluster_names()
        return old if names is None else replace(old, cds=[one for one in old.cds if one["name"] in names])

    def _put_back(self, old: Rendered) -> None:
        for update in self._updates(old, self._next_text()):
            # A disk that is full has the old file still: it was never replaced.
            with suppress(OSError):
                write_json(update.path, update.document)

    def retire(self, live: Iterable[Rendered]) -> None:
        """Leave only the clusters, routes and keys of the versions that requests may still need."""
        kept = list(live)
        clusters, routes, _ = self._updates(together(kept), self._next_text())
        for update in (routes, clusters):
            write_json(update.path, update.document)
        self.keep_secrets(kept)

    def keep_secrets(self, live: Iterable[Rendered]) -> None:
        """Remove the keys that no version refers to which requests may still need."""
        needed = {name for rendered in live for name in rendered.sds}
        for path in self._paths.sds.glob("*.json"):
            if path.name not in needed:
                path.unlink(missing_ok=True)

    async def envoy_serves(self) -> bool:
        """Tell whether an Envoy is already running here."""
        return await envoy_admin.ready(self._data_dir.envoy_admin_socket)

    async def accepted(self, rendered: Rendered) -> bool:
        """Tell whether Envoy runs a version's clusters, wherever it read them from: their names are their content."""
        pattern = r"^(cluster\..+\.membership_total|cluster_manager\.warming_clusters)$"
        seen = await _stats(self._data_dir.envoy_admin_socket, pattern)
        wanted = {f"cluster.{cluster['name']}.membership_total" for cluster in rendered.cds}
        return wanted <= seen.keys() and seen.get("cluster_manager.warming_clusters") == 0

    async def uptime_s(self) -> int:
        """Return for how many seconds Envoy has run; raises EnvoyAway."""
        try:
            return await envoy_admin.uptime_s(self._data_dir.envoy_admin_socket)
        except envoy_admin.AdminError as error:
            raise EnvoyAway(str(error)) from None

    async def refusal(self, live: Rendered, active: Rendered) -> str | None:
        """Return why Envoy runs without a cluster of the active version, None when it has them all.

        A file that the cluster names may have been gone when Envoy started: it is asked to read its clusters again, for
        the file may be back. Raises EnvoyAway, also while Envoy has yet to read them.
        """
        names = await self._cluster_names()
        if names is None:
            raise EnvoyAway("Envoy has not read its clusters yet.")
        if {cluster["name"] for cluster in active.cds} <= names:
            return None
        try:
            await self._write_and_wait(self._updates(live, self._next_text())[0])
        except Refused as refused:
            return str(refused)
        return None

    async def _cluster_names(self) -> set[str] | None:
        """Return which clusters Envoy has, None before it has read any."""
        pattern = rf"^(cluster\..+\.membership_total|{_CLUSTERS}\.update_(success|rejected))$"
        seen = await _stats(self._data_dir.envoy_admin_socket, pattern)
        if not any(seen.get(f"{_CLUSTERS}.{counter}") for counter in ("update_success", "update_rejected")):
            return None
        return {name.removeprefix("cluster.").removesuffix(".membership_total") for name in seen}

    def _updates(self, rendered: Rendered, text: str) -> list[_Update]:
        return [
            _Update(_CLUSTERS, self._paths.cds, discovery(text, rendered.cds)),
            _Update(_ROUTES, self._paths.rds, discovery(text, [rendered.rds])),
            _Update(_LISTENERS, self._paths.lds, discovery(text, rendered.lds)),
        ]

    def _next_text(self) -> str:
        """Return a version text that this file has never carried, so that Envoy's report is unambiguous."""
        self._serial += 1
        return f"{time.time_ns()}-{self._serial}"

    async def _write_and_wait(self, update: _Update) -> None:
        socket, said = self._data_dir.envoy_admin_socket, self._log_bytes()
        pattern = rf"^({update.kind}\.(version_text|update_rejected|update_failure)|cluster_manager\.warming_clusters)$"
        before = await _stats(socket, pattern)
        await asyncio.to_thread(write_json, update.path, update.document)
        deadline = time.monotonic() + ACCEPT_TIMEOUT_S
        while time.monotonic() < deadline:
            seen = await _stats_unless_busy(socket, pattern)
            if _grew(before, seen, f"{update.kind}.update_rejected", f"{update.kind}.update_failure"):
                raise Refused(await self._last_words(said))
            text = seen.get(f"{update.kind}.version_text")
            warming = seen.get("cluster_manager.warming_clusters", 0)
            if text == update.document["version_info"] and warming == 0:
                return
            await asyncio.sleep(POLL_S)
        raise Refused(f"Envoy did not take the version within {ACCEPT_TIMEOUT_S:g} s.")

    async def _last_words(self, said: int) -> str:
        """Return what Envoy wrote last, behind the first `said` bytes of its log; the copy may be a moment late."""
        seen, give_up_at = said, time.monotonic() + WORDS_TIMEOUT_S
        while (now := self._log_bytes()) and not now == seen > said and time.monotonic() < give_up_at:
            seen = now
            await asyncio.sleep(POLL_S)
        try:
            tail = self._data_dir.envoy_log.read_bytes()[said:][-_WORDS_LIMIT:].decode("utf-8", "replace")
        except OSError:
            tail = ""
        if not tail:
            return "Envoy rejected the update; its log says why."
        last = tail.rstrip("\n").rsplit("\n[", 1)[-1]
        # `[time][thread][level][component] [file:line] words`: the words are Envoy's, the rest is its log's.
        return _words(_LOG_PREFIX.sub("", last), "")

    def _log_bytes(self) -> int:
        try:
            return self._data_dir.envoy_log.stat().st_size
        except OSError:
            return 0


def _check_watches(keys: int) -> None:
    """Refuse more keys than the kernel lets Envoy watch: it would abort, and with it every request."""
    try:
        limit = int(INOTIFY_LIMIT.read_text())
    except (OSError, ValueError):
        return
    if keys + SPARE_WATCHES > limit:
        raise Refused(
            f"{keys} providers have keys, and Envoy needs an inotify instance for each, but this system allows "
            f"{limit} a user: raise the sysctl fs.inotify.max_user_instances to {2 * keys + SPARE_WATCHES} or more."
        )


async def _stats(socket: Path, pattern: str) -> dict[str, int | str]:
    try:
        return await envoy_admin.stats(socket, pattern)
    except envoy_admin.AdminError as error:
        raise EnvoyAway(str(error)) from None


async def _stats_unless_busy(socket: Path, pattern: str) -> dict[str, int | str]:
    """Return nothing while Envoy is there and says nothing: a large update keeps its main thread from answering."""
    try:
        return await envoy_admin.stats(socket, pattern)
    except envoy_admin.AdminUnreachableError as error:
        raise EnvoyAway(str(error)) from None
    except envoy_admin.AdminError:
        return {}


def _grew(before: dict[str, int | str], after: dict[str, int | str], *names: str) -> bool:
    return any(int(after.get(name, 0)) > int(before.get(name, 0)) for name in names)


def _words(text: str, path: str) -> str:
    """Return what Envoy said, shortened and without paths of this machine."""
    said = text.replace(path, "the rendered bootstrap") if path else text
    return " ".join(said.split())[:_WORDS_LIMIT]
