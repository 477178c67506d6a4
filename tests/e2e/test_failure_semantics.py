"""Every row of the table of failures, through the real Envoy: what the caller got, who was asked when, what was learnt.

All cases run at once, each with provider accounts and models of its own, in one gateway and in front of two walls
(one of them with a certificate of another name); then each test compares its own case.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import GatewayFactory
from tests.e2e.failure_cases import POLICIES, SECTIONS
from tests.support.failure_case import ANSWER, Case, Gets, Health, Kind, answers
from tests.support.gateway import Gateway
from tests.support.http1 import Reply
from tests.support.ports import free_port, release_port
from tests.support.told import Account, Told, Totals, all_told, id_of, totals_of
from tests.support.wall import Behaviour, Seen, Wall

AT_ONCE = 6
SETTLE_S = 0.2
SETTLED_WITHIN_S = 3.0
"""Longer than Envoy holds an entry of its access log back before extproc gets it."""
SLACK_S = 1.2
"""What a busy machine may add to a wait."""
CLOCK_S = 0.02
"""How far the clocks of a timer and of a wall may be apart."""
NOTED_LATE_S = 0.1
"""How late a busy wall may note a request: when it is the earlier of two, the time between them looks shorter."""
UPSTREAM = "upstream-model"
ENDED_BY_ENVOY = ("UPE", "UT")
"""Envoy's flags of an answer that had begun: its connection broke, or its per-try timer ran out."""
DEFAULT_ATTEMPTS, DEFAULT_DEADLINE_S = 3, 90.0


class Run(NamedTuple):
    """One case as one kind of request; its key names its models, its accounts and its place on the wall."""

    policy: str
    case: Case
    kind: Kind

    @property
    def key(self) -> str:
        return f"{self.case.name}-{self.kind}"


RUNS = [Run(section.policy, case, kind) for section in SECTIONS for case in section.cases for kind in case.kinds]
SINGLE = [run for run in RUNS if len(run.case.gets) == 1 and len(run.case.asks) > 1]
every_run = pytest.mark.parametrize("run", RUNS, ids=[run.key for run in RUNS])


class Asked(NamedTuple):
    """A request as a provider saw it: seconds behind the one before, and since the caller sent the run's first."""

    who: str
    behind_s: float
    since_sent_s: float


@dataclass(frozen=True, slots=True)
class Saw:
    """What happened in one run."""

    replies: tuple[Reply, ...]
    asks: tuple[Asked, ...]
    health: Health
    classes: tuple[str, ...]
    told: tuple[Told, ...]


# -- the stage -------------------------------------------------------------------------------------------------------


class Stage:
    """Plays the providers of all runs: a request's path says which run and which provider it is for."""

    def __init__(self) -> None:
        self.asks: dict[str, list[tuple[str, float]]] = {run.key: [] for run in RUNS}
        self._scripts: dict[tuple[str, str], deque[Behaviour]] = {}
        for run in RUNS:
            case = run.case
            first = case.first if isinstance(case.first, tuple) else (case.first,)
            self._scripts[run.key, "first"] = deque(first)
            self._scripts[run.key, "second"] = deque([case.second])
            self._scripts[run.key, "long"] = deque([case.long])

    def __call__(self, seen: Seen) -> Behaviour:
        _, key, who, *_ = seen.path.split("/")
        self.asks[key].append((who, seen.at))
        script = self._scripts[key, who]
        return script.popleft() if len(script) > 1 else script[0]


def config_of(bases: Mapping[str, str], ca_file: Path) -> dict[str, Any]:
    """Build providers and models of every run; `bases` are the addresses by way of reaching the first provider."""
    providers: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for run in RUNS:
        for who in ("first", "second", "long"):
            reach = run.case.reach if who == "first" else "wall"
            entry: dict[str, Any] = {"base_url": f"{bases[reach]}/{run.key}/{who}/v1", "allow_private_network": True}
            if reach in ("plain_text", "wrong_name"):
                entry["tls"] = {"ca_file": str(ca_file)}
            providers[f"{run.key}-{who}"] = entry
        models |= {name: entry | {"policy": run.policy} for name, entry in models_of(run).items()}
    used = {target["provider"] for entry in models.values() for target in entry["targets"]}
    providers = {name: entry for name, entry in providers.items() if name in used}
    return {"schema": 1, "providers": providers, "models": models, "policies": POLICIES}


def models_of(run: Run) -> dict[str, dict[str, Any]]:
    first, second, long = ({"provider": f"{run.key}-{who}", "model": UPSTREAM} for who in ("first", "second", "long"))
    if run.case.models == "alone":
        return {run.key: {"targets": [first]}}
    if run.case.models == "pair":
        return {run.key: {"targets": [first, second | {"tier": 1}]}}
    others = {"fallback": [f"{run.key}-other"], "context_fallback": [f"{run.key}-long"]}
    return {
        run.key: {"targets": [first], **others},
        f"{run.key}-other": {"targets": [second]},
        f"{run.key}-long": {"targets": [long]},
    }


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for a name that the wall does not have."""
    if shutil.which("openssl") is None:
        pytest.fail("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", "/CN=other", "-addext", "subjectAltName=DNS:other.example", "-days", "2"]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return cert, server


@pytest.fixture(scope="module")
def seen(
    module_gateway_factory: GatewayFactory, certificate: tuple[Path, ssl.SSLContext]
) -> Iterator[tuple[Mapping[str, Saw], Totals]]:
    """Run everything, a few cases at a time, and tell what happened in each, and what metrics say of all."""
    stage, nobody = Stage(), free_port()
    ca_file, tls = certificate
    with Wall() as plain, Wall(tls=tls) as wrong_name:
        plain.script(stage)
        wrong_name.script(answers())
        bases = {
            "wall": f"http://127.0.0.1:{plain.port}",
            "refused": f"http://127.0.0.1:{nobody}",
            "plain_text": f"https://127.0.0.1:{plain.port}",
            "wrong_name": f"https://127.0.0.1:{wrong_name.port}",
            "no_name": "http://does-not-exist.invalid:9",
        }
        gateway = module_gateway_factory(config_of(bases, ca_file))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            played = list(pool.map(lambda run: play(gateway, run), RUNS))
        assert 0 == wrong_name.count()
        found = observations(gateway, stage, played)
        yield found, totals_of(gateway)
    release_port(nobody)


@pytest.fixture(scope="module")
def saw(seen: tuple[Mapping[str, Saw], Totals]) -> Mapping[str, Saw]:
    """Tell what happened in each run."""
    return seen[0]


@pytest.fixture(scope="module")
def totals(seen: tuple[Mapping[str, Saw], Totals]) -> Totals:
    """Tell what metrics counted."""
    return seen[1]


def play(gateway: Gateway, run: Run) -> tuple[tuple[Reply, ...], Health, float]:
    """Send a run's requests one after the other and read the health that they leave, and when the first was sent."""
    replies, sent_at = [], time.monotonic()
    for _ in run.case.gets:
        replies.append(gateway.chat(run.key, stream=run.kind == "stream"))
        threading.Event().wait(SETTLE_S)
    return tuple(replies), settled(gateway, f"{run.key}-first", run.case.health), sent_at


def settled(gateway: Gateway, provider: str, expected: Health) -> Health:
    """Return the health of a provider once it is as expected, or as it is after a while: Envoy tells with a delay."""
    give_up_at = time.monotonic() + SETTLED_WITHIN_S
    while True:
        states = states_of(gateway)
        found = Health(states[f"{provider}/{UPSTREAM}"], states[provider])
        as_expected = (found.target, found.account) == (expected.target, expected.account)
        if as_expected or time.monotonic() > give_up_at:
            return found
        threading.Event().wait(SETTLE_S)


def states_of(gateway: Gateway) -> dict[str, str]:
    """Return the state of every target and account that is in one."""
    pattern = re.compile(
        r'gateway_target_state\{state="(\w+)",subject="([^"]+)"\}|gateway_target_state\{subject="([^"]+)",state="(\w+)"\}'
    )
    found = (pattern.fullmatch(name) for name, value in gateway.metrics("gateway_target_state").items() if value == 1.0)
    return {m[2] or m[3]: m[1] or m[4] for m in found if m}


def observations(
    gateway: Gateway, stage: Stage, played: list[tuple[tuple[Reply, ...], Health, float]]
) -> dict[str, Saw]:
    told = all_told(gateway, [reply for replies, _, _ in played for reply in replies])
    reasons = reasons_of(gateway)
    found = {}
    for run, (replies, health, sent_at) in zip(RUNS, played, strict=True):
        reason = next(
            (reasons[name] for name in (f"{run.key}-first/{UPSTREAM}", f"{run.key}-first") if name in reasons), None
        )
        own = tuple(told[id_of(reply)] for reply in replies)
        health = Health(health.target, health.account, reason)
        found[run.key] = Saw(replies, _asked(stage.asks[run.key], sent_at), health, own[0].explained.classes, own)
    return found


def reasons_of(gateway: Gateway) -> dict[str, str]:
    """Return why each target or account cooled, from the gateway's own log."""
    return dict(re.findall(r" (\S+) is cooling \(was \w+\), reason (\w+)", gateway.logs()))


def _asked(asks: list[tuple[str, float]], sent_at: float) -> tuple[Asked, ...]:
    before = [at for _, at in asks[:1] + asks]
    return tuple(Asked(who, at - earlier, at - sent_at) for (who, at), earlier in zip(asks, before, strict=False))


# -- what the caller got ---------------------------------------------------------------------------------------------


def words_of(reply: Reply) -> str:
    """Return the words of an answer, also of one with malformed events."""
    if "event-stream" not in (reply.header("content-type") or ""):
        return reply.text if reply.ended == "clean" else ""
    said = []
    for data in reply.events:
        try:
            event = json.loads(data)
            choices = event.get("choices", ()) if isinstance(event, dict) else ()
            said += [choice["delta"].get("content") or "" for choice in choices]
        except json.JSONDecodeError:
            continue
    return "".join(said)


def end_of(reply: Reply) -> str:
    """Say in the table's words how an answer ended, or what is wrong with it."""
    words = words_of(reply)
    if reply.ended == "clean" and words == ANSWER:
        return "whole"
    if reply.ended in ("cut", "reset") and ANSWER.startswith(words):
        return "broken"
    if reply.ended == "clean" and reply.events and "error" in json.loads(reply.events[-1]):
        return "error event"
    return f"{reply.ended} after {len(words)} of {len(ANSWER)} characters"


def got(reply: Reply, wanted: Gets) -> Gets:
    """Return what the caller got, with those headers that the case names."""
    mode = reply.header("x-gateway-route-mode") or "absent"
    headers = {name: reply.header(name) for name in wanted.headers}
    if reply.status == 200:
        by = _who((reply.header("x-gateway-served-by") or "").partition("/")[0].rpartition("-")[2])
        return Gets(200, by, mode, end_of(reply), None, headers)  # type: ignore[arg-type]
    error = reply.json["error"]
    by = _who(error["message"].partition(" ")[0])
    end = "whole" if reply.ended == "clean" else "broken"
    return Gets(reply.status, by, mode, end, error["code"] if by is None else None, headers)  # type: ignore[arg-type]


def _who(name: str) -> Any:
    return name if name in ("first", "second", "long") else None


# -- the claims ------------------------------------------------------------------------------------------------------


@every_run
def test_a_failure_leads_to_exactly_what_its_row_says(saw: Mapping[str, Saw], run: Run) -> None:
    """What the caller gets, who is asked in which order, the classes of what failed, and health afterwards."""
    case, found = run.case, saw[run.key]
    replies = tuple(got(reply, wanted) for reply, wanted in zip(found.replies, case.gets, strict=True))
    assert case.gets == replies
    assert tuple(ask.who for ask in case.asks) == tuple(asked.who for asked in found.asks)
    assert (case.classes, case.health) == (found.classes, found.health)


@pytest.mark.parametrize("run", SINGLE, ids=[run.key for run in SINGLE])
def test_each_attempt_starts_when_its_row_says(saw: Mapping[str, Saw], run: Run) -> None:
    """At once, after the wait that the provider asked for, or when its silence was too long."""
    pairs = list(zip(run.case.asks, saw[run.key].asks, strict=True))
    # The caller's clock bounds all waits together, and the first of them closely: no wall noted its beginning late.
    least = list(accumulate(ask.after_s[0] for ask, _ in pairs))
    wrong = [
        (ask, asked)
        for number, ((ask, asked), least_s) in enumerate(zip(pairs, least, strict=True))
        if number > 0
        and (
            asked.since_sent_s < least_s - CLOCK_S
            or (number > 1 and asked.behind_s < ask.after_s[0] - NOTED_LATE_S)
            or asked.behind_s > ask.after_s[1] + SLACK_S
        )
    ]
    assert [] == wrong


@every_run
def test_no_case_costs_more_than_its_policy_allows(saw: Mapping[str, Saw], run: Run) -> None:
    """Neither more attempts nor more time, and the caller is told the number of attempts."""
    policy, found = POLICIES[run.policy], saw[run.key]
    requests, attempts = len(run.case.gets), policy.get("attempts", DEFAULT_ATTEMPTS)
    deadline_s = float(policy.get("deadline", f"{DEFAULT_DEADLINE_S}s").removesuffix("s"))
    assert len(found.asks) <= attempts * requests
    assert max(reply.seconds for reply in found.replies) <= deadline_s + SLACK_S
    assert all(1 <= int(reply.header("x-gateway-attempts") or 0) <= attempts for reply in found.replies)


def test_no_request_hangs(saw: Mapping[str, Saw]) -> None:
    """The longest limit of all policies here is four seconds."""
    assert max(reply.seconds for found in saw.values() for reply in found.replies) < 5.0


# -- four witnesses --------------------------------------------------------------------------------------------------


def account_of(reply: Reply, told: Told) -> Account:
    """Return what a request's own answer says of it; its classes are those that `explain` has."""
    served_by = reply.header("x-gateway-served-by")
    mode, attempts = reply.header("x-gateway-route-mode") or "", int(reply.header("x-gateway-attempts") or 0)
    return Account(reply.status, mode, served_by, attempts, told.explained.classes)


def unlogged(told: Told) -> tuple[str, ...]:
    """Return the one class that the access log does not have: of an answer that Envoy itself ended, as its flags say.

    Nothing of ours is asked between that end and the line.
    """
    last = told.tries[-1].error_class
    return (last,) if last in ("stream_cut", "stream_stall") and told.flags in ENDED_BY_ENVOY else ()


@every_run
def test_ledger_access_log_and_explain_say_what_the_caller_got(saw: Mapping[str, Saw], run: Run) -> None:
    """Status, route mode, who served, how many attempts, and the classes of those that failed."""
    for reply, told in zip(saw[run.key].replies, saw[run.key].told, strict=True):
        account = account_of(reply, told)
        line = told.line._replace(classes=(*told.line.classes, *unlogged(told)))
        assert (account, account, account) == (line, told.row, told.explained)
        assert told.tries == told.row_tries


@every_run
def test_the_attempts_that_are_told_are_those_that_the_wall_saw(saw: Mapping[str, Saw], run: Run) -> None:
    """In their order; a provider that cannot be reached sees nothing."""
    told = [_who(one.target.partition("/")[0].rpartition("-")[2]) for each in saw[run.key].told for one in each.tries]
    visible = [who for who in told if who != "first" or run.case.reach == "wall"]
    assert visible == [asked.who for asked in saw[run.key].asks]


@every_run
def test_explain_says_what_followed_each_failed_attempt(saw: Mapping[str, Saw], run: Run) -> None:
    """But for an answer that broke or stalled after its head, and was the last: nothing can follow it."""
    for told in saw[run.key].told:
        failed = [followed for one, followed in zip(told.tries, told.nexts, strict=True) if one.error_class is not None]
        broke = told.tries[-1].error_class in ("stream_cut", "stream_stall")
        assert all(failed[:-1] if broke else failed), told.nexts


@every_run
def test_metrics_count_what_is_told(saw: Mapping[str, Saw], totals: Totals, run: Run) -> None:
    """Each attempt by its provider and class, each request by its model and what its caller got."""
    tries = [one for told in saw[run.key].told for one in told.tries]
    attempts = Counter((one.target.partition("/")[0], one.error_class or "success") for one in tries)
    providers = {f"{run.key}-{who}" for who in ("first", "second", "long")}
    assert attempts == Counter({key: n for key, n in totals.attempts.items() if key[0] in providers and n})
    lines = [told.line for told in saw[run.key].told]
    requests = Counter(
        (run.key, (one.served_by or "none").partition("/")[0], one.route_mode, str(one.status)) for one in lines
    )
    assert requests == Counter({key: n for key, n in totals.requests.items() if key[0] == run.key and n})


@every_run
def test_planning_again_gives_the_same_plan(saw: Mapping[str, Saw], run: Run) -> None:
    assert {(True, None)} == {(told.replay["same"], told.replay["differs"]) for told in saw[run.key].told}
