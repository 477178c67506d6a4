"""A test whose program is missing never passes unseen: it is skipped, and in CI it fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import needed


def test_a_program_that_is_there_is_found() -> None:
    assert needed("sh", "dash").endswith("/sh")


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_program_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)

    with pytest.raises(outcome, match=r"no-such-program is not installed \(Debian package some-package\)"):
        needed("no-such-program", "some-package")


def test_ci_installs_every_program_that_a_test_asks_for() -> None:
    """Looked for by its name, and what holds it is installed."""
    root = Path(__file__).resolve().parents[3]
    script = (root / ".ci" / "run").read_text(encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py") if path != Path(__file__)]
    wanted = {pair for text in texts for pair in re.findall(r'needed\("([\w-]+)", "([\w-]+)"\)', text)}

    assert {("openssl", "openssl"), ("promtool", "prometheus"), ("curl", "curl")} <= wanted
    assert [] == [pair for pair in wanted if not all(re.search(rf"[\s(]{re.escape(name)}\b", script) for name in pair)]
