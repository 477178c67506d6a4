"""What Envoy's access log says about attempts and requests, turned into verdicts for the health engine.

The judge understands answered failures; this is where silent ones, broken ones and good ones get theirs. Attempt
entries carry no attempt number, so they are matched to a request's attempts in order; a last attempt with a good answer
has none and is settled by the request's own. Each attempt is charged once, whoever comes first. A request that a
process before this one planned is taken over from the metadata in Envoy's entry, so that it counts as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from extproc.core.gateway import Gateway
from extproc.core.health import Success
from extproc.core.outcome import BROKEN_STREAMS, ErrorClass, Failure
from extproc.core.records import AttemptRecord, RequestRecord
from extproc.core.request_state import RequestState


@dataclass(frozen=True, slots=True)
class AttemptLogged:
    """One attempt as Envoy saw it; `flags` are Envoy's long response flags in snake case."""

    request_id: str
    cluster: str
    status: int
    flags: frozenset[str]
    first_byte_s: float | None
    duration_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    request_bytes: int = 0
    answer_s: float = 0.0
    """From the first byte of its answer to the end of the request."""


@dataclass(frozen=True, slots=True)
class RequestLogged:
    """One request as Envoy saw it when it ended."""

    request_id: str
    status: int
    flags: frozenset[str]
    attempts: int
    at: float = 0.0
    """When it arrived, epoch seconds."""
    duration_s: float = 0.0
    first_byte_s: float | None = None
    """From its arrival to the first byte of the answer that went to the caller."""
    request_bytes: int = 0
    response_bytes: int = 0
    method: str = ""
    path: str = ""
    told: Mapping[str, str] = field(default_factory=dict)
    """Facts of the gateway's metadata and answer: client, model, policy, route_mode, served_by and the like."""
    classes: tuple[str, ...] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    address_denied: bool = False
    """Whether Envoy ended it because the last attempt's provider had an address that it may not have."""
    out_of_time: bool = False
    """Whether Envoy ended it because its policy's `max_duration` had passed."""
    too_large: bool = False
    """Whether Envoy ended it because the answer was larger than what it may hold."""
    answer_began: bool = False
    """Whether the last attempt's provider had sent any of its answer."""
    last: AttemptLogged | None = None
    """Its last attempt, when Envoy tells of it here: its answer was good, or the caller left."""
    state: Callable[[], RequestState | None] = field(default=lambda: None, compare=False, repr=False)
    """Reads what Envoy's metadata holds of the request: costly, so only for one that nobody here knows."""


ABORT_FLAGS = frozenset({"downstream_connection_termination", "downstream_remote_reset"})
"""The caller left."""
_TIMEOUT_FLAGS = frozenset({"upstream_request_timeout", "stream_idle_timeout", "upstream_max_stream_duration_reached"})
_CONNECTION_FLAGS = frozenset(
    {"upstream_connection_failure", "no_healthy_upstream", "no_cluster_found", "dns_resolution_failure"}
)
_RESET_FLAGS = frozenset({"upstream_remote_reset", "upstream_connection_termination", "upstream_protocol_error"})
_BLAMELESS_FLAGS = ABORT_FLAGS | {"upstream_overflow"}


def attempt_logged(gateway: Gateway, event: AttemptLogged, now: float) -> None:
    """Settle the next unsettled attempt of a request by Envoy's account of it."""
    record = gateway.requests.by_id.get(event.request_id)
    if record is None:
        gateway.requests.keep_early(event)
        return
    record.logged += 1
    attempt = _match(record, event)
    if attempt is not None:
        _settle(gateway, record, attempt, event, now)
    gateway.requests.close_if_done(event.request_id, now)


def request_logged(gateway: Gateway, event: RequestLogged, now: float) -> None:
    """Take note that a request ended and of how many attempts Envoy made for it."""
    gateway.requests.observer.request_logged(event)
    _take_over(gateway, event, now)
    if (event.flags or event.out_of_time or event.too_large) and event.request_id:
        gateway.requests.left(event.request_id)
    record = gateway.requests.by_id.get(event.request_id)
    if record is None:
        gateway.requests.observer.request_closed(None, event, gateway.requests.refused.pop(event.request_id, None), now)
        return
    record.request = event
    gateway.requests.ended(record)
    if event.address_denied:
        _address_denied(gateway, record, now)
    if event.too_large:
        _too_large(gateway, record, now)
    if event.out_of_time:
        _out_of_time(gateway, record, event, now)
    gateway.requests.reported(record, _entries_due(gateway, record, event, now), now)


def _take_over(gateway: Gateway, event: RequestLogged, now: float) -> None:
    """Make a request known that a process before this one planned, and settle its attempts by what came of them."""
    known = event.request_id in gateway.requests.by_id
    state = event.state() if event.attempts and not known else None
    if state is not None and state.id == event.request_id:
        gateway.requests.take_over(state, now)
    for entry in gateway.requests.take_early(event.request_id):
        attempt_logged(gateway, entry, now)


def _entries_due(gateway: Gateway, record: RequestRecord, event: RequestLogged, now: float) -> int:
    """Return how many entries of attempts Envoy writes to us; settle the last attempt when that has none."""
    return _entries_written(gateway, record, event, now) - sum(attempt.inherited for attempt in record.attempts)


def _entries_written(gateway: Gateway, record: RequestRecord, event: RequestLogged, now: float) -> int:
    if len(record.attempts) != event.attempts:
        return event.attempts
    attempt = record.attempts[-1]
    if event.last is not None and event.last.cluster == attempt.step.cluster:
        _settle(gateway, record, attempt, event.last, now)
        return event.attempts - 1
    # It was ended while its answer, a good one so far, was on its way.
    broken = event.too_large or (attempt.failure is not None and attempt.failure.error_class in BROKEN_STREAMS)
    return event.attempts - 1 if broken else event.attempts


def _settle(gateway: Gateway, record: RequestRecord, attempt: AttemptRecord, event: AttemptLogged, now: float) -> None:
    """Keep what Envoy says of an attempt, and settle it by that unless it is settled."""
    if attempt.logged is None:
        attempt.logged = event
    # An entry that says nothing leaves the verdict to the request's own entry: a refused address is told there.
    if attempt.settled or not (event.status or event.flags):
        return
    verdict = _verdict(attempt, event, _first_token_s(gateway, record, attempt))
    gateway.requests.settle(attempt, record.state, verdict, now)
    if isinstance(verdict, Success):
        gateway.served(record, attempt, now)
        answered_at = now - event.answer_s
        gateway.answered_well(record.state, attempt.step.key, event.headers, answered_at, now)


def _address_denied(gateway: Gateway, record: RequestRecord, now: float) -> None:
    """Take the account out at once and for long: Envoy ended the request, so every further try costs a caller."""
    active = gateway.version(record.state.version)
    if active is None or not record.attempts:
        return
    retry_at = now + gateway.policy_of(record.state, active).cooldown.max_s
    failure = Failure(ErrorClass.CONNECTION, retry_at=retry_at, evidence=("address=denied",))
    gateway.requests.settle(record.attempts[-1], record.state, failure, now)


def _too_large(gateway: Gateway, record: RequestRecord, now: float) -> None:
    """Settle the attempt whose answer did not fit: an answer of no use, but the limit is ours."""
    if record.attempts:
        failure = Failure(ErrorClass.BAD_ANSWER, evidence=("too large",), vague=True)
        gateway.requests.settle(record.attempts[-1], record.state, failure, now)


def _out_of_time(gateway: Gateway, record: RequestRecord, event: RequestLogged, now: float) -> None:
    """Settle the attempt that `max_duration` ended: silence is the target's, an answer on its way is nobody's fault."""
    if not record.attempts:
        return
    attempt = record.attempts[-1]
    begun = event.answer_began and not attempt.held
    kind = ErrorClass.STREAM_CUT if begun else ErrorClass.TIMEOUT
    gateway.requests.settle(attempt, record.state, Failure(kind, evidence=("max_duration",), vague=begun), now)


def _match(record: RequestRecord, event: AttemptLogged) -> AttemptRecord | None:
    if record.taken_over:
        # Entries of earlier attempts may have gone to the process that began them.
        here = (attempt for attempt in record.attempts if attempt.logged is None and not attempt.inherited)
        return next((attempt for attempt in here if attempt.step.cluster == event.cluster), None)
    index = record.logged - 1
    if index < len(record.attempts) and record.attempts[index].step.cluster == event.cluster:
        return record.attempts[index]
    return None


def _first_token_s(gateway: Gateway, record: RequestRecord, attempt: AttemptRecord) -> float | None:
    """Return the time to first token where it tells how quick a target is, else None.

    The first byte of a whole answer, held back by the provider or by the guard `complete`, comes after its last token:
    it tells how long the answer is.
    """
    active = None if attempt.first_token_s is None else gateway.version(record.state.version)
    if active is None or gateway.policy_of(record.state, active).stream_guard != "first_token":
        return None
    return attempt.first_token_s


def _verdict(attempt: AttemptRecord, event: AttemptLogged, first_token_s: float | None) -> Failure | Success | None:
    flags = event.flags
    if flags & _BLAMELESS_FLAGS:
        return None
    # Once bytes have reached the caller, silence is a stall and a reset is a cut; before that they are no answer.
    begun = 200 <= event.status < 300 and event.first_byte_s is not None and not attempt.held
    if flags & _TIMEOUT_FLAGS:
        return Failure(ErrorClass.STREAM_STALL if begun else ErrorClass.TIMEOUT, evidence=_evidence(event))
    if flags & _CONNECTION_FLAGS:
        return Failure(ErrorClass.CONNECTION, evidence=_evidence(event))
    if flags & _RESET_FLAGS:
        return Failure(ErrorClass.STREAM_CUT if begun else ErrorClass.CONNECTION, evidence=_evidence(event))
    if 200 <= event.status < 300:
        return Success(first_token_s, event.request_bytes)
    return None


def _evidence(event: AttemptLogged) -> tuple[str, ...]:
    return tuple(f"flag={flag}" for flag in sorted(event.flags))
