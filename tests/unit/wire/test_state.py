"""The state of a request survives the journey through Envoy's metadata."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.endpoints import ENDPOINTS, Kind
from extproc.core.outcome import ErrorClass, RouteMode
from extproc.core.request_state import FirstError, PlanStep, RequestState
from extproc.wire import names
from extproc.wire.pb import core_pb2, priority_group_pb2
from extproc.wire.state import read_state, typed_plan, write_state

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
STEPS = st.builds(PlanStep, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, st.sampled_from(RouteMode))
HEADERS = st.dictionaries(TEXTS, TEXTS, max_size=5).map(lambda found: tuple(sorted(found.items())))
ERRORS = st.builds(FirstError, st.integers(100, 599), st.binary(max_size=60), HEADERS)
TIMES = st.floats(0, 4e9, allow_nan=False)


@st.composite
def states(draw: st.DrawFn) -> RequestState:
    """Draw any state that a request can be in."""
    endpoint = draw(st.sampled_from(sorted(ENDPOINTS)))
    return RequestState(
        id=draw(TEXTS),
        version=draw(st.integers(1, 2**60)),
        policy=draw(TEXTS),
        kind=draw(st.sampled_from(Kind)),
        protocol=ENDPOINTS[endpoint].protocol,
        endpoint=endpoint,
        query=draw(TEXTS),
        client=draw(TEXTS),
        model=draw(TEXTS),
        ticket=draw(st.integers(0, 2**53)),
        arrived=draw(TIMES),
        plan=tuple(draw(st.lists(STEPS, max_size=8))),
        classes=tuple(draw(st.lists(st.sampled_from([kind.value for kind in ErrorClass]), max_size=8))),
        attempt=draw(st.integers(1, 8)),
        started=draw(TIMES),
        context=draw(st.booleans()),
        first_error=draw(st.none() | ERRORS),
    )


def state(**changes: Any) -> RequestState:
    """Build a state that has two planned steps."""
    first = PlanStep("a", "m-a", "big", "a-cluster", "/v1/chat/completions", RouteMode.BALANCED)
    fields: dict[str, Any] = {
        "id": "id",
        "version": 3,
        "policy": "default",
        "kind": Kind.UNARY,
        "protocol": "openai",
        "endpoint": "/v1/chat/completions",
        "query": "",
        "client": "team-a",
        "model": "big",
        "ticket": 5,
        "arrived": 100.25,
        "plan": (first, first._replace(provider="b", model="m-b", public_model="small", mode=RouteMode.MODEL_FALLBACK)),
        "started": 100.25,
    }
    return RequestState(**fields | changes)


def metadata(written: Struct, into: core_pb2.Metadata | None = None) -> core_pb2.Metadata:
    """Do what Envoy does with dynamic metadata: merge each namespace, key by key."""
    held = into or core_pb2.Metadata()
    for namespace, value in written.fields.items():
        held.filter_metadata[namespace].MergeFrom(value.struct_value)
    return held


def written(what: RequestState, **how: bool) -> Struct:
    """Write a state as an ext_proc answer carries it."""
    into = Struct()
    write_state(into, what, **how)
    return into


def fields_of(what: RequestState, **how: bool) -> Any:
    """Return what is written under the namespace `gateway`."""
    return written(what, **how).fields[names.METADATA].struct_value.fields


@given(states())
def test_any_state_is_read_back_as_it_was_written(what: RequestState) -> None:
    found = read_state(metadata(Struct.FromString(written(what).SerializeToString())))
    assert found is not None
    # A map has no order of its own.
    assert _sorted(what) == _sorted(found)


def _sorted(what: RequestState) -> RequestState:
    error = what.first_error
    return what if error is None else replace(what, first_error=replace(error, headers=tuple(sorted(error.headers))))


@given(states(), states())
def test_a_later_write_replaces_whatever_an_earlier_one_left(before: RequestState, after: RequestState) -> None:
    """A shorter plan must not keep steps of the longer one before it."""
    held = metadata(written(after, whole=False), metadata(written(before)))
    found = read_state(held)
    assert found is not None
    changing = ["plan", "classes", "attempt", "started", "context"]
    assert [getattr(after, name) for name in changing] == [getattr(found, name) for name in changing]
    assert (before.id, before.model, before.arrived) == (found.id, found.model, found.arrived)


class TestReading:
    def test_nothing_gives_nothing(self) -> None:
        assert read_state(core_pb2.Metadata()) is None

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            (names.M_VERSION, "one"),
            (names.M_KIND, "other"),
            (names.M_ENDPOINT, "/v1/unknown"),
            (names.M_TICKET, math.nan),
        ],
    )
    def test_what_we_did_not_write_gives_nothing(self, key: str, value: str | float) -> None:
        held = metadata(written(state()))
        field = held.filter_metadata[names.METADATA].fields[key]
        if isinstance(value, str):
            field.string_value = value
        else:
            field.number_value = value
        assert read_state(held) is None

    def test_a_mode_of_a_newer_version_gives_nothing(self) -> None:
        held = metadata(written(state()))
        steps = held.filter_metadata[names.METADATA].fields[names.M_PLAN].list_value
        steps.values[0].struct_value.fields["mode"].string_value = "teleported"
        assert read_state(held) is None

    def test_a_number_without_end_gives_nothing(self) -> None:
        held = metadata(written(state()))
        held.filter_metadata[names.METADATA].fields[names.M_TICKET].number_value = math.inf
        assert read_state(held) is None

    @given(st.binary(max_size=80))
    def test_any_namespace_of_ours_is_read_or_gives_nothing(self, raw: bytes) -> None:
        held = core_pb2.Metadata()
        held.filter_metadata[names.METADATA].fields[names.M_ENDPOINT].string_value = "/v1/embeddings"
        held.filter_metadata[names.METADATA].fields[names.M_VERSION].string_value = raw.decode("latin-1")
        found = read_state(held)
        assert found is None or found.plan == ()


class TestWriting:
    def test_names_who_serves_if_the_present_attempt_does(self) -> None:
        fields = fields_of(state(attempt=2))
        found = [fields[key].string_value for key in (names.M_ROUTE_MODE, names.M_SERVED_BY, names.M_SERVED_MODEL)]
        assert ["model_fallback", "b/m-b", "small"] == found

    @pytest.mark.parametrize(("attempt", "served"), [(2, False), (3, True)])
    def test_names_nobody_when_nobody_does(self, attempt: int, served: bool) -> None:
        fields = fields_of(state(attempt=attempt), served=served)
        assert ("none", "") == (fields[names.M_ROUTE_MODE].string_value, fields[names.M_SERVED_BY].string_value)

    def test_keeps_what_may_quote_a_prompt_in_the_private_namespace(self) -> None:
        into = written(state(first_error=FirstError(400, b"my prompt", ())))
        assert "my prompt" not in str(into.fields[names.METADATA])
        assert "my prompt" in str(into.fields[names.METADATA_PRIVATE])

    def test_touches_the_private_namespace_only_for_an_error(self) -> None:
        assert [names.METADATA] == list(written(state()).fields)

    def test_keeps_text_as_envoy_can_answer_with_it(self) -> None:
        into = written(state(first_error=FirstError(400, "\u00e9".encode(), ())))
        private = into.fields[names.METADATA_PRIVATE].struct_value.fields
        assert "\u00e9" == private[names.P_BODY].string_value

    @pytest.mark.parametrize("plain", [False, True])
    def test_keeps_whether_an_error_is_the_request_s_own(self, plain: bool) -> None:
        error = FirstError(400, b"{}", (), plain)
        found = read_state(metadata(written(state(first_error=error))))
        assert found is not None
        assert error == found.first_error

    def test_keeps_bytes_that_are_no_text(self) -> None:
        error = FirstError(500, bytes(range(256)), ())
        found = read_state(metadata(written(state(first_error=error))))
        assert found is not None
        assert error == found.first_error

    def test_keeps_header_values_that_are_no_text(self) -> None:
        """A provider's Latin-1 header must not become an internal fault of ours."""
        error = FirstError(500, b"", (("content-type", "text/plain; x=\udce9"),))
        found = read_state(metadata(written(state(first_error=error))))
        assert found is not None
        assert error == found.first_error

    def test_keeps_a_query_that_is_no_text(self) -> None:
        """Envoy hands on raw bytes of a query."""
        found = read_state(metadata(written(state(query="x=\udcff"))))
        assert found is not None
        assert "x=\udcff" == found.query

    def test_writes_an_empty_list_of_classes_too(self) -> None:
        """Or the classes of an earlier write would stay."""
        assert fields_of(state())[names.M_CLASSES].HasField("list_value")

    def test_writes_what_never_changes_once(self) -> None:
        once = {names.M_ID, names.M_VERSION, names.M_POLICY, names.M_KIND, names.M_ARRIVED, names.M_TICKET}
        assert (True, set()) == (once <= set(fields_of(state())), once & set(fields_of(state(), whole=False)))


class TestTheTypedPlan:
    def groups(self, what: RequestState) -> list[tuple[str, list[tuple[str, int]]]]:
        """Unpack the groups that Envoy executes."""
        override = priority_group_pb2.PriorityGroupsOverride()
        assert typed_plan(what).Unpack(override)
        return [
            (group.name, [(cluster.cluster_name, cluster.weight.value) for cluster in group.clusters])
            for group in override.priority_groups
        ]

    def test_has_one_group_a_step_and_ends_with_ours(self) -> None:
        expected = [("1", [("a-cluster", 1)]), ("2", [("a-cluster", 1)]), ("3", [(names.CLUSTER_END, 1)])]
        assert expected == self.groups(state())

    def test_of_an_empty_plan_is_ours_alone(self) -> None:
        assert [("1", [(names.CLUSTER_END, 1)])] == self.groups(state(plan=()))

    def test_is_of_the_type_that_envoy_looks_for(self) -> None:
        package = "envoy.extensions.router.cluster_specifiers.priority_group.v3"
        assert f"type.googleapis.com/{package}.PriorityGroupsOverride" == typed_plan(state()).type_url
