"""The compose file agrees with the files it names: Dockerfile, configs, ports, users, health checks."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.compile import compile_snapshot
from extproc.config.load import parse_config_file
from extproc.demo.caller import CLIENT_TOKEN
from extproc.demo.stage import KEYS
from extproc.demo.story import FALLBACK_WORDS, PRIMARY_WORDS
from extproc.envoy_binary import MINIMUM
from tests.support.compose import COMPOSE_FILE, ROOT, read_compose
from tests.support.programs import needed

COMPOSE = read_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STATE = "/var/lib/gateway"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_hardened_and_checked(name: str) -> None:
    """An image with a tag that is not `latest`, a user that is not root, nothing to write but volumes and /tmp."""
    service = SERVICES[name]

    assert re.fullmatch(r"[a-z0-9./-]+:(?!latest)[A-Za-z0-9.-]+", service["image"])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert (True, ["ALL"], ["no-new-privileges:true"]) == (
        service["read_only"],
        service["cap_drop"],
        service["security_opt"],
    )
    assert "test" in service["healthcheck"] or service["healthcheck"] == {"disable": True}
    assert not service.get("privileged")


def test_envoy_is_new_enough() -> None:
    found = re.fullmatch(r"envoyproxy/envoy:v(\d+)\.(\d+)\.\d+", SERVICES["envoy"]["image"])

    assert found is not None
    assert (int(found[1]), int(found[2])) >= MINIMUM


def test_envoy_and_extproc_share_a_directory_and_an_id() -> None:
    """Sockets and key files are closed to every other id; the id is the one that owns the directory in the image."""
    user = re.search(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)

    assert user is not None
    assert {user[1]} == {SERVICES[name]["user"] for name in ("envoy", "extproc", "demo")}
    assert f"state:{STATE}" in SERVICES["envoy"]["volumes"]
    assert f"state:{STATE}" in SERVICES["extproc"]["volumes"]
    assert f"-m 0700 {STATE}" in DOCKERFILE
    assert "--uid 10001 --gid 10001" in DOCKERFILE


def test_extproc_fills_the_directory_before_envoy_starts() -> None:
    """A fresh volume takes its owner from the image that mounts it first, and Envoy needs its bootstrap."""
    assert {"extproc": {"condition": "service_healthy"}} == SERVICES["envoy"]["depends_on"]
    assert f"{STATE}/envoy/bootstrap.json" in SERVICES["envoy"]["command"]


def test_every_mount_names_a_file_of_the_repository_or_a_volume() -> None:
    sources = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}

    assert [] == [s for s in sources if s.startswith("./") and not (ROOT / s).is_file()]
    assert set(COMPOSE["volumes"]) == {s for s in sources if not s.startswith("./")}


def test_nothing_but_volumes_can_be_written_through_a_mount() -> None:
    mounts = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]

    assert [] == [mount for mount in mounts if mount.startswith("./") and not mount.endswith(":ro")]


@pytest.mark.parametrize("name", ["envoy", "extproc"])
def test_what_serves_comes_back_after_a_crash(name: str) -> None:
    assert "unless-stopped" == SERVICES[name]["restart"]


def test_published_ports_are_on_loopback_and_listened_on() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert {
        "envoy": ["127.0.0.1:18080:18080"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    } == published
    assert "0.0.0.0:18080" in SERVICES["extproc"]["command"]


def test_the_config_is_valid_and_admits_the_demonstration() -> None:
    """Its providers are services, its keys are set, its client's token is the demonstration's."""
    path = ROOT / "deploy/compose/gateway.yaml"
    snapshot = compile_snapshot(parse_config_file(path), version=1)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))

    assert KEYS == SERVICES["extproc"]["environment"]
    assert [hashlib.sha256(CLIENT_TOKEN.encode()).hexdigest()] == [c["token_sha256"] for c in raw["clients"]]
    assert snapshot.providers.keys() <= SERVICES.keys()
    for name, provider in raw["providers"].items():
        port = provider["base_url"].removeprefix(f"http://{name}:").removesuffix("/v1")
        assert port in SERVICES[name]["command"]


def test_the_fake_providers_say_what_the_story_expects() -> None:
    assert PRIMARY_WORDS in SERVICES["primary"]["command"]
    assert FALLBACK_WORDS in SERVICES["fallback"]["command"]


def test_prometheus_scrapes_the_gateway() -> None:
    config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text(encoding="utf-8"))
    targets = [t for job in config["scrape_configs"] for static in job["static_configs"] for t in static["targets"]]

    assert ["extproc:18082"] == targets
    assert "0.0.0.0:18082" in SERVICES["extproc"]["command"]


def test_prometheus_accepts_its_config_with_our_rules(tmp_path: Path) -> None:
    """The mounted files, at the places where the container has them."""
    mounts = [volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"] if volume.startswith("./")]
    for source, target in mounts:
        copy = tmp_path / target.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / source).read_text(encoding="utf-8").replace("/etc/", f"{tmp_path}/etc/"))

    command = [needed("promtool", "prometheus"), "check", "config", str(tmp_path / "etc/prometheus/prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True)

    assert (0, 2) == (checked.returncode, checked.stdout.count("rules found")), checked.stderr


def _mounted_at(service: str) -> dict[str, Path]:
    """Return what a service finds at each path: path in the container -> file of the repository."""
    mounts = [volume.split(":") for volume in SERVICES[service]["volumes"] if volume.startswith("./")]
    return {target: ROOT / source for source, target, *_ in mounts}


def test_grafana_asks_the_prometheus_service() -> None:
    """Its address is a service and the port on which that listens; the dashboard takes the default data source."""
    at = _mounted_at("grafana")["/etc/grafana/provisioning/datasources/prometheus.yml"]
    (source,) = yaml.safe_load(at.read_text(encoding="utf-8"))["datasources"]

    assert ("prometheus", True, "http://prometheus:9090") == (source["type"], source["isDefault"], source["url"])
    assert "--web.listen-address=0.0.0.0:9090" in SERVICES["prometheus"]["command"]


def test_grafana_is_led_to_the_mounted_dashboard() -> None:
    """The provisioned folder and the home page both name the place where the compose file puts gateway.json."""
    mounted = _mounted_at("grafana")
    provisioning = mounted["/etc/grafana/provisioning/dashboards/gateway.yml"].read_text(encoding="utf-8")
    (provider,) = yaml.safe_load(provisioning)["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert ROOT / "deploy/grafana/gateway.json" == mounted[home]
    assert home.rpartition("/")[0] == provider["options"]["path"]


def test_grafana_shows_and_nobody_can_log_in() -> None:
    environ = SERVICES["grafana"]["environment"]

    assert ("true", "Viewer") == (environ["GF_AUTH_ANONYMOUS_ENABLED"], environ["GF_AUTH_ANONYMOUS_ORG_ROLE"])
    assert "true" == environ["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"]
    assert ("false", "true") == (environ["GF_AUTH_BASIC_ENABLED"], environ["GF_AUTH_DISABLE_LOGIN_FORM"])


def test_the_image_is_built_from_what_is_there() -> None:
    """Every source of a COPY exists and passes .dockerignore; base images are pinned; it checks its health."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)

    for source in " ".join(copies).split():
        assert (ROOT / source).exists()
        assert f"!{source}" in ignore
    assert all(":" in image for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    assert "HEALTHCHECK" in DOCKERFILE


def test_the_image_installs_nothing_without_a_digest() -> None:
    """Dependencies by the lock's hashes alone; the package itself with the build backend that came from there."""
    installs = re.findall(r"/pip install (.+?)(?: \\)?$", DOCKERFILE, re.MULTILINE)
    common = "--no-cache-dir --disable-pip-version-check"

    assert [
        f"{common} --require-hashes -r requirements-runtime.lock",
        f"{common} --no-deps --no-build-isolation .",
    ] == installs


@pytest.mark.skipif(shutil.which("docker") is None, reason="no Docker client here")
def test_the_compose_client_accepts_the_file() -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("this Docker client has no compose plugin")

    command = ["docker", "compose", "-f", str(COMPOSE_FILE), "--profile", "demo", "config", "--quiet"]
    checked = subprocess.run(command, capture_output=True, text=True)

    assert (0, "") == (checked.returncode, checked.stderr)
