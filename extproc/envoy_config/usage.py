"""The filters that read token usage out of successful answers, so that Python never has to.

Both write numbers, and nothing else, into the metadata namespace `gateway.usage`; whatever is not a number there is
dropped, so that no text of an answer can reach a log. Answers that cannot hold usage pass untouched: errors, media and
very large ones (the reader of unary JSON holds an answer until it is whole).
"""

from __future__ import annotations

from typing import NamedTuple

from extproc.envoy_config.matchers import predicate, regex, response_header, skipped, status_class
from extproc.envoy_config.resource import MIB, Json, extension
from extproc.wire import names

MAX_EVENT_BYTES = MIB
"""A larger event is passed on unread; `response.completed` repeats the whole answer."""
_TOO_LONG = "[0-9]{8,}"
_JSON_TYPES = ["application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"]


class _Place(NamedTuple):
    key: str
    path: tuple[str, ...]


_UNARY = (
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
_STREAMED = (
    # OpenAI's chunks and Anthropic's message_delta have `usage` of their own; the later value wins.
    *_UNARY,
    _Place(names.U_INPUT, ("response", "usage", "input_tokens")),
    _Place(names.U_OUTPUT, ("response", "usage", "output_tokens")),
    _Place(names.U_CACHED, ("response", "usage", "input_tokens_details", "cached_tokens")),
    _Place(names.U_REASONING, ("response", "usage", "output_tokens_details", "reasoning_tokens")),
    _Place(names.U_INPUT, ("message", "usage", "input_tokens")),
    _Place(names.U_OUTPUT, ("message", "usage", "output_tokens")),
    _Place(names.U_CACHED, ("message", "usage", "cache_read_input_tokens")),
    _Place(names.U_CACHE_WRITE, ("message", "usage", "cache_creation_input_tokens")),
)


def usage_filters() -> list[Json]:
    """Return the two downstream filters, for streamed and for unary answers."""
    return [_of_streams(), _of_json()]


def _of_streams() -> Json:
    return extension(
        "gateway.usage.streams",
        "envoy.extensions.filters.http.sse_to_metadata.v3.SseToMetadata",
        response_rules={
            "content_parser": extension(
                "envoy.content_parsers.json",
                "envoy.extensions.content_parsers.json.v3.JsonContentParser",
                rules=[{"rule": _rule(place)} for place in _STREAMED],
            ),
            "max_event_size": MAX_EVENT_BYTES,
        },
    )


def _of_json() -> Json:
    reader = extension(
        "gateway.usage.json",
        "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
        response_rules={"rules": [_rule(place) for place in _UNARY], "allow_content_types": _JSON_TYPES},
    )
    unread = [
        {"not_matcher": predicate(status_class(), {"exact": "2xx"})},
        predicate(response_header("content-length"), regex(_TOO_LONG)),
    ]
    return skipped("gateway.usage.json", reader, {"or_matcher": {"predicate": unread}})


def _rule(place: _Place) -> Json:
    target = {"metadata_namespace": names.METADATA_USAGE, "key": place.key, "type": "NUMBER"}
    return {"selectors": [{"key": key} for key in place.path], "on_present": target}
