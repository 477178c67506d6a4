"""Publishing under traffic: what callers notice of a change of policy, which is its version number and nothing else."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
import pytest

from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway
from tests.support.http1 import Reply
from tests.support.load import LoadResult, run_load
from tests.support.operator import Operator, Ran
from tests.support.wall import Wall, WallProcess, ok

RATE = 100.0
"""Enough for requests and streams under way at every change; more is the benches' affair."""
CONNECTIONS = 96
STREAMED_EVERY = 5
STREAM_EVENTS = 6
LONG_EVENTS, LONG_THROUGH = 2000, 12
ACTS = 20
REFUSED_BY_ENVOY, REFUSED_BY_COMPILER = 7, 13
ROLLBACKS = (5, 10, 15, 18)
VISIBLE_WITHIN_S = 10.0
"""Generous, for machines under load; the design's 1 s is measured by the benches."""
_VERSION = re.compile(rb"x-gateway-config-version: (\d+)")


Walls = dict[str, Wall | WallProcess]


@dataclass
class Storm:
    """What came of a load during which the policy changed again and again."""

    result: LoadResult = field(default_factory=LoadResult)
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    """(when the request was sent, when its answer was whole, the version it was decided under), epoch seconds."""
    streams: Counter[str] = field(default_factory=Counter)
    acts: list[Ran] = field(default_factory=list)
    published: dict[int, float] = field(default_factory=dict)
    long: list[Reply] = field(default_factory=list)
    long_released: float = 0.0
    files: list[dict[str, Any]] = field(default_factory=list)
    """What Envoy reads, before and after the version that Envoy refused."""

    def notice(self, began: float, answer: bytes) -> None:
        """Take note of one whole answer."""
        offset_s = time.time() - time.monotonic()
        found = _VERSION.search(answer)
        self.answers.append((began + offset_s, time.time(), int(found[1]) if found else 0))
        if b"text/event-stream" in answer:
            words, done = answer.count(b'"content":"s'), answer.count(b"data: [DONE]")
            self.streams["all"] += 1
            self.streams["cut"] += (words, done) != (STREAM_EVENTS, 1)


@pytest.fixture(scope="module")
def storm(module_gateway_factory: GatewayFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    """Publish, roll back and be refused twenty times under traffic."""
    folder = tmp_path_factory.mktemp("storm")
    quick, paced = WallProcess("ok"), WallProcess("ok", text="s" * STREAM_EVENTS, chunks=STREAM_EVENTS, delay_s=0.1)
    with quick, paced, Wall() as long:
        long.script(ok("l" * LONG_EVENTS, chunks=LONG_EVENTS, delay_s=0.2))
        walls: Walls = {"quick": quick, "paced": paced, "long": long}
        gateway = module_gateway_factory(_changing(walls, 0))
        operator = Operator(folder, data_dir=gateway.data_dir)
        seen, enough = Storm(), threading.Event()
        with ThreadPoolExecutor(4) as pool:
            load = pool.submit(
                run_load,
                gateway.url + "/v1/chat/completions",
                10_000_000,
                CONNECTIONS,
                _body,
                rate=RATE,
                enough=enough,
                notice=seen.notice,
            )
            streams = [pool.submit(_long_stream, gateway) for _ in range(2)]
            try:
                _act(gateway, operator, walls, seen, long.release)
                seen.long = [stream.result(60) for stream in streams]
            finally:
                enough.set()
            seen.result = load.result(60)
        yield seen


def _act(gateway: Gateway, operator: Operator, walls: Walls, seen: Storm, release: Callable[[], None]) -> None:
    for number in range(1, ACTS + 1):
        if number == LONG_THROUGH:
            seen.long_released = time.time()
            release()
        before = _envoy_files(gateway)
        if number == REFUSED_BY_ENVOY:
            config = _changing(walls, number)
            config["providers"]["bad"] = _not_a_certificate(operator)
            config["models"]["bad"] = {"targets": [{"provider": "bad", "model": "m"}]}
            seen.acts.append(operator.publish(config))
            seen.files = [before, _envoy_files(gateway)]
        elif number == REFUSED_BY_COMPILER:
            seen.acts.append(operator.publish(_changing(walls, number) | {"surplus": 1}))
        elif number in ROLLBACKS:
            seen.acts.append(operator.rollback())
        else:
            seen.acts.append(operator.publish(_changing(walls, number)))
    for version in operator.run("history", "--json").json:
        if version["outcome"] == "applied" and version["number"] > 1:
            seen.published[version["number"]] = _epoch(version["created_at"])


def _changing(walls: Walls, number: int) -> dict[str, Any]:
    """Build the config of one act: new clusters and other policies each time; some add a provider, one the listener."""
    providers = {name: {"base_url": wall.url, "allow_private_network": True} for name, wall in walls.items()}
    models: dict[str, Any] = {
        "unary": {"targets": [{"provider": "quick", "model": "m", "weight": 1 + number}]},
        "stream": {"targets": [{"provider": "paced", "model": "m"}]},
        "long": {"targets": [{"provider": "long", "model": "m"}]},
    }
    if number % 3 == 0:
        providers[f"more-{number}"] = providers["quick"]
        models["unary"]["targets"].append({"provider": f"more-{number}", "model": "m"})
    policies: dict[str, Any] = {"default": {"connect_timeout": f"{2000 + number}ms"}}
    for model, policy in _policies(number).items():
        policies[policy] = {"deadline": f"{60 + number}s"}
        models[model]["policy"] = policy
    server = {"max_body": f"{50 + number // 16}MiB"}
    return {"schema": 1, "providers": providers, "models": models, "policies": policies, "server": server}


def _policies(number: int) -> dict[str, str]:
    """Return the policies that models name, in four turns: one, another name for it, the models exchanged, none.

    Requests under way still have the policy of the version that decided them, whatever became of its name.
    """
    turns: tuple[dict[str, str], ...] = (
        {"stream": "streams"},
        {"stream": f"streams-{number}"},
        {"unary": f"streams-{number - 1}"},
        {},
    )
    return turns[number % len(turns)]


def _not_a_certificate(operator: Operator) -> dict[str, Any]:
    """A provider that the compiler takes and Envoy does not."""
    path = operator.file({"this": "is no certificate"}, "ca.pem")
    return {
        "base_url": "https://127.0.0.1:9/v1",
        "allow_private_network": True,
        "tls": {"ca_file": path},
        "api_key": {"env": "PRIMARY_KEY"},
    }


def _body(number: int) -> bytes:
    stream = number % STREAMED_EVERY == 0
    body: dict[str, Any] = {"model": "stream" if stream else "unary", "messages": [{"role": "user", "content": "hi"}]}
    return orjson.dumps(body | ({"stream": True} if stream else {}))


def _long_stream(gateway: Gateway) -> Reply:
    return gateway.chat("long", stream=True)


def _envoy_files(gateway: Gateway) -> dict[str, Any]:
    """Return what Envoy reads: the resources of each file, and the names of the key files."""
    root = gateway.data_dir / "envoy"
    found: dict[str, Any] = {"keys": sorted(path.name for path in (root / "sds").glob("*.json"))}
    for path in sorted(root.rglob("*.json")):
        document = json.loads(path.read_text())
        if "resources" in document and path.parent.name != "sds":
            found[str(path.relative_to(root))] = document["resources"]
    return found


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def tell(**figures: object) -> None:
    """Print what was measured, for whoever runs this with `-rP`."""
    sys.stdout.write(f"{figures}\n")


def test_no_request_fails_and_no_stream_is_cut_while_the_policy_changes_twenty_times(storm: Storm) -> None:
    tell(requests=len(storm.answers))
    tell(requests_per_second=round(storm.result.rps))
    tell(streams=storm.streams["all"])
    assert Counter() == storm.result.errors
    assert {200: len(storm.answers)} == dict(storm.result.statuses)
    assert 0 == storm.streams["cut"]
    assert storm.streams["all"] > 100


def test_every_act_ends_as_it_should(storm: Storm) -> None:
    """Eighteen are live everywhere, one is refused by Envoy and one by the compiler."""
    told = [(ran.code, ran.json.get("outcome", "no version")) for ran in storm.acts]
    expected = [(0, "applied")] * ACTS
    expected[REFUSED_BY_ENVOY - 1] = (1, "failed")
    expected[REFUSED_BY_COMPILER - 1] = (1, "no version")
    assert expected == told


def test_every_version_is_seen_by_callers_and_the_last_one_stays(storm: Storm) -> None:
    seen = {version for _, _, version in storm.answers}
    assert {1, *storm.published} == seen
    assert max(storm.published) == max(storm.answers, key=lambda answer: answer[0])[2]


def test_a_version_is_in_callers_answers_soon_after_it_was_published(storm: Storm) -> None:
    first = {version: min(at for _, at, found in storm.answers if found == version) for version in storm.published}
    delays_s = sorted(first[version] - at for version, at in storm.published.items())
    tell(visible_after_s=[round(delay_s, 2) for delay_s in delays_s])
    assert delays_s[-1] < VISIBLE_WITHIN_S


def test_a_refused_version_decides_no_request(storm: Storm) -> None:
    refused = storm.acts[REFUSED_BY_ENVOY - 1].json
    number = refused["version"]["number"]
    assert 0 == sum(version == number for _, _, version in storm.answers)
    assert "certificate" in refused["version"]["outcome_reason"].lower()
    assert refused["version"]["parent"] == refused["returned_to"]


def test_after_a_refusal_envoy_s_files_are_those_of_the_live_version(storm: Storm) -> None:
    """Keys of the refused version included."""
    before, after = storm.files
    assert before == after


def test_long_streams_run_through_many_versions_and_arrive_whole(storm: Storm) -> None:
    through = sum(at < storm.long_released for at in storm.published.values())
    tell(versions_under_a_long_stream=through, seconds=[round(reply.seconds) for reply in storm.long])
    assert through >= LONG_THROUGH - 2
    whole = [(reply.status, reply.ended, len(reply.text), reply.events[-1]) for reply in storm.long]
    assert [(200, "clean", LONG_EVENTS, "[DONE]")] * 2 == whole
    assert {"1"} == {reply.header("x-gateway-config-version") for reply in storm.long}
