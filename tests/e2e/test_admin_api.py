"""The admin API over TCP, where a certificate says who acts, and the audit of every order, whoever gives it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc.data_dir import DataDir
from extproc.wire.pb import admin_pb2 as pb
from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.certs import Authority, Pair
from tests.support.gateway import two_providers
from tests.support.operator import Operator, Ran
from tests.support.ports import free_port, release_port
from tests.support.wall import Wall

TARGET = "primary/demo-primary-upstream"


class Door:
    """A gateway whose admin API listens on TCP, and who may come in."""

    def __init__(self, factory: GatewayFactory, folder: Path, port: int, config: dict[str, Any]) -> None:
        self.operators = Authority(folder / "operators")
        self.machines = Authority(folder / "machines")
        self.ann = self.operators.sign("ann", "email:ann@example.com")
        self.port = port
        # A copy, so that a test may put another one in its place.
        self.trusted = folder / "client-ca.pem"
        shutil.copy(self.operators.cert, self.trusted)
        own = self.machines.sign("gateway", "DNS:localhost,IP:127.0.0.1")
        files = ("--admin-cert", str(own.cert), "--admin-key", str(own.key), "--admin-client-ca", str(self.trusted))
        self.gateway = factory(config, arguments=("--admin-listen", f"127.0.0.1:{port}", *files))
        # A directory where no gateway runs: what is answered came over TCP.
        store = f"sqlite:///{DataDir(self.gateway.data_dir).store_db}"
        self.operator = Operator(folder, data_dir=folder / "elsewhere", store=store)

    def run(self, *argv: str, pair: Pair | None = None, ca: Authority | None = None) -> Ran:
        """Run a verb over TCP, by Ann unless somebody else's certificate is given."""
        own, authority = pair or self.ann, ca or self.machines
        files = ("--tls-cert", str(own.cert), "--tls-key", str(own.key), "--tls-ca", str(authority.cert))
        return self.operator.run("--admin", f"127.0.0.1:{self.port}", *files, *argv)


@pytest.fixture(scope="module")
def door(
    module_gateway_factory: GatewayFactory,
    tmp_path_factory: pytest.TempPathFactory,
    module_primary: Wall,
    module_fallback: Wall,
) -> Iterator[Door]:
    port = free_port()
    folder = tmp_path_factory.mktemp("door")
    yield Door(module_gateway_factory, folder, port, two_providers(module_primary, module_fallback))
    release_port(port)


class TestOverTcp:
    def test_a_certificate_of_the_client_authority_opens_every_live_verb(self, door: Door) -> None:
        request_id = door.gateway.chat().header("x-request-id") or ""
        door.gateway.wait_until(lambda: door.gateway.metric("gateway_ledger_rows_total") > 0, "the request's row")
        status = door.run("status", "--json")
        assert (0, True) == (status.code, status.json["gateway"]["ready"])
        assert TARGET in [row["subject"] for row in door.run("health", "--json").json]
        assert TARGET in door.run("health", "list").stdout
        assert [request_id] == [row["request_id"] for row in door.run("requests", "--json").json]
        assert request_id == door.run("explain", request_id, "--json").json["request_id"]

    def test_a_caller_without_a_certificate_gets_no_answer(self, door: Door) -> None:
        credentials = grpc.ssl_channel_credentials(door.machines.cert.read_bytes())
        assert grpc.StatusCode.UNAVAILABLE is _refused(door, credentials)

    def test_a_caller_without_tls_gets_no_answer(self, door: Door) -> None:
        assert grpc.StatusCode.UNAVAILABLE is _refused(door, None)

    def test_a_certificate_of_another_authority_is_refused(self, door: Door, tmp_path: Path) -> None:
        stranger = Authority(tmp_path / "strangers").sign("ann")
        ran = door.run("health", pair=stranger)
        assert (1, "") == (ran.code, ran.stdout)
        assert ran.stderr.startswith(f"No gateway can be reached at 127.0.0.1:{door.port}: either none listens there")

    def test_a_gateway_of_another_authority_is_not_asked(self, door: Door) -> None:
        assert 1 == door.run("health", ca=door.operators).code

    def test_an_order_is_the_certificates_whatever_is_claimed(self, door: Door) -> None:
        argv = ("health", "down", TARGET, "--reason", "bill", "--owner", "mallory", "--json")
        assert ("ann@example.com", True) == ((told := door.run(*argv).json)["order"]["owner"], told["in_audit"])
        entry, *_ = door.operator.run("audit", "--json").json
        assert ("health_down", "ann@example.com", "certificate") == (
            entry["act"],
            entry["actor"],
            entry["detail"]["named_by"],
        )

    def test_another_client_authority_holds_from_the_next_connection_on(self, door: Door, tmp_path: Path) -> None:
        newer = Authority(tmp_path / "newer")
        shutil.copy(newer.cert, door.trusted)
        assert (1, 0) == (door.run("health").code, door.run("health", pair=newer.sign("bob")).code)
        shutil.copy(door.operators.cert, door.trusted)
        assert 0 == door.run("health").code

    def test_without_the_three_files_configctl_says_what_is_missing(self, door: Door) -> None:
        ran = door.operator.run("health", "--admin", f"127.0.0.1:{door.port}", "--tls-ca", str(door.machines.cert))
        assert (1, "--admin needs --tls-cert and --tls-key too: the gateway takes callers by certificate.\n") == (
            ran.code,
            ran.stderr,
        )


def _refused(door: Door, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    address = f"127.0.0.1:{door.port}"
    made = grpc.insecure_channel(address) if credentials is None else grpc.secure_channel(address, credentials)
    with made as channel:
        call = channel.unary_unary(
            "/gateway.v1.Admin/Status",
            request_serializer=pb.StatusRequest.SerializeToString,
            response_deserializer=pb.StatusReply.FromString,
        )
        with pytest.raises(grpc.RpcError) as refused:
            call(pb.StatusRequest(), timeout=5)
    code: grpc.StatusCode = refused.value.code()
    return code


class TestTheAudit:
    @pytest.fixture
    def operator(self, shared: Shared, tmp_path: Path) -> Operator:
        return Operator(tmp_path, data_dir=shared.gateway.data_dir)

    def test_has_every_order_with_who_gave_it_and_why(self, operator: Operator, shared: Shared) -> None:
        assert 0 == operator.run("health", "drain", "primary", "--reason", "their incident", "--for", "1h").code
        assert 0 == operator.run("health", "restore", "primary", "--author", "bob").code
        restored, drained, *_ = _orders(operator)
        assert ("health_drain", "operator", False, None) == (
            *(drained[key] for key in ("act", "actor", "refused", "version")),
        )
        detail = drained["detail"]
        assert ("primary", "their incident", "done", "claim", True) == (
            *(detail[key] for key in ("subject", "message", "outcome", "named_by")),
            str(shared.gateway.data_dir) in detail["gateway"],
        )
        assert drained["at"] < detail["expires_at"]
        assert ("health_restore", "bob") == (restored["act"], restored["actor"])
        assert 0 == operator.run("audit", "verify").code

    def test_has_the_refused_ones_too(self, operator: Operator) -> None:
        refused = operator.run("health", "down", "nobody", "--reason", "x")
        assert (1, "'nobody' is neither a provider nor one of its targets (provider/model).\n") == (
            refused.code,
            refused.stderr,
        )
        entry, *_ = _orders(operator)
        assert ("health_down", "operator", True, "refused", refused.stderr.strip()) == (
            *(entry[key] for key in ("act", "actor", "refused")),
            entry["detail"]["outcome"],
            entry["detail"]["reason"],
        )

    def test_of_an_order_without_its_store_follows_when_the_store_is_back_even_after_a_crash(
        self, operator: Operator, shared: Shared, tmp_path: Path
    ) -> None:
        gateway, message = shared.gateway, "down, and the store is too"
        files = sorted(gateway.data_dir.glob("store.db*"))
        for path in files:
            shutil.move(path, tmp_path / path.name)
        gateway.wait_until(lambda: "the config store cannot be reached" in gateway.logs(), "a warning about the store")
        ran = operator.run("health", "down", "primary", "--reason", message, "--json")
        assert (0, "down", False) == (ran.code, ran.json["state"], ran.json["in_audit"])
        assert "The store cannot be reached: the order holds" in ran.stderr
        assert "model_fallback" == gateway.chat().header("x-gateway-route-mode")
        gateway.kill_extproc()
        for path in files:
            shutil.move(tmp_path / path.name, path)

        def told() -> list[dict[str, Any]]:
            return [one for one in _orders(operator) if one["detail"]["message"] == message]

        (entry,) = gateway.wait_until(told, "the order in the audit", 20.0)
        assert "health_down" == entry["act"]
        assert 0 == operator.run("audit", "verify").code


def _orders(operator: Operator) -> list[dict[str, Any]]:
    """Return the audit's entries about health, newest first."""
    entries: list[dict[str, Any]] = operator.run("audit", "--json").json
    return [entry for entry in entries if entry["act"].startswith("health_")]
