"""A bootstrap that `envoy --mode validate` can judge whole: everything that normally comes from files is in it."""

from __future__ import annotations

from typing import Any

from extproc.envoy_config.render import Rendered
from extproc.envoy_config.resource import Json


def validation_bootstrap(rendered: Rendered) -> Json:
    """Return the rendered documents as one static configuration; secrets stay references to their files."""
    document = {key: value for key, value in rendered.bootstrap.items() if key != "dynamic_resources"}
    own = document["static_resources"]["clusters"]
    document["static_resources"] = {
        "clusters": own + [_untyped(cluster) for cluster in rendered.cds],
        "listeners": [_with_routes(_untyped(listener), _untyped(rendered.rds)) for listener in rendered.lds],
    }
    return document


def _untyped(resource: Json) -> Json:
    return {key: value for key, value in resource.items() if key != "@type"}


def _with_routes(value: Any, routes: Json) -> Any:
    """Return a resource with every `rds` replaced by the routes it would fetch."""
    if isinstance(value, list):
        return [_with_routes(item, routes) for item in value]
    if not isinstance(value, dict):
        return value
    replaced = {key: _with_routes(item, routes) for key, item in value.items() if key != "rds"}
    if "rds" in value:
        replaced["route_config"] = routes
    return replaced
