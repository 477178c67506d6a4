"""What is rendered is what Envoy takes: every message by its typed API, every file by the binary, and the golden files.

The golden files are written anew with `python -m tests.support.golden`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import certifi
import orjson
import pytest

from extproc import envoy_admin
from extproc.envoy_binary import find_envoy
from tests.support.golden import CA_FILE, DATA_DIR, LISTEN, files_there, golden_documents, golden_files
from tests.support.ports import free_port, release_port
from tests.unit.config.build import FULL, edited
from tests.unit.envoy_config.build import PATHS, find, rendered, walk

TYPE_PREFIX = "type.googleapis.com/"
ANY = "@type"

NOT_IN_DATA_PLANE = {
    "envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier": (
        "envoy_data_plane 2.2 is older than this extension; the binary checks it, and protos/ hold its override"
    ),
}
JUDGE = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
DEPRECATED_IN_USE = {
    "Cluster.dns_refresh_rate is deprecated",
    "Cluster.dns_failure_refresh_rate is deprecated",
    "Cluster.dns_lookup_family is deprecated",
    "Cluster.respect_dns_ttl is deprecated",
}
"""Envoy 1.40 still takes them; `cluster_type` with a DnsCluster is what follows them."""
RENAMED = {"RBAC": "Rbac"}
"""Names that envoy_data_plane spells in its own way."""
EMPTY = {ANY: f"{TYPE_PREFIX}google.protobuf.Empty"}


def anys(document: Any) -> set[str]:
    """Return the full names of every typed message in a document."""
    return {node[ANY].removeprefix(TYPE_PREFIX) for node in walk(document) if ANY in node}


def message_class(full_name: str) -> Any:
    """Return envoy_data_plane's class; importing its module is what lets an Any hold it."""
    package, _, name = full_name.rpartition(".")
    name = RENAMED.get(name, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own use of deprecated pydantic calls
        return getattr(import_module(f"envoy_data_plane.{package}"), name)


def without_unknown(node: Any) -> Any:
    """Return a document in which messages that envoy_data_plane lacks are empty ones."""
    if isinstance(node, list):
        return [without_unknown(value) for value in node]
    if not isinstance(node, dict):
        return node
    if node.get(ANY, "").removeprefix(TYPE_PREFIX) in NOT_IN_DATA_PLANE:
        return EMPTY
    return {key: without_unknown(value) for key, value in node.items()}


def typed(full_name: str, document: dict[str, Any]) -> Any:
    """Parse a document as a message; an unknown field or message anywhere in it is an error."""
    for inner in anys(document) - NOT_IN_DATA_PLANE.keys():
        message_class(inner)
    message_class("google.protobuf.Empty")
    parse = message_class(full_name).from_dict
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        parsed = parse(untyped(without_unknown(document)))
    assert {str(warning.message) for warning in told} <= DEPRECATED_IN_USE
    return parsed


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    """Return every document of the example and of a config that uses every key."""
    full = rendered(FULL)
    more = {
        "cds": full.cds,
        "rds": full.rds,
        "lds": full.lds,
        "bootstrap": full.bootstrap,
        "sds": list(full.sds.values()),
    }
    return {"example": golden_documents(), "full": more}


class TestTheTypedApi:
    def test_knows_every_resource_with_every_field(self, documents: dict[str, Any]) -> None:
        resources = [node for node in walk(documents) if ANY in node]
        for resource in resources:
            name = resource[ANY].removeprefix(TYPE_PREFIX)
            if name not in NOT_IN_DATA_PLANE:
                typed(name, resource)
        assert {"envoy.config.cluster.v3.Cluster", "envoy.config.listener.v3.Listener"} <= anys(documents)

    def test_knows_the_bootstrap_with_every_field(self, documents: dict[str, Any]) -> None:
        for bootstrap in (documents["example"]["bootstrap.json"], documents["full"]["bootstrap"]):
            assert "gateway" == typed("envoy.config.bootstrap.v3.Bootstrap", bootstrap).node.id

    def test_knows_the_form_of_a_file(self, documents: dict[str, Any]) -> None:
        for name in ("cds.json", "rds.json", "lds.json"):
            parsed = typed("envoy.service.discovery.v3.DiscoveryResponse", documents["example"][name])
            assert "1" == parsed.version_info

    def test_would_notice_a_field_that_does_not_exist(self) -> None:
        """The oracle itself is checked: deep inside an Any, too."""
        cluster = rendered().cds[0]
        options = find(cluster, **{ANY: f"{TYPE_PREFIX}envoy.extensions.upstreams.http.v3.HttpProtocolOptions"})[0]
        options["no_such_field"] = 1
        with pytest.raises(KeyError, match="no_such_field"):
            typed("envoy.config.cluster.v3.Cluster", cluster)

    def test_still_lacks_what_the_table_excuses(self) -> None:
        for name in NOT_IN_DATA_PLANE:
            with pytest.raises((ImportError, AttributeError)):
                message_class(name)


class TestTheGoldenFiles:
    def test_are_what_the_example_renders_to(self) -> None:
        """If the change is meant, write them anew: `python -m tests.support.golden`."""
        assert golden_files() == files_there()

    def test_hold_placeholders_for_keys(self) -> None:
        secrets = [node["inline_string"] for node in walk(golden_documents()) if "inline_string" in node]
        assert {"Bearer missing-key", "missing-key"} <= set(secrets)


def statically(documents: dict[str, Any]) -> dict[str, Any]:
    """Put clusters, routes and listeners into the bootstrap, so that `--mode validate` reads all of it."""
    whole = orjson.loads(orjson.dumps(documents))
    for manager in find(whole["lds"], stat_prefix="gateway"):
        del manager["rds"]
        manager["route_config"] = untyped(whole["rds"])
    bootstrap: dict[str, Any] = whole["bootstrap"]
    resources = bootstrap["static_resources"]
    resources["clusters"] += map(untyped, whole["cds"])
    resources["listeners"] = list(map(untyped, whole["lds"]))
    del bootstrap["dynamic_resources"]
    return bootstrap


def untyped(resource: dict[str, Any]) -> dict[str, Any]:
    """Return a resource without the type that only an Any needs."""
    return {key: value for key, value in resource.items() if key != ANY}


def moved(documents: dict[str, Any], to: Path) -> dict[str, Any]:
    """Return documents whose paths lie under `to`, with authorities that are there on every machine."""
    text = orjson.dumps(documents).decode()
    root = PATHS.cds.parent.parent
    for old, new in {DATA_DIR: to, f"{root}/": f"{to}/", CA_FILE: certifi.where()}.items():
        text = text.replace(f'"{old}', f'"{new}')
    return dict(orjson.loads(text))


def validate(documents: dict[str, Any], folder: Path) -> str:
    """Return Envoy's complaint about a bootstrap, empty when it accepts it."""
    path = folder / "validate.json"
    path.write_bytes(orjson.dumps(statically(documents)))
    command = [str(find_envoy(None, os.environ)), "--mode", "validate", "-c", str(path), "-l", "error"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "" if done.returncode == 0 else done.stderr + done.stdout


def write_files(documents: dict[str, Any], folder: Path) -> None:
    """Write golden files into the data directory they name."""
    for name in ("run", "logs", "envoy/sds"):
        (folder / name).mkdir(parents=True)
    for name, document in documents.items():
        (folder / "envoy" / name).write_bytes(orjson.dumps(document))


def parts(documents: dict[str, Any]) -> dict[str, Any]:
    """Return the resources inside the golden files."""
    return {
        "bootstrap": documents["bootstrap.json"],
        "cds": documents["cds.json"]["resources"],
        "rds": documents["rds.json"]["resources"][0],
        "lds": documents["lds.json"]["resources"],
    }


def on_loopback(documents: dict[str, Any], port: int) -> dict[str, Any]:
    """Keep every address on this machine, and the listener on a port of our own."""
    for node in walk(documents):
        if "port_value" in node:
            node["address"] = "127.0.0.1"
            node["port_value"] = port if node["port_value"] == LISTEN.port else node["port_value"]
    return documents


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Run Envoy on the files below a data directory; gives its admin socket once it is live."""
    bootstrap, admin = folder / "envoy" / "bootstrap.json", folder / "run" / "envoy-admin.sock"
    options = ["--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
    with (folder / "logs" / "envoy.log").open("wb") as log:
        process = subprocess.Popen([find_envoy(None, os.environ), "-c", bootstrap, *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not asyncio.run(envoy_admin.ready(admin)):
            words = (folder / "logs" / "envoy.log").read_text()
            assert process.poll() is None, words
            assert time.monotonic() < deadline, words
            time.sleep(0.05)
        yield admin
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.e2e
class TestTheBinary:
    def test_accepts_the_golden_configuration(self, tmp_path: Path) -> None:
        documents = moved(golden_documents(), tmp_path)
        write_files(documents, tmp_path)
        assert "" == validate(parts(documents), tmp_path)

    def test_accepts_a_config_that_uses_every_key(self, tmp_path: Path) -> None:
        """All but the certificates, which would have to be there."""
        full = rendered(edited(edited(FULL, ("providers", "first", "tls"), ...), ("server", "tls"), ...))
        write_files(moved({f"sds/{name}": document for name, document in full.sds.items()}, tmp_path), tmp_path)
        whole = {"bootstrap": full.bootstrap, "cds": full.cds, "rds": full.rds, "lds": full.lds}
        assert "" == validate(moved(whole, tmp_path), tmp_path)

    def test_would_notice_a_field_that_does_not_exist(self, tmp_path: Path) -> None:
        """The check itself is checked: deep inside an upstream filter."""
        documents = moved(golden_documents(), tmp_path)
        write_files(documents, tmp_path)
        find(documents["cds.json"], **{ANY: f"{TYPE_PREFIX}{JUDGE}"})[0]["no_such_field"] = 1
        assert "no_such_field" in validate(parts(documents), tmp_path)

    def test_starts_on_the_golden_files_and_accepts_each(self, tmp_path: Path) -> None:
        port = free_port()
        write_files(on_loopback(moved(golden_documents(), tmp_path), port), tmp_path)
        try:
            with running(tmp_path) as admin:
                found = asyncio.run(
                    envoy_admin.stats(admin, r"(cds|lds|rds\.gateway)\.(version_text|update_rejected)$")
                )
        finally:
            release_port(port)
        assert {
            "cluster_manager.cds.version_text": "1",
            "cluster_manager.cds.update_rejected": 0,
            "listener_manager.lds.version_text": "1",
            "listener_manager.lds.update_rejected": 0,
            "http.gateway.rds.gateway.version_text": "1",
            "http.gateway.rds.gateway.update_rejected": 0,
        } == found
