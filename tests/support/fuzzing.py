"""How hostile inputs are drawn and watched: so many a test, none for ever, and none that leaves memory behind.

Owns the number of examples (`FUZZ_EXAMPLES`: a slice in `make test`, the long run in `make fuzz`), the time one example
may take, and the check that the same inputs again and again keep no memory. Hypothesis remembers what it drew, so
memory is measured on a replay of the last inputs, without Hypothesis.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
EXAMPLE_LIMIT_S = 20.0
"""Thousands of times what an example needs, so that a busy machine fails no test."""
TEST_LIMIT_S = 600.0 + 0.1 * EXAMPLES
"""Net below it: a hang that no signal interrupts ends the process, with a traceback of where it was."""
SAMPLES = 200
REPLAYS = min(max(EXAMPLES, SAMPLES), 20_000)
GROWTH_LIMIT_BYTES = 8 << 20


class HangError(AssertionError):
    """One example took longer than any may."""


def fuzz(test: Callable[..., None]) -> Callable[[], None]:
    """Decorate a `@given` test: drawn `EXAMPLES` times, each example bounded in time, all of them in memory."""
    drawn: Any = test
    inner: Callable[..., None] = drawn.hypothesis.inner_test
    kept: deque[tuple[tuple[Any, ...], dict[str, Any]]] = deque(maxlen=SAMPLES)

    @wraps(inner)
    def watched(*args: Any, **kwargs: Any) -> None:
        kept.append((args, kwargs))
        with time_limit(EXAMPLE_LIMIT_S):
            inner(*args, **kwargs)

    drawn.hypothesis.inner_test = watched
    hunt = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None, deadline=None)(drawn)

    @wraps(hunt)
    def run() -> None:
        faulthandler.dump_traceback_later(TEST_LIMIT_S, exit=True)
        try:
            hunt()
            assert_flat([partial(inner, *args, **kwargs) for args, kwargs in kept])
        finally:
            faulthandler.cancel_dump_traceback_later()

    return run


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise HangError in a block that takes longer; for the main thread."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise HangError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_flat(calls: list[Callable[[], None]], replays: int = REPLAYS) -> None:
    """Make the same calls again and again; AssertionError when the process grows by more than the limit."""
    for call in calls:
        call()
    before = resident_bytes()
    gc.freeze()  # what was there before need not be looked through once more
    try:
        for number in range(replays if calls else 0):
            calls[number % len(calls)]()
        grown = resident_bytes() - before
    finally:
        gc.unfreeze()
    assert grown < GROWTH_LIMIT_BYTES, f"{replays} inputs left {grown} bytes behind"


def resident_bytes() -> int:
    """Return the memory this process has in RAM now, garbage collected."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
