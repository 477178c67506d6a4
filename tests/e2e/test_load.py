"""Ten thousand requests whose every first attempt fails: nothing of it may reach a caller, a log or a process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, Pids
from tests.support.load import LoadResult, run_load
from tests.support.wall import WallProcess

REQUESTS = 10_000
CONNECTIONS = 32
STREAMED_EVERY = 10
# A target is given up after 1000 failures in a row at most, so as many targets share the failures as keep
# each below that: every one of the requests is then really tried at the primary first.
TARGETS = 12
PATIENT = {"consecutive": 1000, "failure_ratio": 1, "min_requests": 100_000}


class Run(NamedTuple):
    """One load and what was there before it."""

    gateway: Gateway
    pids: Pids
    result: LoadResult
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def failing_over(module_gateway_factory: GatewayFactory) -> Iterator[Run]:
    """Send the whole load through a gateway whose primary is overloaded from the first request to the last."""
    with WallProcess("error", status=503) as primary, WallProcess("ok") as fallback:
        gateway = module_gateway_factory(_config(primary, fallback))
        pids = gateway.pids()
        headers = ("x-gateway-route-mode", "x-gateway-attempts", "x-gateway-served-by")
        url = gateway.url + "/v1/chat/completions"
        result = run_load(url, REQUESTS, CONNECTIONS, _body, timeout_s=30, count_headers=headers)
        yield Run(gateway, pids, result, gateway.access_log(REQUESTS))


def test_no_caller_sees_one_of_ten_thousand_failed_first_attempts(failing_over: Run) -> None:
    assert Counter({200: REQUESTS}) == failing_over.result.statuses
    assert Counter() == failing_over.result.errors


def test_every_answer_says_that_the_second_attempt_at_the_fallback_served_it(failing_over: Run) -> None:
    expected = Counter(
        {
            ("x-gateway-route-mode", "model_fallback"): REQUESTS,
            ("x-gateway-attempts", "2"): REQUESTS,
            ("x-gateway-served-by", "fallback/rescue-upstream"): REQUESTS,
        }
    )
    assert expected == failing_over.result.headers


def test_the_access_log_has_each_request_once_with_its_two_attempts(failing_over: Run) -> None:
    rows = failing_over.rows
    assert REQUESTS == len(rows) == len({row["request_id"] for row in rows})
    assert 2 * REQUESTS == sum(int(row["attempts"]) for row in rows)
    assert {(200, "fallback/rescue-upstream", "overloaded")} == {
        (int(row["status"]), row["served_by"], *(row["classes"] or ("none",))) for row in rows
    }


def test_the_processes_that_served_the_first_request_served_the_last(failing_over: Run) -> None:
    assert failing_over.pids == failing_over.gateway.pids()


def test_the_load_leaves_no_fault_and_no_alarm_in_any_log(failing_over: Run) -> None:
    assert 0.0 == failing_over.gateway.metric("gateway_internal_faults_total")
    assert [] == failing_over.gateway.alarming_lines()


def _config(primary: WallProcess, fallback: WallProcess) -> dict[str, Any]:
    providers = {
        name: {"base_url": wall.url, "allow_private_network": True}
        for name, wall in (("primary", primary), ("fallback", fallback))
    }
    models: dict[str, Any] = {
        f"bulk-{number}": {
            "targets": [{"provider": "primary", "model": f"bulk-{number}-upstream"}],
            "fallback": ["rescue"],
        }
        for number in range(TARGETS)
    }
    models["rescue"] = {"targets": [{"provider": "fallback", "model": "rescue-upstream"}]}
    return {"schema": 1, "providers": providers, "models": models, "policies": {"default": {"cooldown": PATIENT}}}


def _body(number: int) -> bytes:
    body: dict[str, Any] = {"model": f"bulk-{number % TARGETS}", "messages": [{"role": "user", "content": "hi"}]}
    if number % STREAMED_EVERY == 0:
        body["stream"] = True
    return orjson.dumps(body)
