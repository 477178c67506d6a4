"""Copies Envoy's output into its log, without the state that Envoy dumps when it crashes.

After signal line and backtrace Envoy's own handler prints the requests under way: header maps with provider keys, and
buffers with prompts and completions. Nobody may find those on a disk, so nothing behind the backtrace is copied.

Runs as a process of its own, a script without our packages, beside each Envoy: it ends when all who can write to it
have ended, whatever becomes of the supervisor. Invariants: it always reads on, a full disk or not, because a pipe that
nobody empties would stall Envoy; its memory is bounded by `LINE_LIMIT_BYTES`.
"""

from __future__ import annotations

import os
import re
import signal

LINE_LIMIT_BYTES = 256 * 1024
"""More than a rejection of a large config; what a line has beyond is left out."""
LEFT_OUT = b"What Envoy printed of the requests under way is left out: it holds keys and prompts.\n"
CUT = b" (cut)\n"
_CHUNK_BYTES = 64 * 1024
# https://github.com/envoyproxy/envoy/blob/v1.40.0/source/server/backtrace.h
_LOGGED = rb"\[\d{4}-\d\d-\d\d [\d:.]+\]\[\d+\]"
_REPORT = re.compile(_LOGGED + rb"\[critical\]\[backtrace\] ")
_ANY = re.compile(_LOGGED + rb"\[")


class CrashFilter:
    """Takes Envoy's output as it comes and gives what may be kept of it."""

    def __init__(self) -> None:
        self._line = b""
        self._too_long = False
        self._in_report = False
        self._in_dump = False

    def feed(self, chunk: bytes) -> bytes:
        """Return what may be kept now; the beginning of a line waits for its end."""
        if self._in_dump:
            return b""
        kept = []
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._append(end)
            kept.append(self._take(b"\n"))
        self._append(rest)
        return b"".join(kept)

    def end(self) -> bytes:
        """Return what may be kept of a last line without an end."""
        return self._take(b"") if self._line else b""

    def _append(self, part: bytes) -> None:
        if self._in_dump:
            return
        room = LINE_LIMIT_BYTES - len(self._line)
        self._line += part[:room]
        self._too_long = self._too_long or len(part) > room

    def _take(self, end: bytes) -> bytes:
        if self._in_dump:
            return b""
        line = self._line + (CUT if self._too_long else end)
        self._line, self._too_long = b"", False
        if not self._in_report:
            # Behind words without an end of line, the report does not begin its line.
            self._in_report = _REPORT.search(line) is not None
            return line
        if _REPORT.match(line):
            return line
        if _ANY.match(line):  # another thread's
            return b""
        self._in_dump = True
        return LEFT_OUT


def copy(source: int, target: int) -> None:
    """Copy until nobody can write to `source` any more; what the disk refuses is lost."""
    output = CrashFilter()
    while chunk := os.read(source, _CHUNK_BYTES):
        _write(target, output.feed(chunk))
    _write(target, output.end())


def _write(target: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(target, data) :]
    except OSError:
        return


def main() -> None:
    """Copy standard input to standard output, deaf to what asks a whole service to end: Envoy has still to say how."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    copy(0, 1)


if __name__ == "__main__":
    main()
