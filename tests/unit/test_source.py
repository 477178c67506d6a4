"""The store as one instance sees it, on SQLite files."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest

from configctl.records import EMPTY, Instance, Published, Version
from configctl.source import StoreSource, prepare
from configctl.store import Store
from extproc.config.compile import canonical_json, digest
from extproc.config.errors import ConfigErrors
from extproc.config.load import load_config
from extproc.settings import StartError
from extproc.versions import HealthOrder, Report, Wanted

ONE = """\
schema: 1
providers: {p: {base_url: 'https://api.example.com/v1'}}
models: {m: {targets: [{provider: p, model: one}]}}
"""
TWO = ONE.replace("model: one", "model: two")


@dataclass(frozen=True)
class Place:
    """A directory with a config file, a store and what last ran there."""

    root: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.root / 'store.db'}"

    @property
    def last_good(self) -> Path:
        return self.root / "last-good.json"

    def file(self, text: str = ONE) -> Path:
        path = self.root / "gateway.yaml"
        path.write_text(text)
        return path

    def publish(self, text: str, expect: int | None = None) -> Version:
        with Store.open(self.url) as store:
            done = store.publish(*of(text), author="them", message="by hand", expect=expect, now=1.0)
        assert isinstance(done, Published)
        return done.version

    def active(self) -> Version | None:
        with Store.open(self.url) as store:
            return store.active()

    def instances(self) -> tuple[Instance, ...]:
        with Store.open(self.url) as store:
            return store.instances(time.time())

    def save_last_good(self, number: int = 7) -> None:
        content, own = of(ONE)
        self.last_good.write_bytes(orjson.dumps({"number": number, "digest": own, "content": content.decode()}))

    def make_store(self) -> None:
        Store.open(self.url).close()

    def change(self, old: str, new: str) -> None:
        """Change the content of every version behind the store's back."""
        with closing(sqlite3.connect(self.root / "store.db")) as connection, connection:
            connection.execute("UPDATE versions SET content = replace(content, ?, ?)", (old, new))

    def break_store(self) -> None:
        (self.root / "store.db").write_bytes(b"this is no database, only a text of more than a hundred bytes" * 3)


def of(text: str) -> tuple[bytes, str]:
    """Return the content and the digest under which a config is published."""
    config = load_config(text)
    return canonical_json(config), digest(config)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# -- prepare


def test_a_file_becomes_the_first_version_of_an_empty_store(place: Place) -> None:
    snapshot, note = prepare(place.url, place.file(), place.last_good, "us")

    published = place.active()
    assert published is not None
    assert (1, None) == (snapshot.version, note)
    assert (1, *of(ONE), "us") == (published.number, published.content, published.digest, published.author)
    assert "first version, from gateway.yaml" == published.message


def test_the_active_version_runs_when_no_file_is_named(place: Place) -> None:
    place.publish(ONE)
    place.publish(TWO)

    snapshot, note = prepare(place.url, None, place.last_good, "us")

    assert (2, of(TWO)[1], None) == (snapshot.version, snapshot.digest, note)


def test_a_file_that_says_what_is_active_needs_no_word(place: Place) -> None:
    place.publish(ONE)
    reordered = "\n".join(reversed(ONE.splitlines()))

    snapshot, note = prepare(place.url, place.file(reordered), place.last_good, "us")

    assert (1, None) == (snapshot.version, note)


def test_a_file_that_differs_is_told_and_not_applied(place: Place) -> None:
    """A restart must not undo what was published since."""
    before = place.publish(ONE)
    path = place.file(TWO)

    snapshot, note = prepare(place.url, path, place.last_good, "us")

    assert (1, of(ONE)[1]) == (snapshot.version, snapshot.digest)
    assert note == (
        f"{path} differs from the active version 1 and is not applied: "
        f"`configctl diff {path}` shows how, `configctl publish {path} -m MESSAGE` makes it active."
    )
    assert before == place.active()


def test_of_two_instances_that_start_at_once_one_publishes_and_both_run_its_version(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Store.publish

    def late(store: Store, *content: bytes, **details: object) -> object:
        monkeypatch.setattr(Store, "publish", publish)
        place.publish(TWO, EMPTY)
        return publish(store, *content, **details)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Store, "publish", late)

    snapshot, note = prepare(place.url, place.file(ONE), place.last_good, "us")

    assert (1, of(TWO)[1]) == (snapshot.version, snapshot.digest)
    assert note is not None
    assert "differs from the active version 1" in note


def test_a_store_without_versions_and_no_file_is_nothing_to_run(place: Place) -> None:
    with pytest.raises(StartError, match=r"name a file with --config, or publish one with configctl\.$"):
        prepare(place.url, None, place.last_good, "us")


def test_an_empty_store_is_not_filled_with_what_ran_here_before(place: Place) -> None:
    place.make_store()
    place.save_last_good()

    with pytest.raises(StartError, match=r"^There is no config to serve"):
        prepare(place.url, None, place.last_good, "us")


@pytest.mark.parametrize("text", ["schema: 1\nsurplus: 2\n", "schema: [\n"])
def test_a_file_that_does_not_compile_is_refused_before_the_store_is_opened(place: Place, text: str) -> None:
    with pytest.raises(ConfigErrors):
        prepare(place.url, place.file(text), place.last_good, "us")

    assert not (place.root / "store.db").exists()


def test_a_store_that_cannot_be_used_leaves_the_version_that_last_ran(place: Place) -> None:
    place.break_store()
    place.save_last_good(number=7)

    snapshot, note = prepare(place.url, None, place.last_good, "us")

    assert (7, of(ONE)[1]) == (snapshot.version, snapshot.digest)
    assert note is not None
    assert note.endswith(" Starting with version 7, the last that ran here.")


def test_a_store_file_that_is_gone_leaves_the_version_that_last_ran(place: Place) -> None:
    """A new, empty store would take the old file for version 1 and undo what was published since."""
    place.save_last_good(number=7)

    snapshot, note = prepare(place.url, place.file(TWO), place.last_good, "us")

    assert (7, of(ONE)[1]) == (snapshot.version, snapshot.digest)
    assert note == (
        f"The store {place.root / 'store.db'} is not there, though a gateway ran here before: bring it back, or remove "
        f"{place.last_good} to begin anew. Starting with version 7, the last that ran here."
    )
    assert not (place.root / "store.db").exists()


def test_a_store_that_cannot_be_used_and_no_earlier_run_is_an_end(place: Place) -> None:
    place.break_store()

    with pytest.raises(StartError, match=r"There is no version from an earlier run to start with either\.$"):
        prepare(place.url, place.file(), place.last_good, "us")


def test_an_active_version_that_was_changed_in_the_store_leaves_the_one_that_last_ran(place: Place) -> None:
    place.publish(TWO)
    place.change("two", "one")
    place.save_last_good(number=7)

    snapshot, note = prepare(place.url, None, place.last_good, "us")

    assert (7, of(ONE)[1]) == (snapshot.version, snapshot.digest)
    assert note is not None
    assert note.startswith("version 1: was changed since it was published")
    assert note.endswith("\nStarting with version 7, the last that ran here.")


def test_an_active_version_that_was_changed_in_the_store_and_no_earlier_run_is_an_end(place: Place) -> None:
    place.publish(TWO)
    place.change("two", "one")

    with pytest.raises(ConfigErrors, match=r"version 1: was changed since .* `configctl audit verify` names all"):
        prepare(place.url, None, place.last_good, "us")


def test_a_damaged_last_version_counts_as_none(place: Place) -> None:
    place.break_store()
    place.last_good.write_text('{"number": 7}')

    with pytest.raises(StartError, match="no version from an earlier run"):
        prepare(place.url, None, place.last_good, "us")


@pytest.mark.parametrize("url", ["postgresql+psycopg://gateway:planted-password@127.0.0.1:1/gateway", "mysql://h/d"])
def test_no_refusal_shows_the_stores_password(place: Place, url: str) -> None:
    with pytest.raises(StartError) as refused:
        prepare(url, None, place.last_good, "us")

    assert "planted-password" not in str(refused.value)


# -- StoreSource


def test_nothing_is_wanted_before_the_first_publish(place: Place) -> None:
    place.make_store()

    assert None is StoreSource(place.url, "one").wanted()


def test_what_is_wanted_is_the_active_version(place: Place) -> None:
    source = StoreSource(place.url, "one")
    place.publish(ONE)
    first = source.wanted()
    place.publish(TWO)

    content, own = of(TWO)
    assert (first and first.number, source.wanted()) == (1, Wanted(2, own, content.decode()))


def test_a_version_is_read_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source = StoreSource(place.url, "one")
    place.publish(ONE)
    first = source.wanted()
    monkeypatch.setattr(Store, "version", lambda store, number: pytest.fail("the content was read again"))

    assert first == source.wanted()


def test_a_store_put_in_the_others_place_is_read_whatever_its_numbers_are(place: Place) -> None:
    """As one brought back from a copy, with another version published since."""
    source = StoreSource(place.url, "one")
    place.publish(ONE)
    source.wanted()
    (place.root / "store.db").unlink()
    place.publish(TWO)

    content, own = of(TWO)
    assert Wanted(1, own, content.decode()) == source.wanted()


def test_a_version_that_was_returned_from_is_no_longer_wanted(place: Place) -> None:
    source = StoreSource(place.url, "one")
    place.publish(ONE)
    place.publish(TWO)
    source.wanted()
    with Store.open(place.url) as store:
        store.return_to_parent(2, "refused", actor="one", now=2.0)

    wanted = source.wanted()

    assert 1 == (wanted and wanted.number)


def test_a_heartbeat_says_what_this_instance_runs(place: Place) -> None:
    place.make_store()
    StoreSource(place.url, "one").report(Report(2, 1, missing_keys=("p",)))

    (instance,) = place.instances()
    assert ("one", os.getpid(), 2, 1) == (instance.id, instance.pid, instance.wanted, instance.applied)
    assert (None, ("p",), True) == (instance.error, instance.missing_keys, instance.is_live(time.time()))


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (Report(2, 1, 2, "no such filter"), "no such filter"),
        (Report(3, 1, 2, "no such filter"), None),
        (Report(2, 1, None, "the config store cannot be reached"), None),
    ],
)
def test_a_heartbeat_has_an_error_when_and_only_when_the_wanted_version_was_refused(
    place: Place, report: Report, expected: str | None
) -> None:
    place.make_store()
    StoreSource(place.url, "one").report(report)

    assert [expected] == [instance.error for instance in place.instances()]


def test_the_verdict_on_a_version_is_written_down(place: Place) -> None:
    source = StoreSource(place.url, "one")
    place.publish(ONE)
    source.applied((1, of(ONE)[1]))
    place.publish(TWO)
    source.refused((2, of(TWO)[1]), "no such filter")

    with Store.open(place.url) as store:
        verdicts = [(version.outcome, version.outcome_reason) for version in store.versions()]
    assert [("failed", "no such filter"), ("applied", None)] == verdicts


def test_the_verdict_on_a_version_of_another_store_is_not_written_down(place: Place) -> None:
    place.publish(ONE)
    source = StoreSource(place.url, "one")
    source.applied((1, of(TWO)[1]))
    source.refused((1, of(TWO)[1]), "no such filter")
    source.refused((2, of(TWO)[1]), "no such filter")

    active = place.active()
    assert ("pending", None) == (active and active.outcome, active and active.outcome_reason)


def test_an_instance_that_stops_in_good_order_is_off_the_list(place: Place) -> None:
    place.make_store()
    source = StoreSource(place.url, "one")
    source.report(Report(None, None))
    source.leave()

    assert () == place.instances()


def test_an_instance_makes_no_store_where_there_is_none(place: Place) -> None:
    with pytest.raises(OSError, match=r"store\.db is not there\.$"):
        StoreSource(place.url, "one").report(Report(1, 1))

    assert not (place.root / "store.db").exists()


ORDER = HealthOrder(
    id="f00",
    at=1.5,
    act="health_down",
    actor="ann",
    named_by="certificate",
    subject="openai",
    reason="their incident",
    expires_at=3600.0,
    refused=None,
)


@pytest.mark.parametrize(("refused", "outcome"), [(None, "done"), ("there is no such target", "refused")])
def test_an_order_is_an_entry_of_the_audit_that_names_this_instance(
    place: Place, refused: str | None, outcome: str
) -> None:
    place.make_store()
    source = StoreSource(place.url, "one")
    for _ in range(2):
        source.ordered(replace(ORDER, refused=refused))

    with Store.open(place.url) as store:
        (entry,) = store.audit_entries()
    assert ("health_down", "ann", 1.5, refused is not None) == (entry.act, entry.actor, entry.at, bool(entry.refused))
    assert {
        "gateway": "one",
        "id": "f00",
        "named_by": "certificate",
        "subject": "openai",
        "message": "their incident",
        "expires_at": "1970-01-01T01:00:00+00:00",
        "outcome": outcome,
        "reason": refused,
    } == entry.details


CALLS: list[Callable[[StoreSource], object]] = [
    lambda source: source.wanted(),
    lambda source: source.report(Report(1, 1)),
    lambda source: source.applied((1, "")),
    lambda source: source.refused((1, ""), "no"),
    lambda source: source.ordered(ORDER),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_store_that_cannot_be_opened_is_an_oserror(place: Place, call: Callable[[StoreSource], object]) -> None:
    place.break_store()

    with pytest.raises(OSError, match="cannot be used"):
        call(StoreSource(place.url, "one"))


@pytest.mark.parametrize("call", CALLS)
def test_a_store_that_breaks_while_it_is_open_is_an_oserror(
    place: Place, call: Callable[[StoreSource], object]
) -> None:
    source = StoreSource(place.url, "one")
    place.publish(ONE)
    source.applied((1, of(ONE)[1]))
    for table in ("wanted", "versions", "instances"):
        with sqlite3.connect(place.root / "store.db") as connection:
            connection.execute(f"DROP TABLE {table}")
        connection.close()

    with pytest.raises(OSError, match="no such table"):
        call(source)


def test_leaving_a_store_that_is_gone_is_silent(place: Place) -> None:
    place.break_store()

    StoreSource(place.url, "one").leave()


def test_a_store_that_comes_back_is_used_again(place: Place) -> None:
    source = StoreSource(place.url, "one")
    place.break_store()
    with pytest.raises(OSError, match="cannot be used"):
        source.wanted()
    (place.root / "store.db").unlink()
    place.publish(ONE)

    wanted = source.wanted()

    assert 1 == (wanted and wanted.number)


def test_the_store_is_not_opened_before_it_is_needed(place: Place) -> None:
    StoreSource(place.url, "one")

    assert not (place.root / "store.db").exists()
