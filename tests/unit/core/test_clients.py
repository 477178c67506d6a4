"""Who may call, and for which models."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from extproc.config.snapshot import Client, Snapshot
from extproc.core.clients import ANONYMOUS, authenticate, may_use
from extproc.core.errors import GatewayError
from tests.unit.core.build import NOW, A, chain, config, snapshot

TOKEN, OTHER_TOKEN = "gw-token-one", "gw-token-two"


def digest(token: str) -> str:
    """Return what the config holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def guarded(**client: Any) -> Snapshot:
    """Compile a config with one client."""
    entry = {"name": "team-a", "token_sha256": [digest(TOKEN), digest(OTHER_TOKEN)]} | client
    return snapshot(config({"big": chain(A)}, clients=[entry]))


def name_of(found: Client | GatewayError) -> str:
    """Return who was recognised, or the code of the refusal."""
    return found.name if isinstance(found, Client) else found.code


def test_without_a_clients_section_everybody_is_anonymous_and_may_use_everything() -> None:
    found = authenticate({}, snapshot(config({"big": chain(A)})), NOW)
    assert found is ANONYMOUS
    assert may_use(ANONYMOUS, "any/model")


@pytest.mark.parametrize("token", [TOKEN, OTHER_TOKEN])
def test_any_of_a_client_s_tokens_is_accepted(token: str) -> None:
    assert "team-a" == name_of(authenticate({"authorization": f"Bearer {token}"}, guarded(), NOW))


def test_of_two_tokens_the_last_ends_when_it_expires() -> None:
    """A token is replaced in two steps: both are good, then the old one is not."""
    told = guarded(expires="2030-01-01T00:00:00Z")
    end = 1_893_456_000.0

    def found(token: str, now: float) -> str:
        return name_of(authenticate({"authorization": f"Bearer {token}"}, told, now))

    assert ["team-a", "team-a"] == [found(token, end - 1) for token in (TOKEN, OTHER_TOKEN)]
    assert ["team-a", "invalid_api_key"] == [found(token, end) for token in (TOKEN, OTHER_TOKEN)]


def test_a_client_whose_only_token_expired_is_refused() -> None:
    told = guarded(token_sha256=digest(TOKEN), expires="2030-01-01T00:00:00Z")
    assert "invalid_api_key" == name_of(authenticate({"x-api-key": TOKEN}, told, 1_893_456_000.0))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"bearer  {TOKEN} "},
        {"x-api-key": TOKEN},
        {"authorization": "Basic abc", "x-api-key": TOKEN},
    ],
)
def test_both_protocols_ways_of_sending_it_are_understood(headers: dict[str, str]) -> None:
    assert "team-a" == name_of(authenticate(headers, guarded(), NOW))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {digest(TOKEN)}"},
        {"api-key": TOKEN},
        {"authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"},
    ],
)
def test_a_missing_or_wrong_token_is_refused(headers: dict[str, str]) -> None:
    assert "invalid_api_key" == name_of(authenticate(headers, guarded(), NOW))


def test_every_digest_is_compared_whoever_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the comparison whose time does not tell where two digests differ, the first match included."""
    compared: list[str] = []

    def compare(told: str, known: str) -> bool:
        compared.append(known)
        return told == known

    monkeypatch.setattr(hmac, "compare_digest", compare)

    assert "team-a" == name_of(authenticate({"x-api-key": TOKEN}, guarded(), NOW))
    assert [digest(TOKEN), digest(OTHER_TOKEN)] == compared


def test_a_token_of_bytes_that_are_no_text_is_refused() -> None:
    """Header bytes travel as surrogates; a caller must not be able to cause an internal fault."""
    assert "invalid_api_key" == name_of(authenticate({"authorization": "Bearer \udcff"}, guarded(), NOW))


def test_a_refusal_does_not_quote_the_token() -> None:
    found = authenticate({"authorization": "Bearer wrong-secret"}, guarded(), NOW)
    assert isinstance(found, GatewayError)
    assert b"wrong-secret" not in found.body("openai")


@pytest.mark.parametrize(
    ("models", "name", "expected"),
    [
        (["big"], "big", True),
        (["big"], "bigger", False),
        (["gpt-*"], "gpt-4o", True),
        (["gpt-*"], "claude", False),
        (["*"], "anything", True),
    ],
)
def test_a_client_may_use_the_models_its_patterns_name(models: list[str], name: str, expected: bool) -> None:
    client = Client("team-a", (), tuple(models), None)
    assert expected is may_use(client, name)
