"""The agent between a store that is a list and files that are a diary."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from extproc import agent, store_calls
from extproc.agent import HEARTBEAT_S, KEYS_S, RETRY_S, UPLOAD_LIMIT_S, WATCH_S, Agent
from extproc.config.snapshot import Snapshot, TargetKey
from extproc.core.gateway import Gateway
from extproc.core.health import HealthEngine
from extproc.data_dir import DataDir
from extproc.envoy_config.render import Rendered
from extproc.envoy_config.secrets import Secrets
from extproc.envoy_files import EnvoyAway, EnvoyFiles, Refused
from extproc.render import envoy_paths
from extproc.serve import target_keys
from extproc.versions import Identity, Report, Wanted, read_last_good
from tests.unit.core.build import NOW, A, B, chain, config, trip

DEADLINE_S = 600.0
GONE = OSError("the store is gone")


def written(number: int, *targets: TargetKey, **more: Any) -> Wanted:
    """Publish a version whose model `big` has these targets."""
    return wanted_of(number, json.dumps(config({"big": chain(*(targets or (A,)))}, {"deadline": "600s"}) | more))


def broken(number: int) -> Wanted:
    """Publish a version that does not compile here."""
    return wanted_of(number, '{"schema": 1, "surplus": 2}')


def changed(number: int) -> Wanted:
    """Publish a version that somebody changed in the store since."""
    published = written(number)
    return replace(published, content=published.content.replace("600s", "599s"))


def wanted_of(number: int, text: str) -> Wanted:
    return Wanted(number, hashlib.sha256(text.encode()).hexdigest(), text)


class Store:
    """What every instance should run, and what this one told; the last of `versions` is wanted."""

    def __init__(self) -> None:
        self.versions: list[Wanted] = []
        self.gone = False
        self.deaf = False
        self.silent: threading.Event | None = None
        """Set while it says nothing, to what ends that."""
        self.asked = 0
        self.told: list[tuple[object, ...]] = []
        self.reports: list[Report] = []

    def wanted(self) -> Wanted | None:
        self.asked += 1
        if self.silent is not None:
            assert self.silent.wait(10)
        if self.gone:
            raise GONE
        return self.versions[-1] if self.versions else None

    def report(self, report: Report) -> None:
        self._hear()
        self.reports.append(report)

    def applied(self, version: Identity) -> None:
        self._hear()
        self.told.append(("applied", version[0]))

    def refused(self, version: Identity, reason: str) -> None:
        self._hear()
        self.told.append(("refused", version[0], reason))

    def leave(self) -> None:
        self.told.append(("leave",))

    def _hear(self) -> None:
        if self.gone or self.deaf:
            raise GONE


class Diary(EnvoyFiles):
    """Writes down what it is asked for; refuses what it is told to, by version."""

    def __init__(self, data_dir: DataDir) -> None:
        super().__init__(data_dir, envoy_paths(data_dir, {}), None)
        self.lines: list[tuple[object, ...]] = []
        self.invalid: set[int] = set()
        self.rejected: set[int] = set()
        self.away = False
        self.full = False
        self.refusals = 0
        self.serves = False
        self.takes_first = True
        self.keys: list[dict[str, Any]] = []
        self.kept_keys: list[int] = []
        self.retired: list[list[Rendered]] = []
        self.on_move: Callable[[], None] = lambda: None
        self.uptimes: Callable[[], int] = lambda: 0
        self.lacks: str | None = None
        self.looks = 0

    async def validate(self, rendered: Rendered) -> None:
        self.lines.append(("validate", number_of(rendered)))
        if number_of(rendered) in self.invalid:
            raise Refused(f"no such filter in {number_of(rendered)}")

    def write_secrets(self, documents: Mapping[str, Any]) -> None:
        self._need_room()
        self.keys.append(dict(documents))

    def keep_secrets(self, live: Iterable[Rendered]) -> None:
        self.kept_keys = [number_of(rendered) for rendered in live]

    def _need_room(self) -> None:
        if self.full:
            self.refusals += 1
            raise OSError(28, "No space left on device", "cds.json")

    def write_first(self, rendered: Rendered) -> None:
        self._need_room()
        self.lines.append(("first", number_of(rendered)))

    async def move(self, old: Rendered, new: Rendered) -> None:
        self._need_room()
        self.on_move()
        self.lines.append(("move", names(old), names(new)))
        if self.away:
            raise EnvoyAway("nobody answers")
        if number_of(new) in self.rejected:
            raise Refused(f"rejected {number_of(new)}")

    def retire(self, live: Iterable[Rendered]) -> None:
        self._need_room()
        self.retired.append(list(live))
        self.lines.append(("retire", *map(number_of, self.retired[-1])))

    async def envoy_serves(self) -> bool:
        return self.serves

    async def uptime_s(self) -> int:
        return self.uptimes()

    async def refusal(self, live: Rendered, active: Rendered) -> str | None:
        self.looks += 1
        if self.away:
            raise EnvoyAway("nobody answers")
        return self.lacks

    async def accepted(self, rendered: Rendered) -> bool:
        if self.away:
            raise EnvoyAway("nobody answers")
        return self.takes_first


def number_of(rendered: Rendered) -> int:
    return int(rendered.bootstrap["n"])


def names(rendered: Rendered) -> list[str]:
    return [cluster["name"] for cluster in rendered.cds]


class World:
    """One instance: its agent, the store, the files, the clock and everything the agent told."""

    def __init__(self, root: Path) -> None:
        self.data_dir = DataDir(root)
        self.data_dir.create()
        self.now = NOW
        self.store = Store()
        self.files = Diary(self.data_dir)
        self.envoy_began = NOW - 100
        self.files.uptimes = lambda: int(self.now - self.envoy_began)
        self.health = HealthEngine(lambda: 0.5)
        self.gateway = Gateway(self.health, lambda: 0.5)
        self.environ: dict[str, str] = {"a": "sk-first"}
        self.fault = "is not set"
        self.seen: list[tuple[str, int]] = []
        self.rendered: list[int] = []
        self.read_on: list[threading.Thread] = []
        self.agent = self.restarted()

    def restarted(self) -> Agent:
        return Agent(self.gateway, self.files, self.store, self, self.data_dir.last_good, lambda: self.now, self)

    def render(self, snapshot: Snapshot) -> Rendered:
        number = snapshot.version
        self.rendered.append(number)
        sds, missing_keys = self.read_secrets(snapshot)
        return Rendered(
            bootstrap={"n": number},
            cds=[{"name": f"{provider}-{number}"} for provider in sorted(snapshot.providers)],
            rds={"virtual_hosts": [{"routes": [{"name": "no-plan"}]}]},
            lds=[],
            sds=sds,
            clusters={(name, "default"): f"{name}-{number}" for name in snapshot.providers},
            missing_keys=missing_keys,
        )

    def read_secrets(self, snapshot: Snapshot) -> Secrets:
        self.read_on.append(threading.current_thread())
        files = {f"{name}.json": {"key": self.environ.get(name)} for name in sorted(snapshot.providers)}
        return Secrets(files, dict.fromkeys(snapshot.providers.keys() - self.environ.keys(), self.fault))

    # the agent's observer, as `serve` is

    def wanted(self, number: int) -> None:
        self.seen.append(("wanted", number))

    def applied(self, snapshot: Snapshot) -> None:
        self.health.retain(target_keys(snapshot))
        self.seen.append(("applied", snapshot.version))

    def refused(self, number: int) -> None:
        self.seen.append(("refused", number))

    # what happens

    def boot(self) -> bool:
        return asyncio.run(self.agent.boot())

    def turns(self, count: int = 1) -> None:
        """Let the agent's loop make at least so many whole turns at the present time."""

        async def session() -> None:
            enough = self.store.asked + count + 1
            async with asyncio.timeout(10):
                running = asyncio.ensure_future(self.agent.run())
                while self.store.asked < enough and not running.done():  # noqa: ASYNC110 - counts what a thread does
                    await asyncio.sleep(0)
                running.cancel()
                await asyncio.wait([running])
            if not running.cancelled():
                running.result()

        asyncio.run(session())

    def publish(self, *versions: Wanted) -> None:
        """Publish versions and let the agent see each."""
        for version in versions:
            self.store.versions.append(version)
            self.turns(2)

    @property
    def active(self) -> int | None:
        return self.gateway.active.snapshot.version if self.gateway.active else None

    @property
    def last_good(self) -> int | None:
        saved = read_last_good(self.data_dir.last_good)
        return saved.number if saved else None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("POLL_S", "BOOT_POLL_S", "SETTLE_S"):
        monkeypatch.setattr(agent, name, 0.0)
    return World(tmp_path)


@pytest.fixture
def running(world: World) -> World:
    """Return an instance that runs version 1."""
    world.store.versions.append(written(1))
    assert world.boot()
    world.turns()
    world.files.lines.clear()
    world.store.told.clear()
    world.store.reports.clear()
    world.seen.clear()
    world.read_on.clear()
    return world


def save_last_good(world: World, version: Wanted) -> None:
    world.data_dir.last_good.write_bytes(
        orjson.dumps({"number": version.number, "digest": version.digest, "content": version.content})
    )


# -- the start


def test_the_wanted_version_is_written_for_envoy_before_anything_is_served(world: World) -> None:
    world.store.versions.append(written(1))

    assert True is world.boot()
    assert [("validate", 1), ("first", 1)] == world.files.lines
    assert (1, False) == (world.active, world.gateway.accepted)


def test_a_version_that_runs_is_kept_for_a_start_without_the_store(world: World) -> None:
    world.store.versions.append(written(4))
    world.boot()

    assert written(4) == read_last_good(world.data_dir.last_good)


def test_the_clusters_of_the_version_are_those_requests_are_sent_to(world: World) -> None:
    world.store.versions.append(written(1))
    world.boot()

    assert world.gateway.active is not None
    assert {("a", "default"): "a-1"} == world.gateway.active.clusters


def test_there_is_nothing_to_run_before_the_first_publish(world: World) -> None:
    assert False is world.boot()
    assert ([], None) == (world.files.lines, world.gateway.active)


def test_without_the_store_the_last_good_version_starts(world: World) -> None:
    save_last_good(world, written(3))
    world.store.gone = True

    assert True is world.boot()
    assert (3, [("validate", 3), ("first", 3)]) == (world.active, world.files.lines)


def test_without_the_store_and_an_earlier_run_there_is_nothing_to_run(world: World) -> None:
    world.store.gone = True

    assert False is world.boot()
    assert "the config store cannot be reached: the store is gone" == world.agent.report.error


def test_a_damaged_last_version_is_none(world: World) -> None:
    world.data_dir.last_good.write_text("{")
    world.store.gone = True

    assert False is world.boot()


def test_where_the_wanted_version_does_not_compile_the_last_good_one_starts(world: World) -> None:
    save_last_good(world, written(3))
    world.store.versions.append(broken(4))

    assert True is world.boot()
    assert (3, [("validate", 3), ("first", 3)]) == (world.active, world.files.lines)
    (told,) = world.store.told
    assert ("refused", 4) == told[:2]
    assert "surplus" in str(told[2])


@pytest.mark.parametrize("ran_before", [3, 4])
def test_where_the_wanted_version_was_changed_in_the_store_the_last_good_one_starts(
    world: World, ran_before: int
) -> None:
    """Also where it ran here as it was published: the digest alone does not make it the same."""
    save_last_good(world, written(ran_before))
    world.store.versions.append(changed(4))

    assert True is world.boot()
    assert world.gateway.active is not None
    assert (ran_before, DEADLINE_S) == (world.active, world.gateway.active.snapshot.policies["default"].deadline_s)
    (told,) = world.store.told
    assert ("refused", 4) == told[:2]
    assert "`configctl audit verify`" in str(told[2])


def test_where_envoy_refuses_the_wanted_version_the_last_good_one_starts(world: World) -> None:
    save_last_good(world, written(3))
    world.store.versions.append(written(4))
    world.files.invalid = {4}

    assert True is world.boot()
    assert [("validate", 4), ("validate", 3), ("first", 3)] == world.files.lines
    assert [("refused", 4, "no such filter in 4")] == world.store.told


def test_a_version_refused_at_the_start_is_not_tried_again_and_stays_told(world: World) -> None:
    save_last_good(world, written(3))
    world.store.versions.append(written(4))
    world.files.invalid = {4}
    world.boot()
    world.turns(3)

    assert 1 == world.files.lines.count(("validate", 4))
    assert Report(4, 3, 4, "no such filter in 4") == world.store.reports[-1]


def test_a_refused_first_version_is_the_reason_not_to_start(world: World) -> None:
    world.store.versions.append(written(1))
    world.files.invalid = {1}

    assert False is world.boot()
    assert ("no such filter in 1", None) == (world.agent.report.error, world.gateway.active)


def test_a_refused_version_that_is_also_the_last_good_one_is_tried_once(world: World) -> None:
    save_last_good(world, written(1))
    world.store.versions.append(written(1, A))
    world.environ.clear()
    world.render = refusing  # type: ignore[method-assign]  # as where the door stands open
    world.agent = world.restarted()

    assert False is world.boot()
    assert [] == world.store.told, "the version served before: the fault is the start's, not the version's"


def refusing(snapshot: Snapshot) -> Rendered:
    raise Refused("Refusing to listen")


def test_what_ran_here_before_is_not_judged_again(world: World) -> None:
    """A start must not wait for the binary without need."""
    save_last_good(world, written(3))
    world.store.versions.append(written(3))

    assert True is world.boot()
    assert [("first", 3)] == world.files.lines


def test_a_restart_beside_a_serving_envoy_asks_nobody(world: World) -> None:
    save_last_good(world, written(3))
    world.store.versions.append(written(4))
    world.files.serves = True

    assert True is world.boot()
    assert (0, [("first", 3)]) == (world.store.asked, world.files.lines)
    world.turns(2)
    assert 4 == world.active


def test_a_last_version_that_this_gateway_no_longer_takes_makes_room_for_the_wanted_one(world: World) -> None:
    """As after an upgrade, or a restart with another address."""
    save_last_good(world, broken(3))
    world.store.versions.append(written(4))
    world.files.serves = True

    assert True is world.boot()
    assert (4, [("validate", 4), ("first", 4)]) == (world.active, world.files.lines)


# -- ready


def test_a_version_is_applied_only_when_envoy_runs_it(world: World) -> None:
    world.store.versions.append(written(1))
    world.files.takes_first = False
    world.boot()
    world.turns(2)
    before = (world.gateway.accepted, world.agent.report.applied, list(world.store.told))
    world.files.takes_first = True
    world.turns()

    assert (False, None, []) == before
    assert (True, 1, [("applied", 1)]) == (world.gateway.accepted, world.agent.report.applied, world.store.told)


def test_an_envoy_that_is_not_there_yet_is_waited_for(world: World) -> None:
    world.store.versions.append(written(1))
    world.files.away = True
    world.boot()
    world.turns(2)
    assert False is world.gateway.accepted

    world.files.away = False
    world.turns()

    assert True is world.gateway.accepted


def test_readiness_does_not_wait_for_the_store(world: World) -> None:
    save_last_good(world, written(3))
    world.store.gone = True
    world.boot()
    world.turns()

    assert (True, 3) == (world.gateway.accepted, world.agent.report.applied)


# -- the next version


def test_a_new_version_is_judged_then_moved_to_then_used(running: World) -> None:
    active_at_move: list[int | None] = []
    running.files.on_move = lambda: active_at_move.append(running.active)

    running.publish(written(2))

    assert [("validate", 2), ("move", ["a-1"], ["a-2"])] == running.files.lines
    assert ([1], 2, 2) == (active_at_move, running.active, running.last_good)
    assert [("applied", 2)] == running.store.told
    assert [("wanted", 2), ("applied", 2)] == running.seen


def test_requests_under_way_keep_the_version_they_began_with(running: World) -> None:
    running.publish(written(2))

    old = running.gateway.version(1)
    assert 1 == (old and old.snapshot.version)


def test_a_version_that_stays_wanted_is_applied_once(running: World) -> None:
    running.publish(written(2))
    running.turns(3)

    assert [("validate", 2), ("move", ["a-1"], ["a-2"])] == running.files.lines


def test_health_outlives_a_new_version(running: World) -> None:
    running.publish(written(2, A, B))
    for key in (A, B):
        trip(running.gateway, key)

    running.publish(written(3, A))

    assert [False, True] == [running.health.view(key, NOW).eligible for key in (A, B)]


def test_a_version_that_does_not_compile_changes_nothing(running: World) -> None:
    running.publish(broken(2))

    assert ([], 1, 1) == (running.files.lines, running.active, running.last_good)
    (told,) = running.store.told
    assert ("refused", 2) == told[:2]
    assert "version 2" in str(told[2])
    assert [("wanted", 2), ("refused", 2)] == running.seen


def test_a_version_that_was_changed_in_the_store_changes_nothing(running: World) -> None:
    running.publish(changed(2))

    assert ([], 1, 1) == (running.files.lines, running.active, running.last_good)
    (told,) = running.store.told
    assert ("refused", 2) == told[:2]
    assert "version 2: was changed since it was published" in str(told[2])


def test_a_version_that_the_binary_refuses_is_not_moved_to(running: World) -> None:
    running.files.invalid = {2}
    running.publish(written(2))

    assert ([("validate", 2)], 1, 1) == (running.files.lines, running.active, running.last_good)
    assert [("refused", 2, "no such filter in 2")] == running.store.told


def test_a_version_that_the_running_envoy_refuses_is_not_used(running: World) -> None:
    running.files.rejected = {2}
    running.publish(written(2))

    assert (1, 1, True) == (running.active, running.last_good, running.gateway.accepted)
    assert [("refused", 2, "rejected 2")] == running.store.told


def test_the_keys_of_a_refused_version_do_not_stay(running: World) -> None:
    """They were written for Envoy to judge it; nobody would ever take them away."""
    running.publish(written(2))
    running.files.invalid = {3}
    running.publish(written(3))

    assert [1, 2] == running.files.kept_keys


def test_a_refused_version_is_refused_once(running: World) -> None:
    running.files.invalid = {2}
    running.publish(written(2))
    running.turns(3)

    assert ([("validate", 2)], 1) == (running.files.lines, len(running.store.told))


def test_the_version_after_a_refused_one_clears_the_refusal(running: World) -> None:
    running.files.invalid = {2}
    running.publish(written(2))
    running.publish(written(3))

    assert Report(3, 3) == running.store.reports[-1]


def test_the_way_back_to_the_parent_clears_the_refusal(running: World) -> None:
    running.files.invalid = {2}
    running.publish(written(2))
    running.store.versions.pop()
    running.turns()

    assert (Report(1, 1), [("validate", 2)]) == (running.agent.report, running.files.lines)


def test_a_version_that_was_refused_may_be_wanted_again_after_the_way_back(running: World) -> None:
    """The operator insists: `publish` again, after what stood in the way is gone."""
    running.files.invalid = {2}
    running.publish(written(2))
    running.store.versions.pop()
    running.turns()
    running.files.invalid = set()
    running.publish(written(2))

    assert 2 == running.active


def test_an_instance_that_applied_what_another_refused_goes_back_with_it(running: World) -> None:
    running.publish(written(2))
    running.store.versions.pop()
    running.turns(2)

    assert (1, 1) == (running.active, running.last_good)
    assert ("move", ["a-1", "a-2"], ["a-1"]) == running.files.lines[-1]


def test_a_version_waits_for_an_envoy_that_is_away(running: World) -> None:
    """An Envoy that restarts has not refused anything."""
    running.files.away = True
    running.publish(written(2))
    before = (running.active, list(running.store.told), running.agent.report.refused)
    running.files.away = False
    running.turns(2)

    assert (1, [], None) == before
    assert (2, [("applied", 2)]) == (running.active, running.store.told)


# -- an Envoy that was started anew


def look(world: World, *, started_anew: bool = False) -> None:
    """Let the agent look once more at its Envoy."""
    if started_anew:
        world.envoy_began = world.now
    world.now += max(WATCH_S, RETRY_S)
    world.turns(2)


def test_an_envoy_that_runs_on_is_looked_at_once(running: World) -> None:
    for _ in range(3):
        look(running)

    assert 1 == running.files.looks


def test_an_envoy_that_started_anew_while_it_was_young_is_looked_at(running: World) -> None:
    """It has run for longer by now than the one before it had when that was looked at."""
    running.envoy_began = running.now + max(WATCH_S, RETRY_S) - 1
    look(running)
    before = running.files.looks
    look(running, started_anew=True)

    assert before + 1 == running.files.looks


def test_an_envoy_that_started_anew_without_a_part_of_the_version_is_told_once_in_its_words(
    running: World, caplog: pytest.LogCaptureFixture
) -> None:
    running.files.lacks = "cluster a-1: Invalid path: /ca.pem"
    look(running, started_anew=True)
    look(running)

    assert Report(1, 1, 1, "cluster a-1: Invalid path: /ca.pem") == running.store.reports[-1]
    assert 1 == caplog.text.count("Envoy runs without a part of version 1: cluster a-1: Invalid path: /ca.pem")
    assert ([("refused", 1)], []) == (running.seen, running.store.told)


def test_an_envoy_that_is_whole_again_is_told(running: World) -> None:
    running.files.lacks = "cluster a-1: Invalid path: /ca.pem"
    look(running, started_anew=True)
    running.files.lacks = None
    look(running)

    assert Report(1, 1) == running.store.reports[-1]


def test_an_envoy_that_is_away_is_looked_at_when_it_is_back(running: World) -> None:
    running.files.lacks, running.files.away = "Invalid path: /ca.pem", True
    look(running, started_anew=True)
    running.files.away = False
    look(running)

    assert "Invalid path: /ca.pem" == running.agent.report.error


def test_a_version_that_envoy_takes_whole_ends_what_it_lacked_of_the_one_before(running: World) -> None:
    running.files.lacks = "Invalid path: /ca.pem"
    look(running, started_anew=True)
    running.publish(written(2))

    assert Report(2, 2) == running.store.reports[-1]


# -- another store in the place of the one that was followed


def elsewhere(version: Wanted) -> Wanted:
    """Return the version that another store has under the same number."""
    return wanted_of(version.number, f"{version.content} ")


def test_another_content_under_the_number_that_runs_is_taken_over(running: World) -> None:
    running.publish(elsewhere(written(1)))

    assert [("validate", 1), ("move", ["a-1"], ["a-1"])] == running.files.lines
    assert elsewhere(written(1)) == read_last_good(running.data_dir.last_good)
    assert (Report(1, 1), [("applied", 1)]) == (running.store.reports[-1], running.store.told)


def test_another_content_under_the_number_that_runs_is_not_applied_before_it_runs(running: World) -> None:
    """`configctl publish` would take the old content for it."""
    running.files.away = True
    running.publish(elsewhere(written(1)))

    assert Report(1, None) == running.agent.report


def test_another_content_under_the_number_that_runs_may_be_refused(running: World) -> None:
    running.files.invalid = {1}
    running.publish(elsewhere(written(1)))
    running.turns(3)

    assert (Report(1, None, 1, "no such filter in 1"), [("validate", 1)]) == (running.agent.report, running.files.lines)


def test_another_content_under_a_number_that_was_refused_is_tried(running: World) -> None:
    running.files.invalid = {2}
    running.publish(written(2))
    running.files.invalid = set()
    running.publish(elsewhere(written(2)))

    assert (2, Report(2, 2)) == (running.active, running.agent.report)


# -- the store is gone


def test_a_store_that_is_gone_costs_nothing_but_news(running: World) -> None:
    running.store.gone = True
    running.now += HEARTBEAT_S
    running.publish(written(2))

    assert (1, True, []) == (running.active, running.gateway.accepted, running.files.lines)
    assert "the config store cannot be reached: the store is gone" == running.agent.report.error


def test_a_store_that_says_nothing_is_away_and_keys_are_read_meanwhile(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database behind a proxy that stands still refuses nothing and never answers."""
    monkeypatch.setattr(store_calls, "STORE_TIMEOUT_S", 0.05)
    running.store.silent = silence = threading.Event()
    running.environ["a"] = "sk-second"
    running.now += KEYS_S

    async def session() -> None:
        async with asyncio.timeout(10):
            following = asyncio.ensure_future(running.agent.run())
            while not running.files.keys:  # noqa: ASYNC110 - what the agent does is counted
                await asyncio.sleep(0)
            following.cancel()
            await asyncio.wait([following])
            await running.agent.leave()

    asyncio.run(session())
    silence.set()

    assert (False, [{"a.json": {"key": "sk-second"}}]) == (running.agent.store_answers, running.files.keys)
    assert "the config store cannot be reached: it has not answered for 0.05 s" == running.agent.report.error
    assert [] == running.store.told


def test_the_operator_is_told_of_a_store_that_a_heartbeat_finds_away(
    running: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The next question to the store must not take the warning for given."""
    running.store.gone = True

    asyncio.run(running.agent._beat())
    running.turns()

    assert 1 == caplog.text.count("the config store cannot be reached")


def test_whether_the_store_answers_is_known(running: World) -> None:
    known = [running.agent.store_answers]
    for gone in (True, False):
        running.store.gone = gone
        running.turns(2)
        known.append(running.agent.store_answers)

    assert [True, False, True] == known


def test_a_store_that_is_back_is_followed_again(running: World) -> None:
    running.store.gone = True
    running.publish(written(2))
    running.store.gone = False
    running.turns(2)

    assert (2, Report(2, 2)) == (running.active, running.agent.report)


def test_a_store_that_hears_nothing_does_not_keep_a_version_from_being_used(running: World) -> None:
    running.store.deaf = True
    running.publish(written(2))

    assert 2 == running.active


@pytest.mark.parametrize(
    ("invalid", "expected"), [(set(), ("applied", 2)), ({2}, ("refused", 2, "no such filter in 2"))]
)
def test_a_verdict_that_the_store_did_not_hear_is_told_when_it_is_back(
    running: World, invalid: set[int], expected: tuple[object, ...]
) -> None:
    """Only the verdict makes a version `applied` or `failed` in the history."""
    running.files.invalid = invalid
    running.store.deaf = True
    running.publish(written(2))
    running.store.deaf = False
    running.turns(3)

    assert [expected] == running.store.told


def test_leaving_is_told(running: World) -> None:
    asyncio.run(running.agent.leave())

    assert [("leave",)] == running.store.told


# -- clusters that nobody needs


def test_old_clusters_stay_as_long_as_a_request_may_need_them(running: World) -> None:
    running.publish(written(2))
    running.now += UPLOAD_LIMIT_S + DEADLINE_S
    running.turns(2)

    assert [] == running.files.retired


def test_old_clusters_go_when_no_request_can_need_them(running: World) -> None:
    running.publish(written(2))
    running.now += UPLOAD_LIMIT_S + DEADLINE_S + HEARTBEAT_S
    running.turns(3)

    assert [("retire", 2)] == [line for line in running.files.lines if line[0] == "retire"]


def test_the_active_version_never_goes(running: World) -> None:
    running.now += 100 * DEADLINE_S
    running.turns(2)

    assert ([], 1) == (running.files.retired, running.active)


def test_each_old_version_goes_at_its_own_time(running: World) -> None:
    running.publish(written(2))
    running.now += 100.0
    running.publish(written(3))
    running.now += UPLOAD_LIMIT_S + DEADLINE_S + HEARTBEAT_S - 50.0
    running.turns(2)
    running.now += 50.0
    running.turns(2)

    assert [("retire", 2, 3), ("retire", 3)] == [line for line in running.files.lines if line[0] == "retire"]


def test_a_move_keeps_the_clusters_of_every_version_that_lives(running: World) -> None:
    running.publish(written(2), written(3))

    assert ("move", ["a-1", "a-2"], ["a-3"]) == running.files.lines[-1]


def test_no_key_is_kept_once_it_is_in_its_file(running: World) -> None:
    running.publish(written(2))
    running.now += UPLOAD_LIMIT_S + DEADLINE_S + HEARTBEAT_S
    running.turns(2)

    ((kept,),) = running.files.retired
    assert {"a.json": {}} == kept.sds


# -- a disk without room


def test_a_version_that_the_disk_has_no_room_for_waits_and_is_not_refused(running: World) -> None:
    running.files.full = True
    running.publish(written(2))
    assert (1, []) == (running.active, running.store.told)
    assert "files cannot be kept up: cds.json: No space left on device" == running.agent.report.error

    running.files.full = False
    running.now += RETRY_S
    running.turns(2)
    assert (2, [("applied", 2)]) == (running.active, running.store.told)
    assert running.agent.report.error is None


def test_a_full_disk_is_not_asked_again_at_every_turn(running: World) -> None:
    running.files.full = True
    running.publish(written(2))
    running.turns(5)

    assert [("validate", 2)] == running.files.lines


def test_old_clusters_that_cannot_be_retired_are_retired_later(running: World) -> None:
    running.publish(written(2))
    running.files.full = True
    running.now += UPLOAD_LIMIT_S + DEADLINE_S + HEARTBEAT_S + 1
    running.turns(5)
    assert (2, [], 1) == (running.active, running.files.retired, running.files.refusals)
    assert "files cannot be kept up: cds.json: No space left on device" == running.agent.report.error

    running.files.full = False
    running.now += RETRY_S
    running.turns(2)
    assert 1 == len(running.files.retired)
    assert running.agent.report.error is None


def test_a_key_that_cannot_be_written_is_written_later(running: World) -> None:
    running.environ["a"] = "sk-second"
    running.files.full = True
    running.now += KEYS_S
    running.turns(2)
    assert (1, []) == (running.active, running.files.keys)

    running.files.full = False
    running.now += KEYS_S
    running.turns(2)
    assert [{"a.json": {"key": "sk-second"}}] == running.files.keys


def test_a_restart_with_a_full_disk_goes_on_with_the_files_that_are_there(running: World) -> None:
    running.files.full = running.files.serves = True
    running.agent = running.restarted()

    assert True is running.boot()
    assert 1 == running.active


def test_a_first_start_with_a_full_disk_fails_and_says_why(world: World) -> None:
    world.store.versions.append(written(1))
    world.files.full = True

    assert False is world.boot()
    assert "No space left on device" in (world.agent.report.error or "")


# -- keys


def test_a_key_that_changed_is_written_anew(running: World) -> None:
    running.environ["a"] = "sk-second"
    running.now += KEYS_S
    running.turns()

    assert [{"a.json": {"key": "sk-second"}}] == running.files.keys
    assert (1, []) == (running.active, running.files.lines)


def test_a_key_that_stays_is_left_alone(running: World) -> None:
    for _ in range(3):
        running.now += KEYS_S
        running.turns()

    assert [] == running.files.keys


def test_looking_at_keys_renders_nothing_and_never_blocks_the_event_loop(running: World) -> None:
    """Requests are decided on the event loop, and a large config takes long to render."""
    before = list(running.rendered)
    running.environ["a"] = "sk-second"
    running.now += KEYS_S
    running.turns()

    assert before == running.rendered
    assert threading.main_thread() not in running.read_on


def test_a_new_version_is_rendered_off_the_event_loop(running: World) -> None:
    running.publish(written(2))

    assert (2, 1) == (running.active, len(running.read_on))
    assert threading.main_thread() not in running.read_on


def test_keys_are_looked_at_once_a_second(running: World) -> None:
    running.environ["a"] = "sk-second"
    running.now += KEYS_S / 2
    running.turns(3)

    assert [] == running.files.keys


def test_a_provider_without_its_key_is_told_and_not_used(running: World) -> None:
    running.publish(written(2, A, B))

    assert running.gateway.active is not None
    assert (frozenset({"b"}), ("b",)) == (running.gateway.active.missing_keys, running.store.reports[-1].missing_keys)


def test_a_missing_key_is_told_with_its_reference_and_what_is_wrong(running: World) -> None:
    providers = config({"big": chain(B)})["providers"]
    providers["b"]["api_key"] = {"env": "B_KEY"}
    running.publish(written(2, B, providers=providers))

    assert ("b (env B_KEY is not set)",) == running.store.reports[-1].missing_keys
    running.fault = "contains a line break inside"
    running.now += max(KEYS_S, HEARTBEAT_S)
    running.turns(2)
    assert ("b (env B_KEY contains a line break inside)",) == running.store.reports[-1].missing_keys


def test_a_key_that_comes_later_makes_its_provider_usable(running: World) -> None:
    running.publish(written(2, A, B))
    running.environ["b"] = "sk-b"
    running.now += max(KEYS_S, HEARTBEAT_S)
    running.turns(2)

    assert running.gateway.active is not None
    assert (frozenset(), ()) == (running.gateway.active.missing_keys, running.agent.report.missing_keys)


def test_no_key_is_in_the_log(running: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    running.environ["a"] = "sk-second"
    running.now += KEYS_S
    running.turns()
    running.publish(written(2))

    assert "keys were read anew" in caplog.text
    assert "sk-" not in caplog.text


# -- heartbeats


def test_an_instance_says_every_two_seconds_that_it_lives(running: World) -> None:
    for _ in range(4):
        running.now += HEARTBEAT_S / 2
        running.turns(2)

    assert [Report(1, 1), Report(1, 1)] == running.store.reports


def test_an_instance_says_that_it_lives_while_it_applies_a_version(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large config takes longer than the store believes in somebody silent."""
    monkeypatch.setattr(agent, "HEARTBEAT_S", 0.01)
    move, during = running.files.move, list[Report]()

    async def slow(old: Rendered, new: Rendered) -> None:
        async with asyncio.timeout(5):
            while len(running.store.reports) < 2:  # noqa: ASYNC110 - counts what a thread does
                await asyncio.sleep(0.001)
        during.extend(running.store.reports)
        await move(old, new)

    monkeypatch.setattr(running.files, "move", slow)
    running.publish(written(2))

    assert ([Report(2, 1)] * 2, Report(2, 2)) == (during[:2], running.store.reports[-1])


def test_a_verdict_comes_with_a_heartbeat(running: World) -> None:
    """`configctl publish` waits for it."""
    running.files.invalid = {3}
    running.publish(written(2), written(3))

    assert [Report(2, 2), Report(3, 2, 3, "no such filter in 3")] == running.store.reports


def test_a_refusal_is_repeated_with_every_heartbeat(running: World) -> None:
    running.files.invalid = {2}
    running.publish(written(2))
    running.now += HEARTBEAT_S
    running.turns(2)

    assert [Report(2, 1, 2, "no such filter in 2")] * 2 == running.store.reports
