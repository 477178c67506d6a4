"""The examples for systemd and Kubernetes agree with themselves and with the program."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config, parse_config_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FRONT_DOOR = EXAMPLES / "front-door"
UNITS = ("ai-gateway-extproc.service", "ai-gateway-envoy.service")
LABEL = {"app.kubernetes.io/name": "ai-gateway"}


def _manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes" / name).read_text(encoding="utf-8")))


def _only(kind: str) -> dict[str, Any]:
    (found,) = [one for one in _manifests("gateway.yaml") if one["kind"] == kind]
    return found


def _pod() -> dict[str, Any]:
    pod: dict[str, Any] = _only("Deployment")["spec"]["template"]["spec"]
    return pod


def _containers() -> list[dict[str, Any]]:
    return [*_pod()["initContainers"], *_pod()["containers"]]


@pytest.mark.parametrize("path", [*sorted(EXAMPLES.rglob("gateway.yaml")), EXAMPLES / "minimal.yaml"], ids=str)
def test_every_example_config_compiles(path: Path) -> None:
    if path.parent.name == "kubernetes":
        compile_snapshot(load_config(_only("ConfigMap")["data"]["gateway.yaml"]), version=1)
    else:
        compile_snapshot(parse_config_file(path), version=1)


# -- systemd -------------------------------------------------------------------------------------------------------


def _unit(name: str) -> configparser.ConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(FRONT_DOOR / name)
    return parser  # type: ignore[return-value]


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_hardened(name: str) -> None:
    service = dict(_unit(name)["Service"])

    assert {
        "User": "ai-gateway",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "StateDirectory": "ai-gateway",
        "StateDirectoryMode": "0700",
    }.items() <= service.items()
    assert service["CapabilityBoundingSet"] in ("", "CAP_NET_BIND_SERVICE")


def test_the_keys_of_the_config_are_the_credentials_of_the_unit() -> None:
    text = (FRONT_DOOR / UNITS[0]).read_text(encoding="utf-8")
    given = set(re.findall(r"^LoadCredential=(\w+):", text, re.MULTILINE))
    raw = yaml.safe_load((FRONT_DOOR / "gateway.yaml").read_text(encoding="utf-8"))

    wanted = {provider["api_key"]["file"] for provider in raw["providers"].values()}
    assert wanted == {f"/run/credentials/{UNITS[0]}/{name}" for name in given}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Programs that this machine need not have are replaced by one that every machine has."""
    for name in UNITS:
        text = (FRONT_DOOR / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/ai-gateway/bin/extproc", "/bin/true"), encoding="utf-8")

    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)]
    checked = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})

    assert [] == [line for line in checked.stderr.splitlines() if "ai-gateway" in line]


# -- Kubernetes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gateway.yaml", "istio.yaml"])
def test_a_manifest_has_the_shape_that_kubernetes_wants(name: str) -> None:
    for manifest in _manifests(name):
        assert {"apiVersion", "kind", "metadata"} <= manifest.keys()
        assert re.fullmatch(r"[a-z0-9-]+", manifest["metadata"]["name"])


def test_what_selects_the_pods_selects_them() -> None:
    deployment = _only("Deployment")

    assert LABEL == deployment["spec"]["template"]["metadata"]["labels"]
    assert LABEL == deployment["spec"]["selector"]["matchLabels"]
    assert LABEL == _only("Service")["spec"]["selector"]
    assert LABEL == _only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert LABEL == _only("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert LABEL == _manifests("istio.yaml")[0]["spec"]["workloadSelector"]["labels"]


def test_every_container_is_closed_up_and_shares_one_user() -> None:
    """Sockets and key files are closed to other ids, so no container may have one of its own."""
    assert (10001, True) == (_pod()["securityContext"]["runAsUser"], _pod()["securityContext"]["runAsNonRoot"])
    for container in _containers():
        security = container["securityContext"]
        assert "runAsUser" not in security
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert ["ALL"] == security["capabilities"]["drop"]
        assert {"requests", "limits"} == container["resources"].keys()


def test_every_mount_and_reference_exists() -> None:
    volumes = {volume["name"]: volume for volume in _pod()["volumes"]}
    secrets = {one["metadata"]["name"]: one["stringData"] for one in _manifests("gateway.yaml") if "stringData" in one}

    assert volumes.keys() == {mount["name"] for container in _containers() for mount in container["volumeMounts"]}
    assert volumes["config"]["configMap"]["name"] == _only("ConfigMap")["metadata"]["name"]
    store = _containers()[0]["env"][0]["valueFrom"]["secretKeyRef"]
    assert store["key"] in secrets[store["name"]]
    config = yaml.safe_load(_only("ConfigMap")["data"]["gateway.yaml"])
    keys = {provider["api_key"]["file"].rpartition("/")[2] for provider in config["providers"].values()}
    assert keys == secrets[volumes["keys"]["secret"]["secretName"]].keys()


def test_probes_ports_and_policies_name_ports_that_are_listened_on() -> None:
    extproc, envoy = _containers()
    ports = {port["name"]: port["containerPort"] for container in (extproc, envoy) for port in container["ports"]}

    assert {"metrics": 18082, "http": 18080} == ports
    assert {"--listen=0.0.0.0:18080", "--metrics-listen=0.0.0.0:18082"} <= set(extproc["args"])
    assert ("/readyz", "/healthz") == tuple(envoy[p]["httpGet"]["path"] for p in ("readinessProbe", "livenessProbe"))
    assert "http" == _only("Service")["spec"]["ports"][0]["targetPort"]
    ingress = [rule["ports"][0]["port"] for rule in _only("NetworkPolicy")["spec"]["ingress"]]
    assert [18080, 18082] == ingress
    grace_s = _pod()["terminationGracePeriodSeconds"]
    assert int(envoy["lifecycle"]["preStop"]["exec"]["command"][1]) < grace_s


def test_the_containers_run_what_the_compose_file_runs() -> None:
    """Envoy's command and image are the same in both, so that what the compose test shows holds here."""
    compose = yaml.safe_load((EXAMPLES.parent / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    extproc, envoy = _containers()

    assert (compose["envoy"]["image"], compose["envoy"]["command"]) == (envoy["image"], envoy["args"])
    assert compose["extproc"]["image"] == extproc["image"]
    assert [word for arg in extproc["args"] for word in arg.split("=")] == compose["extproc"]["command"]
