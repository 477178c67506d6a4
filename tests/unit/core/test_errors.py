"""Every error the gateway makes is its protocol's envelope, and valid JSON whatever the message holds."""

from __future__ import annotations

import json

import pytest

from extproc.core.errors import CODES, GatewayError, envelope

STATUS_OF_CODE = {
    "invalid_json": 400,
    "missing_model": 400,
    "bad_request": 400,
    "invalid_api_key": 401,
    "model_not_allowed": 403,
    "model_not_found": 404,
    "unsupported_endpoint": 404,
    "request_timeout": 408,
    "request_too_large": 413,
    "headers_too_large": 431,
    "client_rate_limited": 429,
    "upstream_connect_failed": 502,
    "upstream_bad_answer": 502,
    "no_healthy_target": 503,
    "gateway_unavailable": 503,
    "upstream_timeout": 504,
}


def test_the_codes_and_their_statuses_are_the_documented_ones() -> None:
    assert STATUS_OF_CODE == {code: GatewayError(code, "m").status for code in CODES}


@pytest.mark.parametrize("code", CODES)
def test_openai_s_envelope_has_its_four_members(code: str) -> None:
    error = json.loads(GatewayError(code, "m", "model").body("openai"))["error"]
    assert {"message": "m", "type": CODES[code][1], "param": "model", "code": code} == error


@pytest.mark.parametrize("code", CODES)
def test_anthropic_s_envelope_has_its_own_type(code: str) -> None:
    expected = {"type": "error", "error": {"type": CODES[code][2], "message": "m"}}
    assert expected == json.loads(GatewayError(code, "m").body("anthropic"))


def test_param_is_null_when_no_field_is_at_fault() -> None:
    assert json.loads(envelope("bad_request", "m", "openai"))["error"]["param"] is None


@pytest.mark.parametrize("message", ['say "no"', "back\\slash", "line\nbreak", "\x00\x1f", "größe 😀", "%REQ(:path)%"])
def test_any_message_is_valid_json(message: str) -> None:
    assert message == json.loads(envelope("bad_request", message, "openai"))["error"]["message"]
