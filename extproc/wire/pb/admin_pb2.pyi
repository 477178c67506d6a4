from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HealthAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEALTH_ACTION_UNSPECIFIED: _ClassVar[HealthAction]
    HEALTH_ACTION_DRAIN: _ClassVar[HealthAction]
    HEALTH_ACTION_DOWN: _ClassVar[HealthAction]
    HEALTH_ACTION_RESTORE: _ClassVar[HealthAction]
HEALTH_ACTION_UNSPECIFIED: HealthAction
HEALTH_ACTION_DRAIN: HealthAction
HEALTH_ACTION_DOWN: HealthAction
HEALTH_ACTION_RESTORE: HealthAction

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("software_version", "pid", "started_at", "ready", "wanted_version", "applied_version", "digest", "applied_at", "last_error", "requests_open", "ledger", "missing_keys")
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    WANTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    APPLIED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_OPEN_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    MISSING_KEYS_FIELD_NUMBER: _ClassVar[int]
    software_version: str
    pid: int
    started_at: float
    ready: bool
    wanted_version: int
    applied_version: int
    digest: str
    applied_at: float
    last_error: str
    requests_open: int
    ledger: LedgerStatus
    missing_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, software_version: _Optional[str] = ..., pid: _Optional[int] = ..., started_at: _Optional[float] = ..., ready: _Optional[bool] = ..., wanted_version: _Optional[int] = ..., applied_version: _Optional[int] = ..., digest: _Optional[str] = ..., applied_at: _Optional[float] = ..., last_error: _Optional[str] = ..., requests_open: _Optional[int] = ..., ledger: _Optional[_Union[LedgerStatus, _Mapping]] = ..., missing_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class LedgerStatus(_message.Message):
    __slots__ = ("written", "dropped", "waiting")
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    written: int
    dropped: int
    waiting: int
    def __init__(self, written: _Optional[int] = ..., dropped: _Optional[int] = ..., waiting: _Optional[int] = ...) -> None: ...

class ListHealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListHealthReply(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[HealthRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[HealthRow, _Mapping]]] = ...) -> None: ...

class HealthRow(_message.Message):
    __slots__ = ("subject", "is_provider", "state", "eligible", "share", "reason", "until", "streak", "order", "in_audit")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    IS_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    STREAK_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    IN_AUDIT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    is_provider: bool
    state: str
    eligible: bool
    share: float
    reason: str
    until: float
    streak: int
    order: Order
    in_audit: bool
    def __init__(self, subject: _Optional[str] = ..., is_provider: _Optional[bool] = ..., state: _Optional[str] = ..., eligible: _Optional[bool] = ..., share: _Optional[float] = ..., reason: _Optional[str] = ..., until: _Optional[float] = ..., streak: _Optional[int] = ..., order: _Optional[_Union[Order, _Mapping]] = ..., in_audit: _Optional[bool] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("kind", "owner", "reason", "expires_at")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    owner: str
    reason: str
    expires_at: float
    def __init__(self, kind: _Optional[str] = ..., owner: _Optional[str] = ..., reason: _Optional[str] = ..., expires_at: _Optional[float] = ...) -> None: ...

class SetHealthRequest(_message.Message):
    __slots__ = ("subject", "action", "owner", "reason", "expires_in_s")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    subject: str
    action: HealthAction
    owner: str
    reason: str
    expires_in_s: float
    def __init__(self, subject: _Optional[str] = ..., action: _Optional[_Union[HealthAction, str]] = ..., owner: _Optional[str] = ..., reason: _Optional[str] = ..., expires_in_s: _Optional[float] = ...) -> None: ...

class ListRequestsRequest(_message.Message):
    __slots__ = ("limit", "failed", "follow", "model", "client", "served_by", "error_class", "since")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    limit: int
    failed: bool
    follow: bool
    model: str
    client: str
    served_by: str
    error_class: str
    since: float
    def __init__(self, limit: _Optional[int] = ..., failed: _Optional[bool] = ..., follow: _Optional[bool] = ..., model: _Optional[str] = ..., client: _Optional[str] = ..., served_by: _Optional[str] = ..., error_class: _Optional[str] = ..., since: _Optional[float] = ...) -> None: ...

class RequestRow(_message.Message):
    __slots__ = ("seq", "request_id", "arrived", "client", "model", "outcome", "status", "error", "route_mode", "served_by", "attempts", "classes", "duration_ms", "first_byte_ms", "input_tokens", "output_tokens", "config_version", "endpoint")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ROUTE_MODE_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BYTE_MS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    request_id: str
    arrived: float
    client: str
    model: str
    outcome: str
    status: int
    error: str
    route_mode: str
    served_by: str
    attempts: int
    classes: _containers.RepeatedScalarFieldContainer[str]
    duration_ms: float
    first_byte_ms: float
    input_tokens: int
    output_tokens: int
    config_version: int
    endpoint: str
    def __init__(self, seq: _Optional[int] = ..., request_id: _Optional[str] = ..., arrived: _Optional[float] = ..., client: _Optional[str] = ..., model: _Optional[str] = ..., outcome: _Optional[str] = ..., status: _Optional[int] = ..., error: _Optional[str] = ..., route_mode: _Optional[str] = ..., served_by: _Optional[str] = ..., attempts: _Optional[int] = ..., classes: _Optional[_Iterable[str]] = ..., duration_ms: _Optional[float] = ..., first_byte_ms: _Optional[float] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., config_version: _Optional[int] = ..., endpoint: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class GetSnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetSnapshotReply(_message.Message):
    __slots__ = ("version", "digest", "json")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    json: str
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...
