"""What one part of a config says about another: names that must exist, things that must be unique.

Works on plain data, whole or broken, so that a file's cross-reference faults are found together with its
other faults: whatever has not the expected shape is skipped here, because the model reports it.
Invariant: on data that came out of the model, nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.base_url import judge_host, parse_base_url
from extproc.config.errors import Fault, Path, hint
from extproc.config.model import DEFAULT_POLICY
from extproc.config.snapshot import matches


def find_cross_faults(data: object) -> Iterator[Fault]:
    """Yield the faults between sections and between the entries of one list."""
    root = _mapping(data)
    providers, models = _mapping(root.get("providers")), _mapping(root.get("models"))
    policies = {DEFAULT_POLICY, *_mapping(root.get("policies"))}
    for name, provider in providers.items():
        yield from _provider_faults(("providers", name), _mapping(provider))
    for name, model in models.items():
        path: Path = ("models", name)
        entry = _mapping(model)
        yield from _target_faults((*path, "targets"), _items(entry.get("targets")), providers)
        policy = entry.get("policy", DEFAULT_POLICY)
        if isinstance(policy, str) and policy not in policies:
            yield Fault((*path, "policy"), f"names a policy that does not exist{hint(policy, policies)}")
        for key in ("fallback", "context_fallback"):
            yield from _fallback_faults((*path, key), _items(entry.get(key)), name, models)
    yield from _client_faults(_items(root.get("clients")))


def glob_order(pattern: str) -> tuple[int, int, str]:
    """Sort key for trying patterns: longest literal prefix, then most literal characters, then name."""
    return (-pattern.index("*"), pattern.count("*") - len(pattern), pattern)


def _provider_faults(path: Path, provider: dict[str, object]) -> Iterator[Fault]:
    try:
        url = parse_base_url(str(provider.get("base_url")))
    except ValueError:
        url = None
    if url and judge_host(url.host) == "private" and provider.get("allow_private_network", False) is False:
        reason = "is a loopback or private address; set allow_private_network: true if that is meant"
        yield Fault((*path, "base_url"), reason)
    if url and url.scheme == "http" and _mapping(provider.get("tls")):
        yield Fault((*path, "tls"), "has no effect on an http base_url; use https or remove tls")
    auth_header = _mapping(provider.get("auth")).get("header")
    seen = {auth_header.lower()} if isinstance(auth_header, str) else set()
    for name in _mapping(provider.get("headers")):
        if name.lower() in seen:
            reason = "is given twice (header names ignore case; the auth header counts too); keep one"
            yield Fault((*path, "headers", name), reason)
        seen.add(name.lower())


def _target_faults(path: Path, targets: tuple[object, ...], providers: dict[str, object]) -> Iterator[Fault]:
    seen: dict[object, int] = {}
    for position, item in enumerate(targets):
        target = _mapping(item)
        provider, model = target.get("provider"), target.get("model")
        if not isinstance(provider, str):
            continue
        if provider not in providers:
            near = hint(provider, providers) or "; add it under providers"
            reason = f"names a provider that does not exist{near}"
            yield Fault((*path, position, "provider"), reason)
        if not isinstance(model, str):
            continue
        first = seen.setdefault((provider, model), position)
        if first != position:
            yield Fault((*path, position), f"repeats targets[{first}]; keep one and set its weight")


def _fallback_faults(
    path: Path, names: tuple[object, ...], model_name: str, models: dict[str, object]
) -> Iterator[Fault]:
    seen: set[str] = set()
    for position, name in enumerate(names):
        if not isinstance(name, str) or "*" in name:
            continue
        if name in seen:
            yield Fault((*path, position), "repeats an earlier name of this list; remove it")
        seen.add(name)
        entry = _resolve(name, models)
        if entry is None:
            yield Fault((*path, position), f"names a model that does not exist{hint(name, models)}")
        elif entry == model_name and not (entry != name and _keeps_client_name(models[entry])):
            yield Fault((*path, position), "is the model itself; name another one")


def _resolve(name: str, models: dict[str, object]) -> str | None:
    if name in models:
        return name
    globs = sorted((key for key in models if "*" in key), key=glob_order)
    return next((key for key in globs if matches(key, name)), None)


def _keeps_client_name(model: object) -> bool:
    """Tell whether two names of one pattern reach different upstream models."""
    return any(_mapping(target).get("model") == "*" for target in _items(_mapping(model).get("targets")))


def _client_faults(clients: tuple[object, ...]) -> Iterator[Fault]:
    names: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for position, item in enumerate(clients):
        client = _mapping(item)
        name, token = client.get("name"), client.get("token_sha256")
        if isinstance(name, str) and names.setdefault(name, position) != position:
            yield Fault(("clients", position, "name"), f"is the name of clients[{names[name]}] too; choose another")
        for digest in (token,) if isinstance(token, str) else _items(token):
            if isinstance(digest, str) and tokens.setdefault(digest.lower(), position) != position:
                reason = f"is the token of clients[{tokens[digest.lower()]}] too; give every client its own"
                yield Fault(("clients", position, "token_sha256"), reason)


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, tuple | list) else ()
