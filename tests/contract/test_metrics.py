"""Code, docs/metrics.md, rules, alerts and dashboard speak of the same metrics; promtool accepts them all."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client import generate_latest

from extproc.core.gateway import Gateway
from extproc.core.health import HealthEngine
from extproc.ledger import Ledger
from extproc.metrics import Metrics
from extproc.telemetry import publish_readings
from tests.support.programs import needed

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
RULES = [DEPLOY / "prometheus" / name for name in ("recording.yml", "alerts.yml")]
DASHBOARD = DEPLOY / "grafana" / "gateway.json"
_ROW = re.compile(r"^\| `(gateway_\w+)` \| (\w+) \|(.*?)\| .+ \|$", re.MULTILINE)
_NAME = re.compile(r"\b(?:gateway|process)[_:][\w:]+")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")


class Described(NamedTuple):
    """A metric's type and the names of its labels."""

    type: str
    labels: frozenset[str]


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """Build all metrics as `serve` does, with no traffic."""
    made = Metrics(list, lambda: 0, lambda: True)
    gateway = Gateway(HealthEngine(lambda: 0.5), lambda: 0.5)
    publish_readings(made, gateway, Ledger(Path("unused.db"), lambda: 0.0))
    return made


def in_code(metrics: Metrics) -> dict[str, Described]:
    """Read every metric of ours from the registry."""
    labels = {
        name: frozenset(getattr(collector, "_labelnames", ()))
        for collector, names in metrics.registry._collector_to_names.items()
        for name in names
    }
    found = {}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.startswith("gateway_"):
            found[name] = Described(family.type, labels.get(name, frozenset()))
    return found | {"gateway_target_state": Described("gauge", frozenset({"subject", "state"}))}


def in_docs() -> dict[str, Described]:
    """Read the tables of docs/metrics.md."""
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    return {
        name: Described(kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in _ROW.findall(text)
    }


def recorded() -> set[str]:
    """Return the names that the recording rules make."""
    groups = yaml.safe_load(RULES[0].read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"]}


def used(expressions: list[str]) -> set[str]:
    """Return the metric names in PromQL."""
    return {_SUFFIX.sub("", name) for text in expressions for name in _NAME.findall(text)}


def expressions_of(rules: Path) -> list[str]:
    """Return the expressions of a rule file."""
    return [rule["expr"] for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    """Return the expressions of every panel and variable."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return panels + [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]


def test_every_metric_is_documented_with_its_type_and_labels(metrics: Metrics) -> None:
    assert in_docs() == in_code(metrics)


@pytest.mark.parametrize("path", [*RULES, DASHBOARD], ids=lambda path: path.name)
def test_what_is_deployed_uses_only_metrics_that_exist(path: Path, metrics: Metrics) -> None:
    expressions = dashboard_expressions() if path == DASHBOARD else expressions_of(path)
    processes = {"process_resident_memory_bytes"}
    assert used(expressions) <= in_code(metrics).keys() | recorded() | processes


def test_every_recorded_series_is_used() -> None:
    others = expressions_of(RULES[1]) + dashboard_expressions()
    assert recorded() <= used(others)


def test_every_panel_has_its_own_place_and_number() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len(panels) == len({panel["id"] for panel in panels})
    assert len(panels) == len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels})


class TestPromtool:
    def test_accepts_what_is_served(self, metrics: Metrics) -> None:
        metrics.cooldowns.labels("rate_limited").inc()
        page = generate_latest(metrics.registry)
        checked = subprocess.run([promtool(), "check", "metrics"], input=page, capture_output=True, check=False)
        assert (0, b"") == (checked.returncode, checked.stdout + checked.stderr)

    def test_accepts_the_rules(self) -> None:
        checked = run(promtool(), "check", "rules", *RULES)
        assert 0 == checked.returncode, checked.stdout + checked.stderr

    def test_finds_the_alerts_as_their_tests_say(self) -> None:
        checked = run(promtool(), "test", "rules", DEPLOY / "prometheus" / "rules_test.yml")
        assert 0 == checked.returncode, checked.stdout + checked.stderr


def promtool() -> str:
    """Find promtool."""
    return needed("promtool", "prometheus")


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    """Run a command and take what it says."""
    return subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, check=False)
