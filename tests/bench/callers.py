"""Load: whole answers by wrk, or by the bundled client in a process of its own; streams by a client that keeps time."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.load import run_load

WARM_UP_REQUESTS = 50
_WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
%s
local file = io.open("%s", "rb")
wrk.body = file:read("*a")
file:close()
done = function(summary, latency, requests)
  local e = summary.errors
  local form = '\\nRESULT {"n": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, "errors": %%d}\\n'
  io.write(string.format(form,
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of requests came to; `errors` counts answers that were not 2xx, and none at all."""

    n: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def rps(self) -> float:
        return self.n / self.seconds


def whole_answers(url: str, body: bytes, connections: int, seconds: float, headers: dict[str, str]) -> Load:
    """Ask as fast as answers come, for some seconds."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return _bundled(url, body, connections, seconds, headers)
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        data, script = Path(folder) / "body", Path(folder) / "post.lua"
        data.write_bytes(body)
        lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
        script.write_text(_WRK_SCRIPT % (lines, data))
        argv = [wrk, "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s", "-s", str(script), url]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return _result(done.stdout)


def _bundled(url: str, body: bytes, connections: int, seconds: float, headers: dict[str, str]) -> Load:
    wish = {"url": url, "body": body.decode(), "connections": connections, "seconds": seconds, "headers": headers}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.callers"],
        input=json.dumps(wish),
        capture_output=True,
        text=True,
        check=True,
    )
    return _result(done.stdout)


def _result(text: str) -> Load:
    line = next(line for line in text.splitlines() if line.startswith("RESULT "))
    return Load(**json.loads(line.removeprefix("RESULT ")))


def main() -> int:
    """Be the bundled client: a wish on stdin, a result on stdout."""
    wish = json.load(sys.stdin)
    url, body, connections = wish["url"], wish["body"].encode(), wish["connections"]
    pace = run_load(url, WARM_UP_REQUESTS, connections, body, wish["headers"]).rps
    found = run_load(url, max(1, int(pace * wish["seconds"])), connections, body, wish["headers"])
    bad = sum(found.errors.values()) + sum(n for status, n in found.statuses.items() if status >= 300)
    result = Load(len(found.latencies_s), found.seconds, found.percentile(0.5) * 1e3, found.percentile(0.99) * 1e3, bad)
    values = {name: getattr(result, name) for name in Load.__slots__}
    sys.stdout.write(f"RESULT {json.dumps(values)}\n")
    return 0


@dataclass(slots=True)
class Streams:
    """What streams came to, in milliseconds from the call or between two reads; `broken` ones did not end well."""

    first_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    events: int = 0
    broken: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, float]:
        """Return medians and tails."""
        return {
            "streams": len(self.first_ms),
            "events": self.events,
            "broken": self.broken,
            "seconds": self.seconds,
            "first_p50_ms": statistics.median(self.first_ms),
            "gap_mean_ms": statistics.fmean(self.gaps_ms),
            "gap_p50_ms": statistics.median(self.gaps_ms),
            "gap_p99_ms": statistics.quantiles(self.gaps_ms, n=100)[98],
        }


def streamed_answers(url: str, body: bytes, connections: int, each: int, headers: dict[str, str]) -> Streams:
    """Read `each` streams over each connection, one after the other."""
    return asyncio.run(_streamed(url, body, connections, each, headers))


async def _streamed(url: str, body: bytes, connections: int, each: int, headers: dict[str, str]) -> Streams:
    parts, found = urlsplit(url), Streams()
    lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, f"content-length: {len(body)}"]).encode() + b"\r\n\r\n" + body
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(_reader(str(parts.hostname), parts.port or 80, request, each, found))
    found.seconds = time.monotonic() - began
    return found


async def _reader(host: str, port: int, request: bytes, each: int, found: Streams) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    for _ in range(each):
        began = time.monotonic()
        writer.write(request)
        data, last = b"", 0.0
        while not data.endswith(b"\r\n0\r\n\r\n"):
            piece = await reader.read(65536)
            if not piece:
                break
            now = time.monotonic()
            data += piece
            if last:
                found.gaps_ms.append((now - last) * 1e3)
            elif b'"content":"h' in data:
                found.first_ms.append((now - began) * 1e3)
                last = now
                continue
            last = now if last else 0.0
        found.events += data.count(b"\ndata:")
        found.broken += b"[DONE]" not in data
    writer.close()


if __name__ == "__main__":
    raise SystemExit(main())
