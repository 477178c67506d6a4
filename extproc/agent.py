"""Follows the config store: compile, validate, add beside the old, wait for Envoy's word, swap, report, retire.

Owns which versions are live on this instance and when one may be forgotten. Invariants: the last good version stays
live until the next one is accepted by Envoy whole; a refused version changes nothing and is told with its reason;
one apply at a time; a store that cannot be reached, or says nothing, costs nothing but news.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import orjson

from extproc.config.errors import ConfigErrors
from extproc.config.snapshot import Snapshot
from extproc.config.stored import compile_stored
from extproc.core.gateway import Active, Gateway
from extproc.envoy_config.files import write_json
from extproc.envoy_config.render import Rendered, together
from extproc.envoy_config.secrets import Secrets
from extproc.envoy_files import EnvoyAway, EnvoyFiles, Refused
from extproc.envoy_watch import EnvoyWatch
from extproc.store_line import StoreLine
from extproc.versions import Identity, Report, VersionSource, Wanted, read_last_good

log = logging.getLogger(__name__)

POLL_S = 0.25
BOOT_POLL_S = 0.05
HEARTBEAT_S = 2.0
KEYS_S = 1.0
WATCH_S = 2.0
"""Between two looks at whether Envoy was started anew."""
RETRY_S = 5.0
"""Between two tries of what the disk had no room for, or what Envoy lacks a file for."""
SETTLE_S = 0.05
"""Envoy's workers learn of a change a moment after its main thread reports it."""
UPLOAD_LIMIT_S = 300.0
"""The listener's request_timeout: as long may a body of a request pinned to an old version be under way."""

Clock = Callable[[], float]


class Renderer(Protocol):
    """Turns a snapshot into what Envoy reads, for this instance; may take long, and is called off the event loop."""

    def render(self, snapshot: Snapshot) -> Rendered:
        """Return every document; raises Refused."""
        ...

    def read_secrets(self, snapshot: Snapshot) -> Secrets:
        """Return only the secrets, as their references lead to them now; raises Refused."""
        ...


class Observer(Protocol):
    """What the agent tells of itself as it happens."""

    def wanted(self, number: int) -> None:
        """Take note of the version the store wants."""
        ...

    def applied(self, snapshot: Snapshot) -> None:
        """Take note that a version is active here."""
        ...

    def refused(self, number: int) -> None:
        """Take note that a version was refused."""
        ...


@dataclass(frozen=True, slots=True)
class Live:
    """A version whose clusters Envoy has; `until` is when no request can need it any more, None for the active one."""

    identity: Identity
    snapshot: Snapshot
    rendered: Rendered
    until: float | None = None


class Agent:
    """Keeps one instance on the version that the store wants."""

    def __init__(
        self,
        gateway: Gateway,
        files: EnvoyFiles,
        source: VersionSource,
        renderer: Renderer,
        last_good: Path,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._gateway = gateway
        self._files = files
        self._envoy = EnvoyWatch(files, clock)
        self._store = StoreLine(source, observer.wanted)
        self._renderer = renderer
        self._last_good = last_good
        self._clock = clock
        self._observer = observer
        self._live: list[Live] = []
        self._refused: tuple[Identity, str] | None = None
        self._trouble: str | None = None
        self._key_digests: dict[str, str] = {}
        self._missing: Mapping[str, str] = {}
        self._heartbeat_at = 0.0
        self._keys_at = 0.0
        self._watch_at = 0.0
        self._apply_at = 0.0
        self._retire_at = 0.0

    @property
    def report(self) -> Report:
        """What this instance says of itself now."""
        refused, reason = self._refused or (None, None)
        if reason is None and self._envoy.refusal is not None:
            refused, reason = self._live[-1].identity, self._envoy.refusal
        applied = self._live[-1].identity if self._live and self._gateway.accepted else None
        wanted = self._store.wanted
        if applied and wanted and applied != wanted and applied[0] == wanted[0]:
            # Who reads this knows the store's version of that number, which is another.
            applied = None
        error = reason or self._store.error or (f"files cannot be kept up: {self._trouble}" if self._trouble else None)
        missing = tuple(map(self._reference, sorted(self._missing)))
        return Report(_number(wanted), _number(applied), _number(refused), error, missing)

    @property
    def store_answers(self) -> bool:
        """Whether the store could be reached when it was last needed."""
        return self._store.error is None

    # -- start ---------------------------------------------------------------------------------------------------

    async def boot(self) -> bool:
        """Write the first version for an Envoy that is about to start; False when there is none to run.

        The wanted version, or the last good one when the store is gone or the wanted one is refused. After a crash,
        with Envoy still serving, it is the last good one at once: news can wait, requests cannot.
        """
        last_good = read_last_good(self._last_good)
        if last_good is not None and await self._files.envoy_serves() and await self._boot_from(last_good, known=True):
            return True
        wanted = await self._store.ask()
        if wanted is not None and await self._boot_from(wanted, known=wanted == last_good):
            return True
        if last_good is None or last_good == wanted:
            return False
        log.warning("starting with the last good version %d", last_good.number)
        return await self._boot_from(last_good, known=False)

    async def _boot_from(self, candidate: Wanted, *, known: bool) -> bool:
        """Write a version's files; `known` says that Envoy has run it before, so it need not be asked again."""
        try:
            snapshot = _compile(candidate)
            rendered = self._renderer.render(snapshot)
            if not known:
                await self._files.validate(rendered)
        except OSError as error:
            self._in_trouble(error)
            return False
        except (ConfigErrors, Refused) as refusal:
            if known:
                # It served here before: what changed is this program or its settings, which is not the version's fault.
                self._refused = (candidate.identity, str(refusal))
                log.error("version %d cannot be started: %s", candidate.number, refusal)
            else:
                await self._refuse(candidate.identity, str(refusal))
            return False
        try:
            self._files.write_first(rendered)
        except OSError as error:
            self._in_trouble(error)
            if not known:
                return False
            # Its files are there from the time before; whether Envoy runs them is asked before we are ready.
        self._go_live(candidate.identity, snapshot, rendered)
        self._keep(candidate)
        return True

    # -- the loop ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the store until cancelled."""
        while True:
            now = self._clock()
            await self._watch_boot()
            wanted = await self._store.ask()
            await self._store.catch_up()
            if wanted is not None and self._is_news(wanted) and now >= self._apply_at:
                await self._apply_alive(wanted)
            if now >= self._watch_at:
                await self._watch_envoy()
                self._watch_at = now + (WATCH_S if self._envoy.refusal is None else RETRY_S)
            if now - self._keys_at >= KEYS_S:
                self._keys_at = now
                await self._refresh_keys()
            if now - self._heartbeat_at >= HEARTBEAT_S:
                await self._beat()
            await self._retire(now)
            await asyncio.sleep(POLL_S if self._gateway.accepted else BOOT_POLL_S)

    async def leave(self) -> None:
        """Tell the store that this instance is gone."""
        await self._store.leave()

    async def _apply_alive(self, wanted: Wanted) -> None:
        """Apply a version, however long it takes, with heartbeats: without them nobody waits for its verdict."""
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(self._keep_beating())
            await self.apply(wanted)
            beating.cancel()

    async def apply(self, wanted: Wanted) -> None:
        """Make a version live, or refuse it and stay as we are."""
        old = self._live[-1]
        try:
            snapshot, rendered = await asyncio.to_thread(self._prepare, wanted)
            await self._files.validate(rendered)
            await self._files.move(self._all_live(), rendered)
        except (ConfigErrors, Refused) as refusal:
            self._files.keep_secrets(live.rendered for live in self._live)
            await self._refuse(wanted.identity, str(refusal))
            return
        except EnvoyAway as away:
            log.warning("version %d waits: %s", wanted.number, away)
            return
        except OSError as error:
            # The version is not at fault: it is tried again, and the last good one serves meanwhile.
            self._in_trouble(error)
            self._apply_at = self._clock() + RETRY_S
            return
        await asyncio.sleep(SETTLE_S)
        longest_s = max(policy.deadline_s for policy in old.snapshot.policies.values())
        until = self._clock() + UPLOAD_LIMIT_S + longest_s + HEARTBEAT_S
        self._live[-1] = replace(old, until=until)
        self._go_live(wanted.identity, snapshot, rendered)
        self._gateway.accepted = True
        self._refused = self._envoy.refusal = None
        await asyncio.to_thread(self._keep, wanted)
        log.info("version %d is live", wanted.number)
        await self._store.applied(wanted.identity)
        await self._beat()

    def _prepare(self, wanted: Wanted) -> tuple[Snapshot, Rendered]:
        """Compile and render: hundreds of milliseconds for a large config, in which requests must not wait."""
        snapshot = _compile(wanted)
        return snapshot, self._renderer.render(snapshot)

    def _keep(self, version: Wanted) -> None:
        """Save the version that runs here for a start without the store; waits for the disk."""
        try:
            write_json(
                self._last_good, {"number": version.number, "digest": version.digest, "content": version.content}
            )
        except OSError as error:
            self._in_trouble(error)
        else:
            self._trouble = None

    def _in_trouble(self, error: OSError) -> None:
        """Tell the operator once what this instance's disk or system refuses."""
        trouble = f"{error.filename or 'a file'}: {error.strerror or error}"
        if trouble != self._trouble:
            log.error("the files of this instance cannot be kept up: %s; what runs goes on", trouble)
        self._trouble = trouble

    def _go_live(self, identity: Identity, snapshot: Snapshot, rendered: Rendered) -> None:
        self._key_digests = {name: _digest(document) for name, document in rendered.sds.items()}
        # The keys are in their files now; only their names are needed to know which files stay.
        kept = replace(rendered, sds={name: {} for name in rendered.sds})
        self._live.append(Live(identity, snapshot, kept))
        self._missing = rendered.missing_keys
        self._gateway.activate(Active(snapshot, rendered.clusters, frozenset(rendered.missing_keys)))
        self._observer.applied(snapshot)
        for provider in sorted(rendered.missing_keys):
            log.warning("without its key a provider's targets are not used: %s", self._reference(provider))

    async def _refuse(self, version: Identity, reason: str) -> None:
        self._refused = (version, reason)
        log.error("version %d is refused: %s", version[0], reason)
        self._observer.refused(version[0])
        await self._store.refused(version, reason)
        await self._beat()

    def _is_news(self, wanted: Wanted) -> bool:
        active = self._live[-1].identity
        if wanted.identity == active:
            if self._refused is not None and self._refused[0] != active:
                self._refused = None
            return False
        return self._refused is None or self._refused[0] != wanted.identity

    async def _watch_boot(self) -> None:
        """Become ready once Envoy runs the first files."""
        if self._gateway.accepted or not self._live:
            return
        try:
            accepted = await self._files.accepted(self._live[-1].rendered)
        except EnvoyAway:
            return
        if accepted:
            self._gateway.accepted = True
            version = self._live[-1].identity
            await self._store.applied(version)
            await self._beat()

    async def _watch_envoy(self) -> None:
        """Tell when Envoy, started anew, lacks a part of the version that it ran before, and when it is whole again."""
        before, number = self._envoy.refusal, self._live[-1].snapshot.version
        try:
            await self._envoy.look(self._all_live(), self._live[-1].rendered)
        except EnvoyAway:
            return
        except OSError as error:
            self._in_trouble(error)
            return
        now = self._envoy.refusal
        if now is not None and now != before:
            log.error("Envoy runs without a part of version %d: %s", number, now)
            self._observer.refused(number)
        elif now is None and before is not None:
            log.info("Envoy runs all of version %d again", number)

    # -- keys and clusters ---------------------------------------------------------------------------------------

    async def _refresh_keys(self) -> None:
        """Write keys anew whose reference now leads to another value."""
        active = self._live[-1]
        try:
            secrets = await asyncio.to_thread(self._renderer.read_secrets, active.snapshot)
        except Refused as refusal:
            log.warning("keys and certificates stay as they were: %s", refusal)
            return
        digests = {name: _digest(document) for name, document in secrets.files.items()}
        if (digests, secrets.missing_keys) == (self._key_digests, self._missing):
            return
        try:
            await asyncio.to_thread(self._files.write_secrets, secrets.files)
        except OSError as error:
            self._in_trouble(error)
            return
        self._trouble = None
        self._key_digests, self._missing = digests, secrets.missing_keys
        self._gateway.activate(Active(active.snapshot, active.rendered.clusters, frozenset(secrets.missing_keys)))
        log.info("provider keys were read anew; missing: %s", ", ".join(self.report.missing_keys) or "none")

    def _reference(self, provider: str) -> str:
        """Return a provider whose key is missing, where it is looked for, and what is wrong there."""
        key = self._live[-1].snapshot.providers[provider].api_key
        return f"{provider} ({key.source} {key.name} {self._missing[provider]})" if key else provider

    async def _retire(self, now: float) -> None:
        kept = [live for live in self._live if live.until is None or live.until > now]
        if len(kept) == len(self._live) or now < self._retire_at:
            return
        try:
            await asyncio.to_thread(self._files.retire, [live.rendered for live in kept])
        except OSError as error:
            self._in_trouble(error)
            self._retire_at = now + RETRY_S
            return
        self._live = kept
        if self._retire_at:
            # The trouble was this one; another's is not over because of it.
            self._retire_at, self._trouble = 0.0, None

    def _all_live(self) -> Rendered:
        """Return what Envoy has: the active version's documents, and what older ones still need."""
        return together([live.rendered for live in self._live])

    # -- heartbeats ----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        self._heartbeat_at = self._clock()
        await self._store.report(self.report)

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._beat()


def _number(version: Identity | None) -> int | None:
    return None if version is None else version[0]


def _compile(wanted: Wanted) -> Snapshot:
    return compile_stored(wanted.number, wanted.digest, wanted.content)


def _digest(document: Mapping[str, object]) -> str:
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()
