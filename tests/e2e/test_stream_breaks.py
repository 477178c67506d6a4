"""No broken answer looks whole to the official clients: they raise, or another provider's whole answer is all they see.

Each combination of client call, guard and way to break has provider accounts and a model of its own.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.failure_case import ANSWER, TOKENS, answers
from tests.support.gateway import Gateway
from tests.support.lazy import Lazy
from tests.support.wall import Behaviour, Ending, Seen, Wall, cut_short, pause, reset_after, sse

if TYPE_CHECKING:
    import anthropic
    import openai
else:
    anthropic, openai = Lazy("anthropic"), Lazy("openai")

BROKEN_AT = 40
FAULTS: dict[str, Behaviour] = {
    name: cut_short(BROKEN_AT, end, ANSWER, TOKENS)
    for name, end in dict[str, Ending](rst="rst", fin="fin", ended="clean", stall="hang").items()
}
WHOLE, UNARY, ERROR_EVENT = "whole", "unary", "error"
ERROR_EVENTS = {
    "openai": b'data: {"error":{"message":"too much","type":"server_error","code":"overloaded_error"}}\n\n',
    "anthropic": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"too much"}}\n\n',
}
IMAGES = sse(
    [pause(0.1), {"type": "image_generation.partial_image"}, {"type": "image_generation.completed"}], done=False
)
GUARDS = ("first_token", "complete", "off")
TIMERS = {"first_byte_timeout": "700ms", "first_token_timeout": "700ms", "stream_idle_timeout": "500ms"}
TOLD_BY_NAME = ("RemoteProtocolError", "ReadError")
"""What the clients' HTTP library raises; which library that is, depends on their versions."""
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of a gateway without TLS: by itself each would read all certificate authorities when it is made."""
HI: Any = [{"role": "user", "content": "hi"}]


@dataclass(slots=True)
class Heard:
    """What a client's user got: the words, whether they were told that the answer is whole, and what was raised."""

    text: str = ""
    finished: bool = False
    error: Exception | None = None


Pieces = Iterable[tuple[str, bool]]
"""Words, and whether the answer said that it is finished."""


class Surface(NamedTuple):
    """One way to ask for a stream with an official client."""

    name: str
    listen: Callable[[Gateway, str], Pieces]
    protocol: str = "openai"


def _openai(gateway: Gateway) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(verify=NO_AUTHORITIES)
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=10, http_client=http)


def _anthropic(gateway: Gateway) -> anthropic.Anthropic:
    http = anthropic.DefaultHttpxClient(verify=NO_AUTHORITIES)
    return anthropic.Anthropic(base_url=gateway.url, api_key="unused", max_retries=0, timeout=10, http_client=http)


def chat(gateway: Gateway, model: str) -> Pieces:
    with _openai(gateway) as client, client.chat.completions.create(model=model, messages=HI, stream=True) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                yield choice.delta.content or "", choice.finish_reason is not None


def completions(gateway: Gateway, model: str) -> Pieces:
    with _openai(gateway) as client, client.completions.create(model=model, prompt="hi", stream=True) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                yield choice.text, bool(choice.finish_reason)


def responses(gateway: Gateway, model: str) -> Pieces:
    with _openai(gateway) as client, client.responses.create(model=model, input="hi", stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                yield event.delta, False
            yield "", event.type == "response.completed"


def messages(gateway: Gateway, model: str) -> Pieces:
    with (
        _anthropic(gateway) as client,
        client.messages.create(model=model, max_tokens=100, messages=HI, stream=True) as stream,
    ):
        for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                yield event.delta.text, False
            yield "", event.type == "message_stop"


SURFACES = (
    Surface("chat", chat),
    Surface("completions", completions),
    Surface("responses", responses),
    Surface("messages", messages, "anthropic"),
)
surfaces = pytest.mark.parametrize("surface", SURFACES, ids=[surface.name for surface in SURFACES])
faults = pytest.mark.parametrize("fault", FAULTS)


def model_of(surface: Surface, guard: str, fault: str) -> str:
    return f"{surface.name}-{guard.replace('_', '-')}-{fault}"


def _config(wall: Wall) -> dict[str, Any]:
    providers: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for surface, guard, fault in product(SURFACES, GUARDS, (*FAULTS, WHOLE, UNARY, ERROR_EVENT)):
        key = model_of(surface, guard, fault)
        for who in ("first", "second"):
            base_url = f"http://127.0.0.1:{wall.port}/{fault}/{who}/v1"
            entry = {"base_url": base_url, "protocol": surface.protocol, "allow_private_network": True}
            providers[f"{key}-{who}"] = entry
        first, second = ({"provider": f"{key}-{who}", "model": "upstream"} for who in ("first", "second"))
        models[key] = {"targets": [first, second | {"tier": 1}], "policy": guard.replace("_", "-")}
    policies = {guard.replace("_", "-"): TIMERS | {"stream_guard": guard} for guard in GUARDS}
    return {"schema": 1, "providers": providers, "models": models, "policies": policies}


def _play(seen: Seen) -> Behaviour:
    """The first provider breaks in the way that its path names, the second answers well."""
    _, fault, who, *_ = seen.path.split("/")
    if seen.endpoint.endswith("/images/generations"):
        return IMAGES
    if who == "second" or fault == WHOLE:
        return answers()
    if fault == UNARY:
        return reset_after(n_bytes=200)
    if fault == ERROR_EVENT:
        event = ERROR_EVENTS["anthropic" if seen.endpoint.endswith("/messages") else "openai"]
        return cut_short(BROKEN_AT, "clean", ANSWER, TOKENS, last=event)
    return FAULTS[fault]


@pytest.fixture(scope="module")
def gateway(module_gateway_factory: GatewayFactory, module_primary: Wall) -> Gateway:
    module_primary.script(_play)
    return module_gateway_factory(_config(module_primary))


def hear(surface: Surface, gateway: Gateway, model: str) -> Heard:
    """Read a stream to its end, whatever that is."""
    heard = Heard()
    try:
        for words, finished in surface.listen(gateway, model):
            heard.text += words
            heard.finished = heard.finished or finished
    except Exception as error:
        heard.error = error
    return heard


def tells_of_a_break(error: Exception | None) -> bool:
    return isinstance(error, openai.APIError | anthropic.APIError) or type(error).__name__ in TOLD_BY_NAME


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", GUARDS)
@surfaces
def test_a_whole_stream_is_heard_to_its_end(gateway: Gateway, surface: Surface, guard: str) -> None:
    assert Heard(ANSWER, finished=True) == hear(surface, gateway, model_of(surface, guard, WHOLE))


def test_an_image_stream_whose_headers_come_first_arrives_whole(gateway: Gateway) -> None:
    """The judge looks at every event stream, also at those that it has nothing to say about."""
    body = {"model": model_of(SURFACES[0], "first_token", WHOLE), "prompt": "hi", "stream": True}
    reply = gateway.post("/v1/images/generations", body)
    assert (200, "clean", 2) == (reply.status, reply.ended, len(reply.events))


@pytest.mark.parametrize("guard", ["first_token", "off"])
@faults
@surfaces
def test_a_stream_that_breaks_after_its_first_words_raises(
    gateway: Gateway, surface: Surface, fault: str, guard: str
) -> None:
    """The user has some words, was never told that they are all, and gets an exception at their end."""
    heard = hear(surface, gateway, model_of(surface, guard, fault))
    assert heard.text
    assert ANSWER.startswith(heard.text)
    assert len(heard.text) < len(ANSWER)
    assert not heard.finished
    assert tells_of_a_break(heard.error)


@faults
@surfaces
def test_under_complete_a_stream_that_breaks_is_replaced_by_a_whole_one(
    gateway: Gateway, surface: Surface, fault: str
) -> None:
    """Nothing of the broken answer reaches the user."""
    assert Heard(ANSWER, finished=True) == hear(surface, gateway, model_of(surface, "complete", fault))


@pytest.mark.parametrize("surface", [SURFACES[0], SURFACES[3]], ids=["chat", "messages"])
def test_an_error_event_in_the_middle_of_a_stream_raises(gateway: Gateway, surface: Surface) -> None:
    """The provider's own words reach the client, which knows them as an error."""
    heard = hear(surface, gateway, model_of(surface, "first_token", ERROR_EVENT))
    assert not heard.finished
    assert isinstance(heard.error, openai.APIError | anthropic.APIError)
    assert "too much" in str(heard.error)


# -- ordinary answers ------------------------------------------------------------------------------------------------


def test_half_a_json_answer_raises_in_the_openai_client(gateway: Gateway) -> None:
    model = model_of(SURFACES[0], "first_token", UNARY)
    with _openai(gateway) as client, pytest.raises(Exception) as raised:  # noqa: PT011  judged by name below
        client.chat.completions.create(model=model, messages=HI)
    assert tells_of_a_break(raised.value)


def test_half_a_json_answer_raises_in_the_anthropic_client(gateway: Gateway) -> None:
    model = model_of(SURFACES[3], "first_token", UNARY)
    with _anthropic(gateway) as client, pytest.raises(Exception) as raised:  # noqa: PT011  judged by name below
        client.messages.create(model=model, max_tokens=100, messages=HI)
    assert tells_of_a_break(raised.value)
