"""The examples for systemd and Kubernetes agree with themselves and with the program."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config, parse_config_file
from extproc.envoy_binary import find_envoy
from tests.support.programs import needed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FRONT_DOOR = EXAMPLES / "front-door"
UNITS = ("ai-gateway-extproc.service", "ai-gateway-envoy.service")
KUBERNETES_SCHEMAS = Path(__file__).resolve().parents[1] / "data" / "kubernetes"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
ROW_BYTES = 1_700
"""What a request costs in requests.db, its part of the write-ahead log included: measured with one failed attempt."""
EXTPROC_MIB = 150
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


def _serving() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the containers of extproc and of Envoy."""
    extproc, envoy = (one for one in _containers() if "args" in one)
    return extproc, envoy


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


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Programs that this machine need not have are replaced by one that every machine has."""
    for name in UNITS:
        text = (FRONT_DOOR / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/ai-gateway/bin/extproc", "/bin/true"), encoding="utf-8")

    command = [needed("systemd-analyze", "systemd"), "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)]
    checked = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})

    assert [] == [line for line in checked.stderr.splitlines() if "ai-gateway" in line]


# -- Kubernetes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1.29.0", "v1.37.0"])
@pytest.mark.parametrize("manifest", _manifests("gateway.yaml"), ids=lambda one: one["kind"])
def test_a_manifest_fits_the_schema_of_kubernetes(manifest: dict[str, Any], version: str) -> None:
    """Strictly, in the oldest Kubernetes that the README names and in a new one; tests/data/kubernetes says whence."""
    assert [] == _schema_faults(manifest, version)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"replicaCount": 2}, "'replicaCount' was unexpected"),
        ({"replicas": "two"}, "'two' is not of type"),
        ({"selector": {"matchLabel": {}}}, "'matchLabel' was unexpected"),
    ],
)
def test_the_schema_of_kubernetes_refuses_a_slip(change: dict[str, Any], fault: str) -> None:
    """A check that accepts everything would say nothing."""
    deployment = _only("Deployment")
    broken = deployment | {"spec": deployment["spec"] | change}

    assert fault in " ".join(_schema_faults(broken, "v1.29.0"))


def _schema_faults(manifest: dict[str, Any], version: str) -> list[str]:
    definitions = json.loads((KUBERNETES_SCHEMAS / f"{version}.json").read_text(encoding="utf-8"))
    (name,) = [name for name in definitions["$defs"] if name.endswith(f".{manifest['kind']}")]
    schema = definitions | {"$ref": f"#/$defs/{name}"}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


def test_the_names_are_ones_that_kubernetes_takes() -> None:
    names = [manifest["metadata"]["name"] for name in ("gateway.yaml", "istio.yaml") for manifest in _manifests(name)]

    assert [] == [name for name in names if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)]


def test_what_grows_in_the_pod_s_memory_is_bounded() -> None:
    """Three times the requests that the ledger may keep fit in, and the access log lies elsewhere."""
    bounds = compile_snapshot(load_config(_only("ConfigMap")["data"]["gateway.yaml"]), version=1).telemetry
    (state,) = [volume for volume in _pod()["volumes"] if volume["name"] == "state"]
    mebibytes = int(state["emptyDir"]["sizeLimit"].removesuffix("Mi"))
    extproc, _ = _serving()
    limit = int(extproc["resources"]["limits"]["memory"].removesuffix("Mi"))

    assert "Memory" == state["emptyDir"]["medium"]
    assert 3 * ROW_BYTES * bounds.ledger_max_rows < mebibytes << 20
    assert ROW_BYTES * bounds.ledger_max_rows + (EXTPROC_MIB << 20) < limit << 20
    assert any("ln -sfn /dev/stdout /var/lib/gateway/logs/access.log" in word for word in _containers()[0]["command"])


@pytest.mark.e2e
def test_envoy_takes_what_the_mesh_is_asked_to_merge(tmp_path: Path) -> None:
    """Merged into a connection manager as Istio would, its typed_config passes Envoy's own validation."""
    (patch,) = _manifests("istio.yaml")[0]["spec"]["configPatches"]
    manager = {
        "@type": patch["patch"]["value"]["typed_config"]["@type"],
        "stat_prefix": "inbound",
        "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
        "route_config": {"virtual_hosts": []},
    }
    name = patch["match"]["listener"]["filterChain"]["filter"]["name"]
    faults = [
        _envoy_s_complaint(name, manager | more, tmp_path)
        for more in (patch["patch"]["value"]["typed_config"], {"stream_idle_time": "0s"})
    ]

    assert ("", True) == (faults[0], "stream_idle_time" in faults[1])


def _envoy_s_complaint(name: str, manager: dict[str, Any], folder: Path) -> str:
    filters = [{"name": name, "typed_config": manager}]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    listener = {"name": "inbound", "address": address, "filter_chains": [{"filters": filters}]}
    path = folder / "bootstrap.json"
    path.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
    command = [str(find_envoy(None, os.environ)), "--mode", "validate", "-c", str(path), "-l", "error"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stderr


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
    store = _serving()[0]["env"][0]["valueFrom"]["secretKeyRef"]
    assert store["key"] in secrets[store["name"]]
    config = yaml.safe_load(_only("ConfigMap")["data"]["gateway.yaml"])
    keys = {provider["api_key"]["file"].rpartition("/")[2] for provider in config["providers"].values()}
    assert keys == secrets[volumes["keys"]["secret"]["secretName"]].keys()


def test_probes_ports_and_policies_name_ports_that_are_listened_on() -> None:
    extproc, envoy = _serving()
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
    extproc, envoy = _serving()

    assert (compose["envoy"]["image"], compose["envoy"]["command"]) == (envoy["image"], envoy["args"])
    assert compose["extproc"]["image"] == extproc["image"]
    assert [word for arg in extproc["args"] for word in arg.split("=")] == compose["extproc"]["command"]
