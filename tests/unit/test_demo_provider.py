"""The fake provider of the demonstration, and the config it is played with."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.compile import compile_snapshot
from extproc.config.load import parse_config_file
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.retry import Spent, same_target_wait
from extproc.demo.remote import RemoteProvider
from extproc.demo.report import Report
from extproc.demo.stage import CONFIG, StageError
from extproc.demo.story import RETRY_AFTER_S, TIMEOUT_S
from extproc.demo_provider import CONTROL_PATH, Behaviour, DemoProvider

EXAMPLE = Path(__file__).parents[2] / "examples" / "provider-fallback" / "gateway.yaml"


@pytest.fixture
def provider() -> Iterator[DemoProvider]:
    with DemoProvider("one two") as provider:
        yield provider


@pytest.fixture
def connection(provider: DemoProvider) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)
    yield connection
    connection.close()


def ask(connection: http.client.HTTPConnection, **members: Any) -> http.client.HTTPResponse:
    body = json.dumps({"model": "m", "messages": [], **members})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": "Bearer key"})
    return connection.getresponse()


def test_it_answers_a_chat_completion(connection: http.client.HTTPConnection) -> None:
    response = ask(connection)
    answer = json.load(response)
    assert (200, "application/json") == (response.status, response.getheader("content-type"))
    assert {"role": "assistant", "content": "one two"} == answer["choices"][0]["message"]
    assert 2 == answer["usage"]["completion_tokens"]


def test_it_streams_when_asked_to(connection: http.client.HTTPConnection) -> None:
    response = ask(connection, stream=True)
    lines = [line.removeprefix(b"data: ").strip() for line in response.read().split(b"\n\n") if line]
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "text/event-stream" == response.getheader("content-type")
    assert b"[DONE]" == lines[-1]
    assert "one two " == "".join(choice["delta"].get("content", "") for choice in choices)
    assert "stop" == choices[-1]["finish_reason"]


def test_it_is_rate_limited_when_told(provider: DemoProvider, connection: http.client.HTTPConnection) -> None:
    provider.behave(Behaviour.RATE_LIMITED, 7)
    response = ask(connection)
    assert "rate_limit_exceeded" == json.load(response)["error"]["code"]
    assert (429, "7") == (response.status, response.getheader("retry-after"))


def test_it_falls_silent_when_told(provider: DemoProvider, connection: http.client.HTTPConnection) -> None:
    """It takes the request and answers nothing; its end does not wait for a caller that is still there."""
    provider.behave(Behaviour.SILENT)
    connection.timeout = 0.2
    with pytest.raises(TimeoutError):
        ask(connection)
    assert 1 == len(provider.requests)


def test_a_stalled_stream_shows_a_role_and_no_word(
    provider: DemoProvider, connection: http.client.HTTPConnection
) -> None:
    provider.behave(Behaviour.STALLED)
    response = ask(connection, stream=True)
    event = json.loads(response.readline().removeprefix(b"data: "))
    assert {"role": "assistant", "content": ""} == event["choices"][0]["delta"]
    assert 200 == response.status


def test_it_keeps_what_it_was_sent(provider: DemoProvider, connection: http.client.HTTPConnection) -> None:
    ask(connection).read()
    ask(connection, model="other").read()
    assert ["m", "other"] == [seen.model for seen in provider.requests]
    assert {"Bearer key"} == {seen.headers["authorization"] for seen in provider.requests}
    assert provider.requests[0].at <= provider.requests[1].at


def test_other_endpoints_are_unknown_to_it(connection: http.client.HTTPConnection) -> None:
    connection.request("POST", "/v1/embeddings", b"{}")
    assert 404 == connection.getresponse().status


def test_nothing_of_it_is_left(provider: DemoProvider) -> None:
    """Leaving the context ends its thread and frees its port."""
    with DemoProvider("bye") as short:
        port = short.port
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("demo-provider")]
    assert 1 == len(names)


def test_a_port_that_is_taken_is_an_error(provider: DemoProvider) -> None:
    with pytest.raises(OSError, match="address already in use"), DemoProvider("second", port=provider.port):
        pass


def test_the_example_is_the_config_of_the_demonstration() -> None:
    played = CONFIG.format(primary="http://127.0.0.1:19001/v1", fallback="http://127.0.0.1:19002/v1")
    assert yaml.safe_load(EXAMPLE.read_text()) == yaml.safe_load(played)


def test_the_story_fits_its_config() -> None:
    """The Retry-After is too long to wait for at the same target, and the timeouts are those the story names."""
    policy = compile_snapshot(parse_config_file(EXAMPLE), version=1).policies["default"]
    limited = Failure(ErrorClass.RATE_LIMITED, 429, retry_at=float(RETRY_AFTER_S))
    spent = Spent(attempts=1, same_target=1, elapsed_s=0.0, attempt_s=0.0, hold_left_s=60.0)
    assert same_target_wait(limited, spent, policy, 0.0, 0.5) is None
    assert (TIMEOUT_S, TIMEOUT_S) == (policy.first_byte_timeout_s, policy.first_token_timeout_s)


def test_a_claim_that_does_not_hold_is_named_and_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.claim("The sky is blue.", True)
    report.claim("The sea is dry.", False, "water")
    assert 1 == report.verdict()
    out = capsys.readouterr().out
    assert "seen: water" in out
    assert out.endswith("1 of 2 claims did not hold:\n  - The sea is dry.\n")


def test_a_run_in_which_all_claims_held_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.claim("The sky is blue.", True)
    assert 0 == report.verdict()
    assert capsys.readouterr().out.endswith("All 1 claims held.\n")


def test_a_controlled_provider_takes_orders_and_tells_what_it_saw() -> None:
    """POST orders, GET tells, DELETE forgets; the orders themselves are not among what it saw."""
    with DemoProvider("one two", control=True) as provider:
        remote = RemoteProvider(f"http://127.0.0.1:{provider.port}")
        remote.behave(Behaviour.RATE_LIMITED, 7)
        connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)
        answer = ask(connection, model="m")
        connection.close()
        seen = remote.requests
        remote.forget()

        assert (429, "7") == (answer.status, answer.getheader("retry-after"))
        assert ["m"] == [one.model for one in seen]
        assert () == remote.requests


def test_a_provider_without_control_takes_no_orders(provider: DemoProvider) -> None:
    with pytest.raises(StageError, match="--control"):
        RemoteProvider(f"http://127.0.0.1:{provider.port}").behave(Behaviour.SILENT)

    assert [CONTROL_PATH] == [seen.path for seen in provider.requests]
