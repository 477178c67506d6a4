"""`extproc init`: a commented gateway.yaml for the providers whose keys are in the environment.

Owns which variable means which provider, and the words of the file. It looks whether a variable is set, never at a
key's value; the file names the variable. Invariant: an existing file is never touched.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from extproc.settings import StartError

AZURE_ENDPOINT_ENV = "AZURE_OPENAI_ENDPOINT"
_AZURE_EXAMPLE = "https://example-resource.openai.azure.com"


class Known(NamedTuple):
    """A provider that is recognised by the variable of its key; `models` is a pattern of names that it serves."""

    variable: str
    name: str
    base_url: str
    models: str
    lines: tuple[str, ...] = ()


KNOWN = (
    Known("OPENAI_API_KEY", "openai", "https://api.openai.com/v1", "gpt-*"),
    Known(
        "AZURE_OPENAI_API_KEY",
        "azure",
        "{azure}/openai/v1",
        "azure-*",
        ('auth: {header: api-key, prefix: ""}     # Azure takes the bare key in its own header',),
    ),
    Known(
        "ANTHROPIC_API_KEY",
        "anthropic",
        "https://api.anthropic.com/v1",
        "claude-*",
        ("protocol: anthropic                     # serves /v1/messages",),
    ),
    Known("GEMINI_API_KEY", "gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "gemini-*"),
    Known("MISTRAL_API_KEY", "mistral", "https://api.mistral.ai/v1", "mistral-*"),
    Known("GROQ_API_KEY", "groq", "https://api.groq.com/openai/v1", "llama-*"),
    Known("DEEPSEEK_API_KEY", "deepseek", "https://api.deepseek.com/v1", "deepseek-*"),
    Known("XAI_API_KEY", "xai", "https://api.x.ai/v1", "grok-*"),
    Known("OPENROUTER_API_KEY", "openrouter", "https://openrouter.ai/api/v1", "openrouter/*"),
)

_HEAD = """\
# Written by `extproc init`. Keys are named here, never written here: each is read from its variable when the gateway
# starts. Every key that is left out has its default. Check a change with `extproc doctor --config {file}`.
schema: 1

providers:
"""
_MODELS = """
# Names that clients send. A pattern passes the client's own name on (model: "*"); an exact name wins over a pattern.
models:
"""
_TAIL = """\
  # A model of two providers: the second serves when the first cannot, and the last falls back to another model.
  # my-model:
  #   targets:
  #     - {provider: PROVIDER, model: ITS-NAME-THERE, weight: 3}
  #     - {provider: ANOTHER, model: ITS-NAME-THERE, tier: 1}
  #   fallback: [another-model]

# How long to wait and how often to try; these are the defaults.
# policies:
#   default:
#     attempts: 3
#     deadline: 90s
#     first_byte_timeout: 60s     # silence before an answer
#     first_token_timeout: 15s    # silence before a stream's first output

# Without clients the gateway serves loopback only and asks for no token; `configctl key new` makes one.
# clients:
#   - {name: team-a, token_sha256: DIGEST}
"""


def run_init(out: Path, environ: Mapping[str, str]) -> int:
    """Write the file and say what is next; returns the exit code, raises StartError."""
    found = known_providers(environ)
    chosen = found or KNOWN[:1]
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(config_text(chosen, environ, out.name))
    except FileExistsError:
        raise StartError(f"{out} is there already and is left as it is: name another file.") from None
    except OSError as error:
        raise StartError(f"Cannot write {out}: {error.strerror}. Name another file.") from None
    for provider in found:
        sys.stdout.write(f"{provider.name}: the key is in {provider.variable}\n")
    if not found:
        names = ", ".join(known.variable for known in KNOWN)
        sys.stdout.write(f"No key was found (looked for {names}); the file expects {chosen[0].variable}.\n")
    sys.stdout.write(f"wrote {out}; next: extproc doctor --config {out}, then extproc up --config {out}\n")
    return 0


def known_providers(environ: Mapping[str, str]) -> tuple[Known, ...]:
    """Return the providers whose variable is set to something."""
    return tuple(known for known in KNOWN if environ.get(known.variable, "").strip())


def config_text(providers: tuple[Known, ...], environ: Mapping[str, str], file: str) -> str:
    """Return the file's text."""
    azure = environ.get(AZURE_ENDPOINT_ENV, "").strip().rstrip("/") or _AZURE_EXAMPLE
    text = _HEAD.format(file=file)
    for known in providers:
        text += f"  {known.name}:\n    base_url: {known.base_url.format(azure=azure)}\n"
        text += f"    api_key: {{env: {known.variable}}}\n"
        text += "".join(f"    {line}\n" for line in known.lines)
    text += _MODELS
    for known in providers:
        text += f'  "{known.models}":\n    targets: [{{provider: {known.name}, model: "*"}}]\n'
    return text + _TAIL
