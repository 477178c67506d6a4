"""What each part of our configuration costs Envoy, in instructions a request: `python -m tests.bench.envoy_parts`.

Envoy runs under valgrind's callgrind with the gateway's own rendered files, whole and with one part left out, beside
one that only forwards. Instructions do not depend on what else the machine does: two runs differ by less than one in a
hundred, where CPU time differs by ten. They count what Envoy does itself and nothing of the kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from extproc.envoy_binary import find_envoy
from extproc.wire import names
from tests.bench.processes import fixed_provider, plain_config, wait_for
from tests.bench.stages import PATH, chat_body, gateway_config
from tests.support.gateway import Gateway
from tests.support.load import run_load
from tests.support.ports import free_port, release_port

CONNECTIONS = 4
WARM_UP = 80
START_S = 180.0
"""An Envoy under valgrind takes its time."""
_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

Documents = dict[str, Any]
Edit = Callable[[Documents], None]


def _manager(documents: Documents) -> dict[str, Any]:
    manager: dict[str, Any] = documents["lds"]["resources"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _without_log(kind: str) -> Edit:
    def edit(documents: Documents) -> None:
        manager = _manager(documents)
        manager["access_log"] = [log for log in manager["access_log"] if log["name"] != f"envoy.access_loggers.{kind}"]
        if kind == "http_grpc":
            del manager["http_filters"][-1]["typed_config"]["upstream_log"]

    return edit


def _without_filters(*left_out: str) -> Edit:
    def edit(documents: Documents) -> None:
        manager = _manager(documents)
        manager["http_filters"] = [one for one in manager["http_filters"] if one["name"] not in left_out]
        for cluster in documents["cds"]["resources"]:
            options = cluster["typed_extension_protocol_options"][_OPTIONS]
            options["http_filters"] = [one for one in options["http_filters"] if one["name"] not in left_out]

    return edit


_USAGE = ("gateway.usage.json",)
_UPSTREAM = ("gateway.judge", "gateway.attempt", "gateway.headers", names.ADDRESS_FILTER)
_EDITS: dict[str, tuple[Edit, ...]] = {
    "whole": (),
    "no access log file": (_without_log("file"),),
    "no entries over gRPC": (_without_log("http_grpc"),),
    "no token usage": (_without_filters(*_USAGE),),
    "no judge": (_without_filters("gateway.judge"),),
    "no attempt request": (_without_filters("gateway.attempt"),),
    "no header rules": (_without_filters("gateway.headers"),),
    "no address rules": (_without_filters(names.ADDRESS_FILTER),),
    "the route exchange alone": (
        _without_log("file"),
        _without_log("http_grpc"),
        _without_filters(*_USAGE, *_UPSTREAM),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print thousands of instructions a request for each variant, and how many times plain Envoy's they are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.envoy_parts", description=__doc__)
    parser.add_argument("--requests", type=int, default=300, metavar="N")
    parser.add_argument("--only", action="append", choices=list(_EDITS), metavar="PART", help=", ".join(_EDITS))
    chosen = parser.parse_args(arguments)
    if shutil.which("valgrind") is None:
        sys.stderr.write("valgrind is not installed: it counts the instructions (Debian's package valgrind)\n")
        return 1
    with fixed_provider() as provider:
        port = free_port()
        plain = _instructions({"envoy": plain_config(port, provider)}, "envoy", port, chosen.requests)
        _tell("plain Envoy", plain, plain)
        url = f"http://127.0.0.1:{provider}/v1"
        with Gateway(gateway_config(url, url), arguments=("--concurrency", "1")) as gateway:
            for name in chosen.only or _EDITS:
                port = free_port()
                documents = _documents(gateway, port)
                for edit in _EDITS[name]:
                    edit(documents)
                _tell(name, _instructions(documents, "bootstrap", port, chosen.requests), plain)
    return 0


def _tell(name: str, cost: float, plain: float) -> None:
    sys.stdout.write(f"{name:<26} {cost / 1000:8.1f} k  {cost / plain:5.2f}\n")
    sys.stdout.flush()


def _documents(gateway: Gateway, port: int) -> Documents:
    """Return what the gateway rendered, for another port, and patient with a slow Envoy's clock."""
    folder = gateway.data_dir / "envoy"
    documents = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("bootstrap", "cds", "lds", "rds")}
    documents["lds"]["resources"] = documents["lds"]["resources"][:1]
    documents["lds"]["resources"][0]["address"]["socket_address"]["port_value"] = port
    route_filter, *_ = _manager(documents)["http_filters"]
    route_filter["typed_config"]["message_timeout"] = "60s"
    return documents


def _instructions(documents: Documents, first: str, port: int, requests: int) -> float:
    """Return how many instructions a request costs an Envoy that is started with these documents."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as name:
        folder = Path(name)
        _write(documents, folder)
        body = chat_body(2048)
        try:
            with _counted_envoy(folder, first, port) as pid:
                _ask(port, body, WARM_UP)
                _control("-i", "on", pid)
                _ask(port, body, requests)
                _control("-i", "off", pid)
                _control("-d", None, pid)
        finally:
            release_port(port)
        counted = sum(int(found) for path in folder.glob("counts*") for found in _TOTAL.findall(path.read_text()))
    return counted / requests


def _write(documents: Documents, folder: Path) -> None:
    """Write documents that name each other, and what they write to, where this Envoy alone finds them."""
    rendered = documents.get("bootstrap")
    moved = {}
    if rendered is not None:
        there = Path(rendered["dynamic_resources"]["cds_config"]["path_config_source"]["path"]).parent
        moved = {
            str(there.parent / "logs"): str(folder),
            rendered["admin"]["address"]["pipe"]["path"]: str(folder / "admin.sock"),
            str(there): str(folder),
        }
    for name, document in documents.items():
        text = json.dumps(document)
        for old, new in moved.items():
            text = text.replace(old, new)
        (folder / f"{name}.json").write_text(text)


@contextmanager
def _counted_envoy(folder: Path, first: str, port: int) -> Iterator[int]:
    argv = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/counts"]
    argv += [f"--log-file={folder}/valgrind.log", str(find_envoy(None, os.environ))]
    argv += ["-c", f"{folder}/{first}.json", "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        wait_for(port, process, START_S)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _ask(port: int, body: bytes, requests: int) -> None:
    """Ask over a few connections; RuntimeError unless every answer is good."""
    asked = run_load(
        f"http://127.0.0.1:{port}{PATH}", requests, CONNECTIONS, body, {"content-type": "application/json"}
    )
    if asked.statuses[200] != requests:
        raise RuntimeError("Envoy did not answer every request with 200: its instructions would mean nothing")


def _control(option: str, value: str | None, pid: int) -> None:
    """Tell callgrind; it has done so when the command returns."""
    argv = ["callgrind_control", option, *([] if value is None else [value]), str(pid)]
    subprocess.run(argv, check=True, capture_output=True)


if __name__ == "__main__":
    raise SystemExit(main())
