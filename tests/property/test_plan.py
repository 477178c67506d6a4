"""Whatever the config and the health of its targets: a plan holds each eligible target once, and nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.config.snapshot import ResolvedModel, Snapshot, TargetKey
from extproc.core.health import HEALTHY, State, View
from extproc.core.outcome import RouteMode
from extproc.core.plan import Plan, candidates, plan_request, plan_rest
from tests.unit.core.build import config, provider, snapshot

PROVIDERS = ("a", "b", "c")
MODELS = ("big", "x", "y")
KEYS = st.builds(TargetKey, st.sampled_from(PROVIDERS), st.sampled_from(["m1", "m2"]))
TICKETS = st.integers(0, 2**40)
VIEWS = st.one_of(
    st.just(HEALTHY),
    st.builds(View, st.just(State.DEGRADED), st.just(True), st.floats(0.01, 1.0)),
    st.builds(View, st.just(State.PROBING), st.just(True), st.floats(0.01, 1.0), st.just(True)),
    st.just(View(State.COOLING, eligible=False, reason="rate_limited", until=1.0)),
)
HEALTH = st.dictionaries(KEYS, VIEWS)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Snapshot, ResolvedModel]:
    """Draw a config with models that fall back to each other, and a model to ask for."""
    lines = st.fixed_dictionaries(
        {"provider": st.sampled_from(PROVIDERS), "model": st.sampled_from(["m1", "m2"])},
        optional={"weight": st.integers(1, 9), "tier": st.integers(0, 2)},
    )
    targets = st.lists(lines, min_size=1, max_size=5, unique_by=lambda line: (line["provider"], line["model"]))
    models: dict[str, Any] = {}
    for name in MODELS:
        others = st.permutations([other for other in MODELS if other != name])
        length = draw(st.integers(0, 2))
        models[name] = {"targets": draw(targets)}
        if length:
            models[name] |= {"fallback": list(draw(others))[:length], "context_fallback": list(draw(others))[:1]}
    all_down = draw(st.sampled_from(["least_bad", "fail"]))
    providers = {name: provider(name) for name in PROVIDERS}
    providers["c"] |= {"protocol": draw(st.sampled_from(["openai", "anthropic"]))}
    compiled = snapshot(config(models, {"when_all_down": all_down}, providers=providers))
    resolved = compiled.resolve("big")
    assert resolved is not None
    return compiled, resolved


def made(scene: tuple[Snapshot, ResolvedModel], health: dict[TargetKey, View], ticket: int) -> Plan:
    """Plan a request."""
    compiled, resolved = scene
    return plan_request(compiled, resolved, "openai", lambda key: health.get(key, HEALTHY), ticket)


@given(scenes(), HEALTH, TICKETS)
def test_a_plan_is_the_same_for_the_same_evidence(
    scene: tuple[Snapshot, ResolvedModel], health: dict[TargetKey, View], ticket: int
) -> None:
    assert made(scene, health, ticket) == made(scene, health, ticket)


@given(scenes(), HEALTH, TICKETS)
def test_planned_and_skipped_are_all_candidates_each_once(
    scene: tuple[Snapshot, ResolvedModel], health: dict[TargetKey, View], ticket: int
) -> None:
    plan = made(scene, health, ticket)
    compiled, resolved = scene
    every = {key for _, _, key in candidates(compiled, resolved, resolved.entry.fallback, "openai")}
    planned, skipped = [step.key for step in plan.planned], [skip.key for skip in plan.skipped]
    assert (len(set(planned)), len(set(skipped))) == (len(planned), len(skipped))
    assert every == set(planned) | set(skipped)


@given(scenes(), HEALTH, TICKETS)
def test_only_eligible_targets_are_planned_unless_there_is_none(
    scene: tuple[Snapshot, ResolvedModel], health: dict[TargetKey, View], ticket: int
) -> None:
    plan = made(scene, health, ticket)
    eligible = [health.get(step.key, HEALTHY).eligible for step in plan.planned]
    last_resort = [step.mode is RouteMode.LAST_RESORT for step in plan.planned]
    assert all(eligible) or (all(last_resort) and not any(eligible))


@given(scenes(), HEALTH, TICKETS)
def test_every_skipped_target_has_a_reason(
    scene: tuple[Snapshot, ResolvedModel], health: dict[TargetKey, View], ticket: int
) -> None:
    assert all(skip.reason for skip in made(scene, health, ticket).skipped)


@given(scenes(), HEALTH, TICKETS)
def test_modes_say_where_a_step_stands(
    scene: tuple[Snapshot, ResolvedModel], health: dict[TargetKey, View], ticket: int
) -> None:
    first = {RouteMode.DIRECT, RouteMode.BALANCED, RouteMode.HEALTH_REROUTE}
    for place, step in enumerate(made(scene, health, ticket).planned):
        if step.mode is not RouteMode.LAST_RESORT:
            own = first if place == 0 else {RouteMode.PROVIDER_FAILOVER}
            assert step.mode in (own if step.public_model == "big" else {RouteMode.MODEL_FALLBACK})


@given(scenes(), TICKETS)
def test_with_everything_healthy_tiers_stay_in_order(scene: tuple[Snapshot, ResolvedModel], ticket: int) -> None:
    compiled, resolved = scene
    place = {
        key: (["big", *resolved.entry.fallback].index(model.name), target.tier)
        for model, target, key in candidates(compiled, resolved, resolved.entry.fallback, "openai")
    }
    places = [place[step.key] for step in made(scene, {}, ticket).planned]
    assert sorted(places) == places


@given(scenes(), HEALTH, TICKETS, st.sets(KEYS), st.booleans())
def test_what_is_left_after_failures_is_eligible_and_was_not_tried(
    scene: tuple[Snapshot, ResolvedModel],
    health: dict[TargetKey, View],
    ticket: int,
    tried: set[TargetKey],
    context: bool,
) -> None:
    compiled, resolved = scene
    names = resolved.entry.context_fallback if context else resolved.entry.fallback
    every = {key for _, _, key in candidates(compiled, resolved, names, "openai", own=not context)}
    left = plan_rest(compiled, resolved, "openai", lambda key: health.get(key, HEALTHY), ticket, tried, context=context)
    expected = {key for key in every - tried if health.get(key, HEALTHY).eligible}
    assert (len(left), expected) == (len(expected), {step.key for step in left})
