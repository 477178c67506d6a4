"""Each provider's documented errors get the class that the design's table gives them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.classify import BODY_LIMIT_BYTES, Answer, classify, classify_error_object
from extproc.core.error_codes import CODES, GENERIC, MESSAGES
from extproc.core.outcome import Charge, ErrorClass, Failure

NOW = 1_700_000_000.0
CAP_S = 86_400.0


def judge(
    status: int,
    body: object = None,
    headers: dict[str, str] | None = None,
    codes: dict[str, str] | None = None,
) -> Failure:
    """Classify an answer whose body is this JSON value."""
    return classify(Answer(status, headers or {}, json.dumps(body).encode()), codes or {}, NOW, CAP_S)


def openai(**fields: Any) -> dict[str, Any]:
    """Return an error in OpenAI's envelope."""
    return {"error": {"message": "m", "type": "invalid_request_error", "param": None, "code": None} | fields}


def anthropic(type_: str, message: str = "m", **fields: Any) -> dict[str, Any]:
    """Return an error in Anthropic's envelope."""
    return {"type": "error", "error": {"type": type_, "message": message} | fields, "request_id": "req_1"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, "invalid_request"),
        (401, "auth_rejected"),
        (402, "quota_exhausted"),
        (403, "auth_rejected"),
        (404, "model_unavailable"),
        (405, "invalid_request"),
        (408, "server_error"),
        (409, "server_error"),
        (410, "model_unavailable"),
        (413, "invalid_request"),
        (422, "invalid_request"),
        (425, "server_error"),
        (429, "rate_limited"),
        (499, "server_error"),
        (500, "server_error"),
        (502, "server_error"),
        (503, "overloaded"),
        (504, "server_error"),
        (520, "server_error"),
        (529, "overloaded"),
        (200, "bad_answer"),
        (302, "bad_answer"),
        (101, "bad_answer"),
        (600, "bad_answer"),
    ],
)
def test_a_status_alone_gives_a_class(status: int, expected: str) -> None:
    answer = Answer(status, {}, b"<html>no json</html>")
    assert expected == classify(answer, {}, NOW, CAP_S).error_class


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (429, openai(type="insufficient_quota", code="insufficient_quota"), "quota_exhausted"),
        (429, openai(type="insufficient_quota", code="project_spend_limit_exceeded"), "quota_exhausted"),
        (429, openai(type="insufficient_quota", code="a_code_of_tomorrow"), "quota_exhausted"),
        (429, openai(type="tokens", code="rate_limit_exceeded"), "rate_limited"),
        (429, openai(type="billing_not_active", code="billing_not_active"), "quota_exhausted"),
        (400, openai(code="billing_hard_limit_reached"), "quota_exhausted"),
        (401, openai(code="invalid_api_key"), "auth_rejected"),
        (403, openai(code="model_not_found"), "model_unavailable"),
        (404, openai(code="model_not_found"), "model_unavailable"),
        (400, openai(code="context_length_exceeded"), "context_length"),
        (400, openai(code="content_policy_violation"), "content_filtered"),
        (400, openai(code="moderation_blocked"), "content_filtered"),
        (404, openai(code="previous_response_not_found"), "invalid_request"),
        (404, openai(param="file_id"), "invalid_request"),
        (404, openai(param="model"), "model_unavailable"),
        (503, openai(type="service_unavailable_error", code="server_is_overloaded"), "overloaded"),
        (429, openai(type="rate_limit_error", code="slow_down"), "rate_limited"),
        (400, openai(code="string_above_max_length"), "invalid_request"),
    ],
)
def test_openai_errors(status: int, body: object, expected: str) -> None:
    assert expected == judge(status, body).error_class


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (openai(message="Invalid URL (POST /v1/rerank)"), True),
        ({"detail": "Not Found"}, True),
        ({"error": {"code": "404", "message": "Resource not found"}}, True),
        ("<html>404</html>", True),
        (openai(code="model_not_found"), False),
        (openai(param="model"), False),
        (anthropic("not_found_error"), False),
        ({"error": {"code": "DeploymentNotFound", "message": "m"}}, False),
        ({"object": "error", "message": "m", "type": "NotFoundError", "code": 404}, False),
        ([{"error": {"code": 404, "message": "m", "status": "NOT_FOUND"}}], False),
    ],
)
def test_a_404_that_does_not_name_the_model_counts_against_nobody(body: object, expected: bool) -> None:
    """It may be the path that the provider does not have, and the model serves others well."""
    failure = judge(404, body)
    assert ("model_unavailable", expected) == (failure.error_class, failure.vague)


def test_the_operator_s_own_code_makes_a_404_plain() -> None:
    failure = judge(404, openai(code="no_such_thing"), codes={"no_such_thing": "model_unavailable"})
    assert (False, Charge.TARGET) == (failure.vague, failure.charge)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (429, anthropic("rate_limit_error"), "rate_limited"),
        (
            429,
            anthropic("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}),
            "quota_exhausted",
        ),
        (402, anthropic("billing_error"), "quota_exhausted"),
        (401, anthropic("authentication_error"), "auth_rejected"),
        (403, anthropic("permission_error"), "auth_rejected"),
        (404, anthropic("not_found_error"), "model_unavailable"),
        (529, anthropic("overloaded_error"), "overloaded"),
        (500, anthropic("api_error"), "server_error"),
        (400, anthropic("invalid_request_error"), "invalid_request"),
        (
            400,
            anthropic("invalid_request_error", "prompt is too long: 205000 tokens > 200000 maximum"),
            "context_length",
        ),
        (
            400,
            anthropic(
                "invalid_request_error",
                "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, "
                "decrease input length or `max_tokens` and try again",
            ),
            "context_length",
        ),
        (
            400,
            anthropic(
                "invalid_request_error",
                "Your credit balance is too low to access the Anthropic API. "
                "Please go to Plans & Billing to upgrade or purchase credits.",
            ),
            "quota_exhausted",
        ),
        (
            400,
            anthropic(
                "invalid_request_error",
                "You have reached your specified workspace API usage limits. "
                "You will regain access on 2026-12-01 at 00:00 UTC.",
            ),
            "quota_exhausted",
        ),
    ],
)
def test_anthropic_errors(status: int, body: object, expected: str) -> None:
    assert expected == judge(status, body).error_class


VLLM_LONG = "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens."
VLLM_MAX_TOKENS = (
    "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is "
    "4096 tokens and your request has 2104 input tokens (2000 > 4096 - 2104)."
)
DEEPSEEK_LONG = (
    "This model's maximum context length is 131072 tokens. However, you requested 140000 tokens (132000 in "
    "the messages, 8000 in the completion). Please reduce the length of the messages or completion."
)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        # Azure
        (
            400,
            openai(code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}),
            "content_filtered",
        ),
        (404, {"error": {"code": "DeploymentNotFound", "message": "m"}}, "model_unavailable"),
        (429, {"error": {"code": "429", "message": "m"}}, "rate_limited"),
        # Gemini's OpenAI-compatible surface
        (
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "status": "INVALID_ARGUMENT",
                        "details": [{"reason": "API_KEY_INVALID"}],
                    }
                }
            ],
            "auth_rejected",
        ),
        (429, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}], "rate_limited"),
        (
            403,
            {"error": {"status": "PERMISSION_DENIED", "details": [{"reason": "BILLING_DISABLED"}]}},
            "quota_exhausted",
        ),
        # vLLM, llama.cpp, TGI
        (
            400,
            {"object": "error", "message": VLLM_LONG, "type": "BadRequestError", "code": 400},
            "context_length",
        ),
        (
            400,
            {"error": {"message": VLLM_MAX_TOKENS, "type": "BadRequestError", "code": 400}},
            "context_length",
        ),
        (
            400,
            {"object": "error", "message": "no", "type": "BadRequestError", "code": 400},
            "invalid_request",
        ),
        (404, {"object": "error", "message": "m", "type": "NotFoundError", "code": 404}, "model_unavailable"),
        (400, {"error": {"code": 400, "type": "exceed_context_size_error"}}, "context_length"),
        (429, {"error": "Model is overloaded", "error_type": "overloaded"}, "overloaded"),
        # Groq, Mistral, DeepSeek, Alibaba, Moonshot
        (498, openai(code="capacity_exceeded"), "overloaded"),
        (400, openai(code="model_decommissioned"), "model_unavailable"),
        (413, openai(type="tokens", code="rate_limit_exceeded"), "context_length"),
        (400, {"object": "error", "type": "invalid_model", "code": "1500"}, "model_unavailable"),
        (400, openai(message=DEEPSEEK_LONG, code="invalid_request_error"), "context_length"),
        (400, openai(code="Arrearage"), "quota_exhausted"),
        (429, openai(type="exceeded_current_quota_error"), "quota_exhausted"),
        # OpenRouter
        (402, {"error": {"code": 402, "message": "m"}}, "quota_exhausted"),
        (
            403,
            {"error": {"code": 403, "metadata": {"reasons": ["x"], "flagged_input": "y"}}},
            "content_filtered",
        ),
        (403, {"error": {"code": 403, "message": "m"}}, "auth_rejected"),
        (
            400,
            {"error": {"code": 400, "metadata": {"error_type": "context_length_exceeded"}}},
            "context_length",
        ),
        (502, {"error": {"code": 502, "metadata": {"provider_name": "p"}}}, "server_error"),
    ],
)
def test_errors_of_other_providers(status: int, body: object, expected: str) -> None:
    assert expected == judge(status, body).error_class


@pytest.mark.parametrize(
    "body",
    [
        openai(message="insufficient_quota and context_length_exceeded, says the prompt"),
        anthropic("invalid_request_error", "tool 'x': prompt is too long: 2 tokens > 1 maximum"),
        anthropic("not_an_invalid_request", "prompt is too long: 2 tokens > 1 maximum"),
        {"message": "model_not_found"},
        {"error": "overloaded_error"},
    ],
)
def test_free_text_never_decides(body: object) -> None:
    assert judge(400, body).error_class is ErrorClass.INVALID_REQUEST


def test_a_documented_sentence_counts_with_status_400_only() -> None:
    body = anthropic("invalid_request_error", "prompt is too long: 2 tokens > 1 maximum")
    assert judge(422, body).error_class is ErrorClass.INVALID_REQUEST


@pytest.mark.parametrize("code", ["my_code", "1302", "insufficient_quota"])
def test_the_operators_codes_win(code: str) -> None:
    failure = judge(400, openai(code=code), codes={code: "overloaded"})
    assert failure.error_class is ErrorClass.OVERLOADED


def test_the_operators_codes_match_numbers_and_any_case() -> None:
    codes = {"1302": "rate_limited", "my_code": "quota_exhausted"}
    assert judge(400, openai(code=1302), codes=codes).error_class is ErrorClass.RATE_LIMITED
    assert judge(400, openai(code="MY_CODE"), codes=codes).error_class is ErrorClass.QUOTA_EXHAUSTED


def test_a_body_that_cannot_be_read_leaves_the_status() -> None:
    body = json.dumps(openai(code="insufficient_quota")).encode()
    unreadable = [
        Answer(429, {"content-encoding": "gzip"}, gzip.compress(body)),
        Answer(429, {"content-encoding": "br"}, body),
        Answer(429, {}, b" " * BODY_LIMIT_BYTES + body),
        Answer(429, {}, body[:-3], truncated=True),
        Answer(429, {}, b"\xff\xfe\x00"),
        Answer(429, {}, b"[" * 5000),
    ]
    classes = {classify(answer, {}, NOW, CAP_S).error_class for answer in unreadable}
    assert classes == {ErrorClass.RATE_LIMITED}


def test_evidence_names_status_code_and_wait() -> None:
    failure = judge(429, openai(code="insufficient_quota"), {"retry-after": "12"})
    assert failure.evidence == ("status=429", "code=insufficient_quota", "retry-after=12")
    assert failure.retry_at == NOW + 12


def test_evidence_tells_a_limits_reset_from_a_retry_after() -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1.5s"}
    assert judge(429, None, headers).evidence == ("status=429", "reset-in=1.5")


@pytest.mark.parametrize("code", ["two words", "a" * 65, "naïve", "x\ny", ""])
def test_evidence_leaves_out_a_code_that_is_not_one(code: str) -> None:
    assert judge(500, {"error": {"code": code}}).evidence == ("status=500",)


def test_a_fault_of_the_request_has_no_recovery_time() -> None:
    assert judge(400, openai(), {"retry-after": "12"}).retry_at is None


def test_a_server_error_is_told_when_to_come_back_only_explicitly() -> None:
    assert judge(500, None, {"x-ratelimit-reset": "30"}).retry_at is None
    assert judge(503, None, {"retry-after": "30"}).retry_at == NOW + 30


def test_googles_retry_delay_in_the_body_counts() -> None:
    body = {"error": {"code": 429, "details": [{"@type": "google.rpc.RetryInfo", "retryDelay": "34s"}]}}
    assert judge(429, body).retry_at == NOW + 34


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (anthropic("overloaded_error"), "overloaded"),
        (anthropic("rate_limit_error"), "rate_limited"),
        (anthropic("api_error"), "server_error"),
        (anthropic("invalid_request_error"), "invalid_request"),
        ({"type": "overloaded_error", "message": "inner object alone"}, "overloaded"),
        (openai(type="server_error", code=None), "server_error"),
        (openai(code="context_length_exceeded"), "context_length"),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "m", "param": None}, "rate_limited"),
        ({"type": "response.failed", "response": {"error": {"code": "server_is_overloaded"}}}, "overloaded"),
        ({"id": "gen-1", "error": {"code": 502, "message": "m"}, "choices": []}, "server_error"),
        ({"error": {"code": 429}}, "rate_limited"),
        ({"object": "error", "type": "InternalServerError", "code": 500}, "server_error"),
        ({"error": {"status": "UNAVAILABLE"}}, "overloaded"),
        ({"error": {"message": "what"}}, "bad_answer"),
        ({"error": {"code": 200}}, "bad_answer"),
        ({}, "bad_answer"),
        (None, "bad_answer"),
        ([[[]]], "bad_answer"),
        ("overloaded_error", "bad_answer"),
    ],
)
def test_an_error_event_in_a_stream_has_a_class(event: object, expected: str) -> None:
    assert expected == classify_error_object(event, 200, NOW, CAP_S).error_class


def test_the_operators_codes_count_in_a_stream_too() -> None:
    failure = classify_error_object({"error": {"code": "mine"}}, None, NOW, CAP_S, {"mine": "rate_limited"})
    assert failure == Failure(ErrorClass.RATE_LIMITED, None, None, ("code=mine",))


def test_every_code_is_lower_case_and_has_a_source() -> None:
    for table in (CODES, GENERIC):
        assert all(code == code.lower() and meaning.source.startswith("https://") for code, meaning in table.items())
    assert all(rule.source.startswith("https://") for rule in MESSAGES)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "code",
                    "type",
                    "status",
                    "details",
                    "metadata",
                    "innererror",
                    "message",
                    "reason",
                    "response",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    st.integers(-1, 1000),
    st.dictionaries(st.text(max_size=20), st.text(max_size=20)),
    st.binary() | st.none(),
    json_values,
)
def test_anything_gets_a_class_and_safe_evidence(
    status: int, headers: dict[str, str], raw: bytes | None, value: object
) -> None:
    body = json.dumps(value).encode() if raw is None else raw
    for failure in (
        classify(Answer(status, headers, body), {}, NOW, CAP_S),
        classify_error_object(value, status, NOW, CAP_S),
    ):
        assert all(len(item) < 80 and item.isascii() and item.isprintable() for item in failure.evidence)
