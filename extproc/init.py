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


class Offer(NamedTuple):
    """An entry below `models`: the name that clients send, the name to send on, and what a reader should know."""

    name: str
    sent: str
    comment: str


class Known(NamedTuple):
    """A provider that is recognised by the variable of its key; `endpoint` names that of an address it needs too."""

    variable: str
    name: str
    base_url: str
    offers: tuple[Offer, ...]
    lines: tuple[str, ...] = ()
    endpoint: str | None = None


KNOWN = (
    Known(
        "OPENAI_API_KEY",
        "openai",
        "https://api.openai.com/v1",
        (
            Offer("gpt-*", "*", "such as gpt-4o-mini"),
            Offer("text-embedding-*", "*", "such as text-embedding-3-small"),
        ),
    ),
    Known(
        "AZURE_OPENAI_API_KEY",
        "azure",
        "{endpoint}/openai/v1",
        (
            Offer(
                "azure-gpt",
                "my-deployment",
                "Azure knows only the names of your deployments: put one for my-deployment",
            ),
        ),
        ('auth: {header: api-key, prefix: ""}     # Azure takes the bare key in its own header',),
        AZURE_ENDPOINT_ENV,
    ),
    Known(
        "ANTHROPIC_API_KEY",
        "anthropic",
        "https://api.anthropic.com/v1",
        (Offer("claude-*", "*", "asked at /v1/messages, such as claude-sonnet-4-5"),),
        ("protocol: anthropic                     # serves /v1/messages",),
    ),
    Known(
        "GEMINI_API_KEY",
        "gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        (Offer("gemini-*", "*", "such as gemini-2.5-flash"),),
    ),
    Known(
        "MISTRAL_API_KEY",
        "mistral",
        "https://api.mistral.ai/v1",
        (Offer("mistral-*", "*", "such as mistral-small-latest"),),
    ),
    Known(
        "GROQ_API_KEY",
        "groq",
        "https://api.groq.com/openai/v1",
        (Offer("llama-*", "*", "such as llama-3.3-70b-versatile"),),
    ),
    Known(
        "DEEPSEEK_API_KEY",
        "deepseek",
        "https://api.deepseek.com/v1",
        (Offer("deepseek-*", "*", "such as deepseek-chat"),),
    ),
    Known("XAI_API_KEY", "xai", "https://api.x.ai/v1", (Offer("grok-*", "*", "such as grok-4"),)),
    Known(
        "OPENROUTER_API_KEY",
        "openrouter",
        "https://openrouter.ai/api/v1",
        (Offer("*/*", "*", "OpenRouter's names are vendor/model, such as meta-llama/llama-3.3-70b-instruct"),),
    ),
)

_NOWHERE = "https://YOUR-RESOURCE.openai.azure.com.invalid"
"""Names below .invalid never resolve (RFC 6761): an invented real name could be somebody's, who would get the key."""

_HEAD = """\
# Written by `extproc init`. Keys are named here, never written here: each is read from its variable when the gateway
# starts. Every key that is left out has its default. Check a change with `extproc doctor --config {file}`.
schema: 1

providers:
"""
_MODELS = """
# Names that clients send. model: "*" passes the client's own name on; an exact name wins over a pattern, and a pattern
# promises nothing: a name that the provider does not have gets the provider's own 404.
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
    usable = tuple(known for known in found if _has_address(known, environ))
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(config_text(found, environ, out.name))
    except FileExistsError:
        raise StartError(f"{out} is there already and is left as it is: name another file.") from None
    except OSError as error:
        raise StartError(f"Cannot write {out}: {error.strerror}. Name another file.") from None
    for provider in usable:
        sys.stdout.write(f"{provider.name}: the key is in {provider.variable}\n")
    for provider in (known for known in found if known not in usable):
        sys.stdout.write(
            f"{provider.name}: {provider.variable} is set, but {provider.endpoint} is not; its entry is commented out "
            "and says what to set\n"
        )
    if not usable:
        names = ", ".join(known.variable for known in KNOWN)
        sys.stdout.write(f"No key to use was found (looked for {names}); the file expects {KNOWN[0].variable}.\n")
    sys.stdout.write(f"wrote {out}; next: extproc doctor --config {out}, then extproc up --config {out}\n")
    return 0


def known_providers(environ: Mapping[str, str]) -> tuple[Known, ...]:
    """Return the providers whose variable is set to something."""
    return tuple(known for known in KNOWN if environ.get(known.variable, "").strip())


def config_text(found: tuple[Known, ...], environ: Mapping[str, str], file: str) -> str:
    """Return the file's text; a provider whose address is not known is commented out."""
    usable = tuple(known for known in found if _has_address(known, environ)) or KNOWN[:1]
    unusable = tuple(known for known in found if not _has_address(known, environ))
    text = _HEAD.format(file=file)
    text += "".join(_provider(known, environ.get(known.endpoint or "", "")) for known in usable)
    text += "".join(_missing_address(known) + _commented(_provider(known, _NOWHERE)) for known in unusable)
    text += _MODELS
    text += "".join(_models(known) for known in usable)
    text += "".join(_commented(_models(known)) for known in unusable)
    return text + _TAIL


def _has_address(known: Known, environ: Mapping[str, str]) -> bool:
    return known.endpoint is None or bool(environ.get(known.endpoint, "").strip())


def _provider(known: Known, endpoint: str) -> str:
    base_url = known.base_url.format(endpoint=endpoint.strip().rstrip("/"))
    text = f"  {known.name}:\n    base_url: {base_url}\n    api_key: {{env: {known.variable}}}\n"
    return text + "".join(f"    {line}\n" for line in known.lines)


def _missing_address(known: Known) -> str:
    return (
        f"  # {known.endpoint} was not set: put your resource's address below, without .invalid,\n"
        "  # and remove the # signs here and below models.\n"
    )


def _models(known: Known) -> str:
    return "".join(
        f'  "{offer.name}":  # {offer.comment}\n    targets: [{{provider: {known.name}, model: "{offer.sent}"}}]\n'
        for offer in known.offers
    )


def _commented(text: str) -> str:
    return "".join(f"  # {line.removeprefix('  ')}\n" for line in text.splitlines())
