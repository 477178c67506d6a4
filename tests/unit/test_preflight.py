from __future__ import annotations

import socket
from pathlib import Path

import pytest

from extproc.preflight import claim_port, load_snapshot, refuse_open_door
from extproc.settings import Address, StartError

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
