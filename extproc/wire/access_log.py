"""Envoy's gRPC access-log messages -> the core's feedback events; total, and blind to what it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from google.protobuf.duration_pb2 import Duration

from extproc.core.feedback import ABORT_FLAGS, AttemptLogged, RequestLogged
from extproc.wire import names
from extproc.wire.pb import accesslog_pb2, als_pb2, core_pb2
from extproc.wire.state import read_state

Entry = accesslog_pb2.HTTPAccessLogEntry
_NO_FLAGS: frozenset[str] = frozenset()

_COUNT_LIMIT = 2.0**53
_TOLD = (
    names.M_CLIENT,
    names.M_MODEL,
    names.M_POLICY,
    names.M_KIND,
    names.M_ENDPOINT,
    names.M_VERSION,
    names.M_SERVED_MODEL,
    names.M_ERROR,
)
_TOLD_BY_HEADERS = (
    (names.H_ROUTE_MODE, names.M_ROUTE_MODE),
    (names.H_SERVED_BY, names.M_SERVED_BY),
    (names.H_ATTEMPTS, "attempts"),
)
REQUEST_HEADERS_LOGGED = tuple(name for name, _ in _TOLD_BY_HEADERS)
"""The answer's own headers that Envoy must add to its request entries."""

_METHODS = {number: name for name, number in core_pb2.RequestMethod.items()}


class LogDecoder:
    """Decodes the messages of one stream; only a stream's first message names its log."""

    def __init__(self) -> None:
        self._log_name = ""

    def decode(self, message: bytes) -> Iterator[AttemptLogged | RequestLogged]:
        """Yield the events of one StreamAccessLogsMessage."""
        logged = als_pb2.StreamAccessLogsMessage.FromString(message)
        self._log_name = logged.identifier.log_name or self._log_name
        for entry in logged.http_logs.log_entry:
            if self._log_name == names.LOG_ATTEMPTS:
                yield _attempt(entry)
            elif self._log_name == names.LOG_REQUESTS:
                yield _request(entry)


def _attempt(entry: Entry) -> AttemptLogged:
    common = entry.common_properties
    status, flags = entry.response.response_code.value, _flags(common.response_flags)
    return _attempt_of(entry, status, flags, _seconds(common, "duration") or 0.0)


def _attempt_of(entry: Entry, status: int, flags: frozenset[str], duration_s: float) -> AttemptLogged:
    return AttemptLogged(
        request_id=entry.request.request_id,
        cluster=entry.common_properties.upstream_cluster,
        status=status,
        flags=flags,
        first_byte_s=_first_byte_s(entry.common_properties),
        duration_s=duration_s,
        headers=entry.response.response_headers,
        request_bytes=entry.request.request_body_bytes,
        answer_s=_answer_s(entry.common_properties),
    )


def _answer_s(common: accesslog_pb2.AccessLogCommon) -> float:
    """Return the time from the first byte of an answer to the end of its request, 0 when unknown."""
    first_s = _seconds(common, "time_to_first_upstream_rx_byte")
    return 0.0 if first_s is None else max(0.0, (_seconds(common, "duration") or 0.0) - first_s)


def _last_attempt(entry: Entry, status: int, flags: frozenset[str]) -> AttemptLogged | None:
    """Return what a request's entry says of its last attempt, None when that has an entry of its own.

    A good one has none (envoy_config/access_log.py), and one whose caller left need not have one.
    """
    common = entry.common_properties
    good = not flags and 200 <= status < 300
    if not (good or flags & ABORT_FLAGS) or not common.upstream_cluster:
        return None
    began_s = _seconds(common, "time_to_first_upstream_tx_byte")
    ended_s = _seconds(common, "time_to_last_upstream_rx_byte")
    if began_s is None or ended_s is None:
        began_s, ended_s = 0.0, _seconds(common, "duration") or 0.0
    return _attempt_of(entry, status, flags, max(0.0, ended_s - began_s))


def _first_byte_s(common: accesslog_pb2.AccessLogCommon) -> float | None:
    """Return the time from the end of what was sent to an attempt's provider until its first byte came."""
    first_s = _seconds(common, "time_to_first_upstream_rx_byte")
    if first_s is None:
        return None
    return max(0.0, first_s - (_seconds(common, "time_to_last_upstream_tx_byte") or 0.0))


def _request(entry: Entry) -> RequestLogged:
    common, request, response = entry.common_properties, entry.request, entry.response
    status, flags = response.response_code.value, _flags(common.response_flags)
    told, classes = _told(common.metadata)
    headers = response.response_headers
    for name, key in _TOLD_BY_HEADERS:
        # What the caller was told wins over what was planned; without an answer nothing was served.
        told[key] = headers.get(name, "")
    return RequestLogged(
        request_id=request.request_id,
        status=status,
        flags=flags,
        attempts=common.upstream_request_attempt_count,
        at=common.start_time.seconds + common.start_time.nanos / 1e9,
        duration_s=_seconds(common, "duration") or _seconds(common, "time_to_last_downstream_tx_byte") or 0.0,
        first_byte_s=_seconds(common, "time_to_first_downstream_tx_byte"),
        request_bytes=request.request_body_bytes,
        response_bytes=response.response_body_bytes,
        method=_METHODS.get(request.request_method, ""),
        path=request.path,
        told=told,
        classes=classes,
        tokens=_tokens(common.metadata),
        address_denied=response.response_code_details.startswith(names.DETAILS_ADDRESS),
        out_of_time=response.response_code_details == names.DETAILS_DURATION,
        too_large=response.response_code_details == names.DETAILS_TOO_LARGE,
        answer_began=common.HasField("time_to_first_upstream_rx_byte"),
        last=_last_attempt(entry, status, flags),
        state=partial(read_state, common.metadata),
    )


def _told(metadata: core_pb2.Metadata) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the facts of the gateway's metadata, and the classes of failed attempts."""
    if names.METADATA not in metadata.filter_metadata:
        return {}, ()
    fields = metadata.filter_metadata[names.METADATA].fields
    told = {key: fields[key].string_value for key in _TOLD if key in fields}
    if names.M_CLASSES not in fields:
        return told, ()
    return told, tuple(value.string_value for value in fields[names.M_CLASSES].list_value.values)


def _tokens(metadata: core_pb2.Metadata) -> dict[str, int]:
    """Return token counts; what is no sensible count is left out."""
    if names.METADATA_USAGE not in metadata.filter_metadata:
        return {}
    counts = metadata.filter_metadata[names.METADATA_USAGE].fields
    values = ((key, counts[key].number_value) for key in names.USAGE_KEYS if key in counts)
    return {key: int(value) for key, value in values if 0 <= value < _COUNT_LIMIT}


def _flags(flags: accesslog_pb2.ResponseFlags) -> frozenset[str]:
    fields = flags.ListFields()
    return frozenset(descriptor.name for descriptor, _ in fields) if fields else _NO_FLAGS


def _seconds(common: accesslog_pb2.AccessLogCommon, name: str) -> float | None:
    if not common.HasField(name):
        return None
    duration: Duration = getattr(common, name)
    return duration.seconds + duration.nanos / 1e9
