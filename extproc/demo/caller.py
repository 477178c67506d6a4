"""The caller of the demonstration: asks a gateway as any client would, and finds what the access log says of it.

Owns one request and how its answer is read. Who started the gateway is `stage.py`'s and `remote.py`'s.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENT_TOKEN = "demo-token-of-the-client"  # noqa: S105 - public; it opens demonstrations only, and must not travel on
_ANSWER_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller got; `first_s` and `total_s` are seconds until the first output and until the end."""

    status: int
    headers: Mapping[str, str]
    text: str
    """The assistant's words, joined when they were streamed."""
    complete: bool
    """Whether the answer ended as it should: valid JSON, or a stream with its `[DONE]`."""
    first_s: float
    total_s: float

    @property
    def route_mode(self) -> str:
        """How the answer came to be served."""
        return self.headers.get("x-gateway-route-mode", "")

    @property
    def served_by(self) -> str:
        """provider/model that served."""
        return self.headers.get("x-gateway-served-by", "")

    @property
    def attempts(self) -> int:
        """How many upstream attempts it took, 0 when the gateway did not say."""
        value = self.headers.get("x-gateway-attempts", "")
        return int(value) if value.isdecimal() else 0


class Caller:
    """A client of the gateway at `address`, host and port."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def url(self) -> str:
        """What a client uses as its base_url."""
        return f"http://{self.address}/v1"

    def ask(self, model: str, *, stream: bool = False) -> Answer:
        """Send one chat completion and read its answer to the end."""
        body = {"model": model, "messages": [{"role": "user", "content": "Are you there?"}]}
        payload = json.dumps(body | ({"stream": True} if stream else {}))
        headers = {"content-type": "application/json", "authorization": f"Bearer {CLIENT_TOKEN}"}
        connection = http.client.HTTPConnection(self.address, timeout=_ANSWER_TIMEOUT_S)
        began = time.monotonic()
        try:
            connection.request("POST", "/v1/chat/completions", payload, headers)
            return _read(connection.getresponse(), began)
        finally:
            connection.close()


def logged_in(log: Path, request_id: str) -> dict[str, Any]:
    """Return an access log's line about a request, empty when there is none."""
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        with suppress(ValueError):  # a line that is being written
            fields: dict[str, Any] = json.loads(line)
            if fields.get("request_id") == request_id:
                return fields
    return {}


def _read(response: http.client.HTTPResponse, began: float) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    if headers.get("content-type", "").startswith("text/event-stream"):
        text, complete, first_s = _read_stream(response, began)
    else:
        text, complete = _content(response.read(), "message")
        first_s = time.monotonic() - began
    return Answer(response.status, headers, text, complete, first_s, time.monotonic() - began)


def _read_stream(response: http.client.HTTPResponse, began: float) -> tuple[str, bool, float]:
    words, done, first_s = "", False, 0.0
    with suppress(http.client.IncompleteRead):
        for line in response:
            data = line.strip().removeprefix(b"data: ")
            done = done or data == b"[DONE]"
            piece, _ = _content(data, "delta")
            if piece and not words:
                first_s = time.monotonic() - began
            words += piece
    return words.strip(), done, first_s


def _content(raw: bytes, member: str) -> tuple[str, bool]:
    """Return the words in a completion or one of its chunks, and whether it was one."""
    try:
        return str(json.loads(raw)["choices"][0][member].get("content", "")), True
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", False
