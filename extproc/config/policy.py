"""The shape of `policies`: what a request may cost, and what its failures mean for the health of targets.

Owns these sections' keys, defaults and ranges, as `model.py` does for the rest of the file. The sentence below a key is
its line in docs/configuration.md.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from extproc.config import fields as kinds
from extproc.config.section import Rule, Section, obeying


class SameTarget(Section):
    """When one target is tried twice in a request."""

    max: Annotated[int, Field(ge=0, le=7)] = 1
    """How often one target is tried again in a request."""
    on: kinds.SameTargetClasses = ("rate_limited", "server_error")
    """The error classes after which it is."""
    backoff: kinds.Duration = 0.25
    """The longest wait before the first try again; doubles with each."""
    max_backoff: kinds.Duration = 2.0
    """The longest such wait."""
    retry_after_up_to: kinds.Duration = 3.0
    """A `Retry-After` of at most this is waited for; a longer one sends the request to the next target."""
    only_if_faster_than: kinds.Duration = 1.0
    """A slower failure, one without `Retry-After`, sends the request to the next target."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        sentence = "must have a max_backoff of at least its backoff; raise max_backoff or lower backoff"
        return obeying(self, Rule(self.backoff <= self.max_backoff, sentence, ("backoff", "max_backoff")))


class Cooldown(Section):
    """How a target trips and how long it stays out."""

    base: kinds.PositiveDuration = 15.0
    """How long a target rests after it tripped for the first time."""
    factor: Annotated[float, Field(ge=1, le=100)] = 2.0
    """How much longer it rests each time it trips again."""
    max: kinds.PositiveDuration = 120.0
    """The longest such rest; a provider's own `Retry-After` may be longer."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Random share by which a rest is longer or shorter, so that not all come back at once."""
    consecutive: Annotated[int, Field(ge=1, le=1000)] = 3
    """Failures in a row that trip a target."""
    failure_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failures within `window` that trips a target."""
    window: kinds.PositiveDuration = 30.0
    """How far back failures count."""
    min_requests: Annotated[int, Field(ge=1, le=100_000)] = 5
    """Requests within `window` that `failure_ratio` needs."""
    quota: kinds.PositiveDuration = 1800.0
    """How long a provider account rests when its quota is exhausted."""
    cap: kinds.PositiveDuration = 86_400.0
    """The longest rest whatever a provider asks for."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        at_least_base = "must have a max of at least its base; raise max or lower base"
        at_least_both = "must have a cap of at least its max and its quota; raise cap"
        return obeying(
            self,
            Rule(self.base <= self.max, at_least_base, ("base", "max")),
            Rule(max(self.max, self.quota) <= self.cap, at_least_both, ("max", "quota", "cap")),
        )


class Policy(Section):
    """What one request may cost in attempts and time, and how failures are treated."""

    attempts: Annotated[int, Field(ge=1, le=8)] = 3
    """Attempts at providers that a request may cost, the first included."""
    deadline: kinds.PositiveDuration = 90.0
    """No new attempt starts later than this after the request arrived."""
    max_duration: kinds.Duration = 1800.0
    """How long a whole request may take; 0 for no limit."""
    connect_timeout: kinds.PositiveDuration = 2.0
    """How long connecting to a provider may take."""
    first_byte_timeout: kinds.PositiveDuration = 60.0
    """Silence before an answer that is not streamed."""
    first_token_timeout: kinds.PositiveDuration = 15.0
    """Silence before the first real output of a stream."""
    stream_idle_timeout: kinds.PositiveDuration = 30.0
    """Silence inside a stream."""
    stream_guard: Literal["off", "first_token", "complete"] = "first_token"
    """How long a stream is held back, for a failover unseen: not at all, to its first real output, or to its end."""
    same_target: SameTarget = Field(default_factory=SameTarget)
    """When the same target is tried again."""
    cooldown: Cooldown = Field(default_factory=Cooldown)
    """When a target is given a rest, and how long."""
    when_all_down: Literal["least_bad", "fail"] = "least_bad"
    """What to do when every target is unwell: try the least bad one, or fail at once."""
    force_usage: bool = False
    """Ask providers for the token usage of streams."""
