"""What people read: tables and colours on a terminal, plain lines in a pipe.

Owns wording and layout only; where it goes is `screen.py`'s. Invariant: text from outside (messages, Envoy's
words) is printed as text: no markup, no control characters, one line where a line is meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from configctl.diff import section_of
from configctl.screen import Screen, print_line, to_json, visible
from configctl.shapes import of_entry, of_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from configctl.changes import Report
    from configctl.commands import Status, Verified
    from configctl.diff import Change
    from configctl.preview import Candidates, Preview
    from configctl.records import AuditEntry, Conflict, Version
    from configctl.waiting import Verdict, Verdicts

_MARKS = {
    "added": ("+", "green"),
    "removed": ("-", "red"),
    "changed": ("~", "yellow"),
    "reordered": ("~", "yellow"),
}
_STYLES = {"applied": "green", "failed": "red", "silent": "red", "waiting": "yellow", "pending": "yellow"}
_DIGEST_SHOWN = 12


def print_rows(console: Console, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, aligned columns in a pipe."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    if console.is_terminal:
        console.print(drawn_table(headers, cells, _STYLES), soft_wrap=False)
        return
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [list(headers), *cells]:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line(console, padded.rstrip())


def drawn_table(headers: Iterable[str], rows: Iterable[Sequence[str]], styles: Mapping[str, str]) -> Table:
    """Return a table whose cells are folded on a narrow terminal: a name that is cut may be another's, too."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    return table


def one_line(text: str) -> str:
    """Return text fit for one line: control characters become spaces, and several spaces one."""
    return " ".join(visible(text).split())


def print_history(console: Console, versions: Iterable[Version], active: int | None) -> None:
    """Print versions, newest first; the active one has a star."""
    rows = (
        (
            "*" if version.number == active else "",
            str(version.number),
            of_time(version.created_at),
            _kind(version),
            version.outcome,
            version.author,
            version.message,
        )
        for version in versions
    )
    print_rows(console, ("", "version", "published", "kind", "outcome", "author", "message"), rows)


def print_version(console: Console, version: Version) -> None:
    """Print everything about a version but its content."""
    facts = {
        "version": str(version.number),
        "parent": str(version.parent or "none"),
        "digest": version.digest,
        "published": of_time(version.created_at),
        "author": version.author,
        "kind": _kind(version),
        "message": version.message,
        "outcome": version.outcome,
    }
    if version.outcome_reason:
        facts["reason"] = version.outcome_reason
    for name, value in facts.items():
        print_line(console, f"{name + ':':<11}{one_line(value)}")


def print_shown(console: Console, version: Version) -> None:
    """Print a version as a config file, with what is known about it in comments."""
    facts = f"version {version.number}, {_kind(version)} by {version.author} at {of_time(version.created_at)}"
    print_line(console, f"# {one_line(facts)}: {one_line(version.message)}")
    print_line(console, as_yaml(version.config))


def print_changes(console: Console, changes: Sequence[Change]) -> None:
    """Print changes by section; what came or went whole is written out in YAML."""
    section = None
    for change in changes:
        if section_of(change) != section:
            section = section_of(change)
            print_line(console, section, "bold")
        mark, style = _MARKS[change.kind]
        whole, path = change.after if change.kind == "added" else change.before, one_line(change.path)
        if change.kind in ("added", "removed"):
            text = f"{path}:{_indented(whole, mark)}"
        elif change.kind == "reordered":
            text = f"{path}: order {_short(change.before)} -> {_short(change.after)}"
        else:
            text = f"{path}: {_short(change.before)} -> {_short(change.after)}"
        print_line(console, f"  {mark} {text}", style)


def print_preview(console: Console, preview: Preview) -> None:
    """Print effects: models, order of candidates, findings, Envoy's resources."""
    known = "current health" if preview.health_known else "all targets taken as healthy: no gateway was asked"
    for mark, kind, names in (("+", "added", preview.gained), ("-", "removed", preview.lost)):
        for name in names:
            verb = "gained" if mark == "+" else "lost"
            print_line(console, f"{mark} model {verb}: {name}", _MARKS[kind][1])
    print_line(console, f"candidates ({known})", "bold")
    for candidates in preview.candidates:
        _print_candidates(console, candidates)
    print_line(console, f"findings ({len(preview.findings)})", "bold")
    for finding in preview.findings:
        print_line(console, f"  ! {finding.path}: {finding.sentence} {finding.advice} [{finding.code}]", "yellow")
    print_line(console, f"envoy resources ({len(preview.resources)})", "bold")
    for resource in preview.resources:
        mark, style = _MARKS[resource.change]
        print_line(console, f"  {mark} {resource.kind} {resource.name}", style)


def print_status(console: Console, status: Status, now: float) -> None:
    """Print the wanted version and one line an instance."""
    wanted = f"{status.active.number} ({status.active.outcome})" if status.active else "none"
    print_line(console, one_line(f"wanted version: {wanted}"))
    if not status.instances:
        print_line(console, "no gateway has reported to this store within a day")
        return
    rows = [
        (
            instance.id,
            instance.hostname,
            "live" if instance.is_live(now) else f"silent for {now - instance.heartbeat_at:.0f} s",
            str(instance.wanted or "none"),
            str(instance.applied or "none"),
            of_time(instance.since),
            instance.error or "",
            ", ".join(instance.missing_keys),
        )
        for instance in status.instances
    ]
    headers = ("instance", "host", "state", "wanted", "applied", "since", "last error", "missing keys")
    print_rows(console, headers, rows)


def print_audit(console: Console, entries: Iterable[AuditEntry]) -> None:
    """Print audit entries, newest first."""
    rows = (
        (
            str(entry.seq),
            of_time(entry.at),
            entry.actor,
            f"{entry.act} refused" if entry.refused else entry.act,
            str(entry.version or ""),
            _told(of_entry(entry)["detail"]),
        )
        for entry in entries
    )
    print_rows(console, ("entry", "at", "actor", "act", "version", "detail"), rows)


def print_verified(console: Console, verified: Verified) -> None:
    """Print what is broken, or that nothing is."""
    for broken in verified.broken:
        print_line(console, one_line(f"{broken.what} {broken.reason}"), "red")
    if not verified.broken:
        head = f", the last one is {verified.head}" if verified.head else ""
        print_line(console, f"whole: {verified.versions} versions, {verified.entries} audit entries{head}")


def describe_conflict(conflict: Conflict) -> str:
    """Say what moved."""
    if conflict.active is None:
        return f"Conflict: version {conflict.expected} was expected to be active, and none is."
    active = conflict.active
    expected = f"version {conflict.expected}" if conflict.expected else "no version"
    return one_line(
        f"Conflict: {expected} was expected to be active, but version {active.number} is: {_kind(active)} by "
        f"{active.author} at {of_time(active.created_at)}: {active.message}. Look at it with "
        f"`configctl show {active.number}`, then try again."
    )


def describe_report(report: Report) -> str:
    """Say in one sentence what came of a new version."""
    number = report.version.number
    answers = report.verdicts.answers
    applied = len(report.verdicts.with_answer("applied"))
    return {
        "applied": f"Version {number} is live on {_instances(applied)}.",
        "failed": f"Version {number} was refused by {len(report.verdicts.with_answer('failed'))} of {len(answers)}.",
        "silent": f"Version {number} is published; {applied} of {len(answers)} applied it, the others did not answer.",
        "superseded": f"Version {number} was replaced by version {report.verdicts.superseded_by} before it was live.",
        "no_gateway": f"Version {number} is published; no gateway runs on this store now.",
        "interrupted": f"Version {number} is published; nobody is waited for any more, see `configctl status`.",
        "not_waited": f"Version {number} is published; nobody was waited for, see `configctl status`.",
    }[report.outcome]


def print_verdicts(screen: Screen, report: Report) -> None:
    """Tell what each instance answered, and what was done about a refusal."""
    for verdict in report.verdicts.answers:
        screen.say(f"  {_verdict(verdict)}", _STYLES.get(verdict.answer, ""))
    for instance in report.verdicts.gone:
        who = one_line(f"{instance.id} ({instance.hostname})")
        screen.say(f"  {who}: has been silent, not waited for", "yellow")
    if report.returned is not None:
        to = report.returned.to
        screen.say(f"The wanted version is {to.number} again." if to else "No version is wanted any more.")
    elif report.outcome == "failed":
        screen.say(f"Version {report.version.number} stays the wanted one.")


def waiting_line(verdicts: Verdicts) -> str:
    """Say who is still waited for."""
    waiting = [verdict.instance for verdict in verdicts.with_answer("waiting")]
    done = len(verdicts.answers) - len(waiting)
    return one_line(f"{done} of {len(verdicts.answers)} answered, waiting for {', '.join(waiting)}")


def as_yaml(value: object) -> str:
    """Write plain data as YAML, keys in their order; what could steer a terminal is escaped."""
    import yaml

    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
    if not text.replace("\n", "").isprintable():
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=110)
    return text.rstrip()


def _print_candidates(console: Console, candidates: Candidates) -> None:
    before = None if candidates.before is None else [place.target for place in candidates.before]
    after = [place.target for place in candidates.after]
    mark, style = (" ", "") if before == after else _MARKS["added" if before is None else "changed"]
    order = ", ".join(f"{place.target} ({place.mode})" for place in candidates.after) or "nobody"
    print_line(console, f"  {mark} {candidates.model} [{candidates.protocol}]: {order}", style)
    if before is not None and before != after:
        print_line(console, f"      was: {', '.join(before) or 'nobody'}")
    for skip in candidates.skipped:
        print_line(console, f"      skipped now: {skip.target}: {skip.reason}")


def _verdict(verdict: Verdict) -> str:
    who = one_line(f"{verdict.instance} ({verdict.hostname})")
    if verdict.answer == "applied":
        return f"{who}: applied after {verdict.after_s:.1f} s"
    if verdict.answer == "failed":
        return f"{who}: refused: {one_line(verdict.reason or 'no reason given')}"
    return f"{who}: did not answer within {verdict.after_s:.1f} s"


def _kind(version: Version) -> str:
    return f"rollback to {version.rollback_of}" if version.kind == "rollback" else "publish"


def _instances(count: int) -> str:
    return f"{count} instance" if count == 1 else f"{count} instances"


def _short(value: Any) -> str:
    return to_json(value)


def _indented(value: Any, mark: str) -> str:
    if not isinstance(value, dict | list) or not value:
        return f" {_short(value)}"
    lines = as_yaml(value).splitlines()
    return "".join(f"\n  {mark}   {line}" for line in lines)


def _told(detail: object) -> str:
    if not isinstance(detail, dict):
        return str(detail)
    return ", ".join(
        f"{name}={value if isinstance(value, str) else _short(value)}"
        for name, value in detail.items()
        if value is not None and name != "digest"
    )
