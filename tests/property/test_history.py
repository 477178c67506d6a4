"""Random histories keep the rules of `configctl.history`, and any change of one is found."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from configctl.history import (
    GENESIS,
    Head,
    Planned,
    Request,
    chained,
    plan_outcome,
    plan_publish,
    plan_return,
    plan_rollback,
    verify_chain,
)
from configctl.records import AuditEntry, Changed, Conflict, NothingToPublish, Published, Version


@dataclass
class Memory:
    """The simplest store there is."""

    versions: dict[int, Version] = field(default_factory=dict)
    entries: list[AuditEntry] = field(default_factory=list)
    active: int | None = None

    @property
    def head(self) -> Head:
        last = self.entries[-1] if self.entries else None
        return Head(
            self.versions.get(self.active or 0),
            max(self.versions, default=0),
            last.seq if last else 0,
            last.hash if last else GENESIS,
        )

    def write(self, planned: Planned[Any]) -> None:
        if planned.version is not None:
            assert planned.version.number not in self.versions
            self.versions[planned.version.number] = planned.version
        if planned.entry is not None:
            self.entries.append(planned.entry)
        self.active = planned.active

    def verify(self) -> list[str]:
        versions = tuple(self.versions.values())
        return [broken.what for broken in verify_chain(self.entries, versions, self.active, self.head.last_hash)]


CONTENTS = st.sampled_from([b"a", b"b", b"c", '{"ü":1}'.encode()])
TIMES = st.floats(0, 4e9, allow_nan=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
EXPECT = st.none() | st.integers(0, 8)
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), CONTENTS, EXPECT, TEXTS, TIMES),
        st.tuples(st.just("rollback"), st.none() | st.integers(1, 8), EXPECT, TEXTS, TIMES),
        st.tuples(st.just("applied"), st.integers(1, 8), TIMES),
        st.tuples(st.just("failed"), st.integers(1, 8), TEXTS, TIMES),
        st.tuples(st.just("return"), st.integers(1, 8), TEXTS, TIMES),
        st.tuples(st.just("refuse"), TEXTS, TIMES),
    ),
    max_size=25,
)


def do(memory: Memory, act: Any) -> object:
    head = memory.head
    match act:
        case ("publish", content, expect, text, now):
            request = Request("ann", text, expect, now)
            planned: Planned[Any] = plan_publish(head, content, hashlib.sha256(content).hexdigest(), request)
        case ("rollback", to, expect, text, now):
            planned = plan_rollback(head, memory.versions.get, to, Request("bob", text, expect, now))
        case ("return", number, text, now):
            planned = plan_return(head, memory.versions.get, number, text, "cli", now)
        case ("refuse", text, now):
            planned = Planned(None, memory.active, entry=chained(head, "publish", text, None, {}, now, refused=True))
        case _:
            judge(memory, *act)
            return None
    memory.write(planned)
    return planned.result


def judge(memory: Memory, outcome: Any, number: int, *rest: Any) -> None:
    version = memory.versions.get(number)
    reason, now = rest if len(rest) == 2 else (None, rest[0])
    entry = plan_outcome(memory.head, version, outcome, reason, "gw", now) if version else None
    if version is not None and entry is not None:
        memory.versions[number] = replace(version, outcome=outcome, outcome_reason=reason)
        memory.entries.append(entry)


def told(acts: list[Any]) -> Memory:
    memory = Memory()
    for act in acts:
        do(memory, act)
    return memory


@given(ACTS)
def test_every_history_is_whole(acts: list[Any]) -> None:
    assert [] == told(acts).verify()


@given(ACTS)
def test_numbers_are_gapless_and_each_act_keeps_the_rules(acts: list[Any]) -> None:
    memory = Memory()
    for act in acts:
        before, count = memory.active, len(memory.entries)
        active = memory.versions.get(before or 0)

        result = do(memory, act)

        assert list(range(1, len(memory.versions) + 1)) == list(memory.versions)
        if act[0] in ("publish", "rollback") and act[2] is not None and act[2] != (before or 0):
            assert Conflict(act[2], active) == result
        if isinstance(result, Published):
            version = result.version
            assert (before, version.number) == (version.parent, memory.active)
            assert active is None or active.digest != version.digest or active.outcome == "failed"
        if isinstance(result, NothingToPublish):
            assert (before, count) == (memory.active, len(memory.entries))
            assert "failed" != result.active.outcome
        elif act[0] in ("publish", "rollback", "refuse"):
            assert count + 1 == len(memory.entries)
        if act[0] != "return" and not isinstance(result, Published):
            assert before == memory.active


@given(ACTS)
def test_a_rollback_has_the_content_it_names(acts: list[Any]) -> None:
    memory = told(acts)
    for version in memory.versions.values():
        if version.kind == "rollback":
            assert version.rollback_of is not None
            assert version.rollback_of < version.number
            assert memory.versions[version.rollback_of].content == version.content


@given(ACTS, st.data())
def test_a_changed_content_is_never_published_again(acts: list[Any], data: st.DataObject) -> None:
    memory = told([*acts, ("publish", b"last", None, "", 1.0)])
    number = data.draw(st.sampled_from(sorted(memory.versions)))
    memory.versions[number] = replace(memory.versions[number], content=b"changed")

    result = do(memory, ("rollback", number, None, "", 2.0))

    assert Changed(number) == result
    assert b"changed" not in [version.content for version in memory.versions.values() if version.number != number]
    assert (1, None, "rollback") == (memory.entries[-1].refused, memory.entries[-1].version, memory.entries[-1].act)


@given(ACTS, st.data())
def test_any_changed_field_of_any_entry_is_named(acts: list[Any], data: st.DataObject) -> None:
    memory = told(acts)
    if not memory.entries:
        return
    position = data.draw(st.integers(0, len(memory.entries) - 1))
    entry = memory.entries[position]
    name = data.draw(st.sampled_from([each.name for each in fields(entry)]))
    memory.entries[position] = replace(entry, **{name: other(getattr(entry, name))})
    versions = tuple(memory.versions.values())

    broken = verify_chain(
        memory.entries, versions, memory.active, entry.hash if name == "hash" else memory.head.last_hash
    )

    assert f"audit entry {position + 1}" == broken[0].what


@given(ACTS, st.data())
def test_any_changed_field_of_any_version_is_named(acts: list[Any], data: st.DataObject) -> None:
    memory = told(acts)
    if not memory.versions:
        return
    number = data.draw(st.sampled_from(sorted(memory.versions)))
    version = memory.versions[number]
    name = data.draw(st.sampled_from([each.name for each in fields(version) if each.name != "number"]))
    memory.versions[number] = replace(version, **{name: other(getattr(version, name))})

    assert [f"version {number}"] == memory.verify()


def other(value: Any) -> Any:
    """Return a value of the same sort that is not the same."""
    if isinstance(value, bytes):
        return value + b"x"
    if isinstance(value, str):
        return value + "x"
    return 1 if value is None else value + 1
