"""What the admin API answers, seen from inside: no secret in a config, no row twice, no order that the audit misses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import grpc
import orjson
import pytest

from extproc import admin
from extproc.admin import UNTOLD, AdminService, InstanceStatus
from extproc.admin_messages import MASK, masked
from extproc.admin_server import AdminServer
from extproc.config.compile import canonical_json
from extproc.config.load import load_config
from extproc.core.gateway import Active
from extproc.ledger import Ledger
from extproc.ledger_reader import LedgerReader, Query
from extproc.settings import Address, AdminListen, StartError
from extproc.versions import HealthOrder, Wanted
from extproc.wire.pb import admin_pb2 as pb
from tests.support.certs import Authority
from tests.support.stories import CONFIG, NOW, SECOND, Scene, served, snapshot

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_a_masked_config_is_json_without_tokens_headers_and_queries() -> None:
    account = {
        "base_url": "https://first.example.com/v1",
        "api_key": {"env": "FIRST_KEY"},
        "headers": {"OpenAI-Organization": "org-visible-to-nobody"},
        "query": {"api-version": "preview-visible-to-nobody"},
    }
    clients = [{"name": "team", "token_sha256": DIGEST}]
    made = masked(snapshot({**CONFIG, "providers": {**CONFIG["providers"], "first": account}, "clients": clients}))
    text = orjson.dumps(made).decode()
    assert DIGEST not in text
    assert "visible-to-nobody" not in text
    assert {"source": "env", "name": "FIRST_KEY"} == made["providers"]["first"]["api_key"]
    assert {"openai-organization": MASK} == made["providers"]["first"]["headers"]
    assert ["team"] == [client["name"] for client in made["clients"]]


class Call:
    """A call on the Unix socket, or over TLS by whoever a certificate names."""

    def __init__(self, certificate: str | None = None) -> None:
        named = {"transport_security_type": [b"ssl"], "x509_common_name": [(certificate or "").encode()]}
        self._auth: Mapping[str, list[bytes]] = {} if certificate is None else named

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return self._auth

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise Aborted(code, details)


class Aborted(Exception):  # noqa: N818 - as gRPC ends a call
    """How a call was refused."""


class Journal:
    """Takes orders; `in_audit` is what it says of the store."""

    def __init__(self) -> None:
        self.in_audit = True
        self.orders: list[HealthOrder] = []

    async def record(self, order: HealthOrder) -> bool:
        self.orders.append(order)
        return self.in_audit


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "requests.db", lambda: NOW)
    made.start()
    yield made
    made.close()


class Archive:
    """Keeps versions; `broken` is why it cannot be reached."""

    def __init__(self) -> None:
        self.versions: dict[int, Wanted] = {}
        self.broken: str | None = None

    def version(self, number: int) -> Wanted | None:
        if self.broken is not None:
            raise OSError(self.broken)
        return self.versions.get(number)


@pytest.fixture
def archive() -> Archive:
    return Archive()


class Saved:
    """What of health reached the disk, and how many orders the journal had by then."""

    def __init__(self, scene: Scene, journal: Journal) -> None:
        self.seen: list[tuple[str, int]] = []
        self._scene = scene
        self._journal = journal

    async def __call__(self) -> None:
        states = {row.subject: row.view.state.value for row in self._scene.gateway.health.states(NOW)}
        self.seen.append((states.get("first", ""), len(self._journal.orders)))


@pytest.fixture
def saved(scene: Scene, journal: Journal) -> Saved:
    return Saved(scene, journal)


@pytest.fixture
def service(scene: Scene, journal: Journal, archive: Archive, ledger: Ledger, saved: Saved) -> AdminService:
    status = InstanceStatus(NOW, True, 1, 1, NOW, "")
    return AdminService(scene.gateway, ledger, journal, archive, lambda: status, saved, lambda: NOW)  # type: ignore[arg-type]


def order(service: AdminService, call: Call | None = None, **members: Any) -> pb.HealthRow:
    """Give an order that is whole unless a member says otherwise."""
    whole: dict[str, Any] = {"subject": "first", "action": pb.HEALTH_ACTION_DOWN, "owner": "ann", "reason": "bill"}
    context: Any = call or Call()
    return asyncio.run(service.set_health(pb.SetHealthRequest(**whole | members), context))


# -- orders


def test_an_order_holds_and_is_handed_to_the_audit(service: AdminService, journal: Journal) -> None:
    row = order(service, expires_in_s=60.0)

    assert ("down", "ann", "bill", NOW + 60) == (row.state, row.order.owner, row.order.reason, row.order.expires_at)
    assert row.in_audit
    told = HealthOrder("", NOW, "health_down", "ann", "claim", "first", "bill", NOW + 60, None)
    assert [told] == [replace(one, id="") for one in journal.orders]


def test_an_order_is_on_the_disk_before_it_is_in_the_audit_or_answered(service: AdminService, saved: Saved) -> None:
    order(service)

    assert [("down", 0)] == saved.seen


def test_an_order_holds_without_the_store_and_says_so(service: AdminService, journal: Journal, scene: Scene) -> None:
    journal.in_audit = False

    assert ("down", False) == ((row := order(service)).state, row.in_audit)
    assert "down" == next(row for row in scene.gateway.health.states(NOW) if row.subject == "first").view.state


def test_any_model_that_a_caller_may_name_can_be_the_subject(service: AdminService) -> None:
    assert "third/org/mödel 日本" == order(service, subject="third/org/mödel 日本").subject


@pytest.mark.parametrize(
    ("members", "act", "refused"),
    [
        ({"action": 0}, "health_order", "The action must be drain, down or restore."),
        ({"owner": " "}, "health_down", "An order needs an owner"),
        ({"owner": "", "action": pb.HEALTH_ACTION_RESTORE}, "health_restore", "An order needs an owner"),
        ({"reason": ""}, "health_down", "An order needs a reason"),
        ({"expires_in_s": 0.0}, "health_down", "The expiry must be above 0"),
        ({"expires_in_s": float("nan")}, "health_down", "The expiry must be above 0"),
        ({"expires_in_s": 1e300}, "health_down", "The expiry must be above 0"),
        ({"subject": "nobody"}, "health_down", "'nobody' is neither a provider nor one of its targets"),
        ({"subject": "first/unknown"}, "health_down", "'first/unknown' is neither a provider"),
        ({"subject": "third/a\x1b[2J\r\nFAKE"}, "health_down", "The subject's model must be"),
        ({"subject": "third/a\u202e"}, "health_down", "The subject's model must be"),
        ({"subject": "third/ a", "action": pb.HEALTH_ACTION_RESTORE}, "health_restore", "The subject's model must be"),
        ({"subject": f"third/{'a' * 257}"}, "health_down", "The subject's model must be"),
    ],
)
@pytest.mark.parametrize("in_audit", [True, False])
def test_a_refused_order_is_handed_to_the_audit_too(
    service: AdminService,
    journal: Journal,
    scene: Scene,
    members: dict[str, Any],
    act: str,
    refused: str,
    in_audit: bool,
) -> None:
    journal.in_audit = in_audit
    with pytest.raises(Aborted) as aborted:
        order(service, **members)

    code, sentence = aborted.value.args
    assert (grpc.StatusCode.INVALID_ARGUMENT, True) == (code, sentence.startswith(refused))
    assert in_audit is not sentence.endswith(UNTOLD)
    assert [(act, sentence.removesuffix(f" {UNTOLD}"))] == [(one.act, one.refused) for one in journal.orders]
    assert (None, []) == (journal.orders[0].expires_at, list(scene.gateway.health.states(NOW)))


def test_a_certificate_names_the_actor_and_nothing_else_does(service: AdminService, journal: Journal) -> None:
    row = order(service, Call("bob"), owner="mallory")

    assert ("bob", [("bob", "certificate")]) == (
        row.order.owner,
        [(one.actor, one.named_by) for one in journal.orders],
    )


def test_a_certificate_without_a_name_gives_no_orders(service: AdminService, journal: Journal) -> None:
    with pytest.raises(Aborted, match="An order needs an owner"):
        order(service, Call(""))

    assert ["unnamed"] == [one.actor for one in journal.orders]


def test_words_of_an_order_are_fit_for_every_database_and_terminal(service: AdminService, journal: Journal) -> None:
    order(service, owner="a\x00n\x1bn", reason="x" * 3000)

    (told,) = journal.orders
    assert ("a n n", 2000) == (told.actor, len(told.reason))


# -- health


def test_a_missing_key_takes_the_account_and_its_targets_out_with_that_reason(
    service: AdminService, scene: Scene
) -> None:
    active = scene.gateway.active
    assert active is not None
    scene.gateway.health.retain([SECOND])
    scene.gateway.activate(replace(active, missing_keys=frozenset({"second"})))
    context: Any = Call()

    rows = asyncio.run(service.list_health(pb.ListHealthRequest(), context)).rows

    assert [("second", "down", False, "missing_key"), (str(SECOND), "down", False, "missing_key")] == [
        (row.subject, row.state, row.eligible, row.reason) for row in rows
    ]


# -- requests


@pytest.fixture
def end_request(scene: Scene, ledger: Ledger) -> Callable[[str], None]:
    """Let a request end and be written down."""

    def end(request_id: str) -> None:
        scene.begin(request_id)
        scene.attempt_ends(request_id, "first-cluster")
        scene.request_ends(request_id, told=served())
        ledger.add(scene.stories.pop())
        assert ledger.flush(10)

    return end


async def _followed(service: AdminService, count: int) -> list[str]:
    context: Any = Call()
    rows: AsyncIterator[pb.RequestRow] = service.list_requests(pb.ListRequestsRequest(follow=True), context)
    seen: list[str] = []
    async with asyncio.timeout(10), aclosing(rows):  # type: ignore[type-var]  # an async generator
        async for row in rows:
            seen.append(row.request_id)
            if len(seen) == count:
                break
    return seen


def test_a_request_that_ends_while_the_list_is_read_is_followed_once(
    service: AdminService, end_request: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "FOLLOW_POLL_S", 0.0)
    look, looks = LedgerReader.entries, iter(("during", "after", "last"))

    def entries(reader: LedgerReader, query: Query) -> list[Any]:
        if (name := next(looks, None)) is not None:
            end_request(name)
        return look(reader, query)

    end_request("before")
    monkeypatch.setattr(LedgerReader, "entries", entries)

    assert ["before", "during", "after", "last"] == asyncio.run(_followed(service, 4))


# -- explain


@pytest.mark.parametrize("verb", ["list", "explain"])
def test_a_ledger_that_cannot_be_read_is_a_sentence(
    service: AdminService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(service, "_reader", LedgerReader(tmp_path))
    context: Any = Call()

    async def ask() -> None:
        if verb == "explain":
            await service.explain(pb.ExplainRequest(request_id="r"), context)
        async for _ in service.list_requests(pb.ListRequestsRequest(), context):
            pass

    with pytest.raises(Aborted) as refused:
        asyncio.run(ask())

    code, told = refused.value.args
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert told.startswith("The ledger cannot be read: ")


FORGOTTEN: dict[str, tuple[dict[str, Any] | None, str | None, dict[str, Any]]] = {
    "it is in the store": (CONFIG, None, {"same": True, "differs": None, "not_run": None}),
    "it is not in the store": (
        None,
        None,
        {"same": None, "differs": None, "not_run": "version 1 is neither in memory nor in the store"},
    ),
    "the store has another content": (
        {**CONFIG, "models": {**CONFIG["models"], "new": CONFIG["models"]["small"]}},
        None,
        {
            "same": None,
            "differs": None,
            "not_run": "version 1 here has other content than the one this request was planned with",
        },
    ),
    "the store is gone": (
        None,
        "The store is not there.",
        {
            "same": None,
            "differs": None,
            "not_run": "version 1 is not in memory, and the store did not give it: The store is not there.",
        },
    ),
}


@pytest.mark.parametrize(("stored", "broken", "expected"), FORGOTTEN.values(), ids=FORGOTTEN)
def test_a_version_that_left_memory_is_planned_again_from_the_store(
    service: AdminService,
    scene: Scene,
    archive: Archive,
    end_request: Callable[[str], None],
    stored: dict[str, Any] | None,
    broken: str | None,
    expected: dict[str, Any],
) -> None:
    end_request("r")
    for number in range(2, 20):
        scene.gateway.activate(Active(snapshot(version=number), {}))
    archive.broken = broken
    if stored is not None:
        content = canonical_json(load_config(orjson.dumps(stored).decode()))
        archive.versions[1] = Wanted(1, snapshot(stored).digest, content.decode())
    context: Any = Call()

    reply = asyncio.run(service.explain(pb.ExplainRequest(request_id="r"), context))

    assert expected == orjson.loads(reply.json)["replay"]


# -- the address


def test_an_address_that_another_program_has_is_a_sentence(service: AdminService, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.sign("gateway", "IP:127.0.0.1")

    async def start(port: int) -> None:
        address = Address("127.0.0.1", port)
        server = AdminServer(tmp_path / "s", service, AdminListen(address, own.cert, own.key, authority.cert))
        try:
            await server.start()
        finally:
            await server.stop(0)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"^The admin API cannot listen on 127\.0\.0\.1:{port}: "):
            asyncio.run(start(port))
