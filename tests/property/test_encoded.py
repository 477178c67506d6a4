"""The fast encoder says byte for byte what parses to the plain encoder's message."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.endpoints import ENDPOINTS, Kind
from extproc.core.exchange import Part, Pass, ReleaseBody, RouteTo
from extproc.core.outcome import RouteMode
from extproc.core.request_state import FirstError, PlanStep, RequestState
from extproc.wire.encoded import serialize
from extproc.wire.ext_proc import Response, encode

_words = st.text(st.characters(codec="utf-8"), max_size=20)
_long = st.sampled_from(["", "a" * 127, "b" * 128, "ü" * 9000])
_texts = st.one_of(_words, _long)
_floats = st.floats(allow_nan=False)
_steps = st.builds(PlanStep, _words, _texts, _words, _words, _texts, st.sampled_from(RouteMode))
_states = st.builds(
    RequestState,
    id=_texts,
    version=st.integers(0, 1 << 53),
    policy=_words,
    kind=st.sampled_from(Kind),
    protocol=st.sampled_from(["openai", "anthropic"]),
    endpoint=st.sampled_from(sorted(ENDPOINTS)),
    query=_texts,
    client=_words,
    model=_texts,
    ticket=st.integers(0, 1 << 53),
    arrived=_floats,
    plan=st.lists(_steps, max_size=5).map(tuple),
    started=_floats,
    attempt=st.sampled_from([1, 1, 1, 2]),
    classes=st.sampled_from([(), (), ("timeout",)]),
    context=st.sampled_from([False, False, True]),
    hide_usage=st.sampled_from([False, False, True]),
    first_error=st.sampled_from([None, None, FirstError(429, b"slow \xff", (("retry-after", "1"),), True)]),
)
_routes = st.builds(
    RouteTo, _states, st.integers(1, 8), _words, st.one_of(st.none(), st.binary(max_size=300), st.just(b"x" * 20_000))
)


@given(_routes)
def test_a_route_answer_is_the_plain_encoder_s(action: RouteTo) -> None:
    expected, data = encode(action), serialize(action)
    assert data is not None
    assert expected == Response.FromString(data)


@given(
    st.builds(
        ReleaseBody,
        st.binary(max_size=300),
        st.booleans(),
        st.sampled_from([None, {}, {"total": 3}]),
        st.sampled_from([(), ("overloaded", "stream_cut")]),
    )
)
def test_a_released_piece_is_the_plain_encoder_s(action: ReleaseBody) -> None:
    data = serialize(action)
    assert data is not None
    assert encode(action) == Response.FromString(data)


@given(st.sampled_from(Part))
def test_a_plain_pass_is_the_plain_encoder_s(part: Part) -> None:
    data = serialize(Pass(part))
    assert data is not None
    assert encode(Pass(part)) == Response.FromString(data)
