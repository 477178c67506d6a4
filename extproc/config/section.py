"""What every section of a config file has in common, and how rules between the keys of one are told."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

_SectionT = TypeVar("_SectionT", bound="Section")


class Section(BaseModel):
    """What every section has in common: frozen, strict, no unknown keys, no values in messages."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Rule(NamedTuple):
    """A rule between keys of one section: whether it holds, what to say if not, and the keys it looks at."""

    holds: bool
    sentence: str
    keys: tuple[str, ...]


class BrokenRules(ValueError):  # noqa: N818 - what pydantic collects as a fault of the section
    """Every rule of a section that does not hold."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        super().__init__("; also ".join(rule.sentence for rule in rules))


def obeying(section: _SectionT, *rules: Rule) -> _SectionT:
    """Return a section that obeys its rules; raises BrokenRules with all that do not hold."""
    broken = tuple(rule for rule in rules if not rule.holds)
    if broken:
        raise BrokenRules(broken)
    return section
