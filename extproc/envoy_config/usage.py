"""The filter that reads token usage out of whole JSON answers, so that Python need not see them.

It writes numbers, and nothing else, into the metadata namespace `gateway.usage`; whatever is not a number there is
dropped, so that no text of an answer can reach a log. Answers that cannot hold usage pass untouched: errors, media and
very large ones (an answer is held until it is whole). Streams are read by the judge, which sees them anyway: Envoy's
own reader of them crashes (docs/envoy.md section 9).
"""

from __future__ import annotations

from typing import NamedTuple

from extproc.envoy_config.matchers import predicate, regex, response_header, skipped, status_class
from extproc.envoy_config.resource import Json, extension
from extproc.wire import names

_TOO_LONG = "[0-9]{8,}"
_JSON_TYPES = ["application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"]


class _Place(NamedTuple):
    key: str
    path: tuple[str, ...]


_PLACES = (
    _Place(names.U_INPUT, ("usage", "prompt_tokens")),
    _Place(names.U_OUTPUT, ("usage", "completion_tokens")),
    _Place(names.U_INPUT, ("usage", "input_tokens")),
    _Place(names.U_OUTPUT, ("usage", "output_tokens")),
    _Place(names.U_CACHED, ("usage", "prompt_tokens_details", "cached_tokens")),
    _Place(names.U_CACHED, ("usage", "input_tokens_details", "cached_tokens")),
    _Place(names.U_CACHED, ("usage", "cache_read_input_tokens")),
    _Place(names.U_CACHE_WRITE, ("usage", "cache_creation_input_tokens")),
    _Place(names.U_REASONING, ("usage", "completion_tokens_details", "reasoning_tokens")),
    _Place(names.U_REASONING, ("usage", "output_tokens_details", "reasoning_tokens")),
)


def usage_filter() -> Json:
    """Return the downstream filter."""
    reader = extension(
        "gateway.usage.json",
        "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
        response_rules={"rules": [_rule(place) for place in _PLACES], "allow_content_types": _JSON_TYPES},
    )
    unread = [
        {"not_matcher": predicate(status_class(), {"exact": "2xx"})},
        predicate(response_header("content-length"), regex(_TOO_LONG)),
    ]
    return skipped("gateway.usage.json", reader, {"or_matcher": {"predicate": unread}})


def _rule(place: _Place) -> Json:
    target = {"metadata_namespace": names.METADATA_USAGE, "key": place.key, "type": "NUMBER"}
    return {"selectors": [{"key": key} for key in place.path], "on_present": target}
