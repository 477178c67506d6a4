"""A process is gone when its last connection ended, and not because we ended one."""

from __future__ import annotations

import math

from extproc.transport.callers import Callers
from tests.support.playbook import Clock


class Scene:
    """Callers with a clock, and what was told of those that are gone."""

    def __init__(self) -> None:
        self.clock = Clock(100.0)
        self.gone: list[float] = []
        self.callers = Callers(self.clock, self.gone.append)

    def came(self, *processes: int) -> None:
        for process in processes:
            self.callers.came(process)

    def left(self, process: int, *, ended_by_us: bool = False) -> None:
        self.callers.left(process, ended_by_us=ended_by_us)


def test_a_process_with_a_connection_left_is_not_gone() -> None:
    scene = Scene()
    scene.came(7, 7)
    scene.left(7)
    assert [] == scene.gone


def test_a_process_is_gone_with_its_last_connection() -> None:
    scene = Scene()
    scene.came(7, 7)
    scene.left(7)
    scene.left(7)
    assert [math.inf] == scene.gone


def test_a_connection_that_we_ended_says_nothing() -> None:
    scene = Scene()
    scene.came(7)
    scene.left(7, ended_by_us=True)
    assert [] == scene.gone


def test_a_process_that_called_before_the_other_s_end_was_noticed_is_spared() -> None:
    scene = Scene()
    scene.came(7)
    scene.clock.now = 105.0
    scene.came(8)
    scene.clock.now = 106.0
    scene.came(8)
    scene.left(7)
    assert [105.0] == scene.gone
