"""Calls to a store that answers, refuses or says nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from extproc import store_calls
from extproc.store_calls import StoreCalls

LIMIT_S = 0.05
SAID = "it has not answered for 0.05 s"


class Hanging:
    """A store that says nothing until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        assert self.released.wait(10)
        return "late"


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    monkeypatch.setattr(store_calls, "STORE_TIMEOUT_S", LIMIT_S)
    store = Hanging()
    yield store
    store.released.set()


async def outcomes(calls: StoreCalls, *made: Callable[[], Any]) -> list[str]:
    """Make the calls one after another and return what each came to."""
    told = []
    for call in made:
        try:
            told.append(str(await calls.make(call)))
        except OSError as error:
            told.append(str(error))
    return told


def refusing() -> None:
    raise OSError("the store is gone")


def test_a_call_returns_or_raises_what_the_store_does_off_the_event_loop() -> None:
    made = [lambda: "here", refusing, lambda: threading.current_thread() is threading.main_thread()]

    assert ["here", "the store is gone", "False"] == asyncio.run(outcomes(StoreCalls(), *made))


def test_a_store_that_says_nothing_is_given_up_and_no_second_thread_waits_for_it(hanging: Hanging) -> None:
    assert [SAID] * 3 == asyncio.run(outcomes(StoreCalls(), hanging, hanging, hanging))
    assert 1 == hanging.calls


def test_only_the_first_call_waits_for_a_store_that_hangs(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes calls in turn has other things to do."""

    async def session() -> float:
        calls, loop = StoreCalls(), asyncio.get_running_loop()
        await outcomes(calls, hanging)
        monkeypatch.setattr(store_calls, "STORE_TIMEOUT_S", 60.0)
        began = loop.time()
        await outcomes(calls, hanging, hanging)
        return loop.time() - began

    assert asyncio.run(session()) < 10


def test_a_store_that_answers_again_is_asked_again(hanging: Hanging) -> None:
    async def session() -> list[str]:
        calls = StoreCalls()
        told = await outcomes(calls, hanging)
        hanging.released.set()
        async with asyncio.timeout(10):
            while (last := await outcomes(calls, lambda: "here")) == [SAID]:  # noqa: ASYNC110 - ends with a thread
                await asyncio.sleep(0)
        return told + last

    assert [SAID, "here"] == asyncio.run(session())


def test_a_call_waits_for_one_that_was_given_up_before_its_time(hanging: Hanging) -> None:
    """A heartbeat that is cut off must not arrive after the word that this instance left."""
    heard: list[str] = []

    async def session() -> None:
        calls = StoreCalls()
        given_up = asyncio.ensure_future(calls.make(lambda: heard.append(hanging())))
        while not hanging.calls:  # noqa: ASYNC110 - counts what a thread does
            await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        hanging.released.set()
        await calls.make(lambda: heard.append("left"))

    asyncio.run(session())

    assert ["late", "left"] == heard
