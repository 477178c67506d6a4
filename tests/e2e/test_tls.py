"""TLS to providers is always verified; TLS from callers is served from files that may be renewed at any time."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import GatewayFactory
from tests.e2e.test_credentials import admin_page
from tests.support import http1
from tests.support.certs import Authority, Pair
from tests.support.gateway import Gateway, two_providers
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


def over_tls(wall: Wall, fallback: Wall, host: str = "127.0.0.1", **tls: Any) -> dict[str, Any]:
    """Reach the primary provider over TLS, by name or address."""
    config = two_providers(wall, fallback)
    config["providers"]["primary"] |= {"base_url": f"https://{host}:{wall.port}/v1", "tls": tls}
    return config


class TestTheCertificateOfAProvider:
    @pytest.mark.parametrize(
        ("san", "trusted", "host", "served_by"),
        [
            pytest.param(SAN, True, "127.0.0.1", "primary", id="of the address"),
            pytest.param(SAN, True, HOST, "primary", id="of the name"),
            pytest.param("DNS:*.example.com", True, HOST, "primary", id="of a wildcard"),
            pytest.param("DNS:other.example.com", True, HOST, "fallback", id="of another name"),
            pytest.param("DNS:127.0.0.1", True, "127.0.0.1", "fallback", id="of a name that looks like the address"),
            pytest.param("", True, HOST, "fallback", id="of no name but the subject's"),
            pytest.param(SAN, False, HOST, "fallback", id="of an authority nobody knows"),
        ],
    )
    def test_must_be_its_own_and_trusted(
        self,
        gateway_factory: GatewayFactory,
        authority: Authority,
        names: Names,
        tmp_path: Path,
        fallback: Wall,
        san: str,
        trusted: bool,
        host: str,
        served_by: str,
    ) -> None:
        """Otherwise the attempt fails as a connection does, the next provider serves, and no byte was sent."""
        pair = Authority(tmp_path / "own").sign(HOST, san) if not trusted else authority.sign(f"p{abs(hash(san))}", san)
        with Wall(tls=serving(pair)) as wall:
            config = over_tls(wall, fallback, host, ca_file=str(authority.cert))
            gateway = gateway_factory(config, arguments=("--envoy", str(names.envoy(tmp_path))))

            reply = gateway.chat()

            assert (200, served_by) == (reply.status, (reply.header("x-gateway-served-by") or "").partition("/")[0])
            assert (served_by == "primary") is bool(wall.requests)

    def test_of_a_private_authority_needs_its_ca_file(
        self, gateway_factory: GatewayFactory, authority: Authority, tmp_path: Path, fallback: Wall
    ) -> None:
        """The system's authorities alone do not vouch for it."""
        with Wall(tls=serving(authority.sign("private", SAN))) as wall:
            gateway = gateway_factory(over_tls(wall, fallback))
            assert "fallback/demo-fallback-upstream" == gateway.chat().header("x-gateway-served-by")
            assert [] == wall.requests

    @pytest.mark.parametrize("shows", [True, False])
    def test_may_ask_for_ours(
        self, gateway_factory: GatewayFactory, authority: Authority, fallback: Wall, shows: bool
    ) -> None:
        """A provider that demands a client certificate gets the one of its config, or no request."""
        own = authority.sign("gateway-client")
        files = {"client_cert_file": str(own.cert), "client_key_file": str(own.key)} if shows else {}
        with Wall(tls=serving(authority.sign("strict", SAN), asks=authority.cert)) as wall:
            gateway = gateway_factory(over_tls(wall, fallback, ca_file=str(authority.cert), **files))
            assert ("primary" if shows else "fallback") in (gateway.chat().header("x-gateway-served-by") or "")
            assert shows is bool(wall.requests)


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


class TestTheFrontListener:
    @pytest.fixture
    def pair(self, authority: Authority) -> Pair:
        return authority.sign("front", SAN)

    def test_speaks_http_1_and_2_over_tls_and_nothing_in_the_clear(
        self, gateway_factory: GatewayFactory, authority: Authority, pair: Pair, primary: Wall, fallback: Wall
    ) -> None:
        gateway = gateway_factory(secured(pair, primary, fallback))
        url = f"https://127.0.0.1:{gateway.port}/v1/chat/completions"
        body = {"model": "demo-primary", "messages": [{"role": "user", "content": "hi"}]}

        with httpx.Client(http2=True, verify=trusting(authority)) as client:
            second = client.post(url, json=body)

        assert (200, "HTTP/2") == (second.status_code, second.http_version)
        assert 200 == ask(gateway, authority).status
        assert 0 == gateway.chat().status

    def test_refuses_a_caller_who_knows_no_tls_above_1_1(
        self, gateway_factory: GatewayFactory, authority: Authority, pair: Pair, primary: Wall, fallback: Wall
    ) -> None:
        """The same caller does reach a server that allows it: it is Envoy who refuses."""
        gateway = gateway_factory(secured(pair, primary, fallback))
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
        self,
        gateway_factory: GatewayFactory,
        authority: Authority,
        pair: Pair,
        primary: Wall,
        fallback: Wall,
        tmp_path: Path,
    ) -> None:
        """What Envoy does not take changes nothing, the files it has read before included."""
        gateway = gateway_factory(secured(pair, primary, fallback))
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
        self, gateway_factory: GatewayFactory, authority: Authority, pair: Pair, primary: Wall, fallback: Wall
    ) -> None:
        """A second gateway is the provider here: its Envoy offers h2."""
        inner = gateway_factory(secured(pair, primary, fallback))
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
    with pytest.raises(AssertionError, match=r"server\.tls: .*no\.pem cannot be read"):
        gateway_factory(secured(missing, primary, fallback))


def test_the_front_key_is_written_only_where_keys_are(
    gateway_factory: GatewayFactory, authority: Authority, primary: Wall, fallback: Wall
) -> None:
    """0600 in `sds`, and in no log."""
    pair = authority.sign("planted", SAN)
    planted = pair.key.read_text().splitlines()[1]
    gateway = gateway_factory(secured(pair, primary, fallback))

    holders = [
        path for path in gateway.data_dir.rglob("*.*") if path.is_file() and planted in path.read_text("latin-1")
    ]

    assert [("sds", 0o600)] == [(path.parent.name, path.stat().st_mode & 0o777) for path in holders]
    assert planted not in gateway.logs()
