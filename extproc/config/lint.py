"""Finds what a valid config says without effect, or with less effect than it seems: dead policy.

Pure: a snapshot in, findings out, in the order of the file's sections and names. A finding never makes a config
invalid; `configctl preview` shows them and `--strict` refuses them. Whatever can be told only at run time (health,
keys) is not looked at, and where patterns leave a doubt nothing is said.

Codes: `single_account`, `fallback_same_account`, `fallback_other_protocol`, `fallback_adds_nothing`,
`fallback_smaller_context`, `context_fallback_not_larger`, `unreachable_model`, `shadowed_pattern`,
`affinity_without_choice`, `timeout_exceeds_deadline`, `timeout_exceeds_max_duration`, `unused_provider`,
`unused_policy`, `unused_client_pattern`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from extproc.config.errors import Path, format_path
from extproc.config.snapshot import Model, Policy, ResolvedModel, Snapshot, TargetKey, matches
from extproc.config.units import format_duration

_DEFAULT_POLICY = "default"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at: `code` for scripts, `path` in the file, what is so, and what to do about it."""

    code: str
    path: str
    sentence: str
    advice: str


def find_dead_policy(snapshot: Snapshot) -> tuple[Finding, ...]:
    """Return the findings of a snapshot; empty for a config in which everything has its effect."""
    found: list[Finding] = []
    found += _unused_providers(snapshot)
    for model in snapshot.models.values():
        found += _model_findings(snapshot, model)
    for policy in snapshot.policies.values():
        found += _policy_findings(snapshot, policy)
    found += _client_findings(snapshot)
    return tuple(found)


def _unused_providers(snapshot: Snapshot) -> Iterator[Finding]:
    used = {target.provider for model in snapshot.models.values() for target in model.targets}
    for name in snapshot.providers:
        if name not in used:
            sentence = f"No model has a target at provider {name}: it never gets a request."
            yield _finding("unused_provider", ("providers", name), sentence, "Add a target at it, or remove it.")


def _model_findings(snapshot: Snapshot, model: Model) -> Iterator[Finding]:
    path: Path = ("models", model.name)
    yield from _who_may_ask(snapshot, model, path)
    accounts = {key.provider for key in _reach(snapshot, model)}
    if len(accounts) == 1:
        sentence = f"Only one provider account, {min(accounts)}, can serve {model.name}: when it fails, requests fail."
        advice = "Add a target or a fallback at another account."
        yield _finding("single_account", path, sentence, advice)
    if model.affinity is not None and len(model.targets) == 1:
        sentence = f"{model.name} has one target, so there is no choice for a session to stay with."
        yield _finding("affinity_without_choice", (*path, "affinity"), sentence, "Add a target, or remove affinity.")
    for key, names in (("fallback", model.fallback), ("context_fallback", model.context_fallback)):
        for position, name in enumerate(names):
            resolved = snapshot.resolve(name)
            if resolved is not None:
                yield from _fallback_findings(snapshot, model, (*path, key, position), resolved)


def _who_may_ask(snapshot: Snapshot, model: Model, path: Path) -> Iterator[Finding]:
    if model.is_glob:
        for earlier in snapshot.globs[: snapshot.globs.index(model)]:
            if matches(earlier.name, model.name):
                sentence = f"Every name that fits {model.name} is taken by {earlier.name}, which is tried first."
                yield _finding("shadowed_pattern", path, sentence, "Remove one of the two, or make it more specific.")
                return
    if snapshot.clients is None or _is_fallback(snapshot, model):
        return
    patterns = [pattern for client in snapshot.clients for pattern in client.models]
    if not any(_may_overlap(pattern, model.name) for pattern in patterns):
        sentence = f"No client may ask for {model.name}, and no model falls back to it."
        yield _finding("unreachable_model", path, sentence, "Allow it to a client (clients[].models), or remove it.")


def _is_fallback(snapshot: Snapshot, model: Model) -> bool:
    names = {name for other in snapshot.models.values() for name in (*other.fallback, *other.context_fallback)}
    return any(resolved.entry is model for name in names if (resolved := snapshot.resolve(name)) is not None)


def _fallback_findings(snapshot: Snapshot, model: Model, path: Path, fallback: ResolvedModel) -> Iterator[Finding]:
    own, other = _keys(ResolvedModel(model.name, model)), _keys(fallback)
    for_context = path[-2] == "context_fallback"
    protocols = {snapshot.providers[key.provider].protocol for key in own}
    usable = {key for key in other if snapshot.providers[key.provider].protocol in protocols}
    if not usable:
        sentence = f"{fallback.name} has no target that speaks {' or '.join(sorted(protocols))}, as {model.name} does."
        advice = "Name a model whose providers speak the same protocol."
        yield _finding("fallback_other_protocol", path, sentence, advice)
    elif usable <= own:
        sentence = f"{fallback.name} has only targets that {model.name} has too: it adds nothing."
        yield _finding("fallback_adds_nothing", path, sentence, "Name another model, or remove it.")
    elif not for_context and len(accounts := {key.provider for key in (*own, *usable)}) == 1:
        sentence = f"{fallback.name} is at the same provider account, {min(accounts)}: when it fails, both fail."
        yield _finding("fallback_same_account", path, sentence, "Name a model that has a target at another account.")
    yield from _context_findings(model, path, fallback, for_context)


def _context_findings(model: Model, path: Path, fallback: ResolvedModel, for_context: bool) -> Iterator[Finding]:
    window, other = model.context_window, fallback.entry.context_window
    if window is None or other is None:
        return
    if for_context and other <= window:
        sentence = f"{fallback.name} takes {other} tokens, no more than {model.name} with {window}."
        yield _finding("context_fallback_not_larger", path, sentence, "Name a model with a larger context window.")
    elif not for_context and other < window:
        sentence = (
            f"{fallback.name} takes {other} tokens, {model.name} takes {window}: longer requests will fail there."
        )
        advice = "Name a model with a context window at least as large, or add context_fallback to it."
        yield _finding("fallback_smaller_context", path, sentence, advice)


def _policy_findings(snapshot: Snapshot, policy: Policy) -> Iterator[Finding]:
    path: Path = ("policies", policy.name)
    if all(model.policy != policy.name for model in snapshot.models.values()):
        if policy.name != _DEFAULT_POLICY:
            sentence = f"No model uses policy {policy.name}."
            yield _finding("unused_policy", path, sentence, "Name it in a model's policy, or remove it.")
        return
    timeouts = {
        "connect_timeout": policy.connect_timeout_s,
        "first_byte_timeout": policy.first_byte_timeout_s,
        "first_token_timeout": policy.first_token_timeout_s,
    }
    for key, timeout_s in timeouts.items():
        if policy.attempts > 1 and timeout_s >= policy.deadline_s:
            sentence = (
                f"{key} ({format_duration(timeout_s)}) uses up the deadline ({format_duration(policy.deadline_s)}): "
                "after such a silence no other target is tried."
            )
            yield _finding("timeout_exceeds_deadline", (*path, key), sentence, f"Lower {key}, or raise deadline.")
    for key, timeout_s in {**timeouts, "deadline": policy.deadline_s}.items():
        if 0 < policy.max_duration_s < timeout_s:
            whole = format_duration(policy.max_duration_s)
            sentence = f"{key} ({format_duration(timeout_s)}) is never reached: max_duration ends requests at {whole}."
            advice = f"Lower {key}, or raise max_duration."
            yield _finding("timeout_exceeds_max_duration", (*path, key), sentence, advice)


def _client_findings(snapshot: Snapshot) -> Iterator[Finding]:
    for position, client in enumerate(snapshot.clients or ()):
        for index, pattern in enumerate(client.models):
            if not any(_may_overlap(pattern, name) for name in snapshot.models):
                sentence = f"{pattern} fits no model of this config: it allows {client.name} nothing."
                path: Path = ("clients", position, "models", index)
                yield _finding("unused_client_pattern", path, sentence, "Correct the pattern, or remove it.")


def _reach(snapshot: Snapshot, model: Model) -> set[TargetKey]:
    """Return every target that a request for a model may end at, as far as its own protocols go."""
    own = _keys(ResolvedModel(model.name, model))
    protocols = {snapshot.providers[key.provider].protocol for key in own}
    resolved = [found for name in model.fallback if (found := snapshot.resolve(name)) is not None]
    others = {key for fallback in resolved for key in _keys(fallback)}
    return own | {key for key in others if snapshot.providers[key.provider].protocol in protocols}


def _keys(resolved: ResolvedModel) -> set[TargetKey]:
    return {TargetKey(target.provider, resolved.upstream_model(target)) for target in resolved.entry.targets}


def _may_overlap(first: str, second: str) -> bool:
    """Tell whether some name may fit both patterns; True where that is not certain."""
    if "*" not in second:
        return matches(first, second)
    if "*" not in first:
        return matches(second, first)
    head, other_head = first.split("*")[0], second.split("*")[0]
    tail, other_tail = first.split("*")[-1], second.split("*")[-1]
    heads = head.startswith(other_head) or other_head.startswith(head)
    return heads and (tail.endswith(other_tail) or other_tail.endswith(tail))


def _finding(code: str, path: Iterable[str | int], sentence: str, advice: str) -> Finding:
    return Finding(code, format_path(tuple(path)), sentence, advice)
