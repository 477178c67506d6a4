"""Watches one streamed answer: before release whether it may be shown, after release whether it ended whole.

Owns what is held back and the verdict about it; timers, metadata and replies are the judge's. Invariants: bytes leave
in the order and the pieces in which they came; after release nothing is parsed but the end; at most
`LIMIT_BYTES` of one answer is watched (docs/envoy.md section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from extproc.config.snapshot import StreamGuard
from extproc.core.sse import SseParser
from extproc.core.stream_events import Ending, StreamKind, TailWatch, judge_event

LIMIT_BYTES = 32 * 1024 * 1024
QUIET_LIMIT_BYTES = 4 * 1024 * 1024
"""How much of a stream may pass without any output before it counts as a bad answer."""


class Verdict(StrEnum):
    """What the guard says after each piece."""

    HOLD = "hold"
    PASS = "pass"  # noqa: S105 - not a password
    BAD = "bad"
    """Nothing was released: empty, an error event first, too much noise."""
    CUT = "cut"
    """It ended, or grew beyond the limit, without its terminal event."""


class WatchedStream:
    """One event stream under guard; `error` is the provider's error object when an error event decided."""

    def __init__(self, kind: StreamKind, guard: StreamGuard) -> None:
        self._kind = kind
        self._guard = guard
        self._parser = SseParser()
        self._tail = TailWatch()
        self._held: list[bytes] = []
        self._seen_bytes = 0
        self.released = guard == "off"
        self.has_output = False
        self.error: Mapping[str, Any] | None = None

    def feed(self, chunk: bytes, *, end: bool) -> Verdict:
        """Take the next piece; `end` says that it was the last."""
        self._seen_bytes += len(chunk)
        self._tail.add(chunk)
        if self.released:
            return self._after_release(end)
        self._held.append(chunk)
        verdict = self._before_release(chunk, end)
        if verdict is Verdict.PASS:
            self.released = True
        return verdict

    def take_held(self) -> list[bytes]:
        """Return what was held back, in order, and forget it."""
        held, self._held = self._held, []
        return held

    @property
    def ended_with_error(self) -> bool:
        """Whether the last thing the provider said was an error event."""
        return self._tail.ending(self._kind) is Ending.ERROR_EVENT

    def _after_release(self, end: bool) -> Verdict:
        if self._seen_bytes > LIMIT_BYTES:
            return Verdict.CUT
        if end and self._tail.ending(self._kind) is Ending.CUT:
            return Verdict.CUT
        return Verdict.PASS

    def _before_release(self, chunk: bytes, end: bool) -> Verdict:
        terminal = self._read(chunk, end)
        if self.error is not None:
            return Verdict.BAD
        if self._guard == "complete":
            return self._whole(end)
        if self.has_output:
            return Verdict.CUT if end and self._tail.ending(self._kind) is Ending.CUT else Verdict.PASS
        quiet = self._seen_bytes > QUIET_LIMIT_BYTES
        return Verdict.BAD if end or terminal or quiet else Verdict.HOLD

    def _whole(self, end: bool) -> Verdict:
        if self._seen_bytes > LIMIT_BYTES:
            return Verdict.CUT
        if not end:
            return Verdict.HOLD
        if not self.has_output:
            return Verdict.BAD
        return Verdict.PASS if self._tail.ending(self._kind) is Ending.WHOLE else Verdict.CUT

    def _read(self, chunk: bytes, end: bool) -> bool:
        """Parse a piece; returns whether the stream's terminal event was in it."""
        if self._guard == "first_token" and self.has_output:
            return False
        events = self._parser.feed(chunk)
        if end:
            events += self._parser.finish()
        for event in events:
            meaning = judge_event(self._kind, event)
            if meaning.error is not None:
                self.error = meaning.error
                return True
            self.has_output = self.has_output or meaning.output
            if meaning.terminal:
                return True
        return False
