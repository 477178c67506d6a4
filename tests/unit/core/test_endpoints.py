"""What each path means, and how it is spelled at a provider."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.config.snapshot import Provider
from extproc.core.endpoints import (
    ENDPOINTS,
    Kind,
    kind_of,
    merge_query,
    protocol_of,
    upstream_path,
    without_credentials,
)
from tests.unit.core.build import snapshot


def provider(**fields: Any) -> Provider:
    """Compile one provider."""
    written = {
        "schema": 1,
        "providers": {"p": {"base_url": "https://p.example.com/v1"} | fields},
        "models": {"m": {"targets": [{"provider": "p", "model": "m"}]}},
    }
    return snapshot(written).providers["p"]


def test_the_endpoints_are_the_documented_ones() -> None:
    assert {
        "/v1/chat/completions": "openai",
        "/v1/completions": "openai",
        "/v1/embeddings": "openai",
        "/v1/responses": "openai",
        "/v1/messages": "anthropic",
        "/v1/moderations": "openai",
        "/v1/images/generations": "openai",
        "/v1/audio/speech": "openai",
        "/v1/rerank": "openai",
    } == {path: endpoint.protocol for path, endpoint in ENDPOINTS.items()}


@pytest.mark.parametrize(
    ("path", "stream", "expected"),
    [
        ("/v1/chat/completions", True, Kind.STREAM),
        ("/v1/chat/completions", False, Kind.UNARY),
        ("/v1/messages", True, Kind.STREAM),
        ("/v1/audio/speech", True, Kind.STREAM_UNGUARDED),
        ("/v1/images/generations", True, Kind.STREAM_UNGUARDED),
        ("/v1/embeddings", False, Kind.UNARY),
    ],
)
def test_only_streams_of_text_are_guarded(path: str, stream: bool, expected: Kind) -> None:
    assert expected is kind_of(ENDPOINTS[path], stream)


@pytest.mark.parametrize(
    ("base_url", "protocol", "path", "expected"),
    [
        ("https://p.example.com/v1", "openai", "/v1/chat/completions", "/v1/chat/completions"),
        ("https://p.example.com", "openai", "/v1/chat/completions", "/chat/completions"),
        ("https://p.example.com/openai/v1/", "openai", "/v1/embeddings", "/openai/v1/embeddings"),
        ("https://p.example.com/v1beta/openai", "openai", "/v1/rerank", "/v1beta/openai/rerank"),
        ("https://p.example.com", "anthropic", "/v1/messages", "/v1/messages"),
        ("https://p.example.com/v1", "anthropic", "/v1/messages", "/v1/messages"),
        ("https://p.example.com/proxy", "anthropic", "/v1/messages", "/proxy/v1/messages"),
    ],
)
def test_the_base_url_s_path_stands_for_v1(base_url: str, protocol: str, path: str, expected: str) -> None:
    assert expected == upstream_path(provider(base_url=base_url, protocol=protocol), ENDPOINTS[path], "")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messagesx", "openai"),
        ("/v1/chat/completions", "openai"),
        ("/x/v1/messages", "openai"),
    ],
)
def test_a_path_belongs_to_a_protocol(path: str, expected: str) -> None:
    assert expected == protocol_of(path)


def test_the_client_s_query_goes_along() -> None:
    assert "/v1/embeddings?a=1&b=%20" == upstream_path(provider(), ENDPOINTS["/v1/embeddings"], "a=1&b=%20")


def test_a_provider_s_static_query_replaces_the_client_s_parameter_of_that_name() -> None:
    azure = provider(query={"api-version": "preview & more"})
    path = upstream_path(azure, ENDPOINTS["/v1/embeddings"], "api%2Dversion=old&x=1&api-version=older")
    assert "/v1/embeddings?x=1&api-version=preview+%26+more" == path


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("key=1&x=2", "x=2"),
        ("x=2&API-Key=1&y", "x=2&y"),
        ("api_key&apikey=1&access_token=2&token=3&sig=4&subscription-key=5", ""),
        ("%6bey=1&api%2Dkey=2&x=%20", "x=%20"),
        ("keys=1&mykey=2&x=key&&b", "keys=1&mykey=2&x=key&&b"),
        ("", ""),
    ],
)
def test_a_key_in_a_client_s_query_ends_here(query: str, expected: str) -> None:
    """However its name is written; the rest stays byte for byte."""
    assert expected == without_credentials(query)


def test_a_query_without_static_parameters_stays_byte_for_byte() -> None:
    assert "a=%41&&b" == merge_query("a=%41&&b", ())
