"""Every test that the security model names is there, and every section with claims names some."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security-model.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"\[(tests/[^\]\s]+)\]", PAGE)))


@pytest.mark.parametrize("named", NAMED)
def test_a_named_test_exists(named: str) -> None:
    path, *steps = named.split("::")
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for step in steps:
        found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == step]
        assert found, f"{named}: no {step}"
        body = found[0].body


def test_every_claim_names_a_test() -> None:
    """A claim is a list item; the sections on assets and supply chain have none."""
    claims = re.findall(r"(?m)^- (?:.|\n(?!\n|- ))*", PAGE)
    assert len(claims) > 20
    assert [] == [claim for claim in claims if "[tests/" not in claim]
