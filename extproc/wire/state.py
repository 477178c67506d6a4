"""RequestState <-> Envoy's dynamic metadata: the untyped twin, the typed plan and the private first error.

Total in reading: metadata that is not ours, or from a version we do not understand, reads as None.
Envoy's Struct numbers are floats and map keys merge on write, so lists are always written whole. Envoy parses, merges
and copies each value of each request into its log, so what is empty or false from the start is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from extproc.core.endpoints import ENDPOINTS, Kind
from extproc.core.outcome import RouteMode
from extproc.core.request_state import FirstError, PlanStep, RequestState
from extproc.wire import names
from extproc.wire.pb import core_pb2, priority_group_pb2

PLANS_KEPT: Final = 512
"""How many plans are kept as bytes, in each direction."""
QUERY_KEPT: Final = 64
"""Characters; enough for `beta=true` and `api-version=...`. A longer query is in every step's path: not kept."""
_PLAN_KEPT_BYTES: Final = 4096
_STEP_KEYS = ("provider", "model", "public_model", "cluster", "path", "mode")
_FIRST_ERROR_LIMIT = 64


def read_state(metadata: core_pb2.Metadata) -> RequestState | None:
    """Return the request state that an earlier exchange left, None when there is none."""
    if names.METADATA not in metadata.filter_metadata:
        return None
    fields = metadata.filter_metadata[names.METADATA].fields
    try:
        endpoint = ENDPOINTS[fields[names.M_ENDPOINT].string_value]
        return RequestState(
            id=fields[names.M_ID].string_value,
            version=int(fields[names.M_VERSION].string_value),
            policy=fields[names.M_POLICY].string_value,
            kind=Kind(fields[names.M_KIND].string_value),
            protocol=endpoint.protocol,
            endpoint=endpoint.path,
            query=_text(fields[names.M_QUERY].string_value),
            client=fields[names.M_CLIENT].string_value,
            model=fields[names.M_MODEL].string_value,
            ticket=int(fields[names.M_TICKET].number_value),
            arrived=fields[names.M_ARRIVED].number_value,
            plan=_read_plan(fields[names.M_PLAN].list_value),
            classes=tuple(value.string_value for value in fields[names.M_CLASSES].list_value.values),
            attempt=int(fields[names.M_ATTEMPT].number_value),
            started=fields[names.M_STARTED].number_value,
            context=fields[names.M_CONTEXT].bool_value,
            first_error=_read_first_error(metadata),
            hide_usage=fields[names.M_HIDE_USAGE].bool_value,
        )
    except (KeyError, ValueError, OverflowError):
        return None


def write_state(
    into: Struct, state: RequestState, *, served: bool = True, whole: bool = True, plan: bool = True, error: bool = True
) -> None:
    """Write a state into a response's dynamic metadata.

    `served` says that the present attempt may still serve; otherwise the route mode is `none`. `whole` is False when
    an earlier exchange wrote the fields that never change, `plan` and `error` when it wrote these as they are now.
    """
    fields = into.fields[names.METADATA].struct_value.fields
    if whole:
        _write_fixed(fields, state)
    step = state.step(state.attempt) if served else None
    fields[names.M_ROUTE_MODE].string_value = step.mode if step else RouteMode.NONE
    fields[names.M_SERVED_BY].string_value = str(step.key) if step else ""
    fields[names.M_SERVED_MODEL].string_value = step.public_model if step else ""
    fields[names.M_ATTEMPT].number_value = state.attempt
    fields[names.M_STARTED].number_value = state.started
    if state.context or not whole:
        fields[names.M_CONTEXT].bool_value = state.context
    if plan:
        prepared = (_plan_bytes if len(state.query) <= QUERY_KEPT else _plan_bytes.__wrapped__)(state.plan)
        fields[names.M_PLAN].list_value.MergeFromString(prepared)
    write_classes(into, state.classes)
    if error and state.first_error is not None:
        _write_first_error(into, state.first_error)


def write_classes(into: Struct, classes: tuple[str, ...]) -> None:
    """Write the classes of failed attempts, whole."""
    written = into.fields[names.METADATA].struct_value.fields[names.M_CLASSES].list_value
    written.SetInParent()
    for error_class in classes:
        written.values.add().string_value = error_class


def typed_plan(state: RequestState) -> Any:
    """Return the plan as Envoy's priority groups, ended by the group that lets us answer when all is spent."""
    clusters = (*(step.cluster for step in state.plan), names.CLUSTER_END)
    return Any.FromString(_typed_plan_bytes(clusters))


@lru_cache(maxsize=PLANS_KEPT)
def _typed_plan_bytes(clusters: tuple[str, ...]) -> bytes:
    override = priority_group_pb2.PriorityGroupsOverride()
    for number, cluster in enumerate(clusters, 1):
        group = override.priority_groups.add(name=str(number))
        group.clusters.add(cluster_name=cluster).weight.value = 1
    packed = Any()
    packed.Pack(override)
    return packed.SerializeToString()


def _write_fixed(fields: MutableMapping[str, Value], state: RequestState) -> None:
    fields[names.M_ID].string_value = state.id
    fields[names.M_VERSION].string_value = str(state.version)
    fields[names.M_POLICY].string_value = state.policy
    fields[names.M_KIND].string_value = state.kind
    fields[names.M_PROTOCOL].string_value = state.protocol
    fields[names.M_ENDPOINT].string_value = state.endpoint
    fields[names.M_OPERATION].string_value = ENDPOINTS[state.endpoint].operation
    if state.query:
        fields[names.M_QUERY].string_value = state.query.encode("utf-8", "surrogateescape").decode("latin-1")
    fields[names.M_CLIENT].string_value = state.client
    fields[names.M_MODEL].string_value = state.model
    fields[names.M_TICKET].number_value = state.ticket
    fields[names.M_ARRIVED].number_value = state.arrived
    if state.hide_usage:
        fields[names.M_HIDE_USAGE].bool_value = True


@lru_cache(maxsize=PLANS_KEPT)
def _plan_bytes(plan: tuple[PlanStep, ...]) -> bytes:
    """Return a plan as the bytes of a ListValue."""
    written = ListValue()
    for step in plan:
        entry = written.values.add().struct_value.fields
        for key, value in zip(_STEP_KEYS, step, strict=True):
            entry[key].string_value = value
    return written.SerializeToString()


def _read_plan(written: ListValue) -> tuple[PlanStep, ...]:
    # As bytes it can be looked up: plans repeat, and reading one takes a dozen steps for each of its steps.
    raw = written.SerializeToString()
    return (_plan_of if len(raw) <= _PLAN_KEPT_BYTES else _plan_of.__wrapped__)(raw)


@lru_cache(maxsize=PLANS_KEPT)
def _plan_of(raw: bytes) -> tuple[PlanStep, ...]:
    return tuple(_read_step(value.struct_value) for value in ListValue.FromString(raw).values)


def _read_step(entry: Struct) -> PlanStep:
    provider, model, public_model, cluster, path, mode = (entry.fields[key].string_value for key in _STEP_KEYS)
    return PlanStep(provider, model, public_model, cluster, path, RouteMode(mode))


def _write_first_error(into: Struct, error: FirstError) -> None:
    fields = into.fields[names.METADATA_PRIVATE].struct_value.fields
    fields[names.P_STATUS].number_value = error.status
    try:
        fields[names.P_BODY].string_value = error.body.decode()
    except UnicodeDecodeError:
        fields[names.P_BYTES].string_value = error.body.decode("latin-1")
    if error.plain:
        fields[names.P_PLAIN].bool_value = True
    headers = fields[names.P_HEADERS].struct_value.fields
    for name, value in error.headers[:_FIRST_ERROR_LIMIT]:
        headers[name].string_value = value.encode("utf-8", "surrogateescape").decode("latin-1")


def _read_first_error(metadata: core_pb2.Metadata) -> FirstError | None:
    if names.METADATA_PRIVATE not in metadata.filter_metadata:
        return None
    fields = metadata.filter_metadata[names.METADATA_PRIVATE].fields
    headers = fields[names.P_HEADERS].struct_value.fields
    return FirstError(
        int(fields[names.P_STATUS].number_value),
        _first_body(fields),
        tuple((name, _text(value.string_value)) for name, value in headers.items()),
        fields[names.P_PLAIN].bool_value,
    )


def _first_body(fields: Mapping[str, Value]) -> bytes:
    if names.P_BYTES in fields:
        return fields[names.P_BYTES].string_value.encode("latin-1")
    return fields[names.P_BODY].string_value.encode()


def _text(stored: str) -> str:
    """Return text whose bytes were stored as Latin-1, because metadata holds no bytes that are no UTF-8."""
    return stored.encode("latin-1").decode("utf-8", "surrogateescape")
