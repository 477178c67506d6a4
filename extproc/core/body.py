"""Reads what routing needs from a JSON request body, and replaces the model name in it.

Invariants: the body is parsed once; only the bytes of the top-level `model` value ever change; a body with two
top-level `model` keys, in whatever letter case, is refused, because a provider might read the other one; a name that
was accepted can stand in a header, a log line and a terminal.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from typing import Any

import orjson

from extproc.core.errors import GatewayError

MODEL_NAME_LIMIT = 256

_OTHER_SPELLINGS = frozenset(map("".join, product(*((letter, letter.upper()) for letter in "model")))) - {"model"}
"""Keys that Go's and .NET's readers take for `model`; no letter beyond ASCII folds to one of these five."""
_MODEL = b'"model"'
_MODEL_KEY = re.compile(rb'(?<!\\)"model"\s*:\s*')
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_GAP = re.compile(r"[ \t\r\n]*+[{:,]?[ \t\r\n]*+")
_SCANNER = json.JSONDecoder(parse_int=len, parse_float=len)  # values are skipped, so numbers need no reading


@dataclass(frozen=True, slots=True)
class RequestBody:
    """A parsed request: the model it names, whether it streams, and where the model's value stands."""

    raw: bytes
    fields: dict[str, Any]
    model: str
    stream: bool
    model_start: int
    model_end: int

    def with_model(self, model: str) -> bytes:
        """Return the body naming another model, every other byte unchanged."""
        return self.raw[: self.model_start] + orjson.dumps(model) + self.raw[self.model_end :]


def parse_request_body(raw: bytes) -> RequestBody | GatewayError:
    """Read a JSON object with a `model`, or say what is wrong with it."""
    fields = _load(raw)
    if fields is None:
        return GatewayError("invalid_json", "The request body is not valid JSON.")
    if not isinstance(fields, dict):
        return GatewayError("invalid_json", "The request body must be a JSON object.")
    if "model" not in fields:
        return GatewayError("missing_model", "The request body names no model; set `model`.", "model")
    model = fields["model"]
    if not isinstance(model, str) or not model or len(model) > MODEL_NAME_LIMIT:
        return GatewayError("missing_model", "`model` must be the name of a model, as a string.", "model")
    fault = fault_of_name(model)
    if fault is not None:
        return fault
    try:
        span = find_model_value(raw)
    except RecursionError:
        return GatewayError("invalid_json", "The request body is nested too deeply; send lists and objects less deep.")
    if span is None or not _OTHER_SPELLINGS.isdisjoint(fields):
        return GatewayError(
            "invalid_json", "The request body has more than one `model` key, letter case aside; send one.", "model"
        )
    return RequestBody(raw, fields, model, fields.get("stream") is True, *span)


def fault_of_name(model: str) -> GatewayError | None:
    """Refuse a name that cannot stand in a header as it is: a glob's name is the caller's, and is answered in one.

    Refused are control characters, whatever else is invisible (separators, marks of direction), half surrogates, and a
    space at an end; the names in a config obey the same rule.
    """
    if model.isprintable() and model[:1] != " " and model[-1:] != " ":
        return None
    message = "`model` must be one line of visible characters, without control characters or spaces at its ends."
    return GatewayError("bad_request", message, "model")


def _load(raw: bytes) -> Any:
    """Return the parsed body, None when it is not JSON."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    if b"\\u" not in raw:
        return None
    # JavaScript writes half of a cut emoji as a lone surrogate: odd, but JSON, and providers take it.
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def find_model_value(raw: bytes) -> tuple[int, int] | None:
    """Return the byte span of the only top-level `model` value of a valid JSON object; None if there are several.

    Raises RecursionError when only reading the whole could tell, and that is nested about a thousand levels deep.
    """
    plain = _plain_model_value(raw)
    if plain is not None:
        return plain
    first = _MODEL_KEY.search(raw)
    # One literal spelling and no escaped letter of "model" anywhere: it can only be the top-level key.
    if first is not None and b"\\u006" not in raw and _MODEL_KEY.search(raw, first.end()) is None:
        value = _STRING.match(raw, first.end())
        return value.span() if value else None
    spans = [span for key, span in _top_level_members(raw) if key == "model"]
    return spans[0] if len(spans) == 1 else None


def find_value(raw: bytes, name: str) -> tuple[int, int] | None:
    """Return the byte span of a top-level member's value; None when there is none, more than one, or no telling."""
    try:
        spans = [span for key, span in _top_level_members(raw) if key == name]
    except RecursionError:
        return None
    return spans[0] if len(spans) == 1 else None


def _plain_model_value(raw: bytes) -> tuple[int, int] | None:
    """Return the span when the body has the word in quotes once and no escaped letter of it; None if in doubt."""
    at = raw.find(_MODEL)
    if at < 0 or raw.find(_MODEL, at + len(_MODEL)) >= 0 or b"\\u006" in raw:
        return None
    key = _MODEL_KEY.match(raw, at)
    value = key and _STRING.match(raw, key.end())
    return value.span() if value else None


def _top_level_members(raw: bytes) -> list[tuple[str, tuple[int, int]]]:
    """List (key, value span) of a valid JSON object's own members, in order."""
    # Latin-1 keeps every byte in its place, so the C scanner's ends are offsets into the bytes.
    text = raw.decode("latin-1")
    members: list[tuple[str, tuple[int, int]]] = []
    position = _after_gap(text, 0)
    while text[position] != "}":
        _, key_end = _SCANNER.raw_decode(text, position)
        start = _after_gap(text, key_end)
        _, end = _SCANNER.raw_decode(text, start)
        members.append((json.loads(raw[position:key_end]), (start, end)))
        position = _after_gap(text, end)
    return members


def _after_gap(text: str, position: int) -> int:
    gap = _GAP.match(text, position)
    return gap.end() if gap else position
