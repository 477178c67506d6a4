"""docs/failure-semantics.md says what the cases of the end-to-end suite say, and leaves no class out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from extproc.core.outcome import ErrorClass
from tests.e2e.failure_cases import DOCUMENT, POLICIES, SECTIONS
from tests.support import failure_doc

UNSEEN = {ErrorClass.CLIENT_ABORT}
"""What no provider can do."""


def test_the_document_is_what_the_cases_say() -> None:
    assert 0 == failure_doc.main(DOCUMENT, POLICIES, SECTIONS, ["--check"])


def test_a_document_that_differs_is_found_and_then_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check writes nothing; after writing it is content, and the prose around is as it was."""
    stale = tmp_path / "failure-semantics.md"
    text = DOCUMENT.read_text()
    stale.write_text(text.replace("| the 429 of the first", "| the 430 of the first"))
    assert 3 == failure_doc.main(stale, POLICIES, SECTIONS, ["--check"])
    assert "differs from the cases" in capsys.readouterr().err
    assert 0 == failure_doc.main(stale, POLICIES, SECTIONS, [])
    assert text == stale.read_text()


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.md"
    shutil.copy(DOCUMENT, plain)
    plain.write_text(plain.read_text().replace(failure_doc.END, ""))
    with pytest.raises(ValueError, match="the document needs the lines"):
        failure_doc.main(plain, POLICIES, SECTIONS, [])


def test_every_error_class_has_a_case() -> None:
    cases = [case for section in SECTIONS for case in section.cases]
    seen = {name for case in cases for name in (*case.classes, case.health.reason)}
    assert set(ErrorClass) - UNSEEN - seen == set()


def test_every_case_has_a_name_of_its_own() -> None:
    keys = [f"{case.name}-{kind}" for section in SECTIONS for case in section.cases for kind in case.kinds]
    assert len(keys) == len(set(keys))
