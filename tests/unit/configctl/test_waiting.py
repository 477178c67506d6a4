from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from configctl.records import Instance
from configctl.waiting import Verdicts, wait_for_verdicts

START = 1000.0
QUIET = Instance(
    id="gw-1",
    hostname="host",
    pid=1,
    wanted=1,
    applied=1,
    since=0.0,
    heartbeat_at=START,
    error=None,
    missing_keys=(),
)
Scene = Callable[[float], list[Instance]]


class Stage:
    """A store whose instances follow a script, and a clock that only sleep moves."""

    def __init__(self, scene: Scene, active: Callable[[float], int | None] = lambda _: 2) -> None:
        self.now = START
        self.seen: list[Verdicts] = []
        self._scene, self._active = scene, active

    def active_number(self) -> int | None:
        return self._active(self.now - START)

    def instances(self, now: float) -> tuple[Instance, ...]:
        return tuple(replace(one, heartbeat_at=min(one.heartbeat_at, now)) for one in self._scene(now - START))

    def wait(self, timeout_s: float = 30.0) -> Verdicts:
        return wait_for_verdicts(
            self, 2, timeout_s=timeout_s, clock=lambda: self.now, sleep=self._sleep, progress=self.seen.append
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


def beating(name: str, **changes: object) -> Instance:
    return replace(QUIET, id=name, heartbeat_at=float("inf"), **changes)  # type: ignore[arg-type]


def answers(verdicts: Verdicts) -> dict[str, str]:
    return {verdict.instance: verdict.answer for verdict in verdicts.answers}


def test_nobody_is_waited_for_where_no_gateway_runs() -> None:
    stage = Stage(lambda _: [])

    assert Verdicts((), ()) == stage.wait()
    assert START == stage.now


def test_the_wait_ends_when_the_last_live_instance_applied() -> None:
    def scene(elapsed_s: float) -> list[Instance]:
        return [beating("a", applied=2), beating("b", applied=2 if elapsed_s >= 3 else 1)]

    stage = Stage(scene)

    assert {"a": "applied", "b": "applied"} == answers(stage.wait())
    assert 3.0 <= stage.now - START < 3.2
    assert {"a": "applied", "b": "waiting"} == answers(stage.seen[0])


def test_a_refusal_comes_with_its_reason_and_the_others_are_still_waited_for() -> None:
    def scene(elapsed_s: float) -> list[Instance]:
        refused = beating("bad", wanted=2, error="Envoy: no")
        return [refused, beating("slow", applied=2 if elapsed_s >= 1 else 1)]

    verdicts = Stage(scene).wait()

    assert {"bad": "failed", "slow": "applied"} == answers(verdicts)
    assert "Envoy: no" == verdicts.with_answer("failed")[0].reason


def test_an_error_about_an_earlier_version_is_no_answer() -> None:
    verdicts = Stage(lambda _: [beating("a", wanted=1, error="old trouble")]).wait(timeout_s=2)

    assert {"a": "silent"} == answers(verdicts)


def test_an_instance_that_does_not_answer_in_time_is_named() -> None:
    stage = Stage(lambda _: [beating("a", applied=2), beating("b")])

    assert {"a": "applied", "b": "silent"} == answers(stage.wait(timeout_s=5))
    assert 5.0 <= stage.now - START < 5.2


def test_an_instance_whose_heart_stops_is_given_up_before_the_timeout() -> None:
    stage = Stage(lambda _: [QUIET])

    assert {"gw-1": "silent"} == answers(stage.wait(timeout_s=60))
    assert 10.0 <= stage.now - START < 10.2


def test_an_instance_that_was_silent_before_is_not_waited_for_but_named() -> None:
    stage = Stage(lambda _: [replace(QUIET, heartbeat_at=START - 11)])

    verdicts = stage.wait()

    assert ({}, ["gw-1"]) == (answers(verdicts), [instance.id for instance in verdicts.gone])


def test_an_instance_that_starts_meanwhile_is_waited_for() -> None:
    def scene(elapsed_s: float) -> list[Instance]:
        late = [beating("late", applied=2 if elapsed_s > 2 else None)] if elapsed_s > 0.5 else []
        return [beating("a", applied=2 if elapsed_s > 1 else 1), *late]

    assert {"a": "applied", "late": "applied"} == answers(Stage(scene).wait())


def test_an_instance_that_leaves_in_good_order_is_not_waited_for() -> None:
    def scene(elapsed_s: float) -> list[Instance]:
        return [beating("a", applied=2), *([beating("b")] if elapsed_s < 1 else [])]

    assert {"a": "applied"} == answers(Stage(scene).wait())


def test_an_answer_stays_when_the_instance_goes_on() -> None:
    def scene(elapsed_s: float) -> list[Instance]:
        first = beating("a", applied=2) if elapsed_s < 1 else beating("a", applied=3)
        return [first, beating("b", applied=2 if elapsed_s > 2 else 1)]

    assert {"a": "applied", "b": "applied"} == answers(Stage(scene).wait())


def test_the_wait_ends_when_another_version_takes_over() -> None:
    stage = Stage(lambda _: [beating("a")], active=lambda elapsed_s: 3 if elapsed_s > 1 else 2)

    verdicts = stage.wait()

    assert (3, {"a": "silent"}) == (verdicts.superseded_by, answers(verdicts))
