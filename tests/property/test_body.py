"""Whatever JSON object a client sends, replacing the model changes the model's value and nothing else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from extproc.core.body import RequestBody, parse_request_body
from extproc.core.errors import GatewayError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TRAPS = st.sampled_from(["model", '"model":', '\\"model":"x"', "\\", '"', "{", "}", ",", ":", "\\u006dodel"])
NAMES = TEXTS.filter(lambda name: name.isprintable() and name.strip(" ") == name != "") | TRAPS
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS | TRAPS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | TRAPS, inner, max_size=3),
    max_leaves=12,
)
MEMBERS = st.lists(st.tuples((TEXTS | TRAPS).filter(lambda key: key.casefold() != "model"), VALUES), max_size=5)
SPELLINGS = st.sampled_from(['"model"', '"\\u006dodel"', '"mod\\u0065l"', '"\\u006d\\u006f\\u0064\\u0065\\u006C"'])
SPACES = st.sampled_from(["", " ", "\n", "\t\r\n "])


def written(value: object, ascii_only: bool) -> str:
    """Write JSON, with or without escapes."""
    return json.dumps(value, ensure_ascii=ascii_only)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes, str]:
    """Draw what stands before the model's value, what stands after it, and the model."""
    before, after, name = draw(MEMBERS), draw(MEMBERS), draw(NAMES)
    ascii_only, space = draw(st.booleans()), draw(SPACES)
    heads = [f"{written(key, ascii_only)}{space}:{written(value, ascii_only)}" for key, value in before]
    tails = [f"{written(key, ascii_only)}:{space}{written(value, ascii_only)}" for key, value in after]
    head = f"{space}{{{space}" + "".join(f"{item}{space}," for item in heads) + f"{draw(SPELLINGS)}{space}:{space}"
    tail = "".join(f",{space}{item}" for item in tails) + f"{space}}}{space}"
    return f"{head}".encode(), f"{space}{tail}".encode(), name


@given(bodies(), NAMES, st.booleans())
@example((b'{"x":"\\\\\\"model\\":","model":', b"}", "a"), "b", False)
def test_only_the_model_value_changes(parts: tuple[bytes, bytes, str], new: str, ascii_only: bool) -> None:
    head, tail, old = parts
    raw = head + written(old, ascii_only).encode() + tail
    found = parse_request_body(raw)
    assert isinstance(found, RequestBody)
    changed = found.with_model(new)
    assert (old, head, tail) == (found.model, changed[: len(head)], changed[-len(tail) :])
    assert json.loads(raw) | {"model": new} == json.loads(changed)


@given(bodies(), VALUES, st.booleans())
def test_a_second_model_key_is_refused_wherever_it_stands(
    parts: tuple[bytes, bytes, str], other: Any, first: bool
) -> None:
    head, tail, name = parts
    raw = head + written(name, False).encode() + tail
    extra = b'"model":' + written(other, False).encode()
    doubled = raw.replace(b"{", b"{" + extra + b",", 1) if first else raw.rstrip()[:-1] + b"," + extra + b"}"
    assume(json.loads(doubled)["model"] != "")
    assert isinstance(parse_request_body(doubled), GatewayError)


@given(bodies(), VALUES, st.sampled_from(["Model", "MODEL", "mODEL", "\\u004Dodel"]))
def test_a_model_key_in_other_letters_is_refused(parts: tuple[bytes, bytes, str], other: Any, key: str) -> None:
    head, tail, name = parts
    extra = f'"{key}":{written(other, True)}'.encode()
    doubled = (head + written(name, False).encode() + tail).rstrip()[:-1] + b"," + extra + b"}"
    assert isinstance(parse_request_body(doubled), GatewayError)


@given(st.text(max_size=12))
def test_an_accepted_name_can_stand_in_a_header(name: str) -> None:
    """What RFC 9110 allows in a value: visible characters, spaces inside it, and bytes beyond ASCII."""
    found = parse_request_body(json.dumps({"model": name}).encode())
    if isinstance(found, RequestBody):
        value = f"provider/{found.model}".encode()
        assert value.strip() == value
        assert [] == [byte for byte in value if byte < 0x20 or byte == 0x7F]


@given(st.binary(max_size=60) | TEXTS.map(str.encode) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_get_an_answer(raw: bytes) -> None:
    found = parse_request_body(raw)
    if isinstance(found, RequestBody):
        assert json.loads(raw) | {"model": "new"} == json.loads(found.with_model("new"))
