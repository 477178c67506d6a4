"""Prints the table of failures as Markdown between two markers of a document, or says whether it is already there.

Owns the wording of each cell. Leaves the cases to tests/e2e/failure_cases.py and the prose around the markers to
people. Invariant: the same cases give the same text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.support.failure_case import BOTH, Ask, Case, Gets, Health, Section

BEGIN = "<!-- begin: generated from tests/e2e/failure_cases.py -->"
END = "<!-- end: generated -->"
HEADINGS = ("The first provider", "Request", "The caller gets", "Asked, in order", "Classes", "The first afterwards")
LONG = "context fallback"


def main(document: Path, policies: Mapping[str, Any], sections: Sequence[Section], argv: Sequence[str]) -> int:
    """Write the document, or with `--check` return 3 when it is not what the cases say."""
    parser = argparse.ArgumentParser(prog="failure_cases", description="keep docs/failure-semantics.md in step")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 3 when the document differs")
    check = parser.parse_args(argv).check
    before = document.read_text()
    after = updated(before, tables(policies, sections))
    if before == after:
        return 0
    if check:
        sys.stderr.write(f"{document.name} differs from the cases: run `python -m tests.e2e.failure_cases`\n")
        return 3
    document.write_text(after)
    return 0


def updated(text: str, generated: str) -> str:
    """Return a document with what stands between its markers replaced; ValueError without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{generated}\n{END}{after}"


def tables(policies: Mapping[str, Any], sections: Iterable[Section]) -> str:
    """Return one heading, the policy and a table for each section."""
    return "\n".join(_section(section, policies[section.policy]) for section in sections)


def _section(section: Section, policy: Mapping[str, Any]) -> str:
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(_cells(case) for case in section.cases)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"### {section.title}", "", f"Policy: {_policy(policy)}.", "", *lines, ""])


def _policy(policy: Mapping[str, Any]) -> str:
    if not policy:
        return "the defaults"
    return f"`{_flow(policy)}`"


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    return str(value)


def _cells(case: Case) -> tuple[str, ...]:
    return (
        case.does,
        "any" if case.kinds == BOTH else case.kinds[0],
        _gets(case.gets),
        _asked(case),
        ", ".join(f"`{name}`" for name in case.classes) or "none",
        _health(case.health),
    )


def _gets(gets: Sequence[Gets]) -> str:
    runs = [(answer, len(list(same))) for answer, same in groupby(gets, key=_answer)]
    if len(runs) == 1:
        return runs[0][0]
    return "; ".join(f"{count} times {answer}" if count > 1 else answer for answer, count in runs)


def _answer(gets: Gets) -> str:
    if gets.status != 200:
        return _error(gets)
    by = f"from the {_name(gets.by)}, `{gets.mode}`"
    if gets.end == "broken":
        return f"200 {by}, a visibly broken answer"
    if gets.end == "error event":
        return f"200 {by}, ending with the provider's error event"
    return f"200 {by}"


def _error(gets: Gets) -> str:
    named = [f"`{name}: {value}`" for name, value in gets.headers.items() if value is not None]
    told = f", with {' and '.join(sorted(named))}" if named else ""
    if gets.by is None:
        return f"{gets.status} `{gets.code}`{told}"
    return f"the {gets.status} of the {_name(gets.by)}{told}"


def _asked(case: Case) -> str:
    if not case.asks:
        return "nobody"
    if len(case.gets) > 1:
        runs = [(_name(who), len(list(same))) for who, same in groupby(ask.who for ask in case.asks)]
        return ", ".join(f"{count} times {name}" if count > 1 else name for name, count in runs)
    return ", ".join(_name(ask.who) + _wait(ask) for ask in case.asks)


def _wait(ask: Ask) -> str:
    least, most = ask.after_s
    if most == 0:
        return ""
    return f" after {most:g} s" if least == most else f" after {least:g} to {most:g} s"


def _name(who: str | None) -> str:
    return LONG if who == "long" else str(who)


def _health(health: Health) -> str:
    found = [f"{what} {state}" for what, state in (("target", health.target), ("account", health.account))]
    ill = [text for text in found if not text.endswith(" healthy")]
    return f"{' and '.join(ill)} (`{health.reason}`)" if ill else "healthy"
