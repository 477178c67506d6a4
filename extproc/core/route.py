"""The route exchange: one client request from its headers to its plan, or to an answer of our own.

Answers `/readyz` and `/v1/models` itself. Ends the gRPC stream right after its last answer, so that a crash of
extproc costs nothing to requests already under way (docs/envoy.md section 6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import unquote

import orjson

from extproc.config.snapshot import Client, Protocol, ResolvedModel, TargetKey
from extproc.core.affinity import session_of
from extproc.core.body import RequestBody as ParsedBody
from extproc.core.body import fault_of_name, parse_request_body
from extproc.core.clients import ANONYMOUS, authenticate, may_use
from extproc.core.endpoints import (
    ENDPOINTS,
    MODELS_PATH,
    READY_PATH,
    Endpoint,
    kind_of,
    protocol_of,
    without_credentials,
)
from extproc.core.errors import JSON, GatewayError
from extproc.core.exchange import (
    Action,
    Close,
    Event,
    Part,
    Pass,
    RequestBody,
    RequestHeaders,
    Respond,
    RouteTo,
    SetTimer,
    TimerFired,
    Trailers,
)
from extproc.core.gateway import Active, Gateway
from extproc.core.limits import PLACE_WAIT_S
from extproc.core.model_list import list_models, show_model
from extproc.core.outcome import RouteMode
from extproc.core.plan import Plan, Planned, candidates
from extproc.core.records import Evidence
from extproc.core.request_state import RequestState
from extproc.core.usage import ask_for_usage, must_ask

RETRY_AFTER_LIMIT_S = 60
TARGET_HEADER = "x-gateway-target"
PLACE_POLL_S = 0.02


class _State(StrEnum):
    WANT_HEADERS = "want_headers"
    WANT_BODY = "want_body"
    WAITING = "waiting"
    """For a place among the client's requests under way."""
    DONE = "done"


class _Waiting(NamedTuple):
    """A request whose client has as many under way as it may."""

    requested: ResolvedModel
    parsed: ParsedBody
    give_up_at: float


class RouteExchange:
    """Decides one request; see the module."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._state = _State.WANT_HEADERS
        self._headers: Mapping[str, str] = {}
        self._active: Active | None = None
        self._client: Client = ANONYMOUS
        self._endpoint: Endpoint | None = None
        self._protocol: Protocol = "openai"
        self._query = ""
        self._arrived = 0.0
        self._evidence: Evidence | None = None
        self._waiting: _Waiting | None = None

    def __repr__(self) -> str:
        return f"<RouteExchange {self._state}>"

    def closed(self, now: float) -> None:
        """Give up the wait for a place; nothing else is held for a request that has no plan yet."""
        self._end_wait()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Answer the headers, then the body, maybe after a wait for a place; then the exchange is over."""
        if self._state is _State.WANT_HEADERS and isinstance(event, RequestHeaders):
            return self._on_headers(event, now)
        if self._state is _State.WANT_BODY and isinstance(event, RequestBody):
            return self._on_body(event.body, now)
        if self._waiting is not None and isinstance(event, TimerFired):
            return self._on_timer(self._waiting, now)
        self._gateway.unexpected_messages += 1
        return [Pass(event.part)] if isinstance(event, Trailers) else []

    # -- headers -------------------------------------------------------------------------------------------------

    def _on_headers(self, event: RequestHeaders, now: float) -> list[Action]:
        self._arrived = now
        self._headers = event.headers
        path, _, query = self._headers.get(":path", "").partition("?")
        self._query = without_credentials(query) if query else ""
        self._protocol = protocol_of(path)
        self._active = self._gateway.active
        if path == READY_PATH:
            return self._ready()
        if self._active is None:
            return self._refuse(GatewayError("gateway_unavailable", "The gateway has no configuration yet."))
        self._endpoint = ENDPOINTS.get(path)
        client = authenticate(self._headers, self._active.snapshot, now)
        if isinstance(client, GatewayError):
            return self._refuse(client)
        self._client = client
        spent = self._gateway.limits.take(client, now)
        if spent is not None:
            return self._refuse(spent)
        method = self._headers.get(":method", "")
        if method == "GET" and (path == MODELS_PATH or path.startswith(MODELS_PATH + "/")):
            return self._models(path, now)
        fault = self._fault_of_headers(method, path, event.end_of_stream)
        if fault is not None:
            return self._refuse(fault)
        self._state = _State.WANT_BODY
        return [Pass(Part.REQUEST_HEADERS)]

    def _fault_of_headers(self, method: str, path: str, end_of_stream: bool) -> GatewayError | None:
        if self._endpoint is None or method != "POST":
            shown = path if len(path) <= 100 and path.isascii() and path.isprintable() else "this path"
            return GatewayError("unsupported_endpoint", f"This gateway does not serve {method} {shown}.")
        if end_of_stream:
            return GatewayError("invalid_json", "The request has no body; send a JSON object.")
        length = self._headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limit_bytes:
            return self._too_large()
        return None

    @property
    def _limit_bytes(self) -> int:
        return self._active.snapshot.server.max_body_bytes if self._active else 0

    def _too_large(self) -> GatewayError:
        return GatewayError("request_too_large", f"The request body is larger than {self._limit_bytes} bytes.")

    def _ready(self) -> list[Action]:
        ready = self._active is not None and self._gateway.accepted
        body = orjson.dumps({"status": "ready" if ready else "starting"})
        return self._respond(200 if ready else 503, body)

    def _models(self, path: str, now: float) -> list[Action]:
        if self._active is None:
            return self._respond(503, b"")
        view = self._gateway.view(self._active, now)
        if path == MODELS_PATH:
            return self._respond(200, list_models(self._active.snapshot, self._client, view))
        try:
            name = unquote(path.removeprefix(MODELS_PATH + "/"), errors="strict")
        except UnicodeDecodeError:
            return self._refuse(GatewayError("bad_request", "The model's name in the path is not UTF-8.", "model"))
        fault = fault_of_name(name)
        if fault is not None:
            return self._refuse(fault)
        found = show_model(self._active.snapshot, self._client, view, name)
        if found is None:
            return self._refuse(_not_found(name))
        return self._respond(200, found)

    # -- body ----------------------------------------------------------------------------------------------------

    def _on_body(self, raw: bytes, now: float) -> list[Action]:
        active, endpoint = self._active, self._endpoint
        if active is None or endpoint is None:
            raise RuntimeError("a body before its headers were accepted")
        if len(raw) > self._limit_bytes:
            return self._refuse(self._too_large())
        parsed = parse_request_body(raw)
        if isinstance(parsed, GatewayError):
            return self._refuse(parsed)
        requested = active.snapshot.resolve(parsed.model)
        if requested is None:
            return self._refuse(_not_found(parsed.model))
        if not may_use(self._client, parsed.model):
            return self._refuse(
                GatewayError("model_not_allowed", "This client may not use the requested model.", "model")
            )
        if self._gateway.limits.busy(self._client) is not None and self._gateway.limits.wait(self._client, len(raw)):
            self._state = _State.WAITING
            self._waiting = _Waiting(requested, parsed, now + PLACE_WAIT_S)
            return [SetTimer(PLACE_POLL_S)]
        return self._begin(active, endpoint, requested, parsed, now)

    def _begin(
        self, active: Active, endpoint: Endpoint, requested: ResolvedModel, parsed: ParsedBody, now: float
    ) -> list[Action]:
        """Plan a request whose caller may make it, and send it on its way."""
        busy = self._gateway.limits.busy(self._client)
        if busy is not None:
            return self._refuse(busy)
        ticket = self._gateway.ticket(requested.entry.name)
        session = session_of(requested.entry.affinity, parsed.model, self._headers, parsed.fields)
        plan = self._plan(active, requested, endpoint, ticket, session, now)
        if isinstance(plan, GatewayError):
            return self._refuse(plan)
        state, body = self._route(active, endpoint, requested, parsed, plan, ticket, now)
        self._gateway.budget.request(now)
        bound = self._gateway.bind(session, requested, state.plan[0].key, now)
        self._gateway.requests.open(state, now, session, self._evidence, bound)
        self._state = _State.DONE
        policy = active.snapshot.policies[state.policy]
        return [RouteTo(state, policy.attempts, state.plan[0].path, body), Close()]

    # -- the wait for a place ------------------------------------------------------------------------------------

    def _on_timer(self, waiting: _Waiting, now: float) -> list[Action]:
        """Look again; the request is refused when it has waited long enough."""
        if now < waiting.give_up_at and self._gateway.limits.busy(self._client) is not None:
            return [SetTimer(PLACE_POLL_S)]
        self._end_wait()
        active, endpoint = self._active, self._endpoint
        if active is None or endpoint is None:
            raise RuntimeError("a wait before the headers were accepted")
        return self._begin(active, endpoint, waiting.requested, waiting.parsed, now)

    def _end_wait(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._gateway.limits.waited(self._client, len(waiting.parsed.raw))

    # -- the plan ------------------------------------------------------------------------------------------------

    def _plan(
        self,
        active: Active,
        requested: ResolvedModel,
        endpoint: Endpoint,
        ticket: int,
        session: bytes | None,
        now: float,
    ) -> Plan | GatewayError:
        pinned = self._headers.get(TARGET_HEADER)
        if pinned and active.snapshot.server.trust_route_headers:
            self._keep(Evidence(requested, endpoint.path, ticket, active.snapshot.version, {}, pinned=True))
            return _pinned(active, requested, endpoint, pinned)
        plan = self._gateway.plan(active, requested, endpoint.path, ticket, now, session, self._keep)
        if plan.planned:
            return plan
        wait_s = self._gateway.recovery_of(requested, endpoint.path, active, now)
        message = "No healthy target can serve this model now."
        if not plan.skipped:
            message = f"No target of this model speaks the protocol of {endpoint.path}."
        return GatewayError("no_healthy_target", message, None, retry_headers(wait_s))

    def _keep(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def _route(
        self,
        active: Active,
        endpoint: Endpoint,
        requested: ResolvedModel,
        parsed: ParsedBody,
        plan: Plan,
        ticket: int,
        now: float,
    ) -> tuple[RequestState, bytes | None]:
        policy = active.snapshot.policies[requested.entry.policy]
        steps = self._gateway.steps(active, policy, endpoint.path, self._query, plan.planned[: policy.attempts])
        state = RequestState(
            id=self._headers.get("x-request-id", ""),
            version=active.snapshot.version,
            policy=policy.name,
            kind=kind_of(endpoint, parsed.stream),
            protocol=endpoint.protocol,
            endpoint=endpoint.path,
            query=self._query,
            client=self._client.name,
            model=parsed.model,
            ticket=ticket,
            arrived=self._arrived,
            plan=steps,
            started=now,
        )
        first = steps[0]
        body = None if first.model == parsed.model else parsed.with_model(first.model)
        if policy.force_usage and must_ask(endpoint.path, parsed.fields):
            asking = ask_for_usage(parsed.raw if body is None else body, parsed.fields)
            if asking is not None:
                return replace(state, hide_usage=True), asking
        return state, body

    # -- answers of our own --------------------------------------------------------------------------------------

    def _refuse(self, error: GatewayError) -> list[Action]:
        if self._evidence is not None:
            self._gateway.requests.refuse(self._headers.get("x-request-id", ""), self._evidence)
        return self._respond(error.status, error.body(self._protocol), error.headers, self._note(error))

    def _note(self, error: GatewayError) -> dict[str, str]:
        """Return what the log may say of a refused request: no name that only the caller knows."""
        note = {"error": error.code, "client": self._client.name}
        if self._endpoint is not None:
            note["endpoint"] = self._endpoint.path
        if self._active is not None:
            note["version"] = str(self._active.snapshot.version)
        if self._evidence is not None:
            note["model"] = self._evidence.requested.name
        return note

    def _respond(
        self,
        status: int,
        body: bytes,
        headers: tuple[tuple[str, str], ...] = (),
        note: dict[str, str] | None = None,
    ) -> list[Action]:
        self._state = _State.DONE
        version = self._active.snapshot.version if self._active else None
        return [Respond(status, (JSON, *headers), body, 0, version, note=note), Close()]


def retry_headers(wait_s: float | None) -> tuple[tuple[str, str], ...]:
    """Return the headers of an answer after which trying at once is pointless; `wait_s` None is unknown."""
    headers = [("x-should-retry", "false")]
    if wait_s is not None:
        headers.append(("retry-after", str(min(RETRY_AFTER_LIMIT_S, max(1, math.ceil(wait_s))))))
    return tuple(headers)


def _not_found(name: str) -> GatewayError:
    shown = f"`{name}` " if len(name) <= 100 else ""
    message = f"The model {shown}is not configured here; GET /v1/models lists the names."
    return GatewayError("model_not_found", message, "model")


def _pinned(active: Active, requested: ResolvedModel, endpoint: Endpoint, target: str) -> Plan | GatewayError:
    """Plan the one target that a trusted caller named; it must be among the model's own choices."""
    names = (*requested.entry.fallback, *requested.entry.context_fallback)
    provider, _, model = target.partition("/")
    wanted = TargetKey(provider, model)
    for resolved, _target, key in candidates(active.snapshot, requested, names, endpoint.protocol):
        if key == wanted:
            return Plan((Planned(key, resolved.name, RouteMode.PINNED),), ())
    return GatewayError(
        "bad_request", f"`{TARGET_HEADER}` names no target of this model; use provider/model.", TARGET_HEADER
    )
