"""What the fast encoder keeps from request to request, and what it does not."""

from __future__ import annotations

import tracemalloc

import pytest

from extproc.core.body import MODEL_NAME_LIMIT
from extproc.core.endpoints import Kind
from extproc.core.exchange import RouteTo
from extproc.core.outcome import RouteMode
from extproc.core.request_state import PlanStep, RequestState
from extproc.wire.encoded import PREPARED_KEPT, serialize
from extproc.wire.state import QUERY_KEPT

CHAT = "/v1/chat/completions"
TRIED = 200
KEPT_LIMIT_BYTES = 32 << 20


def route(query: str, model: str = "gpt") -> RouteTo:
    """Route a request that may be attempted eight times; every path carries the query."""
    path = f"{CHAT}?{query}"
    step = PlanStep("provider", model, model, "cluster", path, RouteMode.DIRECT)
    state = RequestState(
        "id", 1, "default", Kind.UNARY, "openai", CHAT, query, "client", model, 0, 0.0, (step,) * 8, started=0.0
    )
    return RouteTo(state, 8, path, None)


def kept_bytes(actions: list[RouteTo]) -> float:
    """Return what remains allocated for each answer that was serialized."""
    serialize(actions[0])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for action in actions[1:]:
            serialize(action)
        return (tracemalloc.get_traced_memory()[0] - before) / len(actions)
    finally:
        tracemalloc.stop()


def test_a_long_query_is_not_kept() -> None:
    actions = [route(f"{number}&{'q' * 50_000}") for number in range(TRIED)]
    assert kept_bytes(actions) < 100


@pytest.mark.parametrize("length", [0, QUERY_KEPT])
def test_what_callers_choose_makes_no_large_entry(length: int) -> None:
    """The longest model names and queries that are kept, as many as there may be: 32 MiB in all."""
    actions = [route(f"{number:0>{length}}"[:length], f"{number:m>{MODEL_NAME_LIMIT}}") for number in range(TRIED)]
    assert 0 < kept_bytes(actions) * PREPARED_KEPT < KEPT_LIMIT_BYTES
