"""`make bench`: plain Envoy and the gateway side by side; JSON for machines, a table for docs/performance.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.publishing import publishing
from tests.bench.report import markdown, put_between_markers
from tests.bench.restarting import restarting
from tests.bench.stages import FULL, PATH, SHORT, Result, Subject, chat_body, failing, healthy, streams


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="bench", description="plain Envoy and the gateway, side by side")
    parser.add_argument("--full", action="store_true", help="all sizes and more rounds (about 15 minutes)")
    parser.add_argument("--only", choices=("healthy", "failing", "streams", "publish", "restart"), help="one part")
    parser.add_argument("--transport", default="fast", choices=("fast", "grpcio"))
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="another gateway's base URL, measured in the same turns; it must know a model named `bench`",
    )
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="sent to the others")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the numbers go")
    parser.add_argument("--docs", type=Path, help="a Markdown file with markers to put the table between")
    options = parser.parse_args()
    results = []
    for result in _measure(options):
        sys.stderr.write(f"{result['stage']}: {_short(result)}\n")
        results.append(result)
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "cpu": _cpu_name()}
    options.json.write_text(json.dumps({"machine": machine, "stages": results}, indent=1) + "\n")
    table = markdown(results, machine)
    sys.stdout.write(table)
    if options.docs is not None:
        put_between_markers(options.docs, table)
    return int(any(one.get("errors") or one.get("broken") for r in results for one in r["subjects"].values()))


def _measure(options: argparse.Namespace) -> Iterator[Result]:
    effort, arguments = FULL if options.full else SHORT, ("--transport", options.transport)
    headers = dict(pair.split("=", 1) for pair in options.header)
    others = [Subject(name, url.rstrip("/"), headers=headers) for name, url in (o.split("=", 1) for o in options.other)]
    if options.only in (None, "healthy"):
        yield from healthy(effort, others, arguments)
    if options.only in (None, "failing"):
        yield from failing(effort, others, arguments)
    if options.only in (None, "streams"):
        yield from streams(effort, arguments)
    if options.only in (None, "publish"):
        yield from publishing(chat_body(2048), PATH, arguments)
    if options.only in (None, "restart"):
        yield from restarting(chat_body(2048), PATH, arguments)


def _short(result: Result) -> str:
    parts = []
    for name, one in result["subjects"].items():
        main = next(key for key in ("visible_worst_s", "back_worst_s", "rps", "first_p50_ms") if key in one)
        parts.append(f"{name} {main} {one[main]:.3g}")
    return ", ".join(parts)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
