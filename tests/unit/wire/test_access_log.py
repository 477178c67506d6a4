"""Envoy's log entries, decoded: who, where, with which flags, and when the first byte came."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from extproc.core.feedback import AttemptLogged, RequestLogged
from extproc.wire.access_log import LogDecoder
from extproc.wire.names import LOG_ATTEMPTS, LOG_REQUESTS
from extproc.wire.pb import accesslog_pb2, als_pb2


def entry(**times_s: float) -> accesslog_pb2.HTTPAccessLogEntry:
    """Build an entry of an answered attempt; keywords are its durations."""
    made = accesslog_pb2.HTTPAccessLogEntry()
    made.request.request_id = "id"
    made.request.request_body_bytes = 40
    made.response.response_code.value = 200
    made.response.response_headers["retry-after"] = "2"
    made.common_properties.upstream_cluster = "a-cluster"
    made.common_properties.upstream_request_attempt_count = 3
    for name, value_s in times_s.items():
        duration = Duration(seconds=int(value_s), nanos=round(value_s % 1 * 1e9))
        getattr(made.common_properties, name).CopyFrom(duration)
    return made


def message(*entries: accesslog_pb2.HTTPAccessLogEntry, log: str = "") -> bytes:
    """Serialize entries; only a stream's first message names its log."""
    made = als_pb2.StreamAccessLogsMessage()
    if log:
        made.identifier.log_name = log
    for one in entries:
        made.http_logs.log_entry.append(one)
    return made.SerializeToString()


def decoded(*entries: accesslog_pb2.HTTPAccessLogEntry, log: str) -> list[AttemptLogged | RequestLogged]:
    """Decode one message of a new stream."""
    return list(LogDecoder().decode(message(*entries, log=log)))


def attempt(made: accesslog_pb2.HTTPAccessLogEntry) -> AttemptLogged:
    """Decode one entry of the attempts' log."""
    (event,) = decoded(made, log=LOG_ATTEMPTS)
    assert isinstance(event, AttemptLogged)
    return event


def test_an_attempt_has_its_cluster_status_headers_and_sizes() -> None:
    found = attempt(entry(duration=1.5))
    assert AttemptLogged("id", "a-cluster", 200, frozenset(), None, 1.5, {"retry-after": "2"}, 40) == found


def test_a_request_has_its_status_and_the_number_of_its_attempts() -> None:
    (found,) = decoded(entry(), log=LOG_REQUESTS)
    assert isinstance(found, RequestLogged)
    assert ("id", 200, frozenset(), 3) == (found.request_id, found.status, found.flags, found.attempts)


def test_the_time_to_the_first_byte_counts_from_the_end_of_the_request() -> None:
    found = attempt(entry(time_to_last_upstream_tx_byte=0.25, time_to_first_upstream_rx_byte=1.0))
    assert 0.75 == found.first_byte_s


def test_an_answer_that_came_before_the_request_was_sent_took_no_time() -> None:
    found = attempt(entry(time_to_last_upstream_tx_byte=1.0, time_to_first_upstream_rx_byte=0.5))
    assert 0.0 == found.first_byte_s


def test_an_answer_takes_from_its_first_byte_to_the_end_of_the_request() -> None:
    (found,) = decoded(
        entry(
            time_to_first_upstream_tx_byte=0.25,
            time_to_first_upstream_rx_byte=0.5,
            time_to_last_upstream_rx_byte=1.5,
            duration=2.0,
        ),
        log=LOG_REQUESTS,
    )
    assert isinstance(found, RequestLogged)
    assert found.last is not None
    assert 1.5 == found.last.answer_s


def test_an_attempt_without_a_byte_has_no_time_to_it() -> None:
    assert attempt(entry(time_to_last_upstream_tx_byte=0.25)).first_byte_s is None


@pytest.mark.parametrize(
    "flag",
    [
        "upstream_request_timeout",
        "stream_idle_timeout",
        "upstream_max_stream_duration_reached",
        "upstream_connection_failure",
        "no_healthy_upstream",
        "no_cluster_found",
        "dns_resolution_failure",
        "upstream_remote_reset",
        "upstream_connection_termination",
        "upstream_protocol_error",
        "downstream_connection_termination",
        "downstream_remote_reset",
        "upstream_overflow",
    ],
)
def test_every_flag_that_feedback_knows_is_one_of_envoy_s(flag: str) -> None:
    made = entry()
    setattr(made.common_properties.response_flags, flag, True)
    assert frozenset({flag}) == attempt(made).flags


def test_a_stream_names_its_log_once() -> None:
    decoder = LogDecoder()
    first, second = decoder.decode(message(entry(), log=LOG_ATTEMPTS)), decoder.decode(message(entry(), entry()))
    assert [1, 2] == [len(list(first)), len(list(second))]


@pytest.mark.parametrize("log", ["", "other"])
def test_a_log_of_another_name_is_ignored(log: str) -> None:
    assert [] == decoded(entry(), log=log)
