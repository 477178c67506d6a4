"""Operators' orders about health on their way into the audit: kept on disk until the store has them.

Owns the queue, its file and the retries. Invariants: an order is never held up by the store, nor lost with it; each is
told in its turn, and one that is told twice (a crash between the store's word and ours) has the same id both times.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import orjson

from extproc.envoy_config.files import write_json
from extproc.store_calls import StoreCalls
from extproc.versions import HealthOrder, OrderLog

log = logging.getLogger(__name__)

RETRY_S = 1.0
WAIT_S = 3.0
"""How long an operator waits for the store's word before the answer says that it comes later."""

_Told = asyncio.Future[bool]


class OrderJournal:
    """Takes orders in, and tells the audit of them when it can; `run` belongs into the process's task group."""

    def __init__(self, path: Path, log_: OrderLog) -> None:
        self._path = path
        self._log = log_
        self._calls = StoreCalls()
        self._waiting: deque[tuple[HealthOrder, _Told | None]] = deque((order, None) for order in _load(path))
        self._saving = asyncio.Lock()
        self._news = asyncio.Event()
        self._store_answers = True

    async def record(self, order: HealthOrder) -> bool:
        """Keep an order; True when the audit has it, False when it will have it once the store can be reached."""
        told: _Told = asyncio.get_running_loop().create_future()
        self._waiting.append((order, told))
        await self._save()
        self._news.set()
        try:
            return await asyncio.wait_for(told, WAIT_S)
        except TimeoutError:
            return False

    async def run(self) -> None:
        """Tell the audit until cancelled."""
        while True:
            self._news.clear()
            await self._tell()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), RETRY_S if self._waiting else None)

    async def _tell(self) -> None:
        while self._waiting:
            order, told = self._waiting[0]
            try:
                await self._calls.make(partial(self._log.ordered, order))
            except OSError as error:
                self._postpone(error)
                return
            self._store_answers = True
            self._waiting.popleft()
            await self._save()
            _resolve(told, in_audit=True)

    def _postpone(self, error: OSError) -> None:
        if self._store_answers:
            log.warning("%d orders wait for the audit: %s", len(self._waiting), error)
        self._store_answers = False
        for _, told in self._waiting:
            _resolve(told, in_audit=False)

    async def _save(self) -> None:
        async with self._saving:
            document = {"orders": [asdict(order) for order, _ in self._waiting]}
            try:
                await asyncio.to_thread(write_json, self._path, document)
            except OSError as error:
                log.warning("orders that wait for the audit are not saved: %s", error.strerror)


def _resolve(told: _Told | None, *, in_audit: bool) -> None:
    if told is not None and not told.done():
        told.set_result(in_audit)


def _load(path: Path) -> list[HealthOrder]:
    """Return what an earlier run could not tell any more."""
    try:
        return [HealthOrder(**fields) for fields in orjson.loads(path.read_bytes())["orders"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s could not be read: orders of an earlier run may be missing in the audit", path)
        return []
