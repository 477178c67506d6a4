"""What is read of a good answer's limits, Envoy has to log: the answer itself never passes through Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from extproc.core.reset_times import exhausted_until, recovery_time
from extproc.envoy_config.access_log import request_logs
from extproc.wire import names
from extproc.wire.access_log import REQUEST_HEADERS_LOGGED
from tests.unit.envoy_config.build import PATHS


class Spent(Mapping[str, str]):
    """Headers that say of every limit that it is spent for ten seconds, and remember what was looked up."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return "0" if "remaining" in name else "10"

    def __iter__(self) -> Iterator[str]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)


def logged() -> set[str]:
    """Return the provider's response headers in Envoy's entry of a request."""
    (log,) = [one["typed_config"] for one in request_logs(PATHS) if names.LOG_REQUESTS in str(one)]
    return set(log["additional_response_headers_to_log"]) - set(REQUEST_HEADERS_LOGGED)


def test_envoy_logs_every_limit_that_paces_a_target() -> None:
    headers = Spent()
    exhausted_until(headers, 1_700_000_000.0, 3600.0)
    assert headers.read
    assert set() == headers.read - logged()


def test_envoy_logs_no_header_that_nobody_reads() -> None:
    headers = Spent()
    for missing in ("retry-after-ms", "x-ms-retry-after-ms"):
        headers.read.add(missing)  # the first exact form that is there ends the search
    recovery_time(headers, 1_700_000_000.0, 3600.0)
    headers.get("retry-after")
    assert set() == logged() - headers.read
