"""Waits until every live gateway has said what it thinks of a version.

Owns who is waited for and what counts as an answer. Reads the store only; clock and sleep are passed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from configctl.records import EMPTY, Instance

Answer = Literal["applied", "failed", "waiting", "silent"]
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """One instance's answer; `silent` did not answer in time, `waiting` is still at it."""

    instance: str
    hostname: str
    answer: Answer
    reason: str | None
    after_s: float


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What came of waiting: the answers, who was not waited for, and the version that took over meanwhile."""

    answers: tuple[Verdict, ...]
    gone: tuple[Instance, ...]
    """Instances without a heartbeat when the wait began."""
    superseded_by: int | None = None
    """EMPTY when no version is wanted any more."""

    @property
    def are_final(self) -> bool:
        """Whether nobody is waited for any more."""
        return all(verdict.answer != "waiting" for verdict in self.answers)

    def with_answer(self, answer: Answer) -> tuple[Verdict, ...]:
        """Return the verdicts of one kind."""
        return tuple(verdict for verdict in self.answers if verdict.answer == answer)


class Reports(Protocol):
    """The part of a store that waiting needs."""

    def active_number(self) -> int | None:
        """Return the wanted version's number."""

    def instances(self, now: float) -> tuple[Instance, ...]:
        """Return the instances heard of lately."""


def wait_for_verdicts(
    reports: Reports,
    number: int,
    *,
    timeout_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    progress: Callable[[Verdicts], None],
) -> Verdicts:
    """Wait until every live instance applied or refused version `number`, or `timeout_s` seconds are over.

    An instance that starts meanwhile is waited for too; one that leaves in good order is not.
    """
    began = clock()
    gone = tuple(instance for instance in reports.instances(began) if not instance.is_live(began))
    known: dict[str, Verdict] = {}
    while True:
        now = clock()
        present = {instance.id: instance for instance in reports.instances(now)}
        known = {name: verdict for name, verdict in known.items() if name in present or verdict.answer != "waiting"}
        for instance in present.values():
            if instance.is_live(now) or instance.id in known:
                known[instance.id] = _verdict(instance, number, known.get(instance.id), now, now - began)
        verdicts = Verdicts(tuple(known[name] for name in sorted(known)), gone)
        progress(verdicts)
        if verdicts.are_final:
            return verdicts
        active = reports.active_number()
        if active != number:
            return Verdicts(_silenced(verdicts.answers), gone, superseded_by=active or EMPTY)
        if now - began >= timeout_s:
            return Verdicts(_silenced(verdicts.answers), gone)
        sleep(POLL_S)


def _verdict(instance: Instance, number: int, before: Verdict | None, now: float, after_s: float) -> Verdict:
    if before is not None and before.answer in ("applied", "failed"):
        return before
    answer: Answer = "waiting"
    if instance.applied == number:
        answer = "applied"
    elif instance.wanted == number and instance.error is not None:
        answer = "failed"
    elif not instance.is_live(now):
        answer = "silent"
    reason = instance.error if answer == "failed" else None
    return Verdict(instance.id, instance.hostname, answer, reason, round(after_s, 3))


def _silenced(answers: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    return tuple(
        Verdict(verdict.instance, verdict.hostname, "silent", None, verdict.after_s)
        if verdict.answer == "waiting"
        else verdict
        for verdict in answers
    )
