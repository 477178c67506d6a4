"""TLS to providers is always verified; TLS from callers is served from files that may be renewed at any time."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import pytest

from tests.e2e.conftest import GatewayFactory
from tests.e2e.test_credentials import admin_page
from tests.support import http1
from tests.support.certs import Authority, Pair
from tests.support.files import files_with
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.names import Names
from tests.support.operator import Operator
from tests.support.wall import Wall

HOST = "api.example.com"
SAN = f"DNS:{HOST},IP:127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority that the system does not know."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def names() -> Iterator[Names]:
    """Let the provider's name lead to loopback."""
    with Names({HOST: "127.0.0.1"}) as started:
        yield started


def serving(pair: Pair, *, asks: Path | None = None) -> ssl.SSLContext:
    """Make a provider's TLS; `asks` is the authority of the client certificates it demands."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if asks is not None:
        context.load_verify_locations(asks)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass(frozen=True, slots=True)
class Case:
    """A provider's certificate, and who serves: itself, or the next one because it could not be trusted."""

    name: str
    san: str
    host: str
    served_by: str
    signed_by: Literal["ours", "nobody"] = "ours"
    ca_file: bool = True
    client: Literal["none", "shown", "absent"] = "none"
    """Whether the provider demands a client certificate, and whether the config has one."""


OWN_AND_TRUSTED = (
    Case("of-the-address", SAN, "127.0.0.1", "primary"),
    Case("of-the-name", SAN, HOST, "primary"),
    Case("of-a-wildcard", "DNS:*.example.com", HOST, "primary"),
    Case("of-another-name", "DNS:other.example.com", HOST, "fallback"),
    Case("of-a-name-that-looks-like-the-address", "DNS:127.0.0.1", "127.0.0.1", "fallback"),
    Case("of-no-name-but-the-subject-s", "", HOST, "fallback"),
    Case("of-an-authority-nobody-knows", SAN, HOST, "fallback", signed_by="nobody"),
)
WITHOUT_CA_FILE = Case("without-ca-file", SAN, "127.0.0.1", "fallback", ca_file=False)
ASKS_FOR_OURS = (
    Case("ours-is-shown", SAN, "127.0.0.1", "primary", client="shown"),
    Case("ours-is-absent", SAN, "127.0.0.1", "fallback", client="absent"),
)
CASES = (*OWN_AND_TRUSTED, WITHOUT_CA_FILE, *ASKS_FOR_OURS)


class Providers(NamedTuple):
    """One gateway in front of a wall for each case, whose model falls back to the one that anybody may trust."""

    gateway: Gateway
    walls: Mapping[str, Wall]

    def serve(self, case: Case) -> tuple[int, str]:
        """Ask for a case's model: the status, and which of the two providers served."""
        reply = self.gateway.chat(case.name)
        account = (reply.header("x-gateway-served-by") or "").partition("/")[0]
        return reply.status, {case.name: "primary"}.get(account, account)


def wall_of(case: Case, authority: Authority, folder: Path) -> Wall:
    """Make the wall of a case, with its certificate."""
    signer = authority if case.signed_by == "ours" else Authority(folder / "nobody")
    pair = signer.sign(case.name if case.san else HOST, case.san)
    return Wall(tls=serving(pair, asks=None if case.client == "none" else authority.cert))


def provider_of(case: Case, wall: Wall, authority: Authority, own: Pair) -> dict[str, Any]:
    tls = {"ca_file": str(authority.cert)} if case.ca_file else {}
    if case.client == "shown":
        tls |= {"client_cert_file": str(own.cert), "client_key_file": str(own.key)}
    return provider(wall, "PRIMARY_KEY") | {"base_url": f"https://{case.host}:{wall.port}/v1", "tls": tls}


@pytest.fixture(scope="module")
def providers(
    module_gateway_factory: GatewayFactory,
    authority: Authority,
    names: Names,
    tmp_path_factory: pytest.TempPathFactory,
    module_fallback: Wall,
) -> Iterator[Providers]:
    """Start the gateway of all cases."""
    folder = tmp_path_factory.mktemp("providers")
    own = authority.sign("gateway-client")
    with ExitStack() as stack:
        walls = {case.name: stack.enter_context(wall_of(case, authority, folder)) for case in CASES}
        accounts: dict[str, Any] = {case.name: provider_of(case, walls[case.name], authority, own) for case in CASES}
        models: dict[str, Any] = {
            case.name: {"targets": [{"provider": case.name, "model": "m"}], "fallback": ["rescue"]} for case in CASES
        }
        config = {
            "schema": 1,
            "providers": accounts | {"fallback": provider(module_fallback)},
            "models": models | {"rescue": {"targets": [{"provider": "fallback", "model": "m"}]}},
        }
        gateway = module_gateway_factory(config, arguments=("--envoy", str(names.envoy(folder))))
        yield Providers(gateway, walls)


class TestTheCertificateOfAProvider:
    @pytest.mark.parametrize("case", OWN_AND_TRUSTED, ids=lambda case: case.name)
    def test_must_be_its_own_and_trusted(self, providers: Providers, case: Case) -> None:
        """Otherwise the attempt fails as a connection does, the next provider serves, and no byte was sent."""
        assert (200, case.served_by) == providers.serve(case)
        assert (case.served_by == "primary") is bool(providers.walls[case.name].requests)

    def test_of_a_private_authority_needs_its_ca_file(self, providers: Providers) -> None:
        """The system's authorities alone do not vouch for it."""
        assert (200, "fallback") == providers.serve(WITHOUT_CA_FILE)
        assert [] == providers.walls[WITHOUT_CA_FILE.name].requests

    @pytest.mark.parametrize("case", ASKS_FOR_OURS, ids=lambda case: case.client)
    def test_may_ask_for_ours(self, providers: Providers, case: Case) -> None:
        """A provider that demands a client certificate gets the one of its config, or no request."""
        assert (200, case.served_by) == providers.serve(case)
        assert (case.served_by == "primary") is bool(providers.walls[case.name].requests)


def secured(pair: Pair, primary: Wall, fallback: Wall) -> dict[str, Any]:
    """Serve callers over TLS."""
    config = two_providers(primary, fallback)
    return config | {"server": {"tls": {"cert_file": str(pair.cert), "key_file": str(pair.key)}}}


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.cert))


def ask(gateway: Gateway, authority: Authority) -> http1.Reply:
    body = {"model": "demo-primary", "messages": []}
    url = f"https://127.0.0.1:{gateway.port}/v1/chat/completions"
    return http1.request(url, json=body, tls=trusting(authority))


def certificate_of(gateway: Gateway, authority: Authority) -> bytes | None:
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as plain,
        trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        return tls.getpeercert(binary_form=True)


def up_to_tls_1_1(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let a context speak what nobody should speak any more."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def agreed(caller: ssl.SSLContext, server: ssl.SSLContext) -> str | None:
    """Return the version that two contexts settle on, without a socket."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        caller.wrap_bio(back, there, server_hostname="127.0.0.1"),
        server.wrap_bio(there, back, server_side=True),
    ]
    for end in ends * 3:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return ends[0].version()


class Front(NamedTuple):
    """A gateway that serves callers over TLS, and its certificate, which those who share it leave alone."""

    gateway: Gateway
    pair: Pair


@pytest.fixture(scope="module")
def front(
    module_gateway_factory: GatewayFactory, authority: Authority, module_primary: Wall, module_fallback: Wall
) -> Front:
    pair = authority.sign("front", SAN)
    return Front(module_gateway_factory(secured(pair, module_primary, module_fallback)), pair)


class TestTheFrontListener:
    @pytest.fixture
    def pair(self, authority: Authority) -> Pair:
        return authority.sign("front-of-its-own", SAN)

    def test_speaks_http_1_and_2_over_tls_and_nothing_in_the_clear(self, front: Front, authority: Authority) -> None:
        gateway = front.gateway
        url = f"https://127.0.0.1:{gateway.port}/v1/chat/completions"
        body = {"model": "demo-primary", "messages": [{"role": "user", "content": "hi"}]}

        with httpx.Client(http2=True, verify=trusting(authority)) as client:
            second = client.post(url, json=body)

        assert (200, "HTTP/2") == (second.status_code, second.http_version)
        assert 200 == ask(gateway, authority).status
        assert 0 == gateway.chat().status

    def test_refuses_a_caller_who_knows_no_tls_above_1_1(self, front: Front, authority: Authority) -> None:
        """The same caller does reach a server that allows it: it is Envoy who refuses."""
        gateway, pair = front
        caller = up_to_tls_1_1(trusting(authority))

        assert "TLSv1.1" == agreed(caller, up_to_tls_1_1(serving(pair)))
        with (
            socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as plain,
            pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version"),
        ):
            caller.wrap_socket(plain, server_hostname="127.0.0.1")

    def test_takes_a_renewed_certificate_without_a_publish(
        self, gateway_factory: GatewayFactory, authority: Authority, pair: Pair, primary: Wall, fallback: Wall
    ) -> None:
        """Replaced in place, as by a plain copy."""
        gateway = gateway_factory(secured(pair, primary, fallback))
        before = certificate_of(gateway, authority)
        renewed = authority.sign("renewed", SAN)
        pair.key.write_bytes(renewed.key.read_bytes())
        pair.cert.write_bytes(renewed.cert.read_bytes())

        gateway.wait_until(lambda: certificate_of(gateway, authority) != before, "the renewed certificate", 20)

        assert 200 == ask(gateway, authority).status

    def test_keeps_its_certificate_when_a_version_with_another_is_refused(
        self, front: Front, authority: Authority, module_primary: Wall, module_fallback: Wall, tmp_path: Path
    ) -> None:
        """What Envoy does not take changes nothing, the files it has read before included."""
        gateway, pair = front
        primary, fallback = module_primary, module_fallback
        before = certificate_of(gateway, authority)
        other = authority.sign("other", SAN)
        unusable = secured(other, primary, fallback)
        unusable["providers"]["primary"] |= {
            "base_url": f"https://127.0.0.1:{primary.port}/v1",
            "tls": {"ca_file": str(other.key)},
        }
        operator = Operator(tmp_path, data_dir=gateway.data_dir)

        refused = operator.publish(unusable)
        halves = operator.publish(secured(Pair(other.cert, pair.key), primary, fallback))

        assert (1, 1) == (refused.code, halves.code)
        assert "cert_file and key_file cannot be used together" in halves.stdout + halves.stderr
        assert before == certificate_of(gateway, authority)
        assert 200 == ask(gateway, authority).status

    def test_keeps_its_certificate_when_the_files_go_away(
        self, gateway_factory: GatewayFactory, authority: Authority, pair: Pair, primary: Wall, fallback: Wall
    ) -> None:
        gateway = gateway_factory(secured(pair, primary, fallback))
        pair.key.unlink()

        gateway.wait_until(lambda: "stay as they were" in gateway.logs(), "the warning", 20)

        assert 200 == ask(gateway, authority).status

    def test_speaks_http_2_to_a_provider_that_offers_it(
        self, gateway_factory: GatewayFactory, authority: Authority, front: Front
    ) -> None:
        """A second gateway is the provider here: its Envoy offers h2."""
        inner = front.gateway
        config = {
            "schema": 1,
            "providers": {
                "inner": {
                    "base_url": f"https://127.0.0.1:{inner.port}/v1",
                    "allow_private_network": True,
                    "tls": {"ca_file": str(authority.cert)},
                }
            },
            "models": {"m": {"targets": [{"provider": "inner", "model": "demo-primary"}]}},
        }
        outer = gateway_factory(config)

        assert 200 == outer.chat("m").status

        stats = admin_page(outer.data_dir / "run" / "envoy-admin.sock", "/stats?filter=cluster.inner.*http2_total")
        assert b"upstream_cx_http2_total: 1" in stats


def test_a_certificate_that_cannot_be_read_is_a_refusal_with_its_name(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall, tmp_path: Path
) -> None:
    """Not a gateway that serves in the clear, and not one that serves nobody."""
    missing = Pair(tmp_path / "no.pem", tmp_path / "no.key")
    with pytest.raises(AssertionError, match=r"server\.tls: .*no\.pem is not there"):
        gateway_factory(secured(missing, primary, fallback))


def test_the_front_key_is_written_only_where_keys_are(front: Front) -> None:
    """0600 in `sds`, and in no log."""
    gateway, pair = front
    planted = pair.key.read_text().splitlines()[1]

    holders = files_with(gateway.data_dir, planted)

    assert [("sds", 0o600)] == [(path.parent.name, path.stat().st_mode & 0o777) for path in holders]
    assert planted not in gateway.logs()
