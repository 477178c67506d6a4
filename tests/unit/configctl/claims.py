"""What a store promises, whatever database it lies in; a test class of each database inherits it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from configctl.cli import main
from configctl.records import Conflict, NoSuchVersion, NothingToPublish, Published, Returned, Version
from configctl.source import StoreSource
from configctl.store import FORGET_AFTER_S, Store
from extproc.versions import Report
from tests.unit.config.build import SMALL


def publish(store: Store, text: str, *, expect: int | None = None, now: float = 1.5, message: str = "why") -> Version:
    """Publish `text` and return the new version."""
    answer = store.publish(text.encode(), sha(text), author="ann", message=message, expect=expect, now=now)
    assert isinstance(answer, Published)
    return answer.version


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class StoreClaims:
    """Every claim about `Store`; the heir says where the store is."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        with Store.open(url) as store:
            yield store
            assert store.verify() == ()

    def test_a_new_store_is_empty_and_whole(self, store: Store) -> None:
        assert (store.active(), store.active_number(), store.versions(), store.audit_entries()) == (None, None, (), ())

    def test_a_published_version_is_active_and_comes_back_as_it_was(self, store: Store, url: str) -> None:
        version = publish(store, '{"name":"ünïcode ✓"}', now=1_800_000_000.123456)

        with Store.open(url) as again:
            assert again.active() == version == again.version(1)
        assert (version.number, version.parent, version.kind, version.outcome) == (1, None, "publish", "pending")

    def test_numbers_count_up_and_the_parent_is_what_was_active(self, store: Store) -> None:
        publish(store, "a")
        publish(store, "b")

        assert [(3, 2), (2, 1), (1, None)] == [
            (version.number, version.parent) for version in (publish(store, "c"), *store.versions()[1:])
        ]
        assert [3, 2] == [version.number for version in store.versions(2)]

    def test_the_content_that_is_active_is_not_published_again(self, store: Store) -> None:
        first = publish(store, "a")

        answer = store.publish(b"a", sha("a"), author="bob", message="again", expect=1, now=2.0)

        assert NothingToPublish(first) == answer
        assert len(store.audit_entries()) == 1

    def test_the_content_of_an_active_version_that_failed_is_published_again(self, store: Store) -> None:
        """After its cause was repaired nobody else tries it again."""
        publish(store, "a")
        store.mark_outcome(1, "failed", "no", actor="gw", now=2.0)

        assert (2, 1, b"a") == ((again := publish(store, "a")).number, again.parent, again.content)

    def test_a_publish_that_expects_another_version_is_a_conflict_and_audited(self, store: Store) -> None:
        first = publish(store, "a")

        answer = store.publish(b"b", sha("b"), author="bob", message="late", expect=0, now=2.0)

        assert Conflict(0, first) == answer
        assert store.active_number() == 1
        entry = store.audit_entries()[0]
        assert ("bob", "publish", None, 1) == (entry.actor, entry.act, entry.version, entry.refused)
        assert {"active": 1, "expected": 0, "message": "late", "reason": "conflict"} == entry.details

    def test_zero_expects_an_empty_store(self, store: Store) -> None:
        assert publish(store, "a", expect=0).number == 1

    def test_of_many_publishers_at_once_exactly_one_wins(self, store: Store, url: str) -> None:
        publish(store, "a")
        answers: list[object] = []
        barrier = threading.Barrier(6)

        def race(name: str) -> None:
            with Store.open(url) as own:
                barrier.wait()
                answers.append(own.publish(name.encode(), sha(name), author=name, message="race", expect=1, now=2.0))

        threads = [threading.Thread(target=race, args=(f"p{number}",)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        winners = [answer for answer in answers if isinstance(answer, Published)]
        assert (1, 6) == (len(winners), len(answers))
        assert all(answer == Conflict(1, winners[0].version) for answer in answers if answer is not winners[0])
        assert 7 == len(store.audit_entries())

    def test_publishers_that_expect_nothing_all_get_their_number(self, store: Store, url: str) -> None:
        def work(name: str) -> None:
            with Store.open(url) as own:
                for index in range(5):
                    publish(own, f"{name}{index}")

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert list(range(15, 0, -1)) == [version.number for version in store.versions()]

    def test_a_rollback_is_a_new_version_equal_to_an_old_one(self, store: Store) -> None:
        for text in "abc":
            publish(store, text)

        answer = store.rollback(1, author="bob", message="back", expect=3, now=4.0)

        assert isinstance(answer, Published)
        version = answer.version
        assert (4, 3, "rollback", 1, b"a") == (
            version.number,
            version.parent,
            version.kind,
            version.rollback_of,
            version.content,
        )
        assert store.active() == version

    def test_a_rollback_without_a_number_goes_to_what_was_active_before(self, store: Store) -> None:
        for text in "abc":
            publish(store, text)

        contents = []
        for _ in range(3):
            answer = store.rollback(None, author="bob", message="back", expect=None, now=4.0)
            assert isinstance(answer, Published)
            contents.append(answer.version.content)

        assert [b"b", b"c", b"b"] == contents

    def test_a_rollback_without_a_number_passes_over_failed_versions(self, store: Store) -> None:
        for text in "abc":
            publish(store, text)
        store.mark_outcome(2, "failed", "no", actor="gw", now=3.0)

        answer = store.rollback(None, author="bob", message="back", expect=None, now=4.0)

        assert isinstance(answer, Published)
        assert 1 == answer.version.rollback_of

    @pytest.mark.parametrize("number", [None, 9])
    def test_a_rollback_to_nowhere_is_refused_and_audited(self, store: Store, number: int | None) -> None:
        publish(store, "a")

        assert NoSuchVersion(number) == store.rollback(number, author="bob", message="back", expect=None, now=2.0)
        assert 1 == store.audit_entries()[0].refused
        assert 1 == store.active_number()

    def test_a_rollback_to_the_same_content_is_nothing_to_publish(self, store: Store) -> None:
        first = publish(store, "a")

        assert NothingToPublish(first) == store.rollback(1, author="bob", message="x", expect=None, now=2.0)

    def test_a_refused_act_is_audited_without_a_version(self, store: Store) -> None:
        store.refuse("publish", "bob", "the compiler refused it", {"errors": ["x"]}, 2.0)

        (entry,) = store.audit_entries()
        assert ("bob", 1, None) == (entry.actor, entry.refused, entry.version)
        assert {"errors": ["x"], "reason": "the compiler refused it"} == entry.details
        assert () == store.versions()

    def test_an_act_that_concerns_no_version_is_chained_like_any_other_and_changes_none(self, store: Store) -> None:
        first = publish(store, "a")

        store.record("health_down", "ann", {"subject": "openai"}, 2.0, refused=False, own_id="f00")
        store.record("health_down", "bob", {"subject": "nobody"}, 3.0, refused=True, own_id="f01")

        refused, done = store.audit_entries(2)
        assert ("health_down", "ann", None, 0) == (done.act, done.actor, done.version, done.refused)
        assert {"subject": "openai", "id": "f00"} == done.details
        assert (1, done.hash) == (refused.refused, refused.prev_hash)
        assert store.active() == first

    def test_an_act_that_is_told_twice_is_written_once(self, store: Store) -> None:
        for own_id in ("f00", "f00", "f01"):
            store.record("health_down", "ann", {"subject": "openai"}, 2.0, refused=False, own_id=own_id)

        assert ["f01", "f00"] == [entry.details["id"] for entry in store.audit_entries()]

    def test_an_id_in_somebodys_words_is_not_taken_for_an_acts_own(self, store: Store) -> None:
        store.record("health_down", "ann", {"message": '"id":"f01"'}, 2.0, refused=False, own_id="f00")
        store.record("health_down", "ann", {"message": "x"}, 2.0, refused=False, own_id="f01")

        assert 2 == len(store.audit_entries())

    def test_the_clock_is_the_databases_and_goes_on(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tests run beside their database, so the two clocks agree but for the moment between two looks."""
        before = time.time()
        told = store.now()
        assert before - 0.01 <= told <= time.time() + 0.01
        monkeypatch.setattr("time.time", lambda: 0.0)
        assert told <= store.now() + 0.001

    def test_a_heartbeat_is_live_whatever_the_gateways_clock_says(
        self, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.time", lambda: 1_000.0)
        source = StoreSource(url, "gw-1")
        source.report(Report(1, 1))

        (instance,) = store.instances(store.now())
        source.leave()
        assert instance.is_live(store.now())

    def test_a_publisher_whose_clock_is_wrong_waits_all_the_same(
        self, store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = StoreSource(url, "gw-1")
        source.report(Report(None, None))
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
        monkeypatch.setattr("time.time", lambda: 4_000_000_000.0)
        argv = ["publish", str(tmp_path / "small.yaml"), "-m", "x", "--yes", "--timeout", "200ms", "--store", url]

        ran = CliRunner().invoke(main, argv)
        source.leave()

        assert (1, True) == (ran.exit_code, "gw-1" in ran.stderr), ran.output
        assert "did not answer within" in ran.stderr

    def test_applied_is_recorded_once(self, store: Store) -> None:
        version = publish(store, "a")

        assert store.mark_outcome(1, "applied", None, actor="gw-1", now=2.0)
        assert not store.mark_outcome(1, "applied", None, actor="gw-2", now=2.1)
        assert store.version(1) == replace(version, outcome="applied")

    def test_a_failure_outweighs_and_the_first_one_stays(self, store: Store) -> None:
        publish(store, "a")
        store.mark_outcome(1, "applied", None, actor="gw-1", now=2.0)

        assert store.mark_outcome(1, "failed", "Envoy said no", actor="gw-2", now=2.1)
        assert not store.mark_outcome(1, "failed", "no, said the other", actor="gw-3", now=2.2)
        assert not store.mark_outcome(1, "applied", None, actor="gw-1", now=2.3)
        version = store.version(1)
        assert version is not None
        assert ("failed", "Envoy said no") == (version.outcome, version.outcome_reason)

    def test_the_verdict_on_an_unknown_version_changes_nothing(self, store: Store) -> None:
        assert not store.mark_outcome(7, "applied", None, actor="gw", now=1.0)

    def test_the_wanted_version_goes_back_to_its_parent(self, store: Store) -> None:
        first, _ = publish(store, "a"), publish(store, "b")

        assert Returned(2, first) == store.return_to_parent(2, "refused by gw", actor="bob", now=3.0)
        assert 1 == store.active_number()
        assert {"reason": "refused by gw", "to": 1} == store.audit_entries()[0].details

    def test_the_way_back_passes_over_failed_parents(self, store: Store) -> None:
        first = publish(store, "a")
        publish(store, "b")
        publish(store, "c")
        store.mark_outcome(2, "failed", "no", actor="gw", now=3.0)

        assert Returned(3, first) == store.return_to_parent(3, "refused", actor="bob", now=3.0)

    def test_a_first_version_goes_back_to_nothing(self, store: Store) -> None:
        publish(store, "a")

        assert Returned(1, None) == store.return_to_parent(1, "refused", actor="bob", now=3.0)
        assert store.active() is None
        assert 2 == publish(store, "b", expect=0).number

    def test_only_the_wanted_version_goes_back(self, store: Store) -> None:
        publish(store, "a")
        second = publish(store, "b")

        assert Conflict(1, second) == store.return_to_parent(1, "refused", actor="bob", now=3.0)
        assert 2 == store.active_number()

    def test_the_number_after_a_way_back_is_new(self, store: Store) -> None:
        publish(store, "a")
        publish(store, "b")
        store.return_to_parent(2, "refused", actor="bob", now=3.0)

        version = publish(store, "b")

        assert (3, 1) == (version.number, version.parent)

    def test_an_instance_is_what_it_last_reported(self, store: Store) -> None:
        self.report(store, wanted=2, applied=1, error="no", missing_keys=["z", "a"], now=5.0)

        (instance,) = store.instances(6.0)
        assert (2, 1, "no", ("a", "z")) == (instance.wanted, instance.applied, instance.error, instance.missing_keys)
        assert ("gw-1", "host", 7) == (instance.id, instance.hostname, instance.pid)

    def test_since_is_when_the_applied_version_last_changed(self, store: Store) -> None:
        for applied, now in ((1, 5.0), (1, 6.0), (2, 7.0), (2, 8.0)):
            self.report(store, wanted=applied, applied=applied, now=now)

        (instance,) = store.instances(9.0)
        assert (7.0, 8.0) == (instance.since, instance.heartbeat_at)

    def test_an_instance_is_live_for_ten_seconds(self, store: Store) -> None:
        self.report(store, now=5.0)

        (instance,) = store.instances(15.0)
        assert (True, False) == (instance.is_live(14.9), instance.is_live(15.0))

    def test_an_instance_that_leaves_is_forgotten_at_once_and_a_silent_one_after_a_day(self, store: Store) -> None:
        for name in ("gw-1", "gw-2", "gw-3"):
            self.report(store, name, now=5.0)
        store.leave("gw-1")

        assert ["gw-2", "gw-3"] == [instance.id for instance in store.instances(6.0)]
        self.report(store, "gw-3", now=5.1 + FORGET_AFTER_S)
        assert ["gw-3"] == [instance.id for instance in store.instances(5.1 + FORGET_AFTER_S)]

    def test_opening_a_store_twice_at_once_makes_it_once(self, url: str) -> None:
        faults: list[BaseException] = []

        def work() -> None:
            try:
                with Store.open(url) as own:
                    own.active()
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [] == faults

    @staticmethod
    def report(
        store: Store,
        name: str = "gw-1",
        *,
        wanted: int | None = None,
        applied: int | None = None,
        error: str | None = None,
        missing_keys: list[str] | None = None,
        now: float,
    ) -> None:
        store.report(
            name,
            hostname="host",
            pid=7,
            wanted=wanted,
            applied=applied,
            error=error,
            missing_keys=missing_keys or [],
            now=now,
        )
