"""The fuzz tests' own watch: a hang and a leak are found, and an ordinary reader passes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzzing import EXAMPLES, HangError, assert_flat, fuzz, time_limit


def spin() -> None:
    """Read for ever."""
    while True:
        pass


def test_a_reader_that_hangs_is_interrupted() -> None:
    with pytest.raises(HangError, match=r"^still busy after 0\.05 s$"), time_limit(0.05):
        spin()


def test_a_pattern_that_never_ends_is_interrupted_too() -> None:
    with pytest.raises(HangError), time_limit(0.05):
        re.match(r"(a+)+$", "a" * 60 + "b")


def test_a_reader_that_keeps_its_inputs_is_found() -> None:
    kept: list[bytearray] = []
    with pytest.raises(AssertionError, match=r"^1000 inputs left \d+ bytes behind$"):
        assert_flat([lambda: kept.append(bytearray(b"x" * 100_000))], replays=1000)


def test_a_reader_that_keeps_nothing_passes_and_sees_every_example() -> None:
    seen = 0

    @fuzz
    @given(st.binary(max_size=20))
    def reads(_data: bytes) -> None:
        nonlocal seen
        seen += 1

    reads()

    assert seen >= EXAMPLES
