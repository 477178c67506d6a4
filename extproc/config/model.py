"""The shape of the operator's file, `schema: 1`.

Owns every key, its default and its range, and the rules between keys of one section; the sentence below a key is its
line in docs/configuration.md. Leaves `policies` to `policy.py`, the kinds of values to `fields.py`, references across
sections to `references.py`, sentences for pydantic's own findings to `load.py`.
Invariants: frozen and strict, unknown keys refused; a section left out equals one that spells out the
defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from extproc.config import fields as kinds
from extproc.config.policy import Policy
from extproc.config.section import Rule, Section, obeying

MAX_BODY_RANGE_BYTES = (1 << 10, 1 << 30)
DEFAULT_POLICY = "default"


class ApiKey(Section):
    """Where a provider's key is found; exactly one of the two. Without a usable key its targets are left out."""

    env: kinds.EnvName | None = None
    """Name of the environment variable that holds the key."""
    file: kinds.AbsolutePath | None = None
    """Path of the regular file, up to 64 KiB, with the key in one line; a change is taken over in a second or two."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sentence = "must have exactly one of env and file: {env: OPENAI_API_KEY} or {file: /run/secrets/x}"
        return obeying(self, Rule((self.env is None) != (self.file is None), sentence, ("env", "file")))


def _refuse_literal_key(value: object) -> object:
    if isinstance(value, dict):
        return value
    raise ValueError("must be {env: NAME} or {file: PATH}; a literal key is refused (the value is not shown)")


class Auth(Section):
    """Which header carries the key, and what stands before it."""

    header: kinds.AuthHeaderName
    """The header that carries the key; one of the key's own, which other providers do not get."""
    prefix: kinds.AuthPrefix
    """What stands before the key in that header."""


class HealthCheck(Section):
    """An active check of one provider."""

    path: kinds.UrlPath | None = None
    """Path that is asked for at the provider's host; a 2xx answer is healthy."""
    interval: kinds.PositiveDuration = 10.0
    """Time from one check to the next."""
    timeout: kinds.PositiveDuration = 2.0
    """How long one check may take; at most `interval`."""
    model: kinds.Text | None = None
    """Not supported yet: refused."""
    daily_cap: int | None = None
    """Not supported yet: refused."""

    @field_validator("model", "daily_cap", mode="before")
    @classmethod
    def _not_supported(cls, value: object) -> object:
        raise ValueError("is not supported yet; use path")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        at_most = "must have a timeout of at most its interval"
        return obeying(
            self,
            Rule(self.path is not None, "must have a path, such as /health", ("path", "model", "daily_cap")),
            Rule(self.timeout <= self.interval, at_most, ("timeout", "interval")),
        )


class ProviderTls(Section):
    """Files for TLS to one provider: regular ones of up to 64 KiB, `ca_file` of up to 4 MiB."""

    ca_file: kinds.AbsolutePath | None = None
    """Certificates of the authorities to trust, instead of the system's."""
    client_cert_file: kinds.AbsolutePath | None = None
    """Certificate to show to the provider; goes with `client_key_file`."""
    client_key_file: kinds.AbsolutePath | None = None
    """Private key of that certificate."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        together = (self.client_cert_file is None) == (self.client_key_file is None)
        sentence = "must have client_cert_file and client_key_file together; add the other one"
        return obeying(self, Rule(together, sentence, ("client_cert_file", "client_key_file")))


class Limits(Section):
    """What one provider may have under way; more goes to other targets, and waits only where there is none."""

    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Connections to the provider at one time."""
    max_pending: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Requests that may wait for a connection while another target could serve them."""


class Provider(Section):
    """One provider account."""

    base_url: kinds.BaseUrlText
    """Where the provider's API begins; scheme and path prefix are kept."""
    protocol: Literal["openai", "anthropic"] = "openai"
    """The API that the provider speaks: `anthropic` serves `/v1/messages`, `openai` the rest."""
    api_key: Annotated[ApiKey | None, BeforeValidator(_refuse_literal_key)] = None
    """Where the key is found; left out for servers without keys. A literal key is refused."""
    auth: Auth
    """How the key is sent; `Authorization: Bearer` for `openai`, `x-api-key` for `anthropic`."""
    headers: dict[kinds.StaticHeaderName, kinds.StaticHeaderValue] = Field(default_factory=dict)
    """Headers that are added to every request; credentials are refused."""
    query: dict[kinds.QueryName, kinds.QueryValue] = Field(default_factory=dict)
    """Query parameters that are added to every request; credentials are refused."""
    error_codes: dict[kinds.Text, kinds.ErrorClassName] = Field(default_factory=dict)
    """Error codes of this provider and the error class each one means."""
    health_check: HealthCheck | None = None
    """Ask the provider actively how it is."""
    tls: ProviderTls = Field(default_factory=ProviderTls)
    """Files for TLS to the provider; only with an https `base_url`."""
    allow_private_network: bool = False
    """Allow a `base_url` on loopback or a private network; link-local and metadata addresses stay refused."""
    limits: Limits = Field(default_factory=Limits)
    """Bounds of the connections to the provider."""

    @model_validator(mode="before")
    @classmethod
    def _default_auth(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(given := data.get("auth", {}), dict):
            return data
        header = given.get("header", "x-api-key" if data.get("protocol") == "anthropic" else "authorization")
        is_authorization = isinstance(header, str) and header.lower() == "authorization"
        return {**data, "auth": {"header": header, "prefix": "Bearer " if is_authorization else "", **given}}


class Target(Section):
    """One line of a model's targets."""

    provider: kinds.Text
    """A name under `providers`."""
    model: kinds.UpstreamModel
    """The model's name at that provider; `*` for the name the client sent."""
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """Share of the traffic among the targets of the same tier."""
    tier: Annotated[int, Field(ge=0, le=16)] = 0
    """A higher tier is used when the lower ones cannot serve."""


class Affinity(Section):
    """Which request value keeps a session on its target; exactly one of header and body."""

    header: kinds.HeaderName | None = None
    """The request header that names the session."""
    body: kinds.BodyField | None = None
    """The field of the request's body that names the session, such as `user`."""
    ttl: kinds.PositiveDuration = 1800.0
    """How long a session without requests keeps its target."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sentence = "must have exactly one of header and body"
        return obeying(self, Rule((self.header is None) != (self.body is None), sentence, ("header", "body")))


def _has_target(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    if not targets:
        raise ValueError("is empty; add at least one {provider: ..., model: ...}")
    return targets


class Model(Section):
    """One public model name, or a pattern of names."""

    targets: Annotated[tuple[Target, ...], AfterValidator(_has_target)]
    """Who can serve this model."""
    fallback: tuple[kinds.PublicName, ...] = ()
    """Other models that may answer instead, in this order."""
    context_fallback: tuple[kinds.PublicName, ...] = ()
    """Models to go to when the request is too long for this one."""
    context_window: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Tokens that fit; `configctl preview` warns of fallbacks with fewer."""
    affinity: Affinity | None = None
    """Keep a session on its target while that is healthy."""
    policy: kinds.Text = DEFAULT_POLICY
    """A name under `policies`."""


def _has_pattern(models: tuple[str, ...]) -> tuple[str, ...]:
    if not models:
        raise ValueError('is empty; name the models this client may use, or remove the key for ["*"]')
    return models


class Client(Section):
    """One caller and what it may use.

    `expires` ends the last digest of `token_sha256`: of two, the token that is being replaced.
    """

    name: kinds.ClientName
    """Who this is, in logs."""
    token_sha256: kinds.TokenDigests
    """SHA-256 of the client's token, or two while it is replaced; `configctl key new` makes both."""
    models: Annotated[tuple[kinds.ModelPattern, ...], AfterValidator(_has_pattern)] = ("*",)
    """Models the client may use; `*` stands for any text."""
    expires: kinds.Moment | None = None
    """When the last digest of `token_sha256` ends: a moment with its zone. Of two, the token that is being replaced."""
    requests_per_minute: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Requests the client may send each minute; left out for no limit."""
    concurrent_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests the client may have under way at one time; left out for no limit."""


class ServerTls(Section):
    """Files for TLS on the front listener."""

    cert_file: kinds.AbsolutePath
    """Certificate of the gateway, with its chain."""
    key_file: kinds.AbsolutePath
    """Private key of that certificate."""


def _body_range(size_bytes: int) -> int:
    low, high = MAX_BODY_RANGE_BYTES
    if not low <= size_bytes <= high:
        raise ValueError("must be from 1KiB to 1GiB")
    return size_bytes


class Server(Section):
    """Limits and trust of the front listener."""

    max_body: Annotated[kinds.Size, AfterValidator(_body_range)] = 50 << 20
    """The largest request body, 1KiB to 1GiB; a larger one is answered 413."""
    retry_budget: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of recent requests that may try the same provider account again; never fewer than 3 a second."""
    trust_route_headers: bool = False
    """Let callers pin a target with `x-gateway-target: provider/model`."""
    tls: ServerTls | None = None
    """Serve clients over TLS."""


class Ledger(Section):
    """Bounds of the request ledger."""

    max_rows: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1_000_000
    """Requests that are kept."""
    max_age: kinds.PositiveDuration = 2_592_000.0
    """How long they are kept."""


class Otlp(Section):
    """The trace exporter."""

    endpoint: kinds.BaseUrlText
    """Where traces are sent."""
    sample: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of requests that are traced."""


class Telemetry(Section):
    """What is kept and exported about requests."""

    ledger: Ledger = Field(default_factory=Ledger)
    """Bounds of the request ledger."""
    otlp: Otlp | None = None
    """The trace exporter; off when left out."""


def _has_client(clients: tuple[Client, ...]) -> tuple[Client, ...]:
    if not clients:
        raise ValueError("is empty; add a client, or remove the section to serve loopback only without tokens")
    return clients


def _has_model(models: dict[str, Model]) -> dict[str, Model]:
    if not models:
        raise ValueError("is empty; add at least one model with its targets")
    return models


def _known_schema(schema: int) -> int:
    if schema != 1:
        raise ValueError("must be 1, the only schema that this gateway reads")
    return schema


class GatewayConfig(Section):
    """The whole file."""

    schema_version: Annotated[int, AfterValidator(_known_schema)] = Field(alias="schema")
    """The version of this file's shape: 1."""
    providers: dict[kinds.Name, Provider] = Field(default_factory=dict)
    """Provider accounts, by a name of your own."""
    models: Annotated[dict[kinds.ModelPattern, Model], AfterValidator(_has_model)]
    """The models that clients may ask for; `*` in a name stands for any text, exact names win."""
    policies: dict[kinds.Name, Policy]
    """What requests may cost, by a name of your own; `default` is always there."""
    clients: Annotated[tuple[Client, ...], AfterValidator(_has_client)] | None = None
    """Who may use the gateway; left out, it serves loopback only and asks for no token."""
    server: Server = Field(default_factory=Server)
    """Limits and trust of the front door."""
    telemetry: Telemetry = Field(default_factory=Telemetry)
    """What is kept and exported about requests."""

    @model_validator(mode="before")
    @classmethod
    def _default_policy(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(given := data.get("policies", {}), dict):
            return data
        return {**data, "policies": {DEFAULT_POLICY: {}, **given}}
