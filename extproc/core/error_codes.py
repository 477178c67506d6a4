"""What providers' machine-readable error codes mean: data only, each row with the page that documents it.

Owns three tables, read by classify.py. `CODES` beats the status; `GENERIC` serves where there is no telling
status (an error inside a 2xx stream); `MESSAGES` holds the few errors that a provider tells apart by nothing
but a fixed sentence: whole-sentence patterns, bound to status 400 and to the error types beside them. Keys
are lower case; look-ups fold case. Ambiguous codes (`invalid_prompt`, `string_above_max_length`,
`token_limit_exceeded`) are left to the status on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from extproc.core.outcome import ErrorClass

_OPENAI: Final = "https://platform.openai.com/docs/guides/error-codes"
_OPENAI_SPEND: Final = "https://help.openai.com/en/articles/6614457-troubleshooting-api-usage-and-spend-limits"
_OPENAI_STREAM: Final = "https://platform.openai.com/docs/api-reference/responses-streaming/error"
_OPENAI_IMAGES: Final = "https://platform.openai.com/docs/guides/image-generation#content-moderation"
_ANTHROPIC: Final = "https://docs.claude.com/en/api/errors"
_ANTHROPIC_SPEND: Final = "https://docs.claude.com/en/api/rate-limits#spend-limits"
_AZURE: Final = "https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter"
_AZURE_DEPLOY: Final = "https://learn.microsoft.com/en-us/answers/questions/1299621/"
_GROQ: Final = "https://console.groq.com/docs/errors"
_GROQ_MODELS: Final = "https://console.groq.com/docs/deprecations"
_OPENROUTER: Final = "https://openrouter.ai/docs/api/reference/errors-and-debugging"
_GEMINI: Final = "https://ai.google.dev/gemini-api/docs/troubleshooting"
_GOOGLE: Final = "https://github.com/googleapis/googleapis/blob/master/google/api/error_reason.proto"
_RPC: Final = "https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto"
_MISTRAL: Final = "https://docs.mistral.ai/api/"
_MOONSHOT: Final = "https://platform.moonshot.ai/docs/api/chat"
_ALIBABA: Final = "https://www.alibabacloud.com/help/en/model-studio/error-code"
_LLAMA_CPP: Final = "https://github.com/ggml-org/llama.cpp/tree/master/tools/server"
_TGI: Final = "https://github.com/huggingface/text-generation-inference/blob/main/docs/openapi.json"
_VLLM: Final = "https://github.com/vllm-project/vllm/tree/main/vllm/entrypoints/openai"
_DEEPSEEK: Final = "https://api-docs.deepseek.com/quick_start/error_codes"


class Meaning(NamedTuple):
    """A code's error class and the page that documents the code."""

    error_class: ErrorClass
    source: str


class MessageRule(NamedTuple):
    """A sentence that stands for a code: whole match, status 400, one of `types` (None: no type given)."""

    pattern: re.Pattern[str]
    types: frozenset[str | None]
    error_class: ErrorClass
    source: str


def _table(rows: Mapping[ErrorClass, Mapping[str, str]]) -> Mapping[str, Meaning]:
    flat = {code: Meaning(kind, source) for kind, codes in rows.items() for code, source in codes.items()}
    return MappingProxyType(flat)


CODES: Final = _table(
    {
        ErrorClass.RATE_LIMITED: {
            "rate_limit_exceeded": _OPENAI,
            "rate_limit_error": _ANTHROPIC,
            "rate_limit_reached_error": _MOONSHOT,
        },
        ErrorClass.QUOTA_EXHAUSTED: {
            "insufficient_quota": _OPENAI,
            "billing_not_active": _OPENAI,
            "billing_hard_limit_reached": _OPENAI,
            "credit_balance_exhausted": _OPENAI_SPEND,
            "organization_usage_limit_exceeded": _OPENAI_SPEND,
            "organization_spend_limit_exceeded": _OPENAI_SPEND,
            "project_spend_limit_exceeded": _OPENAI_SPEND,
            "billing_error": _ANTHROPIC,
            "enforced_spend_limit_reached": _ANTHROPIC_SPEND,
            "payment_required": _OPENROUTER,
            "billing_disabled": _GOOGLE,
            "exceeded_current_quota_error": _MOONSHOT,
            "arrearage": _ALIBABA,
        },
        ErrorClass.AUTH_REJECTED: {
            "invalid_api_key": _OPENAI,
            "account_deactivated": _OPENAI,
            "api_key_invalid": _GOOGLE,  # comes with status 400
            "consumer_suspended": _GOOGLE,
        },
        ErrorClass.MODEL_UNAVAILABLE: {
            "model_not_found": _OPENAI,
            "model_decommissioned": _GROQ_MODELS,  # comes with status 400
            "deploymentnotfound": _AZURE_DEPLOY,
            "invalid_model": _MISTRAL,  # comes with status 400
        },
        ErrorClass.OVERLOADED: {
            "overloaded_error": _ANTHROPIC,
            "server_is_overloaded": _OPENAI,
            "capacity_exceeded": _GROQ,  # comes with status 498
            "provider_overloaded": _OPENROUTER,
            "engine_overloaded_error": _MOONSHOT,  # comes with status 429
            "overloaded": _TGI,  # comes with status 429
        },
        ErrorClass.CONTEXT_LENGTH: {
            "context_length_exceeded": _OPENAI,
            "exceed_context_size_error": _LLAMA_CPP,
        },
        ErrorClass.CONTENT_FILTERED: {
            "content_filter": _AZURE,
            "responsibleaipolicyviolation": _AZURE,
            "content_policy_violation": _OPENAI,
            "moderation_blocked": _OPENAI_IMAGES,
            "data_inspection_failed": _ALIBABA,
            "datainspectionfailed": _ALIBABA,
        },
        ErrorClass.INVALID_REQUEST: {
            "previous_response_not_found": _OPENAI,  # a 404 that says nothing of the model
        },
    }
)

GENERIC: Final = _table(
    {
        ErrorClass.RATE_LIMITED: {"resource_exhausted": _RPC},
        ErrorClass.AUTH_REJECTED: {
            "authentication_error": _ANTHROPIC,
            "permission_error": _ANTHROPIC,
            "authentication": _OPENROUTER,
            "unauthenticated": _RPC,
            "permission_denied": _RPC,
        },
        ErrorClass.MODEL_UNAVAILABLE: {
            "not_found_error": _ANTHROPIC,
            "notfounderror": _VLLM,
            "not_found": _RPC,
        },
        ErrorClass.OVERLOADED: {
            "service_unavailable_error": _OPENAI,
            "slow_down": _OPENAI,
            "unavailable": _RPC,
        },
        ErrorClass.SERVER_ERROR: {
            "api_error": _ANTHROPIC,
            "server_error": _OPENAI_STREAM,
            "internal_server_error": _GROQ,
            "internalservererror": _VLLM,
            "timeout_error": _ANTHROPIC,
            "provider_unavailable": _OPENROUTER,
            "internal": _RPC,
            "deadline_exceeded": _RPC,
        },
        ErrorClass.INVALID_REQUEST: {
            "invalid_request_error": _ANTHROPIC,
            "request_too_large": _ANTHROPIC,
            "invalid_request": _OPENROUTER,
            "badrequesterror": _VLLM,
            "invalid_argument": _RPC,
        },
    }
)

_INVALID_REQUEST_TYPE: Final = frozenset({"invalid_request_error"})

MESSAGES: Final = (
    MessageRule(
        re.compile(r"prompt is too long: \d{1,12} tokens > \d{1,12} maximum", re.ASCII),
        _INVALID_REQUEST_TYPE,
        ErrorClass.CONTEXT_LENGTH,
        _ANTHROPIC,
    ),
    MessageRule(
        re.compile(
            r"input length and `max_tokens` exceed context limit: \d{1,12} \+ \d{1,12} > \d{1,12}, "
            r"decrease input length or `max_tokens` and try again",
            re.ASCII,
        ),
        _INVALID_REQUEST_TYPE,
        ErrorClass.CONTEXT_LENGTH,
        _ANTHROPIC,
    ),
    MessageRule(
        # vLLM, DeepSeek and OpenRouter write one sentence; the tail holds only counts and fixed words.
        re.compile(
            r"(?:'max_tokens' or 'max_completion_tokens' is too large: \d{1,12}\. )?"
            r"This (?:model|endpoint)'s maximum context length is \d{1,12} tokens(?:\. However,| and) "
            r"(?:you requested|your request has|your messages resulted in) [\w ,.()<>='/;:+-]{1,400}",
            re.ASCII,
        ),
        frozenset({"BadRequestError", "invalid_request_error", None}),
        ErrorClass.CONTEXT_LENGTH,
        f"{_VLLM} {_DEEPSEEK} {_OPENROUTER}",
    ),
    MessageRule(
        re.compile(
            r"Your credit balance is too low to access the Anthropic API\. "
            r"Please go to Plans & Billing to upgrade or purchase credits\."
        ),
        _INVALID_REQUEST_TYPE,
        ErrorClass.QUOTA_EXHAUSTED,
        "https://github.com/anthropics/claude-code/issues/4207",
    ),
    MessageRule(
        re.compile(
            r"You have reached your specified (?:workspace )?API usage limits\. "
            r"You will regain access on [\w :.-]{1,40}",
            re.ASCII,
        ),
        _INVALID_REQUEST_TYPE,
        ErrorClass.QUOTA_EXHAUSTED,
        _ANTHROPIC_SPEND,
    ),
)
