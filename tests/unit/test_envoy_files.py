"""The files Envoy watches, and its word about them; a small server stands for Envoy's admin interface."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from extproc import envoy_files
from extproc.data_dir import DataDir
from extproc.envoy_config.files import write_json
from extproc.envoy_config.render import Rendered
from extproc.envoy_files import EnvoyAway, EnvoyFiles, Refused
from extproc.render import envoy_paths

Result = TypeVar("Result")

NO_PLAN = {"name": "no-plan"}
CDS, RDS, LDS = "cluster_manager.cds", "http.gateway.rds.gateway", "listener_manager.lds"


def version(number: int, *clusters: str, keys: tuple[str, ...] = ("p.json",)) -> Rendered:
    """Render a version by hand; every document says its number."""
    return Rendered(
        bootstrap={"n": number, "static_resources": {"clusters": []}},
        cds=[{"name": name, "n": number} for name in clusters or (f"p-{number}",)],
        rds={"name": "gateway", "n": number, "virtual_hosts": [{"routes": [{"name": f"r-{number}"}, NO_PLAN]}]},
        lds=[{"name": "gateway", "n": number}],
        sds={name: {"key": f"sk-{number}"} for name in keys},
        clusters={},
        missing_keys={},
    )


class FakeEnvoy:
    """Takes every file it is asked about, or refuses those of one kind; `taken` is the order in which it did."""

    def __init__(self, place: Place, refuses: str | None = None, warming: tuple[int, ...] = (0,)) -> None:
        self.files = {CDS: place.data_dir.cds, RDS: place.data_dir.rds, LDS: place.data_dir.lds}
        self.refuses = refuses
        self.warming = list(warming)
        self.counter = "update_rejected"
        self.texts = {kind: version_text(path) for kind, path in self.files.items()}
        self.rejected = dict.fromkeys(self.files, 0)
        self.refused_texts: set[str] = set()
        self.taken: list[str] = []
        self.has_clusters: set[str] = set()
        self.successes = 0
        self.busy = 0
        self.silent: set[str] = set()
        self.on_take: Callable[[str], None] = lambda kind: None
        self.on_refuse: Callable[[], object] = lambda: None
        self.tasks: list[asyncio.Task[Any]] = []

    def look(self) -> None:
        for kind, path in self.files.items():
            text = version_text(path)
            if text == self.texts[kind] or kind in self.silent:
                continue
            if kind == self.refuses:
                self.rejected[kind] += text not in self.refused_texts
                self.refused_texts.add(text)
                self.on_refuse()
                continue
            self.texts[kind] = text
            self.taken.append(kind)
            self.on_take(kind)

    def stats(self) -> dict[str, Any]:
        self.look()
        found: dict[str, Any] = {f"{kind}.version_text": text for kind, text in self.texts.items() if text}
        found |= {f"{kind}.{self.counter}": count for kind, count in self.rejected.items()}
        found[f"{CDS}.update_success"] = self.successes
        found |= {f"cluster.{name}.membership_total": 1 for name in self.has_clusters}
        warming = self.warming.pop(0) if len(self.warming) > 1 else self.warming[0]
        return found | {"cluster_manager.warming_clusters": warming}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks += [task for task in [asyncio.current_task()] if task]
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        if self.busy and any(version_text(path) != self.texts[kind] for kind, path in self.files.items()):
            self.busy -= 1
            writer.close()
            return
        if path == "/ready":
            body = b"LIVE\n"
        elif path == "/server_info":
            body = b'{"uptime_current_epoch":"7s"}'
        else:
            fits = re.compile(parse_qs(urlsplit(path).query)["filter"][0])
            rows = [{"name": name, "value": value} for name, value in self.stats().items() if fits.search(name)]
            body = orjson.dumps({"stats": rows})
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + body)
        writer.close()
        await writer.wait_closed()


def version_text(path: Path) -> str:
    return str(orjson.loads(path.read_bytes())["version_info"]) if path.exists() else ""


class Place:
    """A data directory with the files of one Envoy."""

    def __init__(self, root: Path, envoy: Path | None = None) -> None:
        self.data_dir = DataDir(root)
        self.data_dir.create()
        self.files = EnvoyFiles(self.data_dir, envoy_paths(self.data_dir, {}), envoy)

    def with_envoy(self, envoy: FakeEnvoy, act: Callable[[], Awaitable[Result]]) -> Result:
        async def session() -> Result:
            async with (
                asyncio.timeout(10),
                await asyncio.start_unix_server(envoy.handle, str(self.data_dir.envoy_admin_socket)),
            ):
                try:
                    return await act()
                finally:
                    await asyncio.gather(*envoy.tasks)

        return asyncio.run(session())

    def moved(self, envoy: FakeEnvoy, old: Rendered, new: Rendered) -> None:
        self.with_envoy(envoy, lambda: self.files.move(old, new))

    def routes(self) -> list[str]:
        (configuration,) = self.resources(self.data_dir.rds)
        return [route["name"] for route in configuration["virtual_hosts"][0]["routes"]]

    def resources(self, path: Path) -> list[Any]:
        return list(orjson.loads(path.read_bytes())["resources"])

    def clusters(self) -> list[str]:
        return [cluster["name"] for cluster in self.resources(self.data_dir.cds)]

    def keys(self) -> list[str]:
        return sorted(path.name for path in self.data_dir.sds.iterdir())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(envoy_files, "POLL_S", 0.0)
    return Place(tmp_path)


# -- the first version


def test_an_envoy_that_starts_finds_everything(place: Place) -> None:
    place.files.write_first(version(1))

    data_dir = place.data_dir
    assert ["p-1"] == place.clusters()
    assert [1, 1] == [place.resources(path)[0]["n"] for path in (data_dir.rds, data_dir.lds)]
    assert 1 == orjson.loads(data_dir.bootstrap.read_bytes())["n"]
    assert ["p.json"] == place.keys()


def test_every_file_is_closed_to_others(place: Place) -> None:
    place.files.write_first(version(1))

    data_dir = place.data_dir
    paths = [data_dir.cds, data_dir.rds, data_dir.lds, data_dir.bootstrap, data_dir.sds / "p.json"]
    assert {0o600} == {path.stat().st_mode & 0o777 for path in paths}


def test_the_files_of_one_version_carry_one_text_and_no_two_writes_the_same(place: Place) -> None:
    """Envoy reports the text it took; a text that came twice would say nothing."""
    data_dir = place.data_dir
    texts = []
    for _ in range(3):
        place.files.write_first(version(1))
        texts.append({version_text(path) for path in (data_dir.cds, data_dir.rds, data_dir.lds)})

    assert [1, 1, 1, 3] == [*map(len, texts), len(set.union(*texts))]


@pytest.mark.parametrize(
    ("clusters", "expected"), [(set(), False), ({"p-1"}, False), ({"p-1", "q-1", "gateway-own"}, True)]
)
def test_the_first_version_is_accepted_once_envoy_has_its_clusters(
    place: Place, clusters: set[str], expected: bool
) -> None:
    envoy = FakeEnvoy(place)
    envoy.has_clusters = clusters

    assert expected is place.with_envoy(envoy, lambda: place.files.accepted(version(1, "p-1", "q-1")))


def test_the_first_version_is_not_accepted_while_a_cluster_warms(place: Place) -> None:
    envoy = FakeEnvoy(place, warming=(1,))
    envoy.has_clusters = {"p-1"}

    assert False is place.with_envoy(envoy, lambda: place.files.accepted(version(1)))


def test_without_an_envoy_nothing_is_said_about_a_version(place: Place) -> None:
    with pytest.raises(EnvoyAway, match="cannot be reached"):
        asyncio.run(place.files.accepted(version(1)))


def test_an_envoy_serves_when_it_says_so(place: Place) -> None:
    assert False is asyncio.run(place.files.envoy_serves())
    assert True is place.with_envoy(FakeEnvoy(place), place.files.envoy_serves)


# -- from one version to the next


def test_clusters_come_before_routes_and_routes_before_listeners(place: Place) -> None:
    """A route to a cluster that is not there yet answers 503."""
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place)

    place.moved(envoy, version(1), version(2))

    assert [CDS, RDS, LDS] == envoy.taken


def test_a_file_is_written_only_after_envoy_took_the_one_before(place: Place) -> None:
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place)
    routes_at: dict[str, int] = {}

    def note(kind: str) -> None:
        routes_at[kind] = place.resources(place.data_dir.rds)[0]["n"]

    envoy.on_take = note

    place.moved(envoy, version(1), version(2))

    assert {CDS: 1, RDS: 2, LDS: 2} == routes_at


def test_the_clusters_of_both_versions_are_there(place: Place) -> None:
    """Requests that began under the old version still need its clusters for their retries."""
    place.files.write_first(version(1, "both", "old"))

    place.moved(FakeEnvoy(place), version(1, "both", "old"), version(2, "both", "new"))

    assert ["both", "new", "old"] == place.clusters()


def test_an_old_cluster_that_envoy_rejected_when_it_was_started_anew_does_not_come_with_the_next(place: Place) -> None:
    """A cluster whose certificate is gone would have every later version refused, one without it too."""
    place.files.write_first(version(1, "good", "rejected"))
    envoy = FakeEnvoy(place)
    envoy.has_clusters, envoy.rejected[CDS] = {"good"}, 1

    place.moved(envoy, version(1, "good", "rejected"), version(2, "new"))

    assert ["good", "new"] == place.clusters()


def test_an_envoy_that_has_read_no_clusters_yet_gets_those_of_both_versions(place: Place) -> None:
    place.files.write_first(version(1))

    place.moved(FakeEnvoy(place), version(1), version(2))

    assert ["p-1", "p-2"] == place.clusters()


def test_the_routes_of_both_versions_are_there_until_the_old_one_retires(place: Place) -> None:
    place.files.write_first(version(1))
    place.moved(FakeEnvoy(place), version(1), version(2))
    assert ["r-2", "r-1", "no-plan"] == place.routes()

    place.files.retire([version(2)])
    assert ["r-2", "no-plan"] == place.routes()


def test_of_a_cluster_in_both_versions_the_new_form_counts(place: Place) -> None:
    place.files.write_first(version(1, "both"))

    place.moved(FakeEnvoy(place), version(1, "both"), version(2, "both"))

    assert [2] == [cluster["n"] for cluster in place.resources(place.data_dir.cds)]


def test_the_keys_are_there_before_the_clusters_that_need_them(place: Place) -> None:
    """Envoy rejects a cluster whose secret file is missing; here no binary looked at the version before."""
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place)
    keys_at: dict[str, list[str]] = {}

    def note(kind: str) -> None:
        keys_at[kind] = place.keys()

    envoy.on_take = note

    place.moved(envoy, version(1), version(2, keys=("new.json",)))

    assert ["new.json", "p.json"] == keys_at[CDS]


def test_clusters_that_still_warm_are_waited_for(place: Place) -> None:
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place, warming=(0, 2, 1, 0))
    left: list[int] = []

    def note(kind: str) -> None:
        left.append(len(envoy.warming))

    envoy.on_take = note

    place.moved(envoy, version(1), version(2))

    # The clusters were taken with two still warming; the routes had to wait until none was.
    assert [CDS, RDS, LDS] == envoy.taken
    assert left[0] > left[1] == 1


def test_an_envoy_that_is_too_busy_with_a_version_to_tell_of_it_is_waited_for(place: Place) -> None:
    """A thousand clusters keep its main thread from answering in time."""
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place)
    envoy.busy = 2

    place.moved(envoy, version(1), version(2))

    assert (0, [CDS, RDS, LDS]) == (envoy.busy, envoy.taken)


@pytest.mark.parametrize("kind", [CDS, RDS, LDS])
@pytest.mark.parametrize("counter", ["update_rejected", "update_failure"])
def test_a_refusal_puts_the_old_files_back(place: Place, kind: str, counter: str) -> None:
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place, refuses=kind)
    envoy.counter = counter

    with pytest.raises(Refused):
        place.moved(envoy, version(1), version(2))

    data_dir = place.data_dir
    assert ["p-1"] == place.clusters()
    assert [1, 1] == [place.resources(path)[0]["n"] for path in (data_dir.rds, data_dir.lds)]
    assert 1 == orjson.loads(data_dir.bootstrap.read_bytes())["n"]


def test_the_old_files_that_come_back_are_news_to_envoy(place: Place) -> None:
    place.files.write_first(version(1))
    before = version_text(place.data_dir.cds)

    with pytest.raises(Refused):
        place.moved(FakeEnvoy(place, refuses=RDS), version(1), version(2))

    assert before != version_text(place.data_dir.cds)


def test_an_earlier_rejection_is_not_held_against_a_version(place: Place) -> None:
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place)
    envoy.rejected[CDS] = 3

    place.moved(envoy, version(1), version(2))

    assert [CDS, RDS, LDS] == envoy.taken


def test_the_reason_is_what_envoy_wrote_last(place: Place) -> None:
    place.files.write_first(version(1))
    log = place.data_dir.envoy_log
    log.write_text("[one][warning] old news\n")
    envoy = FakeEnvoy(place, refuses=CDS)
    words = "[two][warning] of this update\n[three][warning] gRPC config rejected:\n  no such filter\n"
    envoy.on_refuse = lambda: log.write_text(log.read_text() + words)

    with pytest.raises(Refused, match=r"^gRPC config rejected: no such filter$"):
        place.moved(envoy, version(1), version(2))


def test_a_reason_that_reaches_the_log_late_is_waited_for(place: Place) -> None:
    """What Envoy says passes through another process."""
    log = place.data_dir.envoy_log
    place.files.write_first(version(1))
    log.write_text("[one][warning] old news\n")
    envoy = FakeEnvoy(place, refuses=CDS)
    words = "[one][warning] old news\n[two][warning] no such filter\n"
    envoy.on_refuse = lambda: asyncio.get_running_loop().call_later(0.05, log.write_text, words)

    with pytest.raises(Refused, match=r"^no such filter$"):
        place.moved(envoy, version(1), version(2))


def test_old_news_are_no_reason(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_files, "WORDS_TIMEOUT_S", 0.05)
    place.files.write_first(version(1))
    place.data_dir.envoy_log.write_text("[one][warning] old news\n")

    with pytest.raises(Refused, match="its log says why"):
        place.moved(FakeEnvoy(place, refuses=CDS), version(1), version(2))


def test_a_refusal_without_a_log_says_where_to_look(place: Place) -> None:
    place.files.write_first(version(1))

    with pytest.raises(Refused, match="its log says why"):
        place.moved(FakeEnvoy(place, refuses=CDS), version(1), version(2))


def test_an_envoy_that_says_nothing_of_a_version_refused_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_files, "ACCEPT_TIMEOUT_S", 0.05)
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place)
    envoy.silent = {RDS}

    with pytest.raises(Refused, match=r"did not take the version within 0\.05 s"):
        place.moved(envoy, version(1), version(2))

    assert ["p-1"] == place.clusters()


def test_without_an_envoy_the_old_files_stay(place: Place) -> None:
    place.files.write_first(version(1))

    with pytest.raises(EnvoyAway):
        asyncio.run(place.files.move(version(1), version(2)))

    assert ["p-1"] == place.clusters()


def test_an_envoy_that_dies_on_the_way_finds_the_old_files_again(place: Place) -> None:
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place)
    envoy.on_take = lambda kind: place.data_dir.envoy_admin_socket.unlink()

    with pytest.raises(EnvoyAway):
        place.moved(envoy, version(1), version(2))

    assert ["p-1"] == place.clusters()


def test_a_disk_that_fails_on_the_way_leaves_the_old_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.files.write_first(version(1))

    def full(path: Path, document: dict[str, Any]) -> None:
        if path == place.data_dir.lds:
            raise OSError(28, "No space left on device", str(path))
        write_json(path, document)

    monkeypatch.setattr(envoy_files, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        place.moved(FakeEnvoy(place), version(1), version(2))

    assert (["p-1"], ["r-1", "no-plan"]) == (place.clusters(), place.routes())


# -- an envoy that was started anew


def started_anew(place: Place, *held: str, refuses: str | None = None) -> FakeEnvoy:
    """Return an Envoy that has read version 1 and has these of its clusters."""
    place.files.write_first(version(1))
    envoy = FakeEnvoy(place, refuses)
    envoy.has_clusters, envoy.rejected[CDS] = set(held), 1
    return envoy


def refusal(place: Place, envoy: FakeEnvoy) -> str | None:
    return place.with_envoy(envoy, lambda: place.files.refusal(version(1), version(1)))


def test_an_envoy_that_has_every_cluster_is_left_alone(place: Place) -> None:
    envoy = started_anew(place, "p-1", "old")

    assert (None, []) == (refusal(place, envoy), envoy.taken)


def test_an_envoy_that_lacks_a_cluster_is_quoted(place: Place) -> None:
    envoy = started_anew(place, refuses=CDS)
    words = "[one][warning] update rejected: p-1: Invalid path: /ca.pem\n"
    envoy.on_refuse = lambda: place.data_dir.envoy_log.write_text(words)

    assert "update rejected: p-1: Invalid path: /ca.pem" == refusal(place, envoy)


def test_an_envoy_that_lacks_a_cluster_and_takes_it_now_is_whole_again(place: Place) -> None:
    """As when the file that the cluster names is back."""
    envoy = started_anew(place)

    assert (None, [CDS]) == (refusal(place, envoy), envoy.taken)


def test_an_envoy_that_has_yet_to_read_its_clusters_lacks_none(place: Place) -> None:
    place.files.write_first(version(1))

    with pytest.raises(EnvoyAway, match="has not read its clusters yet"):
        refusal(place, FakeEnvoy(place))


def test_the_uptime_is_what_envoy_says(place: Place) -> None:
    assert 7 == place.with_envoy(FakeEnvoy(place), place.files.uptime_s)
    with pytest.raises(EnvoyAway):
        asyncio.run(place.files.uptime_s())


# -- what no request needs any more


def test_retiring_leaves_the_clusters_and_keys_of_what_lives(place: Place) -> None:
    old, new = version(1, "both", "old", keys=("both.json", "old.json")), version(2, "both", "new", keys=("both.json",))
    place.files.write_first(old)
    place.moved(FakeEnvoy(place), old, new)

    place.files.retire([new])

    assert (["both", "new"], ["both.json"]) == (place.clusters(), place.keys())


def test_retiring_one_of_three_keeps_what_the_other_two_need(place: Place) -> None:
    versions = [version(number, keys=(f"{number}.json",)) for number in (1, 2, 3)]
    for one in versions:
        place.files.write_first(one)

    place.files.retire(one for one in versions[1:])

    assert (["p-2", "p-3"], ["2.json", "3.json"]) == (place.clusters(), place.keys())


def test_retiring_changes_no_key_that_stays(place: Place) -> None:
    """Retired versions are kept without their keys, so only the names may be looked at."""
    place.files.write_first(version(1))
    nameless = version(1)
    nameless.sds["p.json"].clear()

    place.files.retire([nameless])

    assert {"key": "sk-1"} == orjson.loads((place.data_dir.sds / "p.json").read_bytes())


def test_keys_that_no_live_version_names_go_while_clusters_stay(place: Place) -> None:
    both = version(1, keys=("both.json", "refused.json"))
    place.files.write_first(both)

    place.files.keep_secrets([version(1, keys=("both.json",))])

    assert (["p-1"], ["both.json"]) == (place.clusters(), place.keys())


# -- asking the binary


def binary(path: Path, script: str) -> Path:
    """Write a stand-in for Envoy; its fourth argument is the bootstrap."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_version_the_binary_takes_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    place = Place(tmp_path, binary(tmp_path / "fake-envoy", 'test "$1 $2 $3" = "--mode validate -c" && test -s "$4"'))
    before = sorted(place.data_dir.run.iterdir())

    asyncio.run(place.files.validate(version(1)))

    assert before == sorted(place.data_dir.run.iterdir())


def test_the_keys_are_written_before_the_binary_is_asked(tmp_path: Path) -> None:
    place = Place(tmp_path)
    asked = Place(tmp_path, binary(tmp_path / "fake-envoy", f"test -s {place.data_dir.sds}/p.json"))

    asyncio.run(asked.files.validate(version(1)))

    assert ["p.json"] == place.keys()


def test_the_binary_that_is_asked_knows_no_key(tmp_path: Path) -> None:
    """What runs beside us may be read by others of this user."""
    script = 'test "$PATH" = /usr/bin:/bin && test -z "$OPENAI_API_KEY"'
    place = Place(tmp_path)
    environ = {"PATH": "/usr/bin:/bin", "OPENAI_API_KEY": "sk-planted"}
    envoy = binary(tmp_path / "fake-envoy", script)
    asked = EnvoyFiles(place.data_dir, envoy_paths(place.data_dir, {}), envoy, environ)

    asyncio.run(asked.validate(version(1)))


def test_the_binary_s_words_are_told_without_the_place_of_the_file(tmp_path: Path) -> None:
    place = Place(
        tmp_path, binary(tmp_path / "fake-envoy", 'echo "error in $4:"; echo "   no such filter" >&2; exit 1')
    )

    with pytest.raises(Refused, match=r"^error in the rendered bootstrap: no such filter$"):
        asyncio.run(place.files.validate(version(1)))

    assert ["lock"] == [path.name for path in place.data_dir.run.iterdir()]


def test_the_binary_s_words_are_told_without_its_log_s_own(tmp_path: Path) -> None:
    line = "[2026-01-31 12:00:00.000][7][critical][main] [source/server.cc:76] no such filter: [x]"
    place = Place(tmp_path, binary(tmp_path / "fake-envoy", f"echo '{line}'; exit 1"))

    with pytest.raises(Refused, match=r"^no such filter: \[x\]$"):
        asyncio.run(place.files.validate(version(1)))


def test_long_words_are_cut(tmp_path: Path) -> None:
    place = Place(tmp_path, binary(tmp_path / "fake-envoy", "yes no | head -5000; exit 1"))

    with pytest.raises(Refused) as refused:
        asyncio.run(place.files.validate(version(1)))

    assert 2000 == len(str(refused.value))


def test_a_binary_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_files, "VALIDATE_TIMEOUT_S", 0.05)
    place = Place(tmp_path, binary(tmp_path / "fake-envoy", "exec sleep 60"))

    with pytest.raises(Refused, match="did not finish validating"):
        asyncio.run(place.files.validate(version(1)))


def test_without_a_binary_every_version_passes_and_nothing_is_written(place: Place) -> None:
    asyncio.run(place.files.validate(version(1)))

    assert [] == place.keys()


@pytest.mark.parametrize(("limit", "expected"), [("18", True), ("17", False), ("no number", True)])
def test_more_keys_than_envoy_can_watch_are_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: bool
) -> None:
    (tmp_path / "limit").write_text(limit)
    monkeypatch.setattr(envoy_files, "INOTIFY_LIMIT", tmp_path / "limit")
    two_keys = version(1, keys=("p.json", "q.json"))

    if expected:
        asyncio.run(place.files.validate(two_keys))
        return
    with pytest.raises(Refused, match=r"raise the sysctl fs\.inotify\.max_user_instances to 20 or more"):
        asyncio.run(place.files.validate(two_keys))


def test_where_the_system_tells_no_limit_of_watches_none_is_assumed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envoy_files, "INOTIFY_LIMIT", tmp_path / "none")

    asyncio.run(place.files.validate(version(1)))
