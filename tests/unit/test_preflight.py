from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.config.errors import ConfigErrors
from extproc.config.snapshot import Snapshot
from extproc.data_dir import DataDir
from extproc.handover import Claimed
from extproc.preflight import claim, claim_port, load_snapshot, refuse_open_door
from extproc.settings import Address, ServeSettings, StartError

LOOPBACK = Address("127.0.0.1", 18080)
ANYWHERE = Address("0.0.0.0", 18080)  # noqa: S104 - what is refused


def config_file(tmp_path: Path, more: str = "") -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "schema: 1\n"
        "providers: {p: {base_url: 'https://api.example.com/v1'}}\n"
        "models: {m: {targets: [{provider: p, model: m}]}}\n" + more
    )
    return path


def test_the_config_file_becomes_version_1(tmp_path: Path) -> None:
    assert load_snapshot(config_file(tmp_path)).version == 1


def test_a_public_address_needs_clients(tmp_path: Path) -> None:
    snapshot = load_snapshot(config_file(tmp_path))

    with pytest.raises(StartError, match=r"Refusing to listen on 0\.0\.0\.0:18080: .* Add a clients section"):
        refuse_open_door(snapshot, (LOOPBACK, ANYWHERE))


def test_a_public_address_with_clients_is_the_operators_choice(tmp_path: Path) -> None:
    clients = f"clients: [{{name: a, token_sha256: '{'0' * 64}'}}]\n"

    refuse_open_door(load_snapshot(config_file(tmp_path, clients)), (ANYWHERE,))


def test_loopback_needs_no_clients(tmp_path: Path) -> None:
    refuse_open_door(load_snapshot(config_file(tmp_path)), (LOOPBACK, Address("::1", 1)))


def test_a_port_in_use_is_named_together_with_the_flag_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port} is in use, .* with --listen\."):
            claim_port(Address("127.0.0.1", port), "--listen")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartError, match=r"Cannot listen on 192\.0\.2\.1:18080: .* with --metrics-listen\."):
        claim_port(Address("192.0.2.1", 18080), "--metrics-listen")


def test_port_0_becomes_a_free_port() -> None:
    assert claim_port(Address("127.0.0.1", 0), "--listen").port > 0


# What a gateway claims before it starts


def settings(tmp_path: Path, **changes: Any) -> ServeSettings:
    values: dict[str, Any] = {
        "config": tmp_path / "gateway.yaml",
        "data_dir": tmp_path / "data",
        "listen": Address("127.0.0.1", 0),
        "metrics_listen": Address("127.0.0.1", 0),
        "envoy": None,
        "environ": {},
        "store": "sqlite://",
        "supervised": True,
    }
    return ServeSettings(**{**values, **changes})


def claimed(asked: ServeSettings, prepare: Callable[[DataDir], Snapshot]) -> Claimed:
    with claim(asked, prepare, os.getpid()) as (found, _):
        return found


def unprepared(data_dir: DataDir) -> Snapshot:
    """Stand for a store that must not be touched."""
    pytest.fail("the store was made ready")


def test_two_addresses_that_are_one_are_refused(tmp_path: Path) -> None:
    taken = claim_port(Address("127.0.0.1", 0), "--listen")
    asked = settings(tmp_path, config=config_file(tmp_path), listen=taken, metrics_listen=taken)

    with pytest.raises(StartError, match=r"both name 127\.0\.0\.1"):
        claimed(asked, lambda data_dir: load_snapshot(config_file(tmp_path)))


def test_config_errors_come_before_addresses_are_looked_at(tmp_path: Path) -> None:
    path = config_file(tmp_path, "surplus: 1\nextra: 2\n")

    with pytest.raises(ConfigErrors) as refused:
        claimed(settings(tmp_path, config=path, listen=ANYWHERE), unprepared)

    assert ["surplus", "extra"] == [error.path for error in refused.value.errors]


def test_a_bad_file_leaves_no_trace(tmp_path: Path) -> None:
    path = config_file(tmp_path, "surplus: 1\n")

    with pytest.raises(ConfigErrors):
        claimed(settings(tmp_path, config=path), unprepared)

    assert not (tmp_path / "data").exists()


def test_a_file_that_opens_the_door_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"^Refusing to listen on 0\.0\.0\.0:18080"):
        claimed(settings(tmp_path, config=config_file(tmp_path), listen=ANYWHERE), unprepared)


def test_the_version_that_runs_is_what_decides_about_the_door(tmp_path: Path) -> None:
    """The store's active version may be another than the file."""
    asked = settings(tmp_path, config=None, listen=ANYWHERE)

    with pytest.raises(StartError, match=r"^Refusing to listen on 0\.0\.0\.0:18080"):
        claimed(asked, lambda data_dir: load_snapshot(config_file(tmp_path)))


def test_the_store_is_made_ready_under_the_lock_of_the_data_directory(tmp_path: Path) -> None:
    seen: list[Path] = []

    def prepare(data_dir: DataDir) -> Snapshot:
        seen.append(data_dir.root)
        with pytest.raises(StartError, match="already uses the data directory"), data_dir.lock_exclusive():
            pass
        raise StartError("enough was seen")

    with pytest.raises(StartError, match="enough was seen"):
        claimed(settings(tmp_path, config=None), prepare)

    assert seen == [tmp_path / "data"]
