"""The official `openai` and `anthropic` Python clients, pointed at the gateway, otherwise as users have them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.lazy import Lazy
from tests.support.wall import Wall, error, ok, rate_limited

if TYPE_CHECKING:
    import anthropic
    import openai
else:
    anthropic, openai = Lazy("anthropic"), Lazy("openai")

TOKEN = "gw-planted-openai-client"
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def module_gateway(module_gateway_factory: GatewayFactory, module_primary: Wall, module_fallback: Wall) -> Gateway:
    """Know one client, and models of both protocols, each test's failures with a provider of their own."""
    config = two_providers(module_primary, module_fallback)
    config["clients"] = [{"name": "sdk", "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
    claude = {"protocol": "anthropic"}
    config["providers"] |= {
        "claude": provider(module_primary, "PRIMARY_KEY", **claude),
        "claude-b": provider(module_fallback, "FALLBACK_KEY", **claude),
        "limited": provider(module_primary),
        "failing": provider(module_primary),
        "locked": provider(module_primary),
        "claude-sick": provider(module_primary, **claude),
    }
    alone = ("limited", "failing", "locked", "claude-sick")
    config["models"] |= {name: {"targets": [{"provider": name, "model": "m"}]} for name in alone}
    config["models"]["claude"] = {
        "targets": [{"provider": "claude", "model": "c"}, {"provider": "claude-b", "model": "c", "tier": 1}]
    }
    return module_gateway_factory(config)


@pytest.fixture
def client(shared: Shared) -> Iterator[openai.OpenAI]:
    """Make the client as the README says."""
    with openai.OpenAI(base_url=f"{shared.gateway.url}/v1", api_key=TOKEN, max_retries=0, timeout=10) as one:
        yield one


@pytest.fixture
def claude(shared: Shared) -> Iterator[anthropic.Anthropic]:
    """Make Anthropic's client; its base URL has no /v1."""
    with anthropic.Anthropic(base_url=shared.gateway.url, api_key=TOKEN, max_retries=0, timeout=10) as one:
        yield one


# -- openai ----------------------------------------------------------------------------------------------------------


def test_a_chat_completion_is_an_ordinary_object(shared: Shared, client: openai.OpenAI) -> None:
    """Text, usage, and the gateway's own headers for whoever looks."""
    shared.primary.script(ok("words"))

    raw = client.chat.completions.with_raw_response.create(model="demo-primary", messages=MESSAGES)
    completion = raw.parse()

    assert ("words", "stop") == (completion.choices[0].message.content, completion.choices[0].finish_reason)
    assert completion.usage is not None
    assert (7, 3) == (completion.usage.prompt_tokens, completion.usage.completion_tokens)
    assert "primary/demo-primary-upstream" == raw.headers["x-gateway-served-by"]
    assert raw.request_id == raw.headers["x-request-id"]


def test_a_failover_is_invisible_to_the_client(shared: Shared, client: openai.OpenAI) -> None:
    """The fallback's answer comes as if nothing had happened."""
    shared.primary.script(error(503))
    shared.fallback.script(ok("from the fallback"))

    completion = client.chat.completions.create(model="demo-primary", messages=MESSAGES)

    assert "from the fallback" == completion.choices[0].message.content
    assert "demo-fallback-upstream" == completion.model


@pytest.mark.parametrize("first", ["serves", "fails"])
def test_a_stream_is_read_chunk_by_chunk(shared: Shared, client: openai.OpenAI, first: str) -> None:
    """With usage at its end, directly and after a failover."""
    shared.primary.script(error(503) if first == "fails" else ok("one two three", chunks=3))
    shared.fallback.script(ok("one two three", chunks=3))

    stream = client.chat.completions.create(
        model="demo-primary", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    assert "one two three" == "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].usage is not None
    assert 10 == chunks[-1].usage.total_tokens


def test_embeddings_are_decoded(shared: Shared, client: openai.OpenAI) -> None:
    """The client asks for base64 by itself and takes floats as well."""
    answer = client.embeddings.create(model="demo-primary", input="x")

    assert [0.5, 0.5, 0.5] == answer.data[0].embedding
    assert "base64" == shared.primary.requests[0].json["encoding_format"]


def test_the_responses_api_works(shared: Shared, client: openai.OpenAI) -> None:
    """Whole and streamed."""
    shared.primary.script(ok("an answer", chunks=2))

    whole = client.responses.create(model="demo-primary", input="x")
    events = list(client.responses.create(model="demo-primary", input="x", stream=True))

    assert "an answer" == whole.output_text
    assert "an answer" == "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert "response.completed" == events[-1].type


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    """Public names, with the gateway's `available` as an extra member."""
    names = {model.id for model in client.models.list()}

    assert {"demo-primary", "demo-fallback"} <= names
    model = client.models.retrieve("demo-primary")
    assert ("demo-primary", "model", True) == (model.id, model.object, model.model_dump()["available"])


def test_an_unknown_model_raises_not_found(client: openai.OpenAI) -> None:
    """With the code and the parameter that the gateway gave."""
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert ("model_not_found", "model", 404) == (raised.value.code, raised.value.param, raised.value.status_code)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_an_unknown_token_raises_authentication_error(shared: Shared) -> None:
    """The gateway's own 401."""
    with (
        openai.OpenAI(base_url=f"{shared.gateway.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        stranger.chat.completions.create(model="demo-primary", messages=MESSAGES)
    assert "invalid_api_key" == raised.value.code


def test_a_providers_400_raises_bad_request(shared: Shared, client: openai.OpenAI) -> None:
    """With the provider's own words."""
    shared.primary.script(error(400, "unsupported_value", message="no such temperature"))

    with pytest.raises(openai.BadRequestError, match="no such temperature") as raised:
        client.chat.completions.create(model="demo-primary", messages=MESSAGES)
    assert "unsupported_value" == raised.value.code


def test_a_providers_429_raises_rate_limit_error(shared: Shared, client: openai.OpenAI) -> None:
    """When nobody else can serve; with the provider's Retry-After."""
    shared.primary.script(rate_limited(retry_after=20))

    with pytest.raises(openai.RateLimitError, match="Rate limit reached") as raised:
        client.chat.completions.create(model="limited", messages=MESSAGES)
    assert "20" == raised.value.response.headers["retry-after"]


def test_a_providers_401_raises_authentication_error(shared: Shared, client: openai.OpenAI) -> None:
    """The gateway's own key was refused: the caller gets the provider's answer."""
    shared.primary.script(error(401, "invalid_api_key", message="Incorrect API key provided"))

    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        client.chat.completions.create(model="locked", messages=MESSAGES)


def test_the_client_does_not_repeat_what_the_gateway_gave_up(shared: Shared) -> None:
    """`x-should-retry: false` ends it: one try more at the provider would be the client's."""
    shared.primary.script(error(503))

    with (
        openai.OpenAI(base_url=f"{shared.gateway.url}/v1", api_key=TOKEN, max_retries=2) as patient,
        pytest.raises(openai.InternalServerError),
    ):
        patient.chat.completions.create(model="failing", messages=MESSAGES)
    assert 1 == shared.primary.count()


# -- anthropic -------------------------------------------------------------------------------------------------------


def ask(claude: anthropic.Anthropic, model: str = "claude") -> Any:
    return claude.messages.create(model=model, max_tokens=9, messages=MESSAGES)


def test_a_message_is_an_ordinary_object(shared: Shared, claude: anthropic.Anthropic) -> None:
    """The client authenticates with x-api-key, its version header goes on to the provider."""
    message = ask(claude)

    assert ("hello", "end_turn") == (message.content[0].text, message.stop_reason)
    assert claude.default_headers["anthropic-version"] == shared.primary.requests[0].header("anthropic-version")


@pytest.mark.parametrize("first", ["serves", "fails"])
def test_a_message_stream_is_read_event_by_event(shared: Shared, claude: anthropic.Anthropic, first: str) -> None:
    """Directly and after a failover."""
    shared.primary.script(error(529, "overloaded_error") if first == "fails" else ok("one two", chunks=2))
    shared.fallback.script(ok("one two", chunks=2))

    with claude.messages.stream(model="claude", max_tokens=9, messages=MESSAGES) as stream:
        words = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert ("one two", "end_turn") == (words, final.stop_reason)


def test_anthropics_error_classes_are_raised(shared: Shared, claude: anthropic.Anthropic) -> None:
    """The gateway's own errors and a provider's."""
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        ask(claude, "nobody")
    shared.primary.script(error(400, message="max_tokens is too large"))
    with pytest.raises(anthropic.BadRequestError, match="max_tokens is too large"):
        ask(claude)
    shared.primary.script(rate_limited(retry_after=20))
    with pytest.raises(anthropic.RateLimitError, match="rate_limit_error"):
        ask(claude, "claude-sick")
    with (
        anthropic.Anthropic(base_url=shared.gateway.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError, match="authentication_error"),
    ):
        ask(stranger)
