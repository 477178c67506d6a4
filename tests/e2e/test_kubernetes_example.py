"""The pod of the Kubernetes example without a cluster: its containers run what the compose file's services run."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.compose import ROOT, NativeCompose

STATE = "/var/lib/gateway"
LOGGED_WITHIN_S = 10.0


@pytest.fixture
def compose() -> Iterator[NativeCompose]:
    """Start extproc and Envoy after the pod's first container has done its work."""
    manifests = yaml.safe_load_all((ROOT / "examples/kubernetes/gateway.yaml").read_text(encoding="utf-8"))
    (pod,) = (one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment")
    folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))  # short: Unix sockets live below
    command = [word.replace(STATE, str(folder / "state")) for word in pod["initContainers"][0]["command"]]
    try:
        subprocess.run(command, check=True, timeout=10.0)
        with NativeCompose(folder) as compose:
            compose.start("envoy")
            yield compose
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_access_log_goes_to_the_output_of_envoy_s_container(compose: NativeCompose) -> None:
    """One JSON line a request, and no file in the pod's memory grows."""
    with urllib.request.urlopen(f"http://127.0.0.1:{compose.port('18080')}/readyz", timeout=5) as answer:
        request_id = answer.headers["x-request-id"]

    give_up_at = time.monotonic() + LOGGED_WITHIN_S
    while request_id not in compose.log("envoy") and time.monotonic() < give_up_at:
        time.sleep(0.1)

    lines = [json.loads(line) for line in compose.log("envoy").splitlines() if line.startswith("{")]
    assert request_id in [line["request_id"] for line in lines]
