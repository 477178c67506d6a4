"""Of a crash the log keeps what names its place, and nothing of the requests that were under way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from extproc import crash_filter
from extproc.crash_filter import CUT, LEFT_OUT, LINE_LIMIT_BYTES, CrashFilter, copy

ORDINARY = (
    b"[2026-11-29 02:06:50.913][6138][warning][config] [source/a.cc:1] gRPC config rejected:\n"
    b"  a line of its own, with #1: a number\n"
    b"[2026-11-29 02:06:50.914][6138][critical][main] [source/b.cc:2] error initializing\n"
)
_BACKTRACE = b"[2026-11-29 02:06:53.013][6138][critical][backtrace] [./source/server/backtrace.h:167] "
OTHER_THREAD = b"[2026-11-29 02:06:53.014][6139][warning][pool] [source/c.cc:3] Bearer sk-planted\n"
REPORT = (
    _BACKTRACE + b"Caught Segmentation fault, suspect faulting address 0x0\n",
    _BACKTRACE + b"Address mapping: 559e243c2000-559e28528000 /bin/envoy\n",
    _BACKTRACE + b"#0: [0x7fbf5279f050]\n",
    _BACKTRACE + b"#1: [0x559e26f51531]\n",
)
DUMP = (
    b"ActiveStream 0x7358bfb46300, stream_id_: 1\n    'authorization', 'Bearer sk-planted'\n"
    b'  front_slice contents: "data: planted\n#2: planted\n' + _BACKTRACE + b"#3: planted\n"
    b"[2026-11-29 02:06:53.014][6139][warning][pool] planted\n"
)
CRASH = ORDINARY + REPORT[0] + REPORT[1] + REPORT[2] + OTHER_THREAD + REPORT[3] + DUMP
KEPT = ORDINARY + b"".join(REPORT) + LEFT_OUT


def kept(*chunks: bytes) -> bytes:
    output = CrashFilter()
    return b"".join([*map(output.feed, chunks), output.end()])


def test_ordinary_output_is_kept_byte_by_byte() -> None:
    assert ORDINARY + b"no end" == kept(ORDINARY + b"no end")


@pytest.mark.parametrize("size", [1, 7, 64, len(CRASH)])
def test_of_a_crash_the_backtrace_is_kept_and_the_dump_is_not(size: int) -> None:
    """However the output is cut into reads."""
    assert KEPT == kept(*(CRASH[at : at + size] for at in range(0, len(CRASH), size)))


def test_a_report_behind_words_without_an_end_is_found() -> None:
    assert b"words" + b"".join(REPORT) + LEFT_OUT == kept(b"words" + b"".join(REPORT) + DUMP)


def test_a_line_is_cut_at_its_limit_and_the_next_one_is_whole() -> None:
    long = b"x" * LINE_LIMIT_BYTES
    assert long + CUT + b"next\n" == kept(long, b"y" * 10, b"y\nnext\n")


@pytest.mark.parametrize("start", [b"", b"".join(REPORT) + DUMP])
def test_output_without_an_end_of_line_costs_bounded_memory(start: bytes) -> None:
    output = CrashFilter()
    output.feed(start)
    chunk = b"x" * 65_536
    tracemalloc.start()
    try:
        for _ in range(100):
            output.feed(chunk)
        assert tracemalloc.get_traced_memory()[1] < 4 * LINE_LIMIT_BYTES
    finally:
        tracemalloc.stop()


def test_a_disk_that_is_full_does_not_stop_the_reading() -> None:
    """The pipe would fill, and Envoy would wait."""
    source, end = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(end, "wb") as writer:
        writer.write(b"line\n" * 1000)
    try:
        copy(source, full)
        assert b"" == os.read(source, 1)
    finally:
        os.close(source)
        os.close(full)


def test_it_outlives_what_asks_a_whole_service_to_end(tmp_path: Path) -> None:
    """Envoy has still to say how it ended; the end of its output is the end."""
    log = tmp_path / "log"
    with (
        log.open("wb") as target,
        subprocess.Popen(
            [sys.executable, "-I", "-S", crash_filter.__file__], stdin=subprocess.PIPE, stdout=target
        ) as it,
    ):
        assert it.stdin is not None
        it.stdin.write(b"first\n")
        it.stdin.flush()
        while not log.stat().st_size:
            os.sched_yield()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            it.send_signal(number)
        it.stdin.write(b"last\n")
        it.stdin.close()
        assert 0 == it.wait(10)
    assert b"first\nlast\n" == log.read_bytes()
