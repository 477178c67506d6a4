"""Traces reach an OTLP collector with OpenTelemetry's names for GenAI, and nothing of prompts, queries or tokens."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import pytest

from tests.support.collector import Collector, Span
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.http1 import Reply
from tests.support.wall import Wall, error

PLANTED = "planted-5d1c0e"
CALLER = "b7ad6b7169203331"
"""The span in which every request here is sent."""
TOKEN = f"gw-client-{PLANTED}"
KEYS = {"PRIMARY_KEY": f"sk-primary-{PLANTED}", "FALLBACK_KEY": f"sk-fallback-{PLANTED}"}


class Traced(NamedTuple):
    """A gateway that traces everything, its providers and its collector."""

    gateway: Gateway
    primary: Wall
    collector: Collector

    def ask(self, path: str, model: str, trace_id: str, **members: Any) -> Reply:
        """Send a request full of planted words as part of a trace."""
        whole = {
            "model": model,
            "messages": [{"role": "user", "content": PLANTED}],
            "input": PLANTED,
            "prompt": PLANTED,
        }
        headers = {
            "traceparent": f"00-{trace_id}-{CALLER}-01",
            "tracestate": "vendor=1",
            "authorization": f"Bearer {TOKEN}",
        }
        return self.gateway.post(f"{path}?k={PLANTED}", whole | {"max_tokens": 9} | members, headers=headers)


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with Collector() as collector, Wall() as primary, Wall() as fallback:
        config = two_providers(primary, fallback, same_target={"max": 0}, cooldown={"consecutive": 1000})
        config["providers"]["anthropic"] = provider(primary, "PRIMARY_KEY", protocol="anthropic")
        config["models"]["claude"] = {"targets": [{"provider": "anthropic", "model": "claude-upstream"}]}
        config["telemetry"] = {"otlp": {"endpoint": collector.endpoint, "sample": 1.0}}
        config["clients"] = [{"name": "team-a", "token_sha256": sha256(TOKEN.encode()).hexdigest()}]
        with Gateway(config, environment=KEYS) as gateway:
            yield Traced(gateway, primary, collector)


@pytest.fixture
def trace_id(traced: Traced) -> str:
    traced.primary.reset()
    return secrets.token_hex(16)


def ours(spans: list[Span]) -> Span:
    """Return the span of the request itself: its parent is the caller's."""
    (found,) = [span for span in spans if span.parent_id == CALLER]
    return found


@pytest.mark.parametrize(
    ("path", "model", "expected"),
    [
        ("/v1/chat/completions", "demo-primary", ("chat", "openai", "7", "3")),
        ("/v1/completions", "demo-primary", ("text_completion", "openai", "7", "3")),
        ("/v1/embeddings", "demo-primary", ("embeddings", "openai", "7", None)),
        ("/v1/messages", "claude", ("chat", "anthropic", "7", "3")),
    ],
)
def test_a_span_has_the_names_of_the_genai_conventions(
    traced: Traced, trace_id: str, path: str, model: str, expected: tuple[str | None, ...]
) -> None:
    assert 200 == traced.ask(path, model, trace_id).status

    told = ours(traced.collector.wait_for(trace_id, CALLER)).attributes

    names = ("operation.name", "provider.name", "usage.input_tokens", "usage.output_tokens")
    assert expected == tuple(told.get(f"gen_ai.{name}") for name in names)
    assert (model, model, path) == (told["gen_ai.request.model"], told["gen_ai.response.model"], told["http.route"])


def test_a_span_says_what_the_gateway_decided(traced: Traced, trace_id: str) -> None:
    traced.primary.script(error(503))
    reply = traced.ask("/v1/chat/completions", "demo-primary", trace_id)

    told = ours(traced.collector.wait_for(trace_id, CALLER)).attributes

    assert {
        "gen_ai.request.model": "demo-primary",
        "gen_ai.response.model": "demo-fallback",
        "gateway.route_mode": "model_fallback",
        "gateway.served_by": "fallback/demo-fallback-upstream",
        "gateway.config_version": "1",
        "gateway.client": "team-a",
    } == {name: told[name] for name in told if name.startswith(("gateway.", "gen_ai.re"))}
    assert reply.header("x-request-id") == told["guid:x-request-id"]


def test_each_attempt_has_a_span_of_its_own(traced: Traced, trace_id: str) -> None:
    traced.primary.script(error(503))
    traced.ask("/v1/chat/completions", "demo-primary", trace_id)

    spans = traced.collector.wait_for(trace_id, CALLER)

    attempts = [span.attributes for span in spans if "http.status_code" in span.attributes and span != ours(spans)]
    told = {one["upstream_cluster.name"].rpartition("-")[0]: one["http.status_code"] for one in attempts}
    assert {"primary": "503", "fallback": "200"} == told


def test_the_trace_goes_on_to_the_provider(traced: Traced, trace_id: str) -> None:
    traced.ask("/v1/chat/completions", "demo-primary", trace_id)
    (seen,) = traced.primary.wait_for(1)
    spans = traced.collector.wait_for(trace_id, CALLER)

    _, told_trace, parent, flags = (seen.header("traceparent") or "---").split("-")

    assert (trace_id, "01", "vendor=1") == (told_trace, flags, seen.header("tracestate"))
    assert parent in {span.span_id for span in spans}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/rerank", "/v1/models", "/v1/x"])
def test_no_prompt_query_or_token_is_in_a_span(traced: Traced, trace_id: str, path: str) -> None:
    """However short the path: what Envoy tells of a URL would have room for a query."""
    traced.ask(path, "demo-primary", trace_id)
    traced.collector.wait_for(trace_id, CALLER)
    assert b"planted" not in traced.collector.raw
    # Long enough that the random bytes of span ids never spell it.
    assert f"{path}?".encode() not in traced.collector.raw
