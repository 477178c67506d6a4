"""Active checks of providers against a small stand-in for the socket on which Envoy takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import pytest

from extproc import envoy_admin
from extproc.checks import check_provider, cluster_of, passes
from extproc.config.snapshot import HealthCheck
from extproc.core.gateway import Active, Gateway
from tests.unit.core.build import NOW, A, B, active, chain, config, gateway

Result = TypeVar("Result")
CHECK = HealthCheck(path="/health", model=None, interval_s=10.0, timeout_s=2.0)


class Answers:
    """Answers checks with one status; 0 stands for an answer that is cut, None for silence. Keeps the heads."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        self.heads: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks += [task for task in [asyncio.current_task()] if task]
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        if self.status is None:
            await reader.read()
        elif self.status:
            writer.write(f"HTTP/1.1 {self.status} X\r\n\r\n".encode())
        writer.close()
        await writer.wait_closed()

    async def beside(self, socket: Path, act: Awaitable[Result]) -> Result:
        """Answer on a socket while `act` runs."""
        async with asyncio.timeout(10), await asyncio.start_unix_server(self.handle, str(socket)):
            result = await act
            await asyncio.gather(*self.tasks)
            return result


def passed(tmp_path: Path, answers: Answers, check: HealthCheck = CHECK) -> bool | None:
    socket = tmp_path / "checks.sock"
    return asyncio.run(answers.beside(socket, passes(check, socket, "a-cluster")))


@pytest.mark.parametrize(("status", "expected"), [(200, True), (204, True), (299, True), (302, False), (500, False)])
def test_only_a_2xx_passes(tmp_path: Path, status: int, expected: bool) -> None:
    assert expected is passed(tmp_path, Answers(status))


def test_a_check_asks_for_its_path_at_its_cluster(tmp_path: Path) -> None:
    answers = Answers(200)
    passed(tmp_path, answers, replace(CHECK, path="/up"))

    (head,) = answers.heads
    assert head.startswith("GET /up HTTP/1.1\r\n")
    assert "\r\nx-gateway-check-cluster: a-cluster\r\n" in head


def test_a_provider_that_is_silent_for_the_timeout_fails(tmp_path: Path) -> None:
    assert False is passed(tmp_path, Answers(None), replace(CHECK, timeout_s=0.01))


def test_a_check_may_take_as_long_as_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    async def silent(socket: Path, path: str, timeout_s: float, headers: object) -> None:
        given.append(timeout_s)
        raise envoy_admin.AdminError("silent")

    monkeypatch.setattr(envoy_admin, "get", silent)
    assert False is asyncio.run(passes(replace(CHECK, timeout_s=0.7), tmp_path / "none", "a-cluster"))
    assert [0.7] == given


def test_an_answer_that_cannot_be_read_fails(tmp_path: Path) -> None:
    assert False is passed(tmp_path, Answers(0))


def test_without_an_envoy_nothing_is_known(tmp_path: Path) -> None:
    """Envoy's restart says nothing about the provider."""
    assert None is asyncio.run(passes(CHECK, tmp_path / "none", "a-cluster"))


@pytest.mark.parametrize(("check", "cluster"), [(CHECK, None), (replace(CHECK, path=None, model="m"), "a-cluster")])
def test_what_cannot_be_asked_is_not_known(tmp_path: Path, check: HealthCheck, cluster: str | None) -> None:
    assert None is asyncio.run(passes(check, tmp_path / "none", cluster))


def test_any_cluster_of_the_provider_carries_the_check() -> None:
    made = active(config({"big": chain(A, B)}))
    clusters = {("b", "default"): "b-1", ("a", "slow"): "a-2", ("a", "default"): "a-1"}
    several = replace(made, clusters=clusters)

    assert ("a-1", None) == (cluster_of(several, "a"), cluster_of(several, "z"))


# -- one check after the other


def checked_version(check: HealthCheck | None = CHECK, version: int = 1) -> Active:
    """Return a version whose provider `a` asks for a check."""
    made = active(config({"big": chain(A, B)}), version)
    providers = dict(made.snapshot.providers)
    providers["a"] = replace(providers["a"], health_check=check)
    return replace(made, snapshot=replace(made.snapshot, providers=MappingProxyType(providers)))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no time pass between checks; returns how long each wait would have been."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return waits


def run_checks(
    tmp_path: Path, made: Gateway, answers: Answers, then: Callable[[int], Active | None], draw: float = 0.5
) -> None:
    """Check provider `a`; after each check `then` gets their number and may make another version active."""
    results: list[bool] = []
    checked = made.checked

    def note(provider: str, active: Active, now: float, *, passed: bool) -> None:
        checked(provider, active, now, passed=passed)
        results.append(passed)
        following = then(len(results))
        if following is not None:
            made.activate(following)

    made.checked = note  # type: ignore[method-assign]  # listens in
    socket = tmp_path / "checks.sock"
    asyncio.run(answers.beside(socket, check_provider(made, "a", socket, lambda: NOW, lambda: draw)))


def ends_after(count: int) -> Callable[[int], Active | None]:
    """Ask for no check any more once so many were made."""
    return lambda made: checked_version(None, 2) if made == count else None


def a_gateway(check: HealthCheck | None = CHECK) -> Gateway:
    made = gateway()
    made.activate(checked_version(check))
    return made


def test_a_provider_that_fails_its_checks_is_left_out(tmp_path: Path, slept: list[float]) -> None:
    made = a_gateway()

    run_checks(tmp_path, made, Answers(500), ends_after(3))

    assert [False, True] == [made.health.view(key, NOW).eligible for key in (A, B)]


def test_a_provider_that_passes_stays(tmp_path: Path, slept: list[float]) -> None:
    made = a_gateway()

    run_checks(tmp_path, made, Answers(200), ends_after(3))

    assert True is made.health.view(A, NOW).eligible


@pytest.mark.parametrize(("draw", "expected"), [(0.0, 9.0), (0.5, 10.0), (1.0, 11.0)])
def test_checks_come_at_their_interval_spread_a_little(
    tmp_path: Path, slept: list[float], draw: float, expected: float
) -> None:
    """Instances that started together must not check together for ever."""
    made = a_gateway()

    run_checks(tmp_path, made, Answers(200), ends_after(2), draw)

    assert pytest.approx([expected, expected]) == slept


def test_a_changed_interval_holds_from_the_next_check_on(tmp_path: Path, slept: list[float]) -> None:
    made = a_gateway()
    slower = checked_version(replace(CHECK, interval_s=60.0), 2)

    run_checks(tmp_path, made, Answers(200), lambda count: slower if count == 1 else checked_version(None, 3))

    assert [10.0, 60.0] == slept


@pytest.mark.parametrize(
    "made",
    [gateway(), a_gateway(None), gateway(config({"big": chain(B)}))],
    ids=["no version", "no check asked for", "no such provider"],
)
def test_checking_ends_where_the_active_version_does_not_ask_for_it(tmp_path: Path, made: Gateway) -> None:
    asyncio.run(check_provider(made, "a", tmp_path / "none", lambda: NOW, lambda: 0.5))


def test_without_an_envoy_health_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = a_gateway()
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) > 5:
            made.activate(checked_version(None, 2))

    monkeypatch.setattr(asyncio, "sleep", note)
    asyncio.run(check_provider(made, "a", tmp_path / "none", lambda: NOW, lambda: 0.5))

    assert True is made.health.view(A, NOW).eligible
