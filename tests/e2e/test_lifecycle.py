"""What a running gateway makes of a store that goes, keys that come and go, and versions that Envoy will not have."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from extproc import envoy_admin
from extproc.data_dir import DataDir
from extproc.envoy_binary import find_envoy
from extproc.envoy_config.files import write_json
from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, two_providers
from tests.support.http1 import Reply
from tests.support.operator import Operator
from tests.support.ports import free_port, release_port
from tests.support.wall import Wall, ok, rate_limited, silence

VERSION = "x-gateway-config-version"
CERTIFICATE = Path(__file__).parents[1] / "data" / "tls" / "server.crt"


@pytest.fixture
def operator(gateway: Gateway, tmp_path: Path) -> Operator:
    return Operator(tmp_path, data_dir=gateway.data_dir)


def changed(primary: Wall, fallback: Wall, **policy: Any) -> dict[str, Any]:
    """Build the gateway's config with another policy."""
    return two_providers(primary, fallback, **(policy or {"connect_timeout": "3s"}))


def served(reply: Reply) -> tuple[int, str | None, str | None]:
    return reply.status, reply.header("x-gateway-served-by"), reply.header(VERSION)


# -- the store


def test_a_gateway_whose_store_is_gone_serves_on_and_follows_it_again_when_it_is_back(
    gateway: Gateway, operator: Operator, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    store = DataDir(gateway.data_dir).store_db
    files = sorted(store.parent.glob("store.db*"))
    for path in files:
        shutil.move(path, tmp_path / path.name)
    gateway.wait_until(lambda: "the config store cannot be reached" in gateway.logs(), "a warning about the store")
    assert (200, "primary/demo-primary-upstream", "1") == served(gateway.chat())
    assert (False, 0.0) == (store.exists(), gateway.metric("gateway_config_store_up"))
    for path in files:
        shutil.move(tmp_path / path.name, path)
    assert 0 == operator.publish(changed(primary, fallback)).code
    # A publish does not wait for a gateway that has not told of itself again yet.
    gateway.wait_until(lambda: gateway.chat().header(VERSION) == "2", "version 2", 20.0)
    assert 1.0 == gateway.metric("gateway_config_store_up")


def test_a_gateway_that_starts_without_its_store_runs_its_last_version_and_says_so(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    """And not the file it was first started with, which is older."""
    data_dir = tmp_path / "data"
    config = two_providers(primary, fallback)
    with Gateway(config, data_dir=data_dir) as first:
        assert 0 == Operator(tmp_path, data_dir=data_dir).publish(changed(primary, fallback)).code
        first.wait_until(lambda: first.chat().header(VERSION) == "2", "version 2")
    for path in data_dir.glob("store.db*"):
        path.unlink()
    second = gateway_factory(config, data_dir=data_dir)
    assert "2" == second.chat().header(VERSION)
    assert f"The store {data_dir}/store.db is not there" in second.logs()
    assert "Starting with version 2, the last that ran here." in second.logs()
    assert not (data_dir / "store.db").exists()
    assert 0.0 == second.metric("gateway_config_store_up")


@pytest.mark.parametrize("broken", ["an unreachable PostgreSQL", "a broken SQLite file"])
def test_the_status_without_a_store_is_what_the_gateway_says_with_exit_code_1(
    module_gateway: Gateway, tmp_path: Path, broken: str
) -> None:
    url, port = f"sqlite:///{tmp_path}/broken.db", free_port()
    (tmp_path / "broken.db").write_text("this is no database, only a text of more than a hundred bytes " * 3)
    if "PostgreSQL" in broken:
        url = f"postgresql+psycopg://gateway:planted@127.0.0.1:{port}/nowhere"
    operator = Operator(tmp_path, data_dir=module_gateway.data_dir, store=url)
    people, as_json = operator.run("status"), operator.run("status", "--json")
    release_port(port)
    assert (1, 1) == (people.code, as_json.code)
    assert re.search(r"^version: +applied 1, wanted 1$", people.stdout, re.MULTILINE)
    assert people.stderr.startswith("The store ")
    assert "planted" not in people.stderr
    assert (1, people.stderr.strip()) == (as_json.json["gateway"]["applied_version"], as_json.json["store_error"])


# -- keys


def test_a_key_that_changes_in_its_file_reaches_the_provider_without_a_publish(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-planted-first\n")
    gateway = gateway_factory(_key_in_file(primary, fallback, key))
    assert 200 == gateway.chat().status
    key.write_text("sk-planted-second\n")

    def seen() -> str | None:
        assert (200, "1") == ((reply := gateway.chat()).status, reply.header(VERSION))
        return primary.requests[-1].header("authorization")

    assert "Bearer sk-planted-first" == primary.requests[0].header("authorization")
    gateway.wait_until(lambda: seen() == "Bearer sk-planted-second", "the new key at the provider")


def test_a_key_that_is_missing_is_told_by_its_reference_and_its_targets_are_left_out_until_it_comes(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    os.mkfifo(key)
    gateway = gateway_factory(_key_in_file(primary, fallback, key))
    operator = Operator(tmp_path, data_dir=gateway.data_dir)

    def missing() -> list[str]:
        # Right after the start it may not be on the list yet.
        instances = operator.run("status", "--json").json["instances"]
        return [key for instance in instances for key in instance["missing_keys"]]

    assert (200, "fallback/demo-fallback-upstream", "1") == served(gateway.chat())
    assert [f"primary (file {key} is not a regular file)"] == gateway.wait_until(missing, "the status")
    assert f"primary (file {key} is not a regular file)" in operator.run("status").stdout
    key.unlink()
    gateway.wait_until(lambda: missing() == [f"primary (file {key} is not there)"], "the other reason")
    looks = {row["subject"]: row for row in operator.run("health", "--json").json}
    for subject in ("primary", "primary/demo-primary-upstream"):
        assert (False, "missing_key") == (looks[subject]["eligible"], looks[subject]["reason"])
        assert 1.0 == gateway.metric("gateway_target_state", subject=subject, state="down")
    candidates = operator.run("preview", str(gateway.config_file), "--json").json["candidates"]
    skipped = {one["model"]: one["skipped"] for one in candidates}
    assert [{"target": "primary/demo-primary-upstream", "reason": "missing_key"}] == skipped["demo-primary"]
    key.write_text("sk-planted-late")
    gateway.wait_until(lambda: gateway.chat().header("x-gateway-served-by") == "primary/demo-primary-upstream", "it")
    gateway.wait_until(lambda: missing() == [], "no missing key in the status")
    assert {"healthy"} == {row["state"] for row in operator.run("health", "--json").json}
    assert {"Bearer sk-planted-late"} == {seen.header("authorization") for seen in primary.requests}


def _key_in_file(primary: Wall, fallback: Wall, key: Path) -> dict[str, Any]:
    config = two_providers(primary, fallback)
    config["providers"]["primary"]["api_key"] = {"file": str(key)}
    return config


# -- what a publish leaves alone


def test_the_health_of_targets_outlives_a_publish(
    gateway: Gateway, operator: Operator, primary: Wall, fallback: Wall
) -> None:
    primary.script(rate_limited(60))
    assert "model_fallback" == gateway.chat().header("x-gateway-route-mode")
    assert 0 == operator.publish(changed(primary, fallback)).code
    assert (200, "fallback/demo-fallback-upstream", "2") == served(gateway.chat())
    assert 1 == primary.count()
    cooling = {"subject": "primary/demo-primary-upstream", "state": "cooling"}
    assert 1.0 == gateway.metric("gateway_target_state", **cooling)


def test_a_preview_shows_the_order_of_candidates_under_the_health_of_now(shared: Shared, tmp_path: Path) -> None:
    """Nothing is published, so that this gateway is shared with those who only look."""
    gateway, primary, fallback = shared
    operator = Operator(tmp_path, data_dir=gateway.data_dir)
    both = two_providers(primary, fallback)
    targets = [{"provider": name, "model": f"demo-{name}-upstream"} for name in ("primary", "fallback")]
    both["models"]["demo-primary"]["targets"] = [target | {"tier": n} for n, target in enumerate(targets)]
    path = operator.file(both)

    def candidates() -> tuple[list[str], list[dict[str, str]]]:
        seen = operator.run("preview", path, "--json").json
        assert seen["health_known"]
        (model,) = [one for one in seen["candidates"] if one["model"] == "demo-primary"]
        return [place["target"] for place in model["after"]], model["skipped"]

    first, second = (f"{target['provider']}/{target['model']}" for target in targets)
    assert ([first, second], []) == candidates()
    primary.script(rate_limited(60))
    gateway.chat()
    assert ([second], [{"target": first, "reason": "rate_limited"}]) == candidates()
    assert f"skipped now: {first}: rate_limited" in operator.run("preview", path).stdout


def test_requests_and_streams_at_a_provider_that_is_removed_run_to_their_end(
    gateway: Gateway, operator: Operator, primary: Wall, fallback: Wall
) -> None:
    """The clusters are taken from Envoy too, as happens some minutes after a publish."""
    slow_stream = ok("hello world", chunks=2, delay_s=60)
    primary.script(lambda seen: slow_stream if seen.wish("stream") else silence())
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(gateway.chat, stream=stream) for stream in (False, True)]
        primary.wait_for(2)
        assert 0 == operator.publish(_without_primary(primary, fallback)).code
        _remove_clusters_of(gateway, "primary")
        assert (200, "fallback/demo-fallback-upstream", "2") == served(gateway.chat())
        assert [False, False] == [one.done() for one in waiting]
        while not all(one.done() for one in waiting):
            primary.release()
        unary, stream = (one.result(10) for one in waiting)
    assert [(200, "clean", "1"), (200, "clean", "1")] == [
        (reply.status, reply.ended, reply.header(VERSION)) for reply in (unary, stream)
    ]
    assert "[DONE]" == stream.events[-1]


def _without_primary(primary: Wall, fallback: Wall) -> dict[str, Any]:
    config = two_providers(primary, fallback)
    del config["providers"]["primary"]
    config["models"]["demo-primary"] = config["models"]["demo-fallback"]
    return config


def _remove_clusters_of(gateway: Gateway, name: str) -> None:
    """Do what retiring an old version does, without waiting until no request can need it."""
    path = next((gateway.data_dir / "envoy").rglob("*cds*.json"))
    document = json.loads(path.read_text())
    kept = [cluster for cluster in document["resources"] if not cluster["name"].startswith(f"{name}-")]
    assert len(kept) < len(document["resources"])
    write_json(path, document | {"version_info": "retired", "resources": kept})
    gateway.wait_until(lambda: _envoy_runs(gateway) == "retired", "Envoy to take the clusters away")


def _envoy_runs(gateway: Gateway) -> str | int | None:
    text = "cluster_manager.cds.version_text"
    stats = asyncio.run(envoy_admin.stats(DataDir(gateway.data_dir).envoy_admin_socket, f"^{re.escape(text)}$"))
    return stats.get(text)


# -- what the running Envoy refuses


def test_a_version_that_only_the_running_envoy_refuses_leaves_the_old_one_whole(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    """Behind a binary that finds every version valid, the refusal comes from the process that serves."""
    blind = tmp_path / "blind-envoy"
    blind.write_text(f'#!/bin/sh\n[ "$1 $2" = "--mode validate" ] && exit 0\nexec {find_envoy(None, {})} "$@"\n')
    blind.chmod(0o755)
    gateway = gateway_factory(two_providers(primary, fallback), arguments=("--envoy", str(blind)))
    operator = Operator(tmp_path, data_dir=gateway.data_dir)
    before = _resources(gateway)
    config = two_providers(primary, fallback, connect_timeout="3s")
    authority = operator.file({"this": "is no certificate"}, "ca.pem")
    config["providers"]["bad"] = {
        "base_url": "https://127.0.0.1:9/v1",
        "allow_private_network": True,
        "tls": {"ca_file": authority},
        "api_key": {"env": "PRIMARY_KEY"},
    }
    config["models"]["bad"] = {"targets": [{"provider": "bad", "model": "m"}]}

    ran = operator.publish(config)

    assert (1, "failed", 1) == (ran.code, ran.json["outcome"], ran.json["returned_to"])
    assert authority in ran.json["version"]["outcome_reason"]
    assert before == _resources(gateway)
    assert (200, "primary/demo-primary-upstream", "1") == served(gateway.chat())
    assert 0 == operator.publish(changed(primary, fallback)).code
    assert "3" == gateway.chat().header(VERSION)
    assert 1.0 == gateway.metric("gateway_config_apply_failures_total")


def test_an_envoy_started_anew_without_a_certificate_file_is_told_and_can_be_repaired(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    """By the file coming back, or by a version that does not name it."""
    authority = tmp_path / "ca.pem"
    shutil.copy(CERTIFICATE, authority)
    config = two_providers(primary, fallback)
    config["providers"]["strict"] = {
        "base_url": "https://127.0.0.1:9/v1",
        "allow_private_network": True,
        "tls": {"ca_file": str(authority)},
    }
    config["models"]["strict"] = {"targets": [{"provider": "strict", "model": "m"}]}
    gateway = gateway_factory(config)
    operator = Operator(tmp_path, data_dir=gateway.data_dir)

    def error() -> str:
        (instance,) = operator.run("status", "--json").json["instances"]
        return str(instance["error"])

    def lose_it() -> None:
        authority.unlink()
        envoy = gateway.pids().envoy
        assert envoy is not None
        os.kill(envoy, signal.SIGKILL)
        gateway.wait_until(lambda: f"Invalid path: {authority}" in error(), "Envoy's words in the status", 20.0)

    lose_it()
    assert (200, "primary/demo-primary-upstream", "1") == served(gateway.chat())
    assert 1.0 == gateway.metric("gateway_config_apply_failures_total")
    shutil.copy(CERTIFICATE, authority)
    gateway.wait_until(lambda: error() == "None", "no error in the status", 20.0)
    lose_it()
    assert 0 == operator.publish(changed(primary, fallback)).code
    assert "2" == gateway.chat().header(VERSION)


def _resources(gateway: Gateway) -> dict[str, Any]:
    """Return what Envoy reads, without the texts that tell one write from the next."""
    root = gateway.data_dir / "envoy"
    documents = {str(path.relative_to(root)): json.loads(path.read_text()) for path in root.rglob("*.json")}
    return {name: document.get("resources") for name, document in documents.items()}
