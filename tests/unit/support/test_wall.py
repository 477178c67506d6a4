"""The wall's behaviours as bytes on the wire, its record of requests, and its life as a server."""

from __future__ import annotations

import gzip
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support import wall as w
from tests.support.http1 import Call, Reply, request
from tests.support.load import run_load
from tests.support.ports import free_port, release_port
from tests.support.programs import needed
from tests.support.wall import Behaviour, Wall, WallProcess

CHAT: dict[str, Any] = {"model": "m-1", "messages": [{"role": "user", "content": "hi"}]}


def ask(wall: Wall, path: str = "/chat/completions", *, timeout_s: float = 5.0, **members: Any) -> Reply:
    return request(wall.url + path, json=CHAT | members, timeout_s=timeout_s)


def asked(wall: Wall, behaviour: Behaviour, **members: Any) -> Reply:
    wall.script(behaviour)
    return ask(wall, **members)


def open_call(wall: Wall, *, receive_bytes: int | None = None, **members: Any) -> Call:
    call = Call(wall.url + "/chat/completions", timeout_s=5, receive_bytes=receive_bytes)
    call.send("POST", {"content-type": "application/json"}, orjson.dumps(CHAT | members))
    return call


def raw(wall: Wall, sent: bytes) -> bytes:
    """Send bytes, and return everything up to FIN."""
    with socket.create_connection(("127.0.0.1", wall.port), timeout=5) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# Good answers


def test_a_whole_answer_is_these_very_bytes(wall: Wall) -> None:
    wall.script(w.answer(201, {"a": 1}, {"x-note": "n"}))
    expected = (
        b'HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: 7\r\nx-note: n\r\n\r\n{"a":1}'
    )
    assert expected == raw(wall, b"GET /v1/x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")


def test_chat_echoes_the_model_and_counts_tokens(wall: Wall) -> None:
    reply = asked(wall, w.chat("good day", usage=(5, 2)))
    assert ("m-1", "good day") == (reply.json["model"], reply.text)
    assert {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7} == reply.json["usage"]


def test_streamed_chat_has_a_role_the_text_a_finish_and_done(wall: Wall) -> None:
    reply = asked(wall, w.chat("abcdef", chunks=3), stream=True)
    choices = [orjson.loads(data)["choices"][0] for data in reply.events[:-1]]
    assert "[DONE]" == reply.events[-1]
    assert {"role": "assistant", "content": ""} == choices[0]["delta"]
    assert ["ab", "cd", "ef"] == [choice["delta"]["content"] for choice in choices[1:4]]
    assert "stop" == choices[4]["finish_reason"]
    assert ("clean", "text/event-stream") == (reply.ended, reply.header("content-type"))


def test_streamed_usage_comes_only_when_asked_for(wall: Wall) -> None:
    without = ask(wall, stream=True)
    with_usage = ask(wall, stream=True, stream_options={"include_usage": True})
    assert len(without.events) + 1 == len(with_usage.events)
    assert 10 == orjson.loads(with_usage.events[-2])["usage"]["total_tokens"]


def test_each_streamed_piece_may_have_a_size(wall: Wall) -> None:
    assert 3 * 1000 == len(asked(wall, w.chat("ab", chunks=3, chunk_bytes=1000), stream=True).text)


def test_delays_spread_the_events_over_time(wall: Wall) -> None:
    reply = asked(wall, w.chat(delay_s=0.03), stream=True)
    times = [at for at, _ in reply.pieces]
    assert times[-1] - times[0] >= 0.08


@pytest.mark.parametrize(
    ("path", "member", "expected"),
    [
        ("/chat/completions", "object", "chat.completion"),
        ("/completions", "object", "text_completion"),
        ("/embeddings", "object", "list"),
        ("/responses", "object", "response"),
        ("/messages", "type", "message"),
        ("/models", "object", "list"),
        ("/moderations", "id", "modr"),
        ("/images/generations", "created", w.CREATED),
        ("/rerank", "model", "m-1"),
        ("/health", "status", "ok"),
    ],
)
def test_the_default_answer_has_the_shape_of_its_path(wall: Wall, path: str, member: str, expected: object) -> None:
    assert expected == ask(wall, path + "?api-version=1").json[member]


def test_speech_is_not_json(wall: Wall) -> None:
    assert "audio/mpeg" == ask(wall, "/audio/speech").header("content-type")


@pytest.mark.parametrize(
    ("path", "first", "last"),
    [
        ("/responses", "response.created", "response.completed"),
        ("/messages", "message_start", "message_stop"),
    ],
)
def test_named_event_streams_begin_and_end_as_their_protocol_says(wall: Wall, path: str, first: str, last: str) -> None:
    reply = ask(wall, path, stream=True)
    kinds = [orjson.loads(data)["type"] for data in reply.events]
    named = [line[7:] for line in reply.body.decode().splitlines() if line.startswith("event: ")]
    assert (first, last) == (kinds[0], kinds[-1])
    assert kinds == named


def test_a_gzipped_answer_says_so(wall: Wall) -> None:
    reply = asked(wall, w.gzip_answer("zipped"))
    assert "gzip" == reply.header("content-encoding")
    assert "zipped" == orjson.loads(gzip.decompress(reply.body))["choices"][0]["message"]["content"]


def test_html_and_empty_answers_are_200(wall: Wall) -> None:
    html, empty = asked(wall, w.html_200()), asked(wall, w.empty_200("text/event-stream"))
    assert (200, True) == (html.status, html.body.startswith(b"<!doctype html>"))
    assert (200, b"", "0") == (empty.status, empty.body, empty.header("content-length"))


# Errors


def test_an_openai_error_has_its_envelope_and_retry_after(wall: Wall) -> None:
    reply = asked(wall, w.error(403, "insufficient_quota", "billing", "no money", retry_after=7))
    expected = {"message": "no money", "type": "billing", "param": None, "code": "insufficient_quota"}
    assert (403, "7", {"error": expected}) == (reply.status, reply.header("retry-after"), reply.json)


def test_errors_on_messages_are_anthropic_s_unless_told_otherwise(wall: Wall) -> None:
    wall.script(w.error(529, message="busy"))
    expected = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    assert (529, expected) == ((reply := ask(wall, "/messages")).status, reply.json)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("detail", b'{"detail":"no"}'), ("string", b'{"error":"no"}'), ("text", b"no")],
)
def test_errors_come_in_odd_shapes_too(wall: Wall, shape: w.Shape, expected: bytes) -> None:
    assert expected == asked(wall, w.error(500, message="no", shape=shape)).body


def test_rate_limited_is_429_and_its_retry_after_is_optional(wall: Wall) -> None:
    assert (429, None) == ((one := asked(wall, w.rate_limited())).status, one.header("retry-after"))
    assert "2" == asked(wall, w.rate_limited(2)).header("retry-after")


def test_a_big_error_has_exactly_its_size(wall: Wall) -> None:
    reply = asked(wall, w.big_error(500, 3_000_000))
    assert (500, 3_000_000, "clean") == (reply.status, len(reply.body), reply.ended)


# Silence and broken endings


def test_silence_lasts_until_the_release_and_then_answers(wall: Wall) -> None:
    wall.script(w.silence())
    with open_call(wall) as call:
        wall.wait_for(1)
        wall.release()
        assert 200 == call.read_head()


def test_silence_is_silent(wall: Wall) -> None:
    wall.script(w.silence())
    assert (0, "timeout") == ((reply := ask(wall, timeout_s=0.1)).status, reply.ended)


def test_a_release_does_not_touch_later_requests(wall: Wall) -> None:
    wall.script(w.silence())
    wall.release()
    assert "timeout" == ask(wall, timeout_s=0.1).ended


def test_silence_may_be_timed_and_end_in_anything(wall: Wall) -> None:
    assert 503 == asked(wall, w.silence(0.01, then=w.error(503))).status


def test_headers_then_silence_sends_the_head_only(wall: Wall) -> None:
    wall.script(w.headers_then_silence())
    with open_call(wall) as call:
        assert 200 == call.read_head()
        wall.release()
        assert ([], "clean") == (list(call.pieces()), call.reply().ended)


def test_reset_is_an_rst_before_any_byte(wall: Wall) -> None:
    assert (0, "reset") == ((reply := asked(wall, w.reset())).status, reply.ended)


def test_hang_up_is_a_fin_before_any_byte(wall: Wall) -> None:
    assert (0, "cut") == ((reply := asked(wall, w.hang_up())).status, reply.ended)


def test_reset_after_events_delivers_them_first(wall: Wall) -> None:
    reply = asked(wall, w.reset_after(n_events=2), stream=True)
    assert (2, "reset") == (len(reply.events), reply.ended)


def test_reset_after_bytes_counts_the_whole_wire(wall: Wall) -> None:
    reply = asked(wall, w.reset_after(n_bytes=len(_head_of(wall)) + 5))
    assert (b'{"id"', "reset") == (reply.body, reply.ended)


def _head_of(wall: Wall) -> bytes:
    body = orjson.dumps(CHAT)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    answer = raw(wall, head % len(body) + body)
    return answer[: answer.index(b"\r\n\r\n") + 4]


def test_fin_after_ends_a_chunked_body_without_its_last_chunk(wall: Wall) -> None:
    reply = asked(wall, w.fin_after(3), stream=True)
    assert (3, "cut") == (len(reply.events), reply.ended)


def test_garbage_is_not_http(wall: Wall) -> None:
    wall.script(w.garbage(b"nonsense"))
    assert b"nonsense" == raw(wall, b"GET / HTTP/1.1\r\n\r\n")


# Streams of any kind


def test_sse_frames_text_and_mappings_and_sends_bytes_as_they_are(wall: Wall) -> None:
    reply = asked(wall, w.sse([b": note\n\n", "text", {"a": 1}]))
    assert b': note\n\ndata: text\n\ndata: {"a":1}\n\ndata: [DONE]\n\n' == reply.body


@pytest.mark.parametrize(("end", "ended"), [("clean", "clean"), ("rst", "reset"), ("fin", "cut")])
def test_sse_ends_as_told(wall: Wall, end: w.Ending, ended: str) -> None:
    reply = asked(wall, w.sse(["one"], done=False, end=end))
    assert (["one"], ended) == (reply.events, reply.ended)


def test_sse_may_hang_after_its_events(wall: Wall) -> None:
    wall.script(w.sse(["one"], done=False, end="hang"))
    reply = ask(wall, timeout_s=0.1)
    assert (["one"], "timeout") == (reply.events, reply.ended)


def test_a_pause_inside_sse_waits_for_the_release(wall: Wall) -> None:
    wall.script(w.sse(["one", w.pause(), "two"], done=False))
    with open_call(wall) as call:
        call.read_head()
        pieces = call.pieces()
        assert b"data: one\n\n" == next(pieces)
        wall.release()
        assert b"data: two\n\n" == next(pieces)


def test_comments_go_on_for_as_long_as_the_caller_stays(wall: Wall) -> None:
    wall.script(w.comments_forever(0.001))
    with open_call(wall) as call:
        call.read_head()
        assert [b": ping\n\n"] * 5 == [piece for piece, _ in zip(call.pieces(), range(5), strict=False)]
    assert wall.requests[0].disconnected.wait(5)


def test_a_slow_body_has_its_length_announced_and_comes_in_pieces(wall: Wall) -> None:
    reply = asked(wall, w.slow_body(1000, 250, 0.01))
    assert ("1000", 1000, "clean") == (reply.header("content-length"), len(reply.body), reply.ended)
    assert len(reply.pieces) >= 4
    assert reply.text.startswith("xxx")


def test_a_trickle_ends_as_the_same_answer(wall: Wall) -> None:
    whole = ask(wall)
    assert whole.body == asked(wall, w.trickle(0.0001, chunk_bytes=16)).body


def test_a_big_burst_is_complete_and_waits_for_a_slow_reader(wall: Wall) -> None:
    wall.script(w.big_burst(2_000_000))
    with open_call(wall, receive_bytes=4096, stream=True) as call:
        call.read_head()
        assert sum(map(len, call.pieces())) > 2_000_000
        assert "clean" == call.reply().ended


# The record, the script, the life of the server


def test_a_request_is_recorded_as_it_came(wall: Wall) -> None:
    began = time.monotonic()
    request(wall.url + "/embeddings?q=1", json=CHAT, headers={"X-One": " 1 "})
    (seen,) = wall.requests
    assert ("POST", "/v1/embeddings?q=1", "/v1/embeddings") == (seen.method, seen.path, seen.endpoint)
    assert (("x-one", "1") in seen.headers, seen.header("X-One"), CHAT) == (True, "1", seen.json)
    assert began <= seen.at <= time.monotonic()


def test_a_chunked_request_body_is_put_together(wall: Wall) -> None:
    raw(
        wall,
        b"POST /v1/x HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    )
    assert b"abcde" == wall.requests[0].body


def test_a_body_that_comes_in_pieces_is_one_request(wall: Wall) -> None:
    with Call(wall.url + "/x") as call:
        call.send_raw(b"POST /v1/x HTTP/1.1\r\ncontent-le")
        time.sleep(0.01)
        call.send_raw(b"ngth: 4\r\n\r\nab")
        time.sleep(0.01)
        call.send_raw(b"cd")
        call.read_head()
    assert [b"abcd"] == [seen.body for seen in wall.requests]


def test_pipelined_requests_are_answered_in_order(wall: Wall) -> None:
    wall.script([w.silence(0.02, then=w.answer(body=b"1")), w.answer(body=b"2")])
    head = b"GET /v1/x HTTP/1.1\r\nhost: h\r\n"
    answers = raw(wall, head + b"\r\n" + head + b"connection: close\r\n\r\n")
    assert [b"1", b"2"] == [part[:1] for part in answers.split(b"\r\n\r\n")[1:]]


def test_a_list_is_used_up_one_a_request_and_its_last_repeats(wall: Wall) -> None:
    wall.script([w.rate_limited(), w.error(500), w.chat()])
    assert [429, 500, 200, 200] == [ask(wall).status for _ in range(4)]


def test_a_function_chooses_by_the_request(wall: Wall) -> None:
    wall.script(lambda seen: w.error(418) if seen.wish("model") == "tea" else w.chat())
    assert [418, 200] == [ask(wall, model=model).status for model in ("tea", "m")]


def test_counts_go_by_the_end_of_the_path(wall: Wall) -> None:
    for path in ("/chat/completions", "/embeddings", "/embeddings?x=1"):
        ask(wall, path)
    assert (3, 2) == (wall.count(), wall.count("/embeddings"))


def test_a_caller_that_leaves_is_noticed(wall: Wall) -> None:
    wall.script(w.silence())
    with open_call(wall):
        (seen,) = wall.wait_for(1)
        assert not seen.disconnected.is_set()
    assert seen.disconnected.wait(5)


def test_an_answered_caller_that_leaves_did_not_disconnect(wall: Wall) -> None:
    ask(wall)
    ask(wall)
    assert [False, False] == [seen.disconnected.is_set() for seen in wall.requests]


def test_reset_forgets_requests_and_script(wall: Wall) -> None:
    asked(wall, w.rate_limited())
    wall.reset()
    assert (0, 200, 1) == (wall.count(), ask(wall).status, wall.count())


def test_a_stopped_wall_refuses_and_comes_back_on_its_port(wall: Wall) -> None:
    wall.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(wall)
    wall.start()
    assert 200 == ask(wall).status


def test_stopping_cuts_what_is_under_way_but_blames_no_caller(wall: Wall) -> None:
    wall.script(w.silence())
    with open_call(wall) as call:
        (seen,) = wall.wait_for(1)
        wall.stop()
        assert 0 == call.read_head()
    assert not seen.disconnected.is_set()


def test_waiting_for_requests_that_do_not_come_says_what_came(wall: Wall) -> None:
    ask(wall)
    with pytest.raises(AssertionError, match=r"1 of 2 requests.*chat/completions"):
        wall.wait_for(2, timeout=0.01)


def test_a_script_that_fails_is_answered_500_and_raised_at_the_end() -> None:
    def broken(_: w.Seen) -> Behaviour:
        raise LookupError("no such behaviour")

    def run(wall: Wall) -> int:
        with wall:
            wall.script(broken)
            return ask(wall).status

    with pytest.raises(LookupError, match="no such behaviour"):
        run(Wall())


def test_the_record_is_bounded_but_the_count_is_not() -> None:
    with Wall(keep=1) as wall:
        for _ in range(3):
            ask(wall)
        assert (1, 3) == (len(wall.requests), wall.count())


def test_the_wall_speaks_tls(tmp_path: Path) -> None:
    server, client = _tls(tmp_path)
    with Wall(tls=server) as wall:
        assert wall.url.startswith("https://127.0.0.1:")
        assert "hello" == request(wall.url + "/chat/completions", json=CHAT, tls=client).text
        wall.script([w.reset(), w.hang_up()])
        ends = [request(wall.url + "/chat/completions", json=CHAT, tls=client).ended for _ in range(2)]
        assert ["reset", "cut"] == ends


def test_a_tls_caller_that_never_closes_does_not_hold_up_the_end(tmp_path: Path) -> None:
    server, client = _tls(tmp_path)
    with Wall(tls=server) as wall, Call(wall.url, tls=client) as call:
        wall.script(w.hang_up())
        call.send("GET", {}, b"")
        assert 0 == call.read_head()
        wall.stop()


def _tls(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    argv = [needed("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-nodes"]
    argv += ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-subj", "/CN=wall", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=str(cert))


def test_the_wall_runs_as_a_process_of_its_own() -> None:
    with WallProcess("rate_limited", retry_after=3) as wall:
        reply = request(wall.url + "/chat/completions", json=CHAT)
        assert (429, "3") == (reply.status, reply.header("retry-after"))


# What stands beside the wall: load and ports


def test_load_counts_every_request_once(wall: Wall) -> None:
    wall.script(lambda seen: w.rate_limited() if seen.json["n"] % 4 == 0 else w.ok("a" * 50))
    result = run_load(
        wall.url + "/chat/completions",
        200,
        connections=8,
        body=lambda n: orjson.dumps({"n": n, "stream": n % 2 == 1}),
        count_headers=["content-type"],
    )
    assert {200: 150, 429: 50} == dict(result.statuses)
    assert {("content-type", "text/event-stream"): 100, ("content-type", "application/json"): 100} == dict(
        result.headers
    )
    assert (200, 0, 200) == (len(result.latencies_s), result.errors.total(), wall.count())


def test_load_calls_cut_answers_errors_and_goes_on(wall: Wall) -> None:
    wall.script([w.ok(), w.hang_up(), w.fin_after(1), w.reset(), w.ok()])
    result = run_load(wall.url + "/chat/completions", 6, connections=1, body=b"{}", timeout_s=5)
    assert {200: 3} == dict(result.statuses)
    assert {"cut": 2, "ConnectionResetError": 1} == dict(result.errors)


def test_load_gives_up_on_silence(wall: Wall) -> None:
    wall.script(w.silence())
    result = run_load(wall.url + "/chat/completions", 2, connections=2, body=b"{}", timeout_s=0.05)
    assert {"timeout": 2} == dict(result.errors)


def test_load_against_nobody_is_errors(wall: Wall) -> None:
    wall.stop()
    result = run_load(wall.url, 3, connections=2)
    assert ({}, {"ConnectionRefusedError": 3}) == (dict(result.statuses), dict(result.errors))


def test_ports_are_different_until_they_are_given_back() -> None:
    ports = [free_port() for _ in range(20)]
    assert 20 == len(set(ports))
    for port in ports:
        release_port(port)


def test_a_port_in_use_by_another_process_is_not_chosen() -> None:
    with WallProcess() as other:
        assert other.port not in {free_port() for _ in range(5)}
