"""The YAML layer: what is read, with which lines, and what stops it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.document import MAX_TEXT_CHARS, parse_document


def test_every_key_and_item_has_its_line() -> None:
    text = "a: 1\nb:\n  c: x\n  d:\n    - y\n    - {e: z}\n"
    expected = {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "d"): 4,
        ("b", "d", 0): 5,
        ("b", "d", 1): 6,
        ("b", "d", 1, "e"): 6,
    }
    assert expected == parse_document(text).lines


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("12", 12),
        ("-3", -3),
        ("0123", 123),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("1:30", "1:30"),
        ("2024-10-21", "2024-10-21"),
        ("0x10", "0x10"),
        ("9" * 5000, "9" * 5000),
        ("[1, a]", (1, "a")),
        ("{}", {}),
    ],
)
def test_plain_words_are_read_as_yaml_1_2_reads_them(text: str, value: object) -> None:
    assert {"key": value} == parse_document(f"key: {text}").data


def test_an_alias_stands_for_its_anchor() -> None:
    assert {"a": {"x": 1}, "b": {"x": 1}} == parse_document("a: &one {x: 1}\nb: *one").data


BOMB = "a0: &a0 x\n" + "".join(f"b{i}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(9))
DEEP_BY_ALIAS = "a0: &a0 x\n" + "".join(f"b{i}: &a{i + 1} {'[' * 20}*a{i}{']' * 20}\n" for i in range(99))
TOO_DEEP = "is nested deeper than 24 levels; flatten it"
EMPTY = "is empty; start with `schema: 1` and a `models` section"
NO_ANCHOR = "uses an alias with no anchor before it; define the anchor first"
CHARACTER = "has a character that YAML does not allow; remove it"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, EMPTY),
        ("# only a comment\n", 1, EMPTY),
        ("~", 1, EMPTY),
        ("a: 1\n---\nb: 2", 2, "starts a second document; keep one document in a file"),
        ("a: 1\nb: *nobody", 2, NO_ANCHOR),
        ("a: &a [*a]", 1, NO_ANCHOR),
        ("a: !!python/name:os.system x", 1, "uses a YAML tag; remove it"),
        ("a: !!int 1", 1, "uses a YAML tag; remove it"),
        ("a: !!set {b}", 1, "uses a YAML tag; remove it"),
        ("a: 1\nb: \x00", 2, CHARACTER),
        ("a: 1\nb: \ud800", 2, CHARACTER),
        ("[" * 100, 1, TOO_DEEP),
        (DEEP_BY_ALIAS, 2, TOO_DEEP),
        (BOMB, 1, "has more than 300000 values once aliases are written out; use fewer"),
        ("a: [1", 1, "is not valid YAML here: did not find expected ',' or ']'"),
        (
            "x" * (MAX_TEXT_CHARS + 1),
            1,
            "is longer than 8388608 characters; split the gateway or shorten the file",
        ),
    ],
    ids=range(16),
)
def test_what_cannot_be_read_is_one_fault_with_its_line(text: str, line: int, reason: str) -> None:
    document = parse_document(text)
    assert [((), reason, line)] == [tuple(fault) for fault in document.faults]
    assert document.data is None


def test_faults_of_keys_are_collected_and_the_rest_is_read() -> None:
    document = parse_document("a: 1\na: 2\n3: x\n[b]: y\nc:\n<<: {d: 1}\n? null\n: z\nlast: 1")
    not_text = "has a key that is not text; put the key in quotes"
    expected = [
        (("a",), "appears twice; the first is on line 1", 2),
        ((), not_text, 3),
        ((), not_text, 4),
        (("c",), "has no value; give it one or remove the key", 5),
        (("<<",), "merge keys are not supported; write the keys out", 6),
        ((), not_text, 7),
    ]
    assert expected == [tuple(fault) for fault in document.faults]
    assert {"a": 1, "last": 1} == document.data


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,?~ \n\t0<", max_size=60))
def test_any_text_gives_data_or_faults_and_never_an_exception(text: str) -> None:
    document = parse_document(text)
    assert document.data is not None or document.faults
