"""README.md alone, as a stranger follows it: a gateway of one's own in three commands, with fake providers."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.e2e.test_docs import Reader
from tests.support.markdown import ROOT, blocks
from tests.support.wall import Wall, ok, rate_limited

BLOCKS = blocks(ROOT / "README.md")
COMMANDS = [block.text for block in BLOCKS if block.is_commands and block.not_run is None]
READY_WITHIN_S = 30.0
KEYS = {"OPENAI_API_KEY": "sk-planted-openai", "AZURE_OPENAI_API_KEY": "sk-planted-azure"}
# What the reader's providers are is not README's: they are asked at fake ones. The gateway is left to run.
_PRELUDE = """\
set -euo pipefail
extproc() {
    case $1 in
        init) test -e gateway.yaml || command extproc "$@" ;;
        up)
            fake() { sed -i "s#base_url: https://$1.*#base_url: $2\\n    allow_private_network: true#" gateway.yaml; }
            fake api.openai.com "$OPENAI_FAKE"
            fake your-resource "$AZURE_FAKE"
            command extproc "$@" --listen 127.0.0.1:18080 --metrics-listen 127.0.0.1:18082 & ;;
    esac
}
"""


@pytest.fixture
def reader() -> Iterator[Reader]:
    """Give a reader who stands in the folder of the repository after `make demo`."""
    reader = Reader()
    (reader.folder / ".venv").symlink_to(sys.prefix)
    try:
        yield reader
    finally:
        reader.stop()


def _block(language: str) -> str:
    (text,) = (block.text for block in BLOCKS if block.language == language)
    return text


def _ask(reader: Reader) -> None:
    """Wait until the gateway is ready, then run README's few lines of Python."""
    give_up_at = time.monotonic() + READY_WITHIN_S
    while not _is_ready(reader):
        assert time.monotonic() < give_up_at, (reader.folder / "printed").read_text()
        time.sleep(0.1)
    subprocess.run([sys.executable, "-c", reader.mapped(_block("python"))], check=True, timeout=30.0)


def _is_ready(reader: Reader) -> bool:
    try:
        with urllib.request.urlopen(reader.mapped("http://127.0.0.1:18080/readyz"), timeout=5):  # noqa: S310
            return True
    except OSError:
        return False


def test_a_provider_of_one_s_own_takes_three_commands(reader: Reader, primary: Wall, fallback: Wall) -> None:
    """The key that is in the environment arrives there, under the model that the client named."""
    (script,) = COMMANDS
    primary.script(ok("hello"))

    code, printed = reader.run(script, _PRELUDE, OPENAI_FAKE=primary.url, AZURE_FAKE=fallback.url, **KEYS)
    _ask(reader)

    assert (0, 3) == (code, len(re.findall(r"(?m)^\S", script))), printed
    (asked,) = primary.requests
    assert ("Bearer sk-planted-openai", "gpt-4o") == (asked.header("authorization"), asked.json["model"])


def test_the_config_that_is_written_by_hand_fails_over(reader: Reader, primary: Wall, fallback: Wall) -> None:
    """OpenAI says 429, Azure serves: with its own name of the model, its own header and its own key."""
    (script,) = COMMANDS
    (reader.folder / "gateway.yaml").write_text(_block("yaml"))
    primary.script(rate_limited())
    fallback.script(ok("hello"))

    reader.run(script, _PRELUDE, OPENAI_FAKE=primary.url, AZURE_FAKE=fallback.url, **KEYS)
    _ask(reader)

    (asked,) = fallback.requests
    assert ("sk-planted-azure", "gpt-4o-prod") == (asked.header("api-key"), asked.json["model"])
