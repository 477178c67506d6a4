"""A demonstration whose gateway and providers run already, for instance as containers.

Owns how they are reached and brought to the same beginning; it starts and stops none of them. Invariant: the providers
are fake ones with `--control`; anything else is refused before a request is sent.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from extproc.demo.caller import Caller, logged_in
from extproc.demo.stage import StageError
from extproc.demo_provider import CONTROL_PATH, Behaviour, Seen

_ORDER_TIMEOUT_S = 10.0
_SETTLE_TIMEOUT_S = 60.0
_LOG_TIMEOUT_S = 12.0
"""Envoy writes its log when a buffer is full, or by `--file-flush-interval-msec`, 10 s by default."""
_POLL_S = 0.1
_STEADY = 20
"""As many requests in a row go to the primary before the story begins."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Where the parts of the demonstration run, as base URLs; `access_log` when the gateway's is within reach."""

    gateway: str
    primary: str
    fallback: str
    access_log: Path | None = None


class RunningGateway(Caller):
    """A gateway that somebody else started."""

    def __init__(self, url: str, access_log: Path | None) -> None:
        super().__init__(_address(url))
        self._access_log = access_log

    def stop(self) -> int | None:
        """Leave it running."""
        return None

    def last_words(self) -> str:
        """Say where to look."""
        return "see the logs of the gateway itself"

    def logged(self, request_id: str) -> dict[str, Any] | None:
        """Return the log's line about a request, waiting for Envoy to write it; None without a log."""
        if self._access_log is None:
            return None
        give_up_at = time.monotonic() + _LOG_TIMEOUT_S
        while not (line := logged_in(self._access_log, request_id)) and time.monotonic() < give_up_at:
            time.sleep(_POLL_S)
        return line


class RemoteProvider:
    """A fake provider with `--control`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._address = _address(url)

    @property
    def requests(self) -> Sequence[Seen]:
        """Everything it was sent, oldest first."""
        told = self._order("GET")["requests"]
        return tuple(Seen(one["at"], one["path"], one["headers"], one["body"].encode()) for one in told)

    def behave(self, behaviour: Behaviour, retry_after_s: int = 0) -> None:
        """Say what to do with requests from now on."""
        self._order("POST", {"behaviour": behaviour, "retry_after_s": retry_after_s})

    def forget(self) -> None:
        """Let it forget what it was sent."""
        self._order("DELETE")

    def _order(self, method: str, order: Mapping[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._address, timeout=_ORDER_TIMEOUT_S)
        try:
            connection.request(method, CONTROL_PATH, json.dumps(order or {}))
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise StageError(f"{self.url} takes no orders ({response.status}): start the fake provider with --control.")
        answer: dict[str, Any] = json.loads(body)
        return answer


def settle(gateway: RunningGateway, primary: RemoteProvider, fallback: RemoteProvider) -> None:
    """Make both providers answer, wait until the gateway trusts the primary again, and let them forget; StageError."""
    for provider in (primary, fallback):
        provider.behave(Behaviour.ANSWER)
    steady, give_up_at = 0, time.monotonic() + _SETTLE_TIMEOUT_S
    while steady < _STEADY:
        answer = gateway.ask("demo-primary")
        steady = steady + 1 if answer.served_by.startswith("primary/") else 0
        if steady == 0:
            if time.monotonic() > give_up_at:
                raise StageError(f"The gateway does not serve demo-primary; its last answer was {answer.status}.")
            time.sleep(_POLL_S)
    for provider in (primary, fallback):
        provider.forget()


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise StageError(f"{url!r} is not an address of the demonstration: write http://HOST:PORT.")
    return parts.netloc
