"""The closed sets that every part of the gateway shares: error classes, route modes, what a failure is charged to.

Owns words only; the tables that use them live beside their logic (classify.py, retry.py, health.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ErrorClass(StrEnum):
    """What a failed attempt means."""

    RATE_LIMITED = "rate_limited"
    QUOTA_EXHAUSTED = "quota_exhausted"
    AUTH_REJECTED = "auth_rejected"
    MODEL_UNAVAILABLE = "model_unavailable"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BAD_ANSWER = "bad_answer"
    STREAM_CUT = "stream_cut"
    STREAM_STALL = "stream_stall"
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTERED = "content_filtered"
    INVALID_REQUEST = "invalid_request"
    CLIENT_ABORT = "client_abort"


BROKEN_STREAMS = frozenset({ErrorClass.STREAM_CUT, ErrorClass.STREAM_STALL})
"""Of an answer that the caller had begun to get."""


class Charge(StrEnum):
    """Whose health a failure counts against."""

    TARGET = "target"
    PROVIDER = "provider"
    NOBODY = "nobody"


class RouteMode(StrEnum):
    """How the answer came to be served; `x-gateway-route-mode`."""

    DIRECT = "direct"
    BALANCED = "balanced"
    HEALTH_REROUTE = "health_reroute"
    PROVIDER_FAILOVER = "provider_failover"
    MODEL_FALLBACK = "model_fallback"
    PINNED = "pinned"
    LAST_RESORT = "last_resort"
    NONE = "none"


CHARGED_TO: dict[ErrorClass, Charge] = {
    ErrorClass.RATE_LIMITED: Charge.TARGET,
    ErrorClass.QUOTA_EXHAUSTED: Charge.PROVIDER,
    ErrorClass.AUTH_REJECTED: Charge.PROVIDER,
    ErrorClass.MODEL_UNAVAILABLE: Charge.TARGET,
    ErrorClass.OVERLOADED: Charge.TARGET,
    ErrorClass.SERVER_ERROR: Charge.TARGET,
    ErrorClass.TIMEOUT: Charge.TARGET,
    ErrorClass.CONNECTION: Charge.PROVIDER,
    ErrorClass.BAD_ANSWER: Charge.TARGET,
    ErrorClass.STREAM_CUT: Charge.TARGET,
    ErrorClass.STREAM_STALL: Charge.TARGET,
    ErrorClass.CONTEXT_LENGTH: Charge.NOBODY,
    ErrorClass.CONTENT_FILTERED: Charge.NOBODY,
    ErrorClass.INVALID_REQUEST: Charge.NOBODY,
    ErrorClass.CLIENT_ABORT: Charge.NOBODY,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt, understood.

    `retry_at` is the epoch second from which the provider says it can serve again, None when it said nothing.
    `evidence` holds short `name=value` facts that led here (status, code, retry-after): never body text.
    `vague` says that the answer does not tell whose fault it is: it counts against nobody.
    """

    error_class: ErrorClass
    status: int | None = None
    retry_at: float | None = None
    evidence: tuple[str, ...] = ()
    vague: bool = False

    @property
    def charge(self) -> Charge:
        """Whose health it counts against."""
        return Charge.NOBODY if self.vague else CHARGED_TO[self.error_class]
