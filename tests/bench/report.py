"""The benchmark's numbers as Markdown; the ratio to plain Envoy comes first, because only ratios travel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BEGIN = "<!-- bench: begin -->"
END = "<!-- bench: end -->"
PLAIN = "plain Envoy"


def markdown(results: Iterable[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    """Return the tables."""
    results = list(results)
    beside_plain = [result for result in results if PLAIN in result["subjects"]]
    whole = [row for result in beside_plain for row in _whole_rows(result)]
    streamed = [row for result in beside_plain for row in _stream_rows(result)]
    published = [row for result in results for row in _publish_rows(result)]
    restarted = [row for result in results for row in _restart_rows(result)]
    lines = [f"Measured on {machine['cores']} cores ({machine['cpu']}), Python {machine['python']}.", ""]
    if whole:
        head = ("stage", "subject", "of plain Envoy", "requests/s", "p50 ms", "p99 ms", "added p50 ms")
        lines += _table((*head, "Envoy CPU us", "Python CPU us", "extproc MB", "errors"), whole)
    if streamed:
        head = (
            "stage",
            "subject",
            "added first token ms",
            "added gap ms",
            "first token ms",
            "gap mean ms",
            "gap p99 ms",
        )
        lines += _table((*head, "Envoy us/event", "Python us/event", "broken"), streamed)
    if published:
        head = ("stage", "subject", "worst s until visible", "median s until visible", "requests/s", "p99 ms", "failed")
        lines += _table(head, published)
    if restarted:
        lines += _table(("stage", "subject", "worst s until it serves", "median s", "wrong answers"), restarted)
    return "\n".join(lines) + "\n"


def put_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the markers; ValueError when the file has none."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def _whole_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    subjects = result["subjects"]
    plain = subjects[PLAIN]
    rows: list[tuple[str, ...]] = []
    for name, one in subjects.items():
        if "rps" not in one:
            continue
        rows.append(
            (
                result["stage"],
                name,
                f"**{one['rps'] / plain['rps']:.0%}**",
                f"{one['rps']:,.0f}",
                f"{one['p50_ms']:.2f}",
                f"{one['p99_ms']:.2f}",
                f"{one['p50_ms'] - plain['p50_ms']:+.2f}",
                _number(one.get("envoy_cpu_us"), ".0f"),
                _number(one.get("extproc_cpu_us"), ".0f"),
                _number(one.get("extproc_peak_rss_mb"), ".0f"),
                f"{one['errors']:.0f}",
            )
        )
    return rows


def _stream_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    subjects = result["subjects"]
    plain = subjects[PLAIN]
    rows: list[tuple[str, ...]] = []
    for name, one in subjects.items():
        if "first_p50_ms" not in one:
            continue
        rows.append(
            (
                result["stage"],
                name,
                f"{one['first_p50_ms'] - plain['first_p50_ms']:+.2f}",
                f"{one['gap_mean_ms'] - plain['gap_mean_ms']:+.3f}",
                f"{one['first_p50_ms']:.2f}",
                f"{one['gap_mean_ms']:.3f}",
                f"{one['gap_p99_ms']:.2f}",
                _number(one.get("envoy_event_cpu_us"), ".1f"),
                _number(one.get("extproc_event_cpu_us"), ".1f"),
                f"{one['broken']:.0f}",
            )
        )
    return rows


def _publish_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            result["stage"],
            name,
            f"{one['visible_worst_s']:.2f}",
            f"{one['visible_p50_s']:.2f}",
            f"{one['rps']:,.0f}",
            f"{one['p99_ms']:.2f}",
            f"{one['errors']:.0f}",
        )
        for name, one in result["subjects"].items()
        if "visible_worst_s" in one
    ]


def _restart_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (result["stage"], name, f"{one['back_worst_s']:.2f}", f"{one['back_p50_s']:.2f}", f"{one['errors']:.0f}")
        for name, one in result["subjects"].items()
        if "back_worst_s" in one
    ]


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    rule = tuple("---" if index < 2 else "---:" for index in range(len(head)))
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)] + [""]
