"""Lanes: models and provider accounts of their own, so that tests can trip targets in one shared gateway.

Owns a config in which every lane has two provider accounts (each in front of one of two walls) and the models
that use them. Invariant: no two lanes share an account, so what one test does to health no other test sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tests.support.gateway import provider
from tests.support.wall import Wall

Policies = Mapping[str, Mapping[str, Any]]


class Lane(NamedTuple):
    """The names of one lane; each is also what its models ask their providers for."""

    primary: str
    fallback: str
    model: str
    """Served by primary, falls back to the model `spare`."""
    tiered: str
    """Served by primary; fallback serves the same model in the second tier."""
    wide: str
    """Three tiers: primary, fallback, and another model of fallback."""
    alone: str
    """Served by primary and nobody else."""
    spare: str
    """Served by fallback and nobody else."""

    @property
    def by_primary(self) -> str:
        """What `x-gateway-served-by` says when primary served."""
        return f"{self.primary}/{PRIMARY_MODEL}"

    @property
    def by_fallback(self) -> str:
        return f"{self.fallback}/{FALLBACK_MODEL}"


PRIMARY_MODEL, FALLBACK_MODEL, THIRD_MODEL = "primary-upstream", "fallback-upstream", "third-upstream"


class Lanes:
    """Builds the config, then hands out each lane once; `sizes` says how many each policy has.

    The providers are keyless: Envoy spends one inotify instance on each key, and a user has few of those.
    """

    def __init__(self, primary: Wall, fallback: Wall, policies: Policies, sizes: Mapping[str, int]) -> None:
        self._walls = primary, fallback
        self._policies = {"default": {}, **policies}
        self._sizes = sizes
        self._unused: dict[str, Iterator[Lane]] = {name: iter(self._named(name)) for name in self._policies}

    def take(self, policy: str = "default") -> Lane:
        """Return a lane that nobody has used."""
        lane = next(self._unused[policy], None)
        assert lane is not None, f"all lanes of the policy {policy} are taken: make more"
        return lane

    @property
    def config(self) -> dict[str, Any]:
        providers: dict[str, Any] = {}
        models: dict[str, Any] = {}
        for policy in self._policies:
            for lane in self._named(policy):
                providers |= self._providers(lane)
                models |= {name: entry | {"policy": policy} for name, entry in _models(lane).items()}
        return {"schema": 1, "providers": providers, "models": models, "policies": dict(self._policies)}

    def _named(self, policy: str) -> list[Lane]:
        kinds = ("primary", "fallback", "model", "tiered", "wide", "alone", "spare")
        return [Lane(*(f"{kind}-{policy}-{number}" for kind in kinds)) for number in range(self._sizes[policy])]

    def _providers(self, lane: Lane) -> dict[str, Any]:
        primary, fallback = self._walls
        return {lane.primary: provider(primary), lane.fallback: provider(fallback)}


def _models(lane: Lane) -> dict[str, dict[str, Any]]:
    first = {"provider": lane.primary, "model": PRIMARY_MODEL}
    second = {"provider": lane.fallback, "model": FALLBACK_MODEL}
    third = {"provider": lane.fallback, "model": THIRD_MODEL}
    return {
        lane.model: {"targets": [first], "fallback": [lane.spare]},
        lane.tiered: {"targets": [first, second | {"tier": 1}]},
        lane.wide: {"targets": [first, second | {"tier": 1}, third | {"tier": 2}]},
        lane.alone: {"targets": [first]},
        lane.spare: {"targets": [second]},
    }
