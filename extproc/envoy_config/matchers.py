"""The matcher shapes with which a filter is skipped: inputs, predicates and the wrapper that applies them."""

from __future__ import annotations

from extproc.envoy_config.resource import Json, any_of, extension


def skipped(name: str, inner: Json, when: Json) -> Json:
    """Return a filter that a request skips when the predicate holds."""
    skip = extension("skip", "envoy.extensions.filters.common.matcher.action.v3.SkipFilter")
    return extension(
        name,
        "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        extension_config=inner,
        xds_matcher={"matcher_list": {"matchers": [{"predicate": when, "on_match": {"action": skip}}]}},
    )


def predicate(matcher_input: Json, value_match: Json) -> Json:
    """Return a predicate: one input compared with one value."""
    return {"single_predicate": {"input": matcher_input, "value_match": value_match}}


def regex(pattern: str) -> Json:
    """Return a match of the whole value."""
    return {"safe_regex": {"google_re2": {}, "regex": pattern}}


def status_class() -> Json:
    """Return the input that is `2xx`, `4xx` and so on."""
    return extension("status-class", "envoy.type.matcher.v3.HttpResponseStatusCodeClassMatchInput")


def response_header(name: str) -> Json:
    """Return the input that is a header of the answer."""
    return {
        "name": name,
        "typed_config": any_of("envoy.type.matcher.v3.HttpResponseHeaderMatchInput", header_name=name),
    }


def request_header(name: str) -> Json:
    """Return the input that is a header of the request."""
    return {
        "name": name,
        "typed_config": any_of("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=name),
    }


def has_metadata(namespace: str, key: str, value: str) -> Json:
    """Return a predicate: one text of the request's dynamic metadata is `value`."""
    read = extension(
        "metadata",
        "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
        filter=namespace,
        path=[{"key": key}],
    )
    compared = extension(
        "envoy.matching.matchers.metadata_matcher",
        "envoy.extensions.matching.input_matchers.metadata.v3.Metadata",
        value={"string_match": {"exact": value}},
    )
    return {"single_predicate": {"input": read, "custom_match": compared}}
