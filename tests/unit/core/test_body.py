"""Only the bytes of the top-level model value ever change; what cannot be read is refused."""

from __future__ import annotations

import json
import tracemalloc

import orjson
import pytest

from extproc.core.body import MODEL_NAME_LIMIT, RequestBody, find_value, parse_request_body
from extproc.core.errors import GatewayError


def parsed(raw: bytes) -> RequestBody:
    """Parse a body that must be accepted."""
    found = parse_request_body(raw)
    assert isinstance(found, RequestBody), found
    return found


def refused(raw: bytes) -> str:
    """Return the code with which a body is refused."""
    found = parse_request_body(raw)
    assert isinstance(found, GatewayError), found
    return found.code


class TestTheModelIsReplaced:
    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b'{"model":"a"}', b'{"model":"NEW"}'),
            (b' {\n\t"model" :\r\n "a" ,"x":1 } ', b' {\n\t"model" :\r\n "NEW" ,"x":1 } '),
            (b'{"x":{"model":"inner"},"model":"a"}', b'{"x":{"model":"inner"},"model":"NEW"}'),
            (b'{"model":"a","x":{"model":"inner"}}', b'{"model":"NEW","x":{"model":"inner"}}'),
            (b'{"x":[{"model":"i"},[{"model":2}]],"model":"a"}', b'{"x":[{"model":"i"},[{"model":2}]],"model":"NEW"}'),
            (b'{"x":"say \\"model\\":\\"b\\"","model":"a"}', b'{"x":"say \\"model\\":\\"b\\"","model":"NEW"}'),
            (b'{"x":"\\\\","model":"a"}', b'{"x":"\\\\","model":"NEW"}'),
            (b'{"x":"\\\\\\"model\\": 1","model":"a"}', b'{"x":"\\\\\\"model\\": 1","model":"NEW"}'),
            (b'{"x":"}],:{[","model":"a","y":"}"}', b'{"x":"}],:{[","model":"NEW","y":"}"}'),
            (b'{"x":"model","model":"a"}', b'{"x":"model","model":"NEW"}'),
            (b'{"\\u006dodel":"a"}', b'{"\\u006dodel":"NEW"}'),
            (b'{"mod\\u0065l" : "a" , "n":{"model":1}}', b'{"mod\\u0065l" : "NEW" , "n":{"model":1}}'),
            (b'{"x":"\\u006d","model":"a"}', b'{"x":"\\u006d","model":"NEW"}'),
            (b'{"model":"\\u0061\\"b\\\\"}', b'{"model":"NEW"}'),
            (b'{"model":"a","n":1.50,"e":1E5,"u":"\\u00e9"}', b'{"model":"NEW","n":1.50,"e":1E5,"u":"\\u00e9"}'),
            (b'{"models":"x","mode":"y","model":"a"}', b'{"models":"x","mode":"y","model":"NEW"}'),
            (b'{"x":{"Model":"inner"},"model":"a"}', b'{"x":{"Model":"inner"},"model":"NEW"}'),
        ],
    )
    def test_and_every_other_byte_stays(self, raw: bytes, expected: bytes) -> None:
        assert expected == parsed(raw).with_model("NEW")

    @pytest.mark.parametrize("name", ["größe-大", 'quote"d', "back\\slash", "a/b:c@1", "new\nline", "😀"])
    def test_by_any_name_in_valid_json(self, name: str) -> None:
        assert {"model": name, "x": 1} == json.loads(parsed(b'{"model":"a","x":1}').with_model(name))


class TestWhatIsRead:
    def test_is_the_model_as_the_client_means_it(self) -> None:
        assert "café" == parsed(b'{"model":"caf\\u00e9"}').model

    @pytest.mark.parametrize(
        ("member", "expected"),
        [(b"true", True), (b"false", False), (b"null", False), (b'"true"', False), (b"1", False)],
    )
    def test_is_a_stream_only_when_stream_is_true(self, member: bytes, expected: bool) -> None:
        assert expected is parsed(b'{"model":"a","stream":' + member + b"}").stream

    @pytest.mark.parametrize("name", ["a b", "org/model:free", "größe-大", "😀", "m" * MODEL_NAME_LIMIT])
    def test_is_any_line_of_visible_characters(self, name: str) -> None:
        assert name == parsed(orjson.dumps({"model": name})).model

    def test_includes_the_other_fields(self) -> None:
        assert {"model": "a", "user": "u"} == parsed(b'{"model":"a","user":"u"}').fields


class TestARefusedBody:
    @pytest.mark.parametrize(
        "raw", [b"", b"{", b"{'model':'a'}", b'{"model":"a"} x', b'{"model":"a",}', b'{"model":"\xff"}', b"[]", b'"a"']
    )
    def test_that_is_no_json_object_is_invalid_json(self, raw: bytes) -> None:
        assert "invalid_json" == refused(raw)

    @pytest.mark.parametrize("raw", [b'{"model":"a","x":NaN}', b'{"model":"a","x":"\\u0041","y":NaN}'])
    def test_that_strict_json_forbids_is_invalid_json(self, raw: bytes) -> None:
        assert "invalid_json" == refused(raw)

    @pytest.mark.parametrize("raw", [b"{}", b'{"models":"a"}', b'{"x":{"model":"a"}}'])
    def test_without_a_model_of_its_own_is_missing_model(self, raw: bytes) -> None:
        assert "missing_model" == refused(raw)

    @pytest.mark.parametrize("value", [b"null", b"1", b'""', b'["a"]', b'{"model":"a"}'])
    def test_whose_model_is_no_name_is_missing_model(self, value: bytes) -> None:
        assert "missing_model" == refused(b'{"model":' + value + b"}")

    def test_whose_model_is_longer_than_any_name_is_missing_model(self) -> None:
        assert "missing_model" == refused(orjson.dumps({"model": "m" * (MODEL_NAME_LIMIT + 1)}))

    @pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA1), 0xAD, 0x200B, 0x2028, 0x202E, 0xD800, 0xFEFF])
    def test_whose_model_holds_a_character_that_nobody_sees_is_a_bad_request(self, code: int) -> None:
        """The name is told in a header, in logs and on terminals, where CR and LF begin a line of the caller's."""
        assert "bad_request" == refused(b'{"model":"any-\\u%04x-x"}' % code)

    @pytest.mark.parametrize("name", [" m", "m ", " "])
    def test_whose_model_has_a_space_at_an_end_is_a_bad_request(self, name: str) -> None:
        """A header's value loses it on the way."""
        assert "bad_request" == refused(orjson.dumps({"model": name}))

    def test_tells_what_is_wrong_with_a_name_without_quoting_it(self) -> None:
        message = "`model` must be one line of visible characters, without control characters or spaces at its ends."
        assert GatewayError("bad_request", message, "model") == parse_request_body(b'{"model":"a\\r\\nb: c"}')

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"model":"a","model":"b"}',
            b'{"model":"a","model":"a"}',
            b'{"model":"a","\\u006dodel":"b"}',
            b'{"\\u006dodel":"a","mode\\u006C":"b"}',
            b'{"model":{"model":"x"},"x":[],"model":"a"}',
        ],
    )
    def test_with_two_model_keys_is_invalid_json(self, raw: bytes) -> None:
        """A provider might read the other one."""
        assert "invalid_json" == refused(raw)

    @pytest.mark.parametrize("other", ["Model", "MODEL", "modeL", "\\u004dodel", "mod\\u0045l"])
    @pytest.mark.parametrize("first", [True, False])
    def test_with_a_model_key_in_other_letters_too_is_invalid_json(self, other: str, first: bool) -> None:
        """Go's reader takes them for one key, and the last one wins."""
        ours, theirs = '"model":"allowed"', f'"{other}":"forbidden"'
        members = (theirs, ours) if first else (ours, theirs)
        assert "invalid_json" == refused(f"{{{','.join(members)}}}".encode())

    def test_is_not_quoted_in_the_message(self) -> None:
        found = parse_request_body(b'{"model":1,"secret":"my prompt"}')
        assert isinstance(found, GatewayError)
        assert "my prompt" not in found.message


def test_a_long_text_costs_memory_in_proportion_only() -> None:
    """The slow way through a body is open to every caller, and `server.max_body` is large."""
    raw = b'{"model":"a","x":{"model":1},"text":"' + b"\\n" * 500_000 + b'"}'
    tracemalloc.start()
    try:
        parsed(raw)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * len(raw)


def test_deep_nesting_is_no_obstacle() -> None:
    raw = b'{"x":' + b"[" * 500 + b'{"model":1}' + b"]" * 500 + b',"model":"a"}'
    assert raw.replace(b'"a"', b'"NEW"') == parsed(raw).with_model("NEW")


def test_nesting_that_hides_the_model_is_refused_as_what_it_is() -> None:
    """As deep as JSON may be here, and a second `model` deep inside: only the slow way through the body could tell."""
    raw = b'{"x":' + b"[" * 1010 + b'{"model":1}' + b"]" * 1010 + b',"model":"a"}'
    found = parse_request_body(raw)
    assert isinstance(found, GatewayError)
    assert ("invalid_json", True) == (found.code, "nested too deeply" in found.message)
    assert find_value(raw, "x") is None


def test_no_letter_beyond_ascii_is_folded_to_one_of_model() -> None:
    """So the other spellings of the key are 31, whatever folding a provider's reader does."""
    folded = {
        letter
        for letter in map(chr, range(0x80, 0x110000))
        if {letter.casefold(), letter.lower(), letter.upper().lower()} & set("model")
    }
    assert set() == folded
