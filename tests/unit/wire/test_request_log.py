"""Envoy's request entries: what the caller got, what the gateway knew, and the tokens."""

from __future__ import annotations

import math

import pytest
from google.protobuf.struct_pb2 import Struct

from extproc.core.endpoints import Kind
from extproc.core.feedback import RequestLogged
from extproc.core.request_state import RequestState
from extproc.wire import names
from extproc.wire.access_log import REQUEST_HEADERS_LOGGED, LogDecoder
from extproc.wire.pb import accesslog_pb2, als_pb2, core_pb2
from extproc.wire.state import write_state


def entry(headers: dict[str, str] | None = None) -> accesslog_pb2.HTTPAccessLogEntry:
    """Build the entry of a served request."""
    made = accesslog_pb2.HTTPAccessLogEntry()
    common = made.common_properties
    common.start_time.seconds, common.start_time.nanos = 1_700_000_000, 500_000_000
    common.duration.nanos = 250_000_000
    common.time_to_first_downstream_tx_byte.nanos = 100_000_000
    common.upstream_request_attempt_count = 2
    fields = common.metadata.filter_metadata[names.METADATA].fields
    fields[names.M_MODEL].string_value = "big"
    fields[names.M_CLIENT].string_value = "team"
    fields[names.M_ROUTE_MODE].string_value = "provider_failover"
    fields[names.M_CLASSES].list_value.values.add().string_value = "timeout"
    usage = common.metadata.filter_metadata[names.METADATA_USAGE].fields
    usage[names.U_INPUT].number_value = 7.0
    made.request.request_id, made.request.path = "id", "/v1/chat/completions"
    made.request.request_method = core_pb2.POST
    made.request.request_body_bytes, made.response.response_body_bytes = 10, 20
    made.response.response_code.value = 200
    for name, value in (headers or {}).items():
        made.response.response_headers[name] = value
    return made


def decoded(made: accesslog_pb2.HTTPAccessLogEntry) -> RequestLogged:
    """Decode one entry."""
    message = als_pb2.StreamAccessLogsMessage()
    message.identifier.log_name = names.LOG_REQUESTS
    message.http_logs.log_entry.append(made)
    (event,) = LogDecoder().decode(message.SerializeToString())
    assert isinstance(event, RequestLogged)
    return event


def test_has_times_sizes_and_place() -> None:
    found = decoded(entry())
    assert (1_700_000_000.5, 0.25, 0.1) == (found.at, found.duration_s, found.first_byte_s)
    assert (10, 20, "POST", "/v1/chat/completions", 2) == (
        found.request_bytes,
        found.response_bytes,
        found.method,
        found.path,
        found.attempts,
    )


def test_has_what_the_gateway_knew() -> None:
    found = decoded(entry())
    assert {"model": "big", "client": "team"}.items() <= found.told.items()
    assert ("timeout",) == found.classes


def test_believes_the_answer_and_not_the_plan() -> None:
    """Metadata still holds the plan when Envoy answered by itself, or the caller had left."""
    assert "" == decoded(entry()).told["route_mode"]
    headers = dict(zip(REQUEST_HEADERS_LOGGED, ("none", "", "2"), strict=True))
    assert {"route_mode": "none", "served_by": "", "attempts": "2"}.items() <= decoded(entry(headers)).told.items()


@pytest.mark.parametrize("odd", [math.nan, math.inf, -1.0, 2.0**60])
def test_believes_only_sensible_counts(odd: float) -> None:
    made = entry()
    usage = made.common_properties.metadata.filter_metadata[names.METADATA_USAGE].fields
    usage[names.U_OUTPUT].number_value = odd
    usage["planted"].number_value = 1.0
    assert {"input": 7} == decoded(made).tokens


class TestItsLastAttempt:
    """Only failed attempts have entries of their own."""

    @staticmethod
    def answered(status: int = 200, *flags: str) -> RequestLogged:
        made = entry({"x-ratelimit-remaining-requests": "0"})
        common = made.common_properties
        common.upstream_cluster = "a-cluster"
        made.response.response_code.value = status
        common.time_to_first_upstream_tx_byte.nanos = 10_000_000
        common.time_to_last_upstream_tx_byte.nanos = 20_000_000
        common.time_to_first_upstream_rx_byte.nanos = 70_000_000
        common.time_to_last_upstream_rx_byte.nanos = 210_000_000
        for flag in flags:
            setattr(common.response_flags, flag, True)
        return decoded(made)

    def test_is_told_with_its_place_its_times_and_the_allowance_that_is_left(self) -> None:
        last = self.answered().last
        assert last is not None
        assert ("id", "a-cluster", 200, 10) == (last.request_id, last.cluster, last.status, last.request_bytes)
        assert (0.05, 0.2) == pytest.approx((last.first_byte_s, last.duration_s))
        assert "0" == last.headers["x-ratelimit-remaining-requests"]

    @pytest.mark.parametrize("status", [0, 200, 503])
    def test_is_told_when_the_caller_left(self, status: int) -> None:
        last = self.answered(status, "downstream_connection_termination").last
        assert last is not None
        assert {"downstream_connection_termination"} == last.flags

    @pytest.mark.parametrize(
        ("status", "flags"),
        [(503, ()), (300, ()), (0, ()), (503, ("upstream_connection_failure",)), (200, ("upstream_remote_reset",))],
    )
    def test_has_an_entry_of_its_own_otherwise(self, status: int, flags: tuple[str, ...]) -> None:
        assert self.answered(status, *flags).last is None

    def test_is_not_there_when_no_provider_was_asked(self) -> None:
        assert decoded(entry()).last is None


def test_of_an_envoy_that_knows_nothing_is_empty() -> None:
    found = decoded(accesslog_pb2.HTTPAccessLogEntry())
    assert ((), {}, "", None) == (found.classes, found.tokens, found.told["route_mode"], found.first_byte_s)


def test_reads_the_state_only_when_it_is_asked_for() -> None:
    """It is asked for a request that another process planned; an entry without a whole state has none."""
    made = entry()
    assert decoded(made).state() is None
    known = RequestState(
        "id", 3, "default", Kind.UNARY, "openai", "/v1/chat/completions", "", "team", "big", 7, 1.5, (), ("timeout",), 2
    )
    metadata = Struct()
    write_state(metadata, known)
    found = metadata.fields[names.METADATA].struct_value
    made.common_properties.metadata.filter_metadata[names.METADATA].CopyFrom(found)
    assert known == decoded(made).state()
