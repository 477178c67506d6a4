"""The operator's file -> `GatewayConfig`, or everything that is wrong with it at once.

Owns the joining of YAML faults, pydantic's findings and cross-reference faults into `ConfigErrors` with
lines, and the sentences for pydantic's own findings. Reads files; reads no environment and no key.
Invariants: one error a path, in the order of the file; no sentence quotes a value.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path as FilePath

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from extproc.config.document import MAX_TEXT_CHARS, Document, parse_document
from extproc.config.errors import ConfigError, ConfigErrors, Fault, Path, format_path, hint, near_miss, shown
from extproc.config.keys import known_keys
from extproc.config.model import GatewayConfig
from extproc.config.references import find_cross_faults
from extproc.config.section import BrokenRules

_SENTENCES = {
    "missing": "is required; add it",
    "string_type": "must be text; put it in quotes",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "tuple_type": "must be a list",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least"),
    "greater_than": ("gt", "must be more than"),
    "less_than_equal": ("le", "must be at most"),
    "less_than": ("lt", "must be less than"),
}


def parse_config_file(path: FilePath) -> GatewayConfig:
    """Read and check a file; ConfigErrors when it is missing, unreadable or wrong."""
    source = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_TEXT_CHARS + 1)
        return load_config(content.decode("utf-8-sig"), source)
    except FileNotFoundError:
        reason = "does not exist; check the path"
    except UnicodeDecodeError:
        reason = "is not UTF-8 text; save it as UTF-8"
    except OSError as error:
        reason = f"cannot be read ({error.strerror or type(error).__name__}); check the path and its permissions"
    raise ConfigErrors([ConfigError("", source, reason)])


def load_config(text: str, source: str = "config") -> GatewayConfig:
    """Check a file's text; ConfigErrors holds everything that is wrong, `source` names the file in it."""
    document = parse_document(text)
    if document.data is None:
        raise ConfigErrors(_located(document.faults, document, source))
    config: GatewayConfig | None = None
    found: list[Fault] = []
    try:
        config = GatewayConfig.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        found = [*map(_explain, details), *_rules_beside(details, document.data)]
    faults = [*document.faults, *found, *find_cross_faults(document.data)]
    if config is None or faults:
        raise ConfigErrors(_located(faults, document, source))
    return config


def _rules_beside(details: Iterable[ErrorDetails], data: object) -> Iterator[Fault]:
    """Yield the rules that pydantic did not come to, because other keys of their sections are wrong.

    The data is judged again without what is wrong; a rule that looks at anything left out says nothing.
    """
    wrong = {path for detail in details for path in _wrong_keys(detail)}
    try:
        GatewayConfig.model_validate(_without(data, wrong))
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            broken, path = detail.get("ctx", {}).get("error"), detail["loc"]
            rules = broken.rules if isinstance(broken, BrokenRules) else ()
            judged = tuple(rule for rule in rules if not any((*path, key) in wrong for key in rule.keys))
            if judged:
                yield Fault(path, str(BrokenRules(judged)))


def _wrong_keys(detail: ErrorDetails) -> Iterator[Path]:
    """Yield the key that a fault is in, and the one that a misspelt key was probably meant to be."""
    path = detail["loc"]
    while path and isinstance(path[-1], int):
        # The list goes whole: without one of its items the positions of the others would mean something else.
        path = path[:-1]
    yield path
    if detail["type"] == "extra_forbidden" and (meant := near_miss(str(path[-1]), known_keys(path[:-1]))):
        yield (*path[:-1], meant)


def _without(value: object, wrong: Container[Path], path: Path = ()) -> object:
    if isinstance(value, dict):
        kept = {key: below for key, below in value.items() if (*path, key) not in wrong}
        return {key: _without(below, wrong, (*path, key)) for key, below in kept.items()}
    if isinstance(value, tuple):
        return tuple(_without(below, wrong, (*path, position)) for position, below in enumerate(value))
    return value


def _located(faults: Iterable[Fault], document: Document, source: str) -> list[ConfigError]:
    first: dict[Path | int, Fault] = {}
    for fault in faults:
        line = fault.line or _line_of(fault.path, document.lines)
        first.setdefault(fault.path or line, fault._replace(line=line))
    ordered = sorted(first.values(), key=lambda fault: fault.line or 0)
    return [ConfigError(format_path(fault.path), f"{source}:{fault.line}", fault.reason) for fault in ordered]


def _line_of(path: Path, lines: Mapping[Path, int]) -> int:
    """Return the line of a path, or of the nearest section around a key that is not there."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _explain(detail: ErrorDetails) -> Fault:
    kind, context = detail["type"], detail.get("ctx", {})
    path = detail["loc"][:-1] if detail["loc"][-1:] == ("[key]",) else detail["loc"]
    if kind == "extra_forbidden":
        word = str(path[-1])
        return Fault(path, f"unknown key '{shown(word)}'{hint(word, known_keys(path[:-1]))}")
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        return Fault(path, f"must be {'one of: ' if ',' in choices else ''}{choices}")
    if kind in _BOUNDS:
        bound, sentence = _BOUNDS[kind]
        return Fault(path, f"{sentence} {context[bound]:g}")
    if kind == "value_error":
        return Fault(path, str(context["error"]))
    return Fault(path, _SENTENCES.get(kind, detail["msg"]))
