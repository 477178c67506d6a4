"""Calls to the config store that may hang: off the event loop, one at a time, each for so long and no longer.

Owns the threads, and whether one of them still waits. A database may take a connection and then say nothing, behind a
proxy that stands still, say: no time limit of the connection ends that. Invariant: at most one thread waits for the
store, and it keeps nobody from stopping.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

STORE_TIMEOUT_S = 10.0

_T = TypeVar("_T")


class StoreCalls:
    """One instance's calls to its store."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._last: Future[Any] | None = None
        self._hangs = False

    async def make(self, call: Callable[[], _T]) -> _T:
        """Return what the call returns; OSError also when it takes too long, or the one before it still does."""
        async with self._turn:
            if self._last is not None:
                await self._wait_for(self._last)
            self._last = outcome = _in_thread(call)
            await self._wait_for(outcome)
            return outcome.result()

    async def _wait_for(self, outcome: Future[Any]) -> None:
        if not self._hangs:
            answer = asyncio.wrap_future(outcome)
            # It is raised where the call was made, if anybody is left there.
            answer.add_done_callback(asyncio.Future.exception)
            await asyncio.wait({answer}, timeout=STORE_TIMEOUT_S)
        self._hangs = not outcome.done()
        if self._hangs:
            raise OSError(f"it has not answered for {STORE_TIMEOUT_S:g} s")


def _in_thread(call: Callable[[], _T]) -> Future[_T]:
    """Start a call in a thread that the end of the process does not wait for, unlike those of `asyncio.to_thread`."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="config store", daemon=True).start()
    return outcome
