"""The test suite itself: no test is where no make target looks for it."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_every_test_that_needs_envoy_is_in_a_folder_that_make_e2e_reads() -> None:
    files = [path for path in TESTS.rglob("test_*.py") if "mark.e2e" in path.read_text(encoding="utf-8")]
    read = (TESTS.parent / "Makefile").read_text(encoding="utf-8")
    assert {"contract"} == {path.relative_to(TESTS).parts[0] for path in files}
    assert 'soak" tests/e2e tests/contract\n' in read
