"""The admin API's view of a config has no secret in it."""

from __future__ import annotations

import orjson

from extproc.admin import MASK, masked
from tests.support.stories import CONFIG, snapshot

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_a_masked_config_is_json_without_tokens_headers_and_queries() -> None:
    account = {
        "base_url": "https://first.example.com/v1",
        "api_key": {"env": "FIRST_KEY"},
        "headers": {"OpenAI-Organization": "org-visible-to-nobody"},
        "query": {"api-version": "preview-visible-to-nobody"},
    }
    clients = [{"name": "team", "token_sha256": DIGEST}]
    made = masked(snapshot({**CONFIG, "providers": {**CONFIG["providers"], "first": account}, "clients": clients}))
    text = orjson.dumps(made).decode()
    assert DIGEST not in text
    assert "visible-to-nobody" not in text
    assert {"source": "env", "name": "FIRST_KEY"} == made["providers"]["first"]["api_key"]
    assert {"openai-organization": MASK} == made["providers"]["first"]["headers"]
    assert ["team"] == [client["name"] for client in made["clients"]]
