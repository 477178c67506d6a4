"""The small shapes that every resource is built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extproc.envoy_config.clusters import own_address
from extproc.envoy_config.resource import any_of, content_hash, extension, file_source, seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0s"),
        (2.0, "2s"),
        (0.25, "0.25s"),
        (1e-3, "0.001s"),
        (86400.0, "86400s"),
        (0.1 + 0.2, "0.3s"),
        (100.0, "100s"),
    ],
)
def test_durations_are_protobuf_s_json(value: float, expected: str) -> None:
    assert expected == seconds(value)


def test_typed_configs_name_their_type() -> None:
    expected = {"name": "n", "typed_config": {"@type": "type.googleapis.com/a.B", "x": 1}}
    assert expected == extension("n", "a.B", x=1)
    assert expected["typed_config"] == any_of("a.B", x=1)


def test_a_file_source_watches_the_folder() -> None:
    """Files are replaced, so a watch on the file itself would see the old one for ever."""
    source = file_source(Path("/d/cds.json"))["path_config_source"]
    assert {"path": "/d/cds.json", "watched_directory": {"path": "/d"}} == source


def test_a_content_hash_is_ten_hex_digits_whatever_the_order() -> None:
    first, second = content_hash({"a": 1, "b": [1, 2]}), content_hash({"b": [1, 2], "a": 1})
    assert (first, 10) == (second, len(first))
    assert first != content_hash({"a": 1, "b": [2, 1]})


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/data/run/extproc.sock", {"pipe": {"path": "/data/run/extproc.sock"}}),
        ("/data/odd:name/x.sock", {"pipe": {"path": "/data/odd:name/x.sock"}}),
        ("127.0.0.1:9000", {"socket_address": {"address": "127.0.0.1", "port_value": 9000}}),
        ("[::1]:9000", {"socket_address": {"address": "::1", "port_value": 9000}}),
    ],
)
def test_extproc_is_a_socket_or_an_address(place: str, expected: dict[str, Any]) -> None:
    assert expected == own_address(place)
