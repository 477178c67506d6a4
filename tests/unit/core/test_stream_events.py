"""What streamed events mean and how a stream ended, one table per protocol."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from extproc.core.endpoints import ENDPOINTS
from extproc.core.sse import Event, SseParser
from extproc.core.stream_events import (
    STREAM_KIND_BY_PATH,
    Ending,
    EventMeaning,
    StreamKind,
    TailWatch,
    judge_event,
)

NOTHING = EventMeaning()
OUTPUT = EventMeaning(output=True)
FINISHED = EventMeaning(finished=True)
LAST_OUTPUT = EventMeaning(output=True, finished=True)
TERMINAL = EventMeaning(finished=True, terminal=True)
TERMINAL_OUTPUT = EventMeaning(output=True, finished=True, terminal=True)
MALFORMED = EventMeaning(malformed=True)

CHAT, COMPLETIONS, RESPONSES, MESSAGES = StreamKind


def judge(kind: StreamKind, payload: object, name: str = "") -> EventMeaning:
    """Judge one object as an event's data."""
    return judge_event(kind, Event(name, orjson.dumps(payload)))


def chunk(delta: object, reason: object = None) -> dict[str, Any]:
    """Build a chat chunk with one choice."""
    return {"id": "c", "error": None, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (chunk({"role": "assistant"}), NOTHING),
        (chunk({"role": "assistant", "content": "", "refusal": None, "tool_calls": []}), NOTHING),
        (chunk({}), NOTHING),
        (chunk(None), NOTHING),
        (chunk({}, ""), NOTHING),
        ({"choices": [], "usage": {"total_tokens": 3}}, NOTHING),
        ({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, NOTHING),
        ({"type": "ping"}, NOTHING),
        (chunk({"content": "Hi"}), OUTPUT),
        (chunk({"content": "\n"}), OUTPUT),
        (chunk({"content": [{"type": "text", "text": "Hi"}]}), OUTPUT),
        (chunk({"reasoning": "Hm"}), OUTPUT),
        (chunk({"content": None, "reasoning_content": "Hm"}), OUTPUT),
        (chunk({"thinking": "Hm"}), OUTPUT),
        (chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}), OUTPUT),
        (chunk({"function_call": {"name": "f"}}), OUTPUT),
        (chunk({"refusal": "No"}), OUTPUT),
        (chunk({"audio": {"id": "a", "data": "AAA"}}), OUTPUT),
        ({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}, LAST_OUTPUT),
        ({"choices": [{"delta": {}}, {"index": 1, "delta": {"content": "b"}}]}, OUTPUT),
        (chunk({}, "stop"), FINISHED),
        (chunk({"content": "."}, "stop"), LAST_OUTPUT),
        (chunk({}, "length"), LAST_OUTPUT),
        (chunk({}, "content_filter"), LAST_OUTPUT),
        (chunk({}, "tool_calls"), LAST_OUTPUT),
        (chunk({}, "function_call"), LAST_OUTPUT),
    ],
)
def test_a_chat_chunk_is_output_only_when_it_brings_something(payload: object, expected: EventMeaning) -> None:
    """Roles, usage and empty choices keep the answer held."""
    assert expected == judge(CHAT, payload)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"choices": [{"text": "", "index": 0, "finish_reason": None}]}, NOTHING),
        ({"choices": [{"text": "Hi", "index": 0, "finish_reason": None}]}, OUTPUT),
        ({"choices": [{"text": "", "finish_reason": "stop"}]}, FINISHED),
        ({"choices": [{"text": "", "finish_reason": "length"}]}, LAST_OUTPUT),
        ({"choices": []}, NOTHING),
    ],
)
def test_a_completions_chunk_is_output_when_it_has_text(payload: object, expected: EventMeaning) -> None:
    """The older protocol keeps its text in the choice itself."""
    assert expected == judge(COMPLETIONS, payload)


def part(type_: str, key: str, **fields: object) -> dict[str, Any]:
    """Build an event whose payload sits under `key`."""
    return {"type": type_, key: fields}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (part("response.created", "response", status="in_progress", error=None), NOTHING),
        ({"type": "response.in_progress"}, NOTHING),
        ({"type": "response.queued"}, NOTHING),
        ({"type": "keepalive", "sequence_number": 3}, NOTHING),
        ({"type": "response.something_new", "text": "x"}, NOTHING),
        (part("response.output_item.added", "item", type="message", content=[]), NOTHING),
        (part("response.output_item.added", "item", type="reasoning", summary=[]), NOTHING),
        (part("response.content_part.added", "part", type="output_text", text="", annotations=[]), NOTHING),
        ({"type": "response.output_text.delta", "delta": ""}, NOTHING),
        ({"type": "response.output_text.done", "text": ""}, NOTHING),
        (
            part("response.output_item.done", "item", type="message", content=[{"type": "output_text"}]),
            NOTHING,
        ),
        ({"type": "response.output_text.delta", "delta": "Hi"}, OUTPUT),
        ({"type": "response.reasoning_text.delta", "delta": "Hm"}, OUTPUT),
        ({"type": "response.reasoning_summary_text.delta", "delta": "Hm"}, OUTPUT),
        ({"type": "response.function_call_arguments.delta", "delta": "{"}, OUTPUT),
        ({"type": "response.custom_tool_call_input.delta", "delta": "{"}, OUTPUT),
        ({"type": "response.refusal.delta", "delta": "No"}, OUTPUT),
        ({"type": "response.audio.delta", "delta": "AAA"}, OUTPUT),
        ({"type": "response.some_future_thing.delta", "delta": "x"}, OUTPUT),
        ({"type": "response.function_call_arguments.done", "arguments": "{}"}, OUTPUT),
        ({"type": "response.image_generation_call.partial_image"}, OUTPUT),
        (part("response.output_item.added", "item", type="function_call", name="f", arguments=""), OUTPUT),
        (part("response.output_item.added", "item", type="web_search_call"), OUTPUT),
        (part("response.output_item.done", "item", type="reasoning", encrypted_content="e"), OUTPUT),
        (part("response.content_part.done", "part", type="refusal", refusal="No"), OUTPUT),
        (part("response.completed", "response", status="completed", output=[]), TERMINAL),
        (part("response.completed", "response", output=[{"type": "function_call"}]), TERMINAL_OUTPUT),
        (part("response.incomplete", "response", output=[]), TERMINAL_OUTPUT),
    ],
)
def test_a_responses_event_means_what_its_type_says(payload: object, expected: EventMeaning) -> None:
    """Announcements hold nothing yet; calls and non-empty pieces are output."""
    assert expected == judge(RESPONSES, payload)


def test_an_empty_completed_response_has_no_output() -> None:
    """A message of empty text is an empty answer, however it is wrapped."""
    message = {"type": "message", "content": [{"type": "output_text", "text": "", "annotations": []}]}

    assert TERMINAL == judge(RESPONSES, {"type": "response.completed", "response": {"output": [message]}})


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"type": "ping"}, NOTHING),
        (part("message_start", "message", content=[], usage={"input_tokens": 1}), NOTHING),
        (part("content_block_start", "content_block", type="text", text=""), NOTHING),
        (part("content_block_start", "content_block", type="thinking", thinking="", signature=""), NOTHING),
        (part("content_block_delta", "delta", type="text_delta", text=""), NOTHING),
        (part("content_block_delta", "delta", type="input_json_delta", partial_json=""), NOTHING),
        ({"type": "content_block_stop", "index": 0}, NOTHING),
        (part("message_delta", "delta", stop_reason="end_turn"), NOTHING),
        ({"type": "a_new_event", "delta": {"text": "x"}}, NOTHING),
        (part("content_block_start", "content_block", type="text", text="Hi"), OUTPUT),
        (part("content_block_start", "content_block", type="tool_use", name="f", input={}), OUTPUT),
        (part("content_block_start", "content_block", type="server_tool_use", name="f"), OUTPUT),
        (part("content_block_start", "content_block", type="redacted_thinking", data="x"), OUTPUT),
        (part("content_block_delta", "delta", type="text_delta", text="Hi"), OUTPUT),
        (part("content_block_delta", "delta", type="thinking_delta", thinking="Hm"), OUTPUT),
        (part("content_block_delta", "delta", type="signature_delta", signature="x"), OUTPUT),
        (part("content_block_delta", "delta", type="input_json_delta", partial_json="{"), OUTPUT),
        (part("message_delta", "delta", stop_reason="refusal"), OUTPUT),
        (part("message_delta", "delta", stop_reason="max_tokens"), OUTPUT),
        ({"type": "message_stop"}, TERMINAL),
    ],
)
def test_a_messages_event_means_what_its_type_says(payload: object, expected: EventMeaning) -> None:
    """Blocks begin empty; a tool call counts from its start."""
    assert expected == judge(MESSAGES, payload)


ERROR = {"type": "overloaded_error", "code": "overloaded", "message": "busy"}


@pytest.mark.parametrize(
    ("kind", "name", "payload", "expected"),
    [
        (CHAT, "", {"error": ERROR}, ERROR),
        (CHAT, "error", {"error": ERROR}, ERROR),
        (CHAT, "", {"error": "busy"}, {"message": "busy"}),
        (CHAT, "error", {"code": 503}, {"code": 503}),
        (CHAT, "", {"object": "error", "code": 400}, {"object": "error", "code": 400}),
        (CHAT, "", {**chunk({"content": ""}, "error"), "error": ERROR}, ERROR),
        (CHAT, "", {"choices": [{"delta": {}, "error": ERROR}]}, ERROR),
        (CHAT, "", chunk({}, "insufficient_system_resource"), {"code": "insufficient_system_resource"}),
        (CHAT, "", chunk({}, "abort"), {"code": "abort"}),
        (COMPLETIONS, "", {"error": ERROR}, ERROR),
        (RESPONSES, "error", {"type": "error", "code": "c"}, {"type": "error", "code": "c"}),
        (RESPONSES, "", {"type": "error", "error": ERROR}, ERROR),
        (RESPONSES, "", {"type": "response.failed", "response": {"error": ERROR}}, ERROR),
        (RESPONSES, "", {"type": "response.failed"}, {}),
        (RESPONSES, "", part("response.completed", "response", status="failed", error=ERROR), ERROR),
        (MESSAGES, "error", {"type": "error", "error": ERROR}, ERROR),
        (MESSAGES, "", {"error": ERROR}, ERROR),
    ],
)
def test_an_error_event_hands_over_the_inner_error_object(
    kind: StreamKind, name: str, payload: object, expected: dict[str, Any]
) -> None:
    """The classifier reads one shape, whatever envelope it came in."""
    assert EventMeaning(error=expected) == judge(kind, payload, name)


@pytest.mark.parametrize("kind", list(StreamKind))
@pytest.mark.parametrize("data", [b"{", b"<html>", b"[1]", b"1", b'"x"', b"null", b"\xff", b"[DONE", b"[" * 5000])
def test_a_malformed_event_is_neither_output_nor_error_nor_end(kind: StreamKind, data: bytes) -> None:
    """It is passed on and the stream lives."""
    assert MALFORMED == judge_event(kind, Event("", data))


@pytest.mark.parametrize("kind", list(StreamKind))
def test_an_undecodable_event_named_error_is_an_error(kind: StreamKind) -> None:
    """The name says enough."""
    assert EventMeaning(malformed=True, error={}) == judge_event(kind, Event("error", b"upstream died"))


@pytest.mark.parametrize("kind", list(StreamKind))
def test_done_ends_a_stream_of_any_kind(kind: StreamKind) -> None:
    """Some servers add it to protocols that do not know it."""
    assert TERMINAL == judge_event(kind, Event("", b"[DONE] "))


def test_the_event_name_stands_in_for_a_missing_type() -> None:
    """Both carry the same word on the wire."""
    assert TERMINAL == judge_event(MESSAGES, Event("message_stop", b"{}"))
    assert TERMINAL == judge_event(MESSAGES, Event("message_stop", b""))
    assert NOTHING == judge_event(MESSAGES, Event("ping", b""))


def wrong(value: object) -> list[object]:
    """Build payloads whose known keys hold `value`."""
    keys = ("choices", "delta", "error_", "item", "part", "content_block", "response", "message")
    types = ("message_delta", "content_block_delta", "response.output_item.added", "response.completed")
    return [{"type": type_, **dict.fromkeys(keys, value)} for type_ in types] + [chunk(value, value)]


@pytest.mark.parametrize("value", [5, True, [[]], [None], {"stop_reason": []}, {"type": {}}, {"type": []}, [{}]])
def test_wrong_types_inside_an_event_never_raise(value: object) -> None:
    """A provider's mistake is not ours."""
    for kind in StreamKind:
        for payload in wrong(value):
            assert judge(kind, payload).error is None


def test_a_deeply_nested_event_never_raises() -> None:
    """The reader does not descend without end."""
    nested = b'{"type":"response.output_item.done","item":' + b"[" * 900 + b"]" * 900 + b"}"

    assert judge_event(RESPONSES, Event("", nested)).error is None


@pytest.mark.parametrize(
    ("kind", "name", "head", "expected"),
    [
        (RESPONSES, "", b'{"type":"response.completed","response":{"id":"r', TERMINAL_OUTPUT),
        (RESPONSES, "", b'{"sequence_number":9,"type": "response.completed","resp', TERMINAL_OUTPUT),
        (RESPONSES, "response.incomplete", b'{"response":{', TERMINAL_OUTPUT),
        (RESPONSES, "", b'{"type":"response.created","response":{"instructions":"', NOTHING),
        (RESPONSES, "", b'{"type":"response.output_item.done","item":{', OUTPUT),
        (RESPONSES, "", b'{"type":"response.failed","response":{', EventMeaning(error={})),
        (RESPONSES, "", b'{"item":{"x":"\\"type\\":\\"response.completed\\"', OUTPUT),
        (MESSAGES, "", b'{"type":"content_block_start","content_block":{"type":"text","text":"', OUTPUT),
        (MESSAGES, "error", b"{", EventMeaning(error={})),
        (CHAT, "", b'{"id":"c","choices":[{"delta":{"content":"', OUTPUT),
        (CHAT, "", b'{"error":{"message":"', EventMeaning(error={})),
        (CHAT, "", b"", NOTHING),
    ],
)
def test_an_oversized_event_is_judged_by_its_beginning(
    kind: StreamKind, name: str, head: bytes, expected: EventMeaning
) -> None:
    """A closing event of several megabytes still closes."""
    assert expected == judge_event(kind, Event(name, head, oversized=True))


def test_every_guarded_endpoint_has_a_stream_kind() -> None:
    """What the judge holds, it must understand."""
    assert {path for path, endpoint in ENDPOINTS.items() if endpoint.guarded} == set(STREAM_KIND_BY_PATH)


def sse(*payloads: object) -> bytes:
    """Write objects as a stream; bytes go in as they are."""
    return b"".join(
        payload if isinstance(payload, bytes) else b"data: " + orjson.dumps(payload) + b"\n\n" for payload in payloads
    )


DONE = b"data: [DONE]\n\n"
TALK = chunk({"content": 'data: [DONE]\n\n{"finish_reason":"stop"} event: message_stop "error": {"x"}'})
DEEP = {"a": {"b": {"c": "d" * 2000}}}  # the middle left out begins deeper than it ends, so what is left is no JSON
ITEMS = [DEEP, *[{"type": "message", "content": f"word {number}"} for number in range(3000)]]
COMPLETED = {"type": "response.completed", "response": {"status": "completed", "output": ITEMS}}
TYPE_LAST = {"response": {"output": ITEMS}, "sequence_number": 9, "type": "response.completed"}
MANY_LINES = b"data: " + orjson.dumps(COMPLETED, option=orjson.OPT_INDENT_2).replace(b"\n", b"\ndata: ") + b"\n\n"
BROKEN_END = b'data: {"type":"response.completed","resp\n\n'
DELTA = {"type": "response.output_text.delta", "delta": "x"}
BIG = {"type": "response.output_item.done", "item": {"type": "message", "text": "y" * 100_000}}
LONG_TEXT = chunk({"content": "z" * 100_000})
STOP = {"type": "message_stop"}
SAY = part("content_block_delta", "delta", type="text_delta", text='{"type":"message_stop"}')
SECOND_CHOICE = {"choices": [{"index": 1, "delta": {"content": "b"}}]}

ENDINGS = [
    (CHAT, b"", Ending.CUT),
    (CHAT, sse(chunk({"content": "a"}), chunk({}, "stop"), DONE), Ending.WHOLE),
    (CHAT, sse(chunk({"content": "a"}), DONE), Ending.WHOLE),
    (CHAT, sse(chunk({"content": "a"}), b"data: [DONE]"), Ending.WHOLE),
    (CHAT, sse(chunk({"content": "a"}), chunk({}, "stop")), Ending.WHOLE),
    (CHAT, sse(chunk({}, "stop"), {"choices": [], "usage": {"total_tokens": 1}}), Ending.WHOLE),
    (CHAT, sse(chunk({}, "stop"), b": keep-alive\n\n" * 100), Ending.WHOLE),
    (CHAT, sse(chunk({"content": "a"}, "stop")).rstrip(b"\n"), Ending.WHOLE),
    (CHAT, sse(chunk({"content": "a"})), Ending.CUT),
    (CHAT, sse(*[TALK] * 200), Ending.CUT),
    (CHAT, sse(*[TALK] * 200)[:-40], Ending.CUT),
    (CHAT, sse(chunk({}, "stop"))[:-6], Ending.CUT),
    (CHAT, sse(b": keep-alive\n\n" * 1000), Ending.CUT),
    (CHAT, sse(chunk({}, "stop"), SECOND_CHOICE), Ending.CUT),
    (CHAT, sse(SECOND_CHOICE, chunk({}, "stop")), Ending.WHOLE),
    (CHAT, sse(LONG_TEXT), Ending.CUT),
    (CHAT, sse(LONG_TEXT, chunk({}, "stop")), Ending.WHOLE),
    (CHAT, sse(chunk({"content": "z" * 100_000}, "stop")), Ending.WHOLE),
    (CHAT, sse(b": " + b"c" * 100_000 + b"\n\n", DONE), Ending.WHOLE),
    (CHAT, sse(chunk({"content": "a"}), {"error": ERROR}), Ending.ERROR_EVENT),
    (CHAT, sse(*[TALK] * 200, {"error": ERROR}, DONE), Ending.ERROR_EVENT),
    (CHAT, sse(b"data: {broken\n\n", DONE), Ending.WHOLE),
    (COMPLETIONS, sse({"choices": [{"text": "[DONE]"}]}), Ending.CUT),
    (COMPLETIONS, sse({"choices": [{"text": "", "finish_reason": "length"}]}), Ending.WHOLE),
    (RESPONSES, sse(DELTA, COMPLETED), Ending.WHOLE),
    (RESPONSES, sse(*[DELTA] * 300, TYPE_LAST), Ending.WHOLE),
    (RESPONSES, sse(*[DELTA] * 300, COMPLETED), Ending.WHOLE),
    (RESPONSES, sse(*[DELTA] * 300, MANY_LINES), Ending.WHOLE),
    (RESPONSES, sse(*[DELTA] * 300, MANY_LINES[:-20_000]), Ending.CUT),
    (RESPONSES, sse(BIG, *[DELTA] * 300, BROKEN_END), Ending.CUT),
    (RESPONSES, sse(COMPLETED, b": keep-alive\n\n"), Ending.WHOLE),
    (RESPONSES, sse(b"event: response.completed\n", COMPLETED), Ending.WHOLE),
    (RESPONSES, sse(DELTA, COMPLETED)[:-5000], Ending.CUT),
    (RESPONSES, sse(b"event: response.completed\n", COMPLETED)[:-5], Ending.CUT),
    (RESPONSES, sse(DELTA, BIG), Ending.CUT),
    (RESPONSES, sse(BIG, {"type": "response.incomplete"}), Ending.WHOLE),
    (RESPONSES, sse(DELTA, {"type": "response.failed", "response": {"error": ERROR}}), Ending.ERROR_EVENT),
    (RESPONSES, sse({"type": "response.failed", "response": {"x": "y" * 100_000}}), Ending.ERROR_EVENT),
    (MESSAGES, sse(*[SAY] * 300, b"event: message_stop\n", STOP), Ending.WHOLE),
    (MESSAGES, sse(*[SAY] * 300), Ending.CUT),
    (MESSAGES, sse(SAY, part("message_delta", "delta", stop_reason="end_turn")), Ending.CUT),
    (MESSAGES, sse(SAY, b"event: error\n", {"type": "error", "error": ERROR}), Ending.ERROR_EVENT),
]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(("kind", "stream", "expected"), ENDINGS)
def test_the_tail_tells_how_a_stream_ended(kind: StreamKind, stream: bytes, expected: Ending, line_end: bytes) -> None:
    """However it was cut into chunks, and whatever the model talked about."""
    stream = stream.replace(b"\n", line_end)
    rng = random.Random(len(stream))  # noqa: S311 - the same cuts each time
    for largest in (1 if len(stream) < 20_000 else 50, 300, 5_000, 200_000):
        watch = TailWatch()
        position = 0
        while position < len(stream):
            size = rng.randint(1, largest)
            watch.add(stream[position : position + size])
            position += size

        assert expected == watch.ending(kind)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("length", range(4080, 4100))
def test_a_blank_line_at_the_edge_of_the_tail_still_parts_two_events(length: int, line_end: bytes) -> None:
    """The last event is read alone wherever the tail begins."""
    last = sse(chunk({"content": "y" * length}, "stop"))
    last = sse(chunk({"content": "y" * (2 * length - len(last))}, "stop"))
    watch = TailWatch()
    watch.add((sse(LONG_TEXT) + last).replace(b"\n", line_end))

    assert Ending.WHOLE == watch.ending(CHAT)


@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("after", range(5))
def test_leaving_out_the_middle_makes_no_blank_line(before: int, after: int) -> None:
    """A cut event of many short lines stays one event that never closed."""
    watch = TailWatch()
    start = b'data: {"type":"response.completed",' + b" " * before + b"\n"
    watch.add(start + b"data\n" * 4000 + b"d" * after)

    assert Ending.CUT == watch.ending(RESPONSES)


def test_the_tail_watch_holds_little_of_a_long_stream() -> None:
    """Also when one event never ends, and when chunks are empty."""
    watch = TailWatch()
    held = 0
    for piece in [b"data: ", *[b"x" * 700, b""] * 2000, b"\n\n", *[sse(DELTA)] * 2000, b"y" * 1_000_000]:
        watch.add(piece)
        held = max(held, watch.held_bytes)

    assert held <= 8192


def test_the_parser_and_the_tables_read_a_recorded_stream_together() -> None:
    """The flags of a usual answer, in order."""
    stream = sse(chunk({"role": "assistant", "content": ""}), chunk({"content": "Hi"}), chunk({}, "stop"), DONE)

    meanings = [judge_event(CHAT, event) for event in SseParser().feed(stream)]

    assert [NOTHING, OUTPUT, FINISHED, TERMINAL] == meanings
