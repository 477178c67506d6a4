"""The compiled, frozen form of one config version.

Owns the value types that every decision reads. Built by `compile.py` only; nothing here validates.
Invariants: immutable all the way down (mappings are read-only views); durations are float seconds (`_s`),
sizes are bytes (`_bytes`); every name that a target, fallback or policy reference holds exists in this
snapshot. A request pins one snapshot for life.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Protocol = Literal["openai", "anthropic"]
StreamGuard = Literal["off", "first_token", "complete"]
AllDown = Literal["least_bad", "fail"]

CREDENTIAL_PARAMETERS = frozenset(
    ("key", "apikey", "api_key", "api-key", "token", "access_token", "subscription-key", "sig")
)
"""Query parameters that are keys, in lower case: no config may hold one, and a caller's own are for no provider."""


class TargetKey(NamedTuple):
    """One upstream choice: a provider account and the model name that provider uses."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where a key is found; never the key itself."""

    source: Literal["env", "file"]
    name: str


@dataclass(frozen=True, slots=True)
class ProviderTls:
    """Files for TLS to one provider; None means the system's authorities and no client certificate."""

    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """An active check; exactly one of `path` and `model` is set."""

    path: str | None
    model: str | None
    interval_s: float
    timeout_s: float
    daily_cap: int | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider account: where it is, what it speaks, how it is authenticated."""

    name: str
    scheme: Literal["http", "https"]
    host: str
    port: int
    path_prefix: str
    """`""` or `/v1`: never ends with a slash."""
    protocol: Protocol
    api_key: SecretRef | None
    auth_header: str
    """Lower case; the header that carries the key."""
    auth_prefix: str
    headers: tuple[tuple[str, str], ...]
    query: tuple[tuple[str, str], ...]
    error_codes: Mapping[str, str]
    """Provider's error code -> ErrorClass value; extends the built-in table."""
    health_check: HealthCheck | None
    tls: ProviderTls
    allow_private_network: bool
    max_connections: int
    max_pending: int


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a model's `targets`; `model` may be `*`: the name the client sent."""

    provider: str
    model: str
    weight: int
    tier: int


@dataclass(frozen=True, slots=True)
class Affinity:
    """Which request value keeps a session on its target; exactly one of `header` and `body` is set."""

    header: str | None
    body: str | None
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Model:
    """One public model name, or a glob of names."""

    name: str
    targets: tuple[Target, ...]
    fallback: tuple[str, ...]
    context_fallback: tuple[str, ...]
    context_window: int | None
    affinity: Affinity | None
    policy: str

    @property
    def is_glob(self) -> bool:
        """Whether the name stands for many names."""
        return "*" in self.name


@dataclass(frozen=True, slots=True)
class SameTarget:
    """When one target is tried twice in a request."""

    max: int
    on: frozenset[str]
    backoff_s: float
    max_backoff_s: float
    retry_after_up_to_s: float
    only_if_faster_than_s: float


@dataclass(frozen=True, slots=True)
class Cooldown:
    """How a target trips and how long it stays out."""

    base_s: float
    factor: float
    max_s: float
    jitter: float
    consecutive: int
    failure_ratio: float
    window_s: float
    min_requests: int
    quota_s: float
    cap_s: float


@dataclass(frozen=True, slots=True)
class Policy:
    """What one request may cost in attempts and time, and how failures are treated."""

    name: str
    attempts: int
    deadline_s: float
    max_duration_s: float
    """0 means no limit."""
    connect_timeout_s: float
    first_byte_timeout_s: float
    first_token_timeout_s: float
    stream_idle_timeout_s: float
    stream_guard: StreamGuard
    same_target: SameTarget
    cooldown: Cooldown
    when_all_down: AllDown
    force_usage: bool


@dataclass(frozen=True, slots=True)
class Client:
    """One caller; `token_sha256` holds lower-case hex digests, any of which is accepted."""

    name: str
    token_sha256: tuple[str, ...]
    models: tuple[str, ...]
    """Globs of public model names; `("*",)` when the file names none."""
    requests_per_minute: int | None
    concurrent_requests: int | None = None
    expires_at: float | None = None
    """Epoch seconds from which the last of `token_sha256` is refused."""

    def accepted(self, now: float) -> tuple[str, ...]:
        """Return the digests that are good at a time."""
        return self.token_sha256[:-1] if self.expires_at is not None and now >= self.expires_at else self.token_sha256


@dataclass(frozen=True, slots=True)
class Server:
    """Limits and trust of the front listener."""

    max_body_bytes: int
    retry_budget: float
    trust_route_headers: bool
    tls_cert_file: str | None
    tls_key_file: str | None


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Bounds of the ledger and the optional trace exporter."""

    ledger_max_rows: int
    ledger_max_age_s: float
    otlp_endpoint: str | None
    otlp_sample: float


class ResolvedModel(NamedTuple):
    """A model entry together with the public name by which the client asked for it."""

    name: str
    entry: Model

    def upstream_model(self, target: Target) -> str:
        """Return the model name to send to `target`'s provider."""
        return self.name if target.model == "*" else target.model


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one version says, ready to be read on the request path."""

    version: int
    digest: str
    """SHA-256, lower-case hex, of the config's canonical JSON."""
    providers: Mapping[str, Provider]
    models: Mapping[str, Model]
    policies: Mapping[str, Policy]
    clients: tuple[Client, ...] | None
    """None: the file has no `clients` section, so no token is asked and only loopback may listen."""
    server: Server
    telemetry: Telemetry
    globs: tuple[Model, ...]
    """Glob entries as they are tried: longest literal prefix, then most literal characters, then name."""

    def resolve(self, name: str) -> ResolvedModel | None:
        """Find the entry for a public name: exact names win, then the longest literal prefix."""
        entry = self.models.get(name)
        if entry is not None and not entry.is_glob:
            return ResolvedModel(name, entry)
        for glob in self.globs:
            if matches(glob.name, name):
                return ResolvedModel(name, glob)
        return None


def matches(pattern: str, name: str) -> bool:
    """Tell whether `name` fits a pattern in which `*` stands for any run of characters."""
    if "*" not in pattern:
        return pattern == name
    head, *middle, tail = pattern.split("*")
    if not name.startswith(head) or len(name) < len(head) + len(tail) or not name.endswith(tail):
        return False
    position, end = len(head), len(name) - len(tail)
    for piece in middle:
        found = name.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True
