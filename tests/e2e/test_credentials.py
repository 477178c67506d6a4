"""Keys and tokens: who may see which, and that none of them, nor anybody's words, is ever written down."""

from __future__ import annotations

import hashlib
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support import http1
from tests.support.files import bytes_of
from tests.support.gateway import PLANTED_KEYS, Gateway, provider, two_providers
from tests.support.wall import Seen, Wall, answer, error, ok, rate_limited, reset, silence

PRIMARY_KEY, FALLBACK_KEY = PLANTED_KEYS["PRIMARY_KEY"], PLANTED_KEYS["FALLBACK_KEY"]
TOKEN = "gw-planted-token-0123456789"
PROMPT, COMPLETION, ECHO = "planted-prompt-words", "planted-completion-words", "planted-echo-of-the-prompt"
CLIENTS_OWN = {
    "authorization": f"Bearer {TOKEN}",
    "x-api-key": "planted-x-api-key",
    "api-key": "planted-api-key",
    "x-goog-api-key": "planted-google-key",
    "proxy-authorization": "Basic planted-proxy",
    "cookie": "session=planted-cookie",
}
SECRETS = (PRIMARY_KEY, FALLBACK_KEY, TOKEN, PROMPT, COMPLETION, ECHO, "planted-")


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Know a client, and providers that want their key in different places, or none."""
    quick = {"first_byte_timeout": "500ms", "first_token_timeout": "500ms", "cooldown": {"base": "10ms"}}
    config = two_providers(module_primary, module_fallback, **quick)
    config["clients"] = [{"name": "team", "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
    config["providers"] |= {
        "claude": provider(module_primary, "PRIMARY_KEY", protocol="anthropic"),
        "claude-b": provider(module_fallback, "FALLBACK_KEY", protocol="anthropic"),
        "azure": provider(module_primary, "PRIMARY_KEY", auth={"header": "api-key", "prefix": ""}),
        "keyless": provider(module_fallback),
        "accounted": provider(module_primary, "PRIMARY_KEY", headers={"OpenAI-Organization": "org-ours"}),
    }
    models = {"azure": ("azure", "keyless"), "claude": ("claude", "claude-b"), "free": ("keyless", "azure")}
    models["accounted"] = ("accounted", "keyless")
    for name, (first, second) in models.items():
        targets = [{"provider": first, "model": "m"}, {"provider": second, "model": "m", "tier": 1}]
        config["models"][name] = {"targets": targets}
    return module_gateway_factory(config)


def ask(gateway: Gateway, path: str = "/v1/chat/completions", *, model: str, **members: Any) -> http1.Reply:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}]} | members
    return gateway.post(path, body, headers=CLIENTS_OWN)


def credentials(seen: Seen) -> dict[str, str]:
    """Return every header that could carry a credential."""
    return {name: value for name, value in seen.headers if name in CLIENTS_OWN}


NAMED_ACCOUNT = {
    "OpenAI-Organization": "org-planted",
    "OpenAI-Project": "proj-planted",
    "x-goog-user-project": "planted",
}


# -- what providers see ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path", "first", "second"),
    [
        (
            "demo-primary",
            "/v1/chat/completions",
            {"authorization": f"Bearer {PRIMARY_KEY}"},
            {"authorization": f"Bearer {FALLBACK_KEY}"},
        ),
        ("claude", "/v1/messages", {"x-api-key": PRIMARY_KEY}, {"x-api-key": FALLBACK_KEY}),
        ("azure", "/v1/embeddings", {"api-key": PRIMARY_KEY}, {}),
    ],
)
@pytest.mark.parametrize("fault", ["503", "reset", "silence"])
def test_each_provider_sees_its_own_key_and_no_other(
    shared: Shared, model: str, path: str, first: dict[str, str], second: dict[str, str], fault: str
) -> None:
    """In the first attempt and in the failover, however the first one ended; a keyless provider sees nothing."""
    shared.primary.script({"503": error(503), "reset": reset(), "silence": silence()}[fault])

    reply = ask(shared.gateway, path, model=model)

    assert (200, "2") == (reply.status, reply.header("x-gateway-attempts"))
    assert [first, second] == [credentials(wall.requests[0]) for wall in (shared.primary, shared.fallback)]
    for wall in (shared.primary, shared.fallback):
        assert TOKEN.encode() not in wall.requests[0].head
        assert b"planted-x-" not in wall.requests[0].head


@pytest.mark.parametrize(
    ("model", "expected"), [("demo-primary", {}), ("accounted", {"openai-organization": "org-ours"})]
)
def test_an_account_that_a_caller_names_reaches_nobody(shared: Shared, model: str, expected: dict[str, str]) -> None:
    """SDKs send it unasked; beside the gateway's key the provider would refuse it, for every caller."""
    body = {"model": model, "messages": []}

    reply = shared.gateway.post("/v1/chat/completions", body, headers=CLIENTS_OWN | NAMED_ACCOUNT)

    assert 200 == reply.status
    named = {name.lower() for name in NAMED_ACCOUNT}
    assert expected == {name: value for name, value in shared.primary.requests[0].headers if name in named}


def test_a_later_provider_gets_a_key_though_the_first_needed_none(shared: Shared) -> None:
    """The order of attempts does not matter."""
    shared.fallback.script(error(503))

    assert 200 == ask(shared.gateway, model="free").status

    assert [{}, {"api-key": PRIMARY_KEY}] == [
        credentials(wall.requests[0]) for wall in (shared.fallback, shared.primary)
    ]


def test_a_streamed_request_carries_the_same_credentials(shared: Shared) -> None:
    """As a unary one."""
    shared.primary.script(rate_limited())

    assert 200 == ask(shared.gateway, model="demo-primary", stream=True).status

    assert {"authorization": f"Bearer {FALLBACK_KEY}"} == credentials(shared.fallback.requests[0])


def test_the_caller_sees_no_key(shared: Shared) -> None:
    """Nothing of what we added comes back."""
    replies = [ask(shared.gateway, model=model) for model in ("demo-primary", "azure", "nobody")]

    for reply in replies:
        text = repr((reply.headers, reply.body))
        assert not [secret for secret in (PRIMARY_KEY, FALLBACK_KEY, TOKEN) if secret in text]


# -- what is written down --------------------------------------------------------------------------------------------


Traffic = tuple[Gateway, list[http1.Reply]]


@pytest.fixture(scope="module")
def busy_gateway(traffic: Traffic) -> Gateway:
    """Give the gateway after the traffic."""
    return traffic[0]


@pytest.fixture(scope="module")
def traffic(module_gateway: Gateway, module_primary: Wall, module_fallback: Wall) -> Traffic:
    """Send planted words along every way through the gateway: good, failed over, refused, broken, silent."""
    echo = {"error": {"message": ECHO, "type": "invalid_request_error", "code": ECHO, "param": ECHO}}
    firsts = [ok(COMPLETION), error(503, ECHO, message=ECHO), answer(400, echo), answer(429, echo), answer(401, echo)]
    firsts += [answer(404, ECHO), reset(), silence(), answer(200, f"<html>{ECHO}", content_type="text/html")]
    replies = []
    for behaviour in firsts:
        for stream in (False, True):
            module_primary.reset()
            module_fallback.reset()
            module_primary.script(behaviour)
            module_fallback.script(behaviour if behaviour.name == "answer" else ok(COMPLETION))
            for model in ("demo-primary", "claude"):
                path = "/v1/messages" if model == "claude" else "/v1/chat/completions"
                replies.append(ask(module_gateway, path, model=model, stream=stream))
    refused = (PROMPT.encode(), b'{"model":1,"x":"%b"}' % PROMPT.encode())
    replies += [module_gateway.post("/v1/chat/completions", body=body, headers=CLIENTS_OWN) for body in refused]
    strangers = {"authorization": "Bearer planted-wrong"}, {"x-api-key": "planted-wrong"}
    replies += [module_gateway.post("/v1/chat/completions", {"model": "azure"}, headers=own) for own in strangers]
    module_gateway.logged(replies[-1])
    return module_gateway, replies


def test_the_traffic_took_every_way(traffic: Traffic) -> None:
    """Or the tests below would prove little."""
    statuses = {reply.status for reply in traffic[1]}

    assert {200, 400, 401} <= statuses
    assert any(COMPLETION.encode() in reply.body for reply in traffic[1])
    assert any(ECHO.encode() in reply.body for reply in traffic[1])


def test_no_secret_and_no_words_are_in_any_file(busy_gateway: Gateway) -> None:
    """Provider keys are in envoy/sds and nowhere else; tokens, prompts, completions and error texts nowhere at all."""
    files = [path for path in busy_gateway.data_dir.rglob("*") if path.is_file() and not path.is_socket()]
    found = [
        (str(path.relative_to(busy_gateway.data_dir)), secret)
        for path in [*files, *busy_gateway.output_files()]
        for secret in SECRETS
        if secret.encode() in bytes_of(path)
        and not (path.parent.name == "sds" and secret in (PRIMARY_KEY, FALLBACK_KEY, "planted-"))
    ]

    assert [] == found
    assert {"access.log", "envoy.log"} <= {path.name for path in files}


def test_the_keys_are_in_files_of_their_own_that_nobody_else_can_read(busy_gateway: Gateway) -> None:
    """0600 in a folder of 0700: and that is where they are."""
    sds = busy_gateway.data_dir / "envoy" / "sds"
    files = [path for path in sds.iterdir() if path.is_file()]

    assert {PRIMARY_KEY, FALLBACK_KEY} <= {key for path in files for key in SECRETS[:2] if key in path.read_text()}
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in files}
    assert 0o700 == stat.S_IMODE(sds.stat().st_mode)


def test_no_secret_is_in_a_metric(busy_gateway: Gateway) -> None:
    """Nor any caller's words."""
    page = http1.request(busy_gateway.metrics_url).body.decode()

    assert "gateway_target_state" in page
    assert [] == [secret for secret in SECRETS if secret in page]


@pytest.mark.parametrize("path", ["/config_dump?include_eds", "/stats", "/clusters", "/logging"])
def test_no_secret_is_in_envoys_admin_pages(busy_gateway: Gateway, path: str) -> None:
    """Envoy redacts the keys it was given."""
    page = admin_page(busy_gateway.data_dir / "run" / "envoy-admin.sock", path)

    assert page.startswith(b"HTTP/1.1 ")
    assert [] == [secret for secret in SECRETS if secret.encode() in page]


def admin_page(path: Path, page: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(10)
        admin.connect(str(path))
        admin.sendall(f"GET {page} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: admin.recv(65536), b""))


def test_no_key_is_in_a_command_line(busy_gateway: Gateway) -> None:
    """Anybody on the machine can read those."""
    pids = busy_gateway.pids()

    for pid in (pids.supervisor, pids.extproc, pids.envoy):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert command
        assert b"planted-" not in command
