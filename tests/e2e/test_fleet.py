"""Two gateways on one PostgreSQL: a version is live on both, or it is said on which one it is not, and why.

All tests share them; each begins with both running the same version, `base`, whatever the one before left behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from extproc.envoy_binary import find_envoy
from tests.e2e.conftest import GatewayFactory
from tests.support.gateway import Gateway, provider, two_providers
from tests.support.operator import Operator
from tests.support.postgres import fresh_database, postgres
from tests.support.wall import Wall

OLD_ENVOY = """\
#!/bin/sh
if [ "$1 $2" = "--mode validate" ] && grep -q newer- "$4"; then echo "no filter of that name here"; exit 1; fi
exec {envoy} "$@"
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


class Fleet:
    """Two gateways; the Envoy of the second one does not take what a provider `newer` needs."""

    def __init__(self, factory: GatewayFactory, store: str, folder: Path, primary: Wall, fallback: Wall) -> None:
        self._walls = primary, fallback
        self._deadlines = count(80)
        old = folder / "old-envoy"
        old.write_text(OLD_ENVOY.format(envoy=find_envoy(None, {})))
        old.chmod(0o755)
        environment = {"GATEWAY_STORE": store}
        config = self.config()
        self.first: Gateway = factory(config, environment=environment)
        self.second: Gateway = factory(config, environment=environment, arguments=("--envoy", str(old)))
        self.operator = Operator(folder, store=store)
        self.base = 0

    def settle(self) -> None:
        """Bring both back to one version, and wait until both told of it."""
        if self.second not in Gateway.live:
            self.second.start()
        if len(set(self.live())) > 1:
            assert 0 == self.operator.publish(self.config()).code

        # A gateway that never told of itself is not waited for, so that it may not be paused before its first word.
        def told() -> bool:
            applied = [str(one["applied"]) for one in self.instances()]
            return (2, set(self.live())) == (len(applied), set(applied))

        self.first.wait_until(told, "both to tell of themselves", 20.0)
        self.base = self.operator.run("current", "--json").json["number"]

    def config(self) -> dict[str, Any]:
        """Build a config that was never published before."""
        return two_providers(*self._walls, deadline=f"{next(self._deadlines)}s")

    def at(self, *steps: int) -> list[str]:
        """Return versions by how many were made since the test began, where none was refused before."""
        return [str(self.base + step) for step in steps]

    def newer(self) -> dict[str, Any]:
        config = self.config()
        config["providers"]["newer"] = provider(self._walls[0])
        config["models"]["newer"] = {"targets": [{"provider": "newer", "model": "m"}]}
        return config

    def live(self) -> list[str | None]:
        """Return the versions that callers of each gateway see."""
        return [gateway.chat().header("x-gateway-config-version") for gateway in (self.first, self.second)]

    def instances(self) -> list[dict[str, Any]]:
        """Return what `configctl status` tells of both."""
        told: list[dict[str, Any]] = self.operator.run("status", "--json").json["instances"]
        return told

    def ids(self, told: list[dict[str, Any]], key: str) -> list[str]:
        """Return which gateways are named, in their order."""
        places = {"first": self.first.data_dir, "second": self.second.data_dir}
        return sorted(name for name, path in places.items() for one in told if one[key].endswith(f":{path}"))


@pytest.fixture(scope="module")
def gateways(
    module_gateway_factory: GatewayFactory,
    server: str,
    tmp_path_factory: pytest.TempPathFactory,
    module_primary: Wall,
    module_fallback: Wall,
) -> Fleet:
    folder = tmp_path_factory.mktemp("fleet")
    return Fleet(module_gateway_factory, fresh_database(server), folder, module_primary, module_fallback)


@pytest.fixture
def fleet(gateways: Fleet) -> Fleet:
    gateways.settle()
    return gateways


def test_both_gateways_apply_what_is_published_and_rolled_back_and_the_status_shows_both(fleet: Fleet) -> None:
    published = fleet.operator.publish(fleet.config())
    assert (0, "applied", ["first", "second"]) == (
        published.code,
        published.json["outcome"],
        fleet.ids(published.json["instances"], "instance"),
    )
    assert fleet.at(1, 1) == fleet.live()
    rolled = fleet.operator.rollback()
    assert (0, fleet.at(2, 2)) == (rolled.code, fleet.live())
    instances = fleet.operator.run("status", "--json").json["instances"]
    assert ["first", "second"] == fleet.ids(instances, "id")
    number = fleet.base + 2
    assert [(True, number, number, None)] * 2 == [
        (one["live"], one["wanted"], one["applied"], one["error"]) for one in instances
    ]


def test_a_gateway_that_does_not_answer_is_named_and_follows_later(fleet: Fleet) -> None:
    fleet.second.pause_extproc()
    try:
        ran = fleet.operator.publish(fleet.config(), "--timeout", "4s")
    finally:
        fleet.second.resume_extproc()
    silent = [one for one in ran.json["instances"] if one["answer"] == "silent"]
    assert (1, "silent", ["second"]) == (ran.code, ran.json["outcome"], fleet.ids(silent, "instance"))
    assert f"{fleet.second.data_dir} (" in ran.stderr
    assert "did not answer within" in ran.stderr
    assert fleet.at(1) == [fleet.first.chat().header("x-gateway-config-version")]
    fleet.second.wait_until(lambda: fleet.live() == fleet.at(1, 1), "the second gateway to follow")


def test_a_gateway_that_is_killed_during_a_publish_is_given_up_when_its_heartbeats_end(fleet: Fleet) -> None:
    """Well before the timeout; the next publish does not wait for it at all, and names it."""
    fleet.second.pause_extproc()
    argv = ("publish", fleet.operator.file(fleet.config()), "-m", "x", "--yes", "--json")
    running = fleet.operator.start(*argv, "--timeout", "60s")
    fleet.first.wait_until(
        lambda: fleet.at(1) == [fleet.first.chat().header("x-gateway-config-version")], "the new version"
    )
    fleet.second.kill()
    out, err = running.communicate(timeout=60)
    told = json.loads(out)
    answers = {one["answer"]: (fleet.ids([one], "instance"), one["after_s"]) for one in told["instances"]}
    assert (1, "silent", ["first"], ["second"]) == (
        running.returncode,
        told["outcome"],
        answers["applied"][0],
        answers["silent"][0],
    )
    assert answers["silent"][1] < 15
    assert "did not answer within" in err

    later = fleet.operator.publish(fleet.config())

    gone = [{"id": name} for name in later.json["gone"]]
    assert (0, "applied", ["second"]) == (later.code, later.json["outcome"], fleet.ids(gone, "id"))
    assert "has been silent, not waited for" in later.stderr
    fleet.second.start()
    fleet.second.wait_until(lambda: fleet.live() == fleet.at(2, 2), "the second gateway to follow when it is back")


def test_a_gateway_that_was_stopped_in_good_order_is_not_waited_for(fleet: Fleet) -> None:
    fleet.second.stop()
    ran = fleet.operator.publish(fleet.config())
    assert (0, "applied", ["first"]) == (
        ran.code,
        ran.json["outcome"],
        fleet.ids(ran.json["instances"], "instance"),
    )
    (instance,) = fleet.operator.run("status", "--json").json["instances"]
    assert ["first"] == fleet.ids([instance], "id")


def test_a_refusal_by_one_gateway_takes_both_back_to_the_parent_and_names_both(fleet: Fleet) -> None:
    ran = fleet.operator.publish(fleet.newer())
    answers = {one["answer"]: fleet.ids([one], "instance") for one in ran.json["instances"]}
    assert (1, "failed", fleet.base) == (ran.code, ran.json["outcome"], ran.json["returned_to"])
    assert {"applied": ["first"], "failed": ["second"]} == answers
    assert "no filter of that name here" == ran.json["version"]["outcome_reason"]
    assert "refused: no filter of that name here" in ran.stderr
    assert f"The wanted version is {fleet.base} again." in ran.stderr
    fleet.first.wait_until(lambda: fleet.live() == fleet.at(0, 0), "both to be back on the version before")
    # What they serve changes before the heartbeat that tells of it.
    fleet.first.wait_until(lambda: [fleet.base] * 2 == [one["wanted"] for one in fleet.instances()], "both to tell it")
    assert ["first", "second"] == fleet.ids(fleet.instances(), "id")


def test_a_refused_version_stays_wanted_when_that_is_asked_for(fleet: Fleet) -> None:
    ran = fleet.operator.publish(fleet.newer(), "--keep")
    assert (1, None) == (ran.code, ran.json["returned_to"])
    number = ran.json["version"]["number"]
    assert [str(number), str(fleet.base)] == fleet.live()
    (refusing,) = [one for one in fleet.operator.run("status", "--json").json["instances"] if one["error"]]
    assert (["second"], number, fleet.base) == (
        fleet.ids([refusing], "id"),
        refusing["wanted"],
        refusing["applied"],
    )
