"""Provider clusters: named by their content, fitted with the chain that keeps keys and internals where they belong."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from extproc.config.base_url import denied_networks
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.envoy_config.clusters import LEAST_PENDING, UNLIMITED
from extproc.envoy_config.filters import foreign_headers
from extproc.envoy_config.resource import MIB
from extproc.wire import names
from tests.unit.config.build import SMALL, edited
from tests.unit.envoy_config.build import CA_FILE, ORDINARY, PATHS, find, rendered

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
Steps = tuple[str | int, ...]


def clusters(config: Any = None) -> dict[str, dict[str, Any]]:
    """Render clusters by provider name; where a provider has several, the last one wins."""
    return {cluster["name"].rpartition("-")[0]: cluster for cluster in rendered(config).cds}


def changed(path: Steps, value: object) -> set[str]:
    """Return which providers' clusters get another name when one value of the ordinary config changes."""
    before, after = rendered().clusters, rendered(edited(ORDINARY, path, value)).clusters
    return {pair[0] for pair in before if before[pair] != after.get(pair)}


def chain(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a cluster's upstream filters."""
    filters: list[dict[str, Any]] = cluster["typed_extension_protocol_options"][HTTP_OPTIONS]["http_filters"]
    return filters


def static(name: str) -> dict[str, Any]:
    """Return one of the gateway's own clusters."""
    (found,) = find(rendered().bootstrap["static_resources"], name=name)
    return found


def permits(rule: dict[str, Any], address: IPv4Address | IPv6Address, port: int = 443) -> bool:
    """Judge an address as Envoy judges it by an RBAC permission: a network holds addresses of its own family only."""
    ((kind, value),) = rule.items()
    if kind == "and_rules":
        return all(permits(one, address, port) for one in value["rules"])
    if kind == "or_rules":
        return any(permits(one, address, port) for one in value["rules"])
    if kind == "not_rule":
        return not permits(value, address, port)
    at = value["typed_config"]
    ports = at.get("upstream_port_range", {"start": 0, "end": 1 << 16})
    network = ip_network(f"{at['upstream_ip']['address_prefix']}/{at['upstream_ip']['prefix_len']}")
    return address in network and ports["start"] <= port < ports["end"]


class TestTheName:
    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("providers", "openai", "base_url"), "https://eu.openai.com/v1"),
            (("providers", "openai", "base_url"), "https://api.openai.com:8443/v1"),
            (("providers", "openai", "base_url"), "http://api.openai.com/v1"),
            (("providers", "openai", "api_key"), {"env": "OTHER_KEY"}),
            (("providers", "openai", "api_key"), {"file": "/run/secrets/openai"}),
            (("providers", "openai", "api_key"), ...),
            (("providers", "openai", "auth"), {"header": "api-key", "prefix": ""}),
            (("providers", "openai", "auth"), {"prefix": "Token "}),
            (("providers", "openai", "headers"), {"OpenAI-Organization": "org-2"}),
            (("providers", "openai", "tls"), {"ca_file": "/ca.pem"}),
            (("providers", "openai", "limits"), {"max_connections": 5}),
            (("providers", "openai", "limits"), {"max_pending": 5}),
        ],
    )
    def test_changes_with_whatever_the_cluster_is_made_of(self, path: Steps, value: object) -> None:
        assert {"openai"} == changed(path, value)

    def test_of_every_cluster_changes_with_the_buffers(self) -> None:
        assert {"openai", "local"} == changed(("server", "max_body"), "100MiB")

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("models", "small", "fallback"), ["big"]),
            (("policies", "patient", "attempts"), 2),
            (("providers", "openai", "error_codes"), {"x": "overloaded"}),
            (("providers", "openai", "query"), {"api-version": "1"}),
        ],
    )
    def test_stays_when_only_python_s_decisions_change(self, path: Steps, value: object) -> None:
        assert set() == changed(path, value)

    def test_is_the_same_for_the_same_content(self) -> None:
        assert rendered().clusters == rendered().clusters

    def test_does_not_depend_on_a_key_s_value(self) -> None:
        assert rendered(environ={"OPENAI_KEY": "one"}).clusters == rendered(environ={"OPENAI_KEY": "two"}).clusters

    def test_says_whose_it_is(self) -> None:
        assert all(re.fullmatch(r"(openai|local)-[0-9a-f]{10}", cluster["name"]) for cluster in rendered().cds)

    def test_is_the_one_that_its_own_filters_and_assignment_know(self) -> None:
        for cluster in rendered().cds:
            told = {node["value"] for node in find(cluster, key=names.G_CLUSTER)}
            assert ({cluster["name"]}, cluster["name"]) == (told, cluster["load_assignment"]["cluster_name"])


class TestWhichClustersThereAre:
    def test_one_for_each_provider_and_connect_timeout_in_use(self) -> None:
        found = sorted((c["name"].rpartition("-")[0], c["connect_timeout"]) for c in rendered().cds)
        assert [("local", "7s"), ("openai", "2s"), ("openai", "7s")] == found

    def test_each_policy_goes_to_the_one_with_its_connect_timeout(self) -> None:
        timeouts = {cluster["name"]: cluster["connect_timeout"] for cluster in rendered().cds}
        assert {
            ("local", "patient"): "7s",
            ("openai", "patient"): "7s",
            ("openai", "default"): "2s",
        } == {pair: timeouts[name] for pair, name in rendered().clusters.items()}

    def test_policies_with_the_same_timeout_share_one(self) -> None:
        config = edited(ORDINARY, ("policies", "patient", "connect_timeout"), "2s")
        assert 2 == len(rendered(config).cds)

    @pytest.mark.parametrize("key", ["fallback", "context_fallback"])
    def test_a_fallback_s_providers_have_one_for_the_policy_of_the_model_that_falls_back(self, key: str) -> None:
        config = edited(ORDINARY, ("models", "small", key), ["big"])
        assert ("local", "default") in rendered(config).clusters


class TestReachingAProvider:
    def test_by_name_resolves_ipv4_first(self) -> None:
        cluster = clusters()["openai"]
        assert ("STRICT_DNS", "V4_PREFERRED") == (cluster["type"], cluster["dns_lookup_family"])

    def test_by_address_asks_no_dns(self) -> None:
        cluster = clusters()["local"]
        assert ("STATIC", False) == (cluster["type"], "dns_lookup_family" in cluster)

    def test_falls_on_an_address_that_refuses_when_the_name_does_not_resolve(self) -> None:
        """A refusal is retried with the next group; a cluster without a host answers 503 and is not."""
        cluster = clusters()["openai"]
        places = [
            (group["priority"], group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"])
            for group in cluster["load_assignment"]["endpoints"]
        ]
        assert [
            (0, {"address": "api.openai.com", "port_value": 443}),
            (1, {"address": "127.0.0.1", "port_value": 1}),
        ] == places
        assert {"value": 0} == cluster["common_lb_config"]["healthy_panic_threshold"]

    def test_names_the_host_on_every_endpoint(self) -> None:
        groups = clusters()["openai"]["load_assignment"]["endpoints"]
        assert {"api.openai.com"} == {group["lb_endpoints"][0]["endpoint"]["hostname"] for group in groups}

    def test_over_tls_checks_name_and_authorities(self) -> None:
        tls = clusters()["openai"]["transport_socket"]["typed_config"]
        context = tls["common_tls_context"]["validation_context"]
        san = [{"san_type": "DNS", "matcher": {"exact": "api.openai.com"}}]
        assert ("api.openai.com", {"filename": CA_FILE}, san) == (
            tls["sni"],
            context["trusted_ca"],
            context["match_typed_subject_alt_names"],
        )

    def test_over_tls_uses_the_operator_s_files(self) -> None:
        own = {"ca_file": "/ca.pem", "client_cert_file": "/cert.pem", "client_key_file": "/key.pem"}
        config = edited(ORDINARY, ("providers", "openai", "tls"), own)
        context = clusters(config)["openai"]["transport_socket"]["typed_config"]["common_tls_context"]
        assert {"filename": "/ca.pem"} == context["validation_context"]["trusted_ca"]
        certificate = {"certificate_chain": {"filename": "/cert.pem"}, "private_key": {"filename": "/key.pem"}}
        assert [certificate] == context["tls_certificates"]

    def test_over_tls_by_address_checks_the_address_and_sends_no_name(self) -> None:
        config = edited(ORDINARY, ("providers", "local", "base_url"), "https://127.0.0.1/v1")
        tls = clusters(config)["local"]["transport_socket"]["typed_config"]
        (san,) = tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
        assert ("IP_ADDRESS", False) == (san["san_type"], "sni" in tls)

    def test_over_plain_http_has_no_tls(self) -> None:
        assert "transport_socket" not in clusters()["local"]


class TestLimits:
    def test_follow_the_provider_and_never_run_out_of_retries(self) -> None:
        """Envoy's default of three concurrent retries would surface failovers as errors."""
        config = edited(ORDINARY, ("providers", "openai", "limits"), {"max_connections": 10, "max_pending": 2000})
        (threshold,) = clusters(config)["openai"]["circuit_breakers"]["thresholds"]
        assert {
            "priority": "DEFAULT",
            "max_connections": 10,
            "max_pending_requests": 4000,
            "max_requests": 4010,
            "max_retries": UNLIMITED,
        } == threshold

    def test_leave_room_for_requests_that_only_this_provider_can_serve(self) -> None:
        """Envoy never retries what overflows a breaker: keeping to `max_pending` is the planner's."""
        config = edited(ORDINARY, ("providers", "openai", "limits"), {"max_connections": 1, "max_pending": 1})
        (threshold,) = clusters(config)["openai"]["circuit_breakers"]["thresholds"]
        assert (1, LEAST_PENDING) == (threshold["max_connections"], threshold["max_pending_requests"])

    def test_of_every_cluster_allow_as_many_retries_as_requests(self) -> None:
        made = rendered()
        every = [*made.cds, *made.bootstrap["static_resources"]["clusters"]]
        thresholds = [node for node in find(every, priority="DEFAULT") if "max_requests" in node]
        assert all(one["max_retries"] >= one["max_requests"] for one in thresholds)
        assert len(thresholds) == len(every) - 1, "all but the cluster without endpoints"

    @pytest.mark.parametrize(("max_body", "expected"), [("1MiB", 64 * MIB), ("56MiB", 64 * MIB), ("100MiB", 108 * MIB)])
    def test_of_buffers_hold_any_body_and_any_judged_answer(self, max_body: str, expected: int) -> None:
        made = rendered(edited(ORDINARY, ("server", "max_body"), max_body))
        limits = {part["per_connection_buffer_limit_bytes"] for part in [*made.cds, *made.lds]}
        assert {expected} == limits

    def test_of_our_own_clusters_fit_the_largest_body_of_any_version(self) -> None:
        """The bootstrap is read once, so no version may change it."""
        made = rendered(edited(ORDINARY, ("server", "max_body"), "1GiB"))
        own = [c for c in made.bootstrap["static_resources"]["clusters"] if c["name"] != names.CLUSTER_STOP]
        assert {1032 * MIB} == {cluster["per_connection_buffer_limit_bytes"] for cluster in own}
        assert rendered(ORDINARY).bootstrap == made.bootstrap


class TestTheUpstreamChain:
    def test_runs_in_its_one_order(self) -> None:
        expected = [
            "gateway.judge",
            "gateway.attempt",
            "gateway.headers",
            "gateway.credential",
            "envoy.filters.http.upstream_rbac",
            "envoy.filters.http.upstream_codec",
        ]
        assert expected == [one["name"] for one in chain(clusters()["openai"])]

    @pytest.mark.parametrize(("provider", "loopback"), [("openai", True), ("local", False)])
    def test_refuses_addresses_that_the_provider_may_not_have(self, provider: str, loopback: bool) -> None:
        """Link-local and metadata always, private ones unless the operator allowed them."""
        networks = [find(one, name="envoy.rbac.matchers.upstream_ip_port") for one in chain(clusters()[provider])]
        ips = [one["typed_config"]["upstream_ip"] for found in networks for one in found]
        found = {f"{one['address_prefix']}/{one['prefix_len']}" for one in ips}
        assert {"169.254.0.0/16", "::ffff:a9fe:0/112", "64:ff9b::a9fe:0/112", "2002:a9fe::/32"} <= found
        assert loopback is ("127.0.0.0/8" in found)

    @pytest.mark.parametrize("provider", ["openai", "local"])
    @pytest.mark.parametrize("last", [False, True])
    def test_refuses_every_network_that_is_named_and_no_other(self, provider: str, last: bool) -> None:
        allow_private = provider == "local"
        (rbac,) = [one for one in chain(clusters()[provider]) if one["name"] == names.ADDRESS_FILTER]
        (rule,) = rbac["typed_config"]["rules"]["policies"]["address"]["permissions"]
        every = [ip_network(text) for text in denied_networks(allow_private=allow_private)]
        for network in every:
            assert permits(rule, network[-1 if last else 0])
        for text in ("1.1.1.1", "203.0.113.9", "2606:4700::1111", "2001:db8::1"):
            assert not permits(rule, ip_address(text))
        assert allow_private is not permits(rule, ip_address("10.1.2.3"))
        assert not permits(rule, ip_address("127.0.0.1"), port=1)

    def test_of_a_keyless_provider_injects_nothing(self) -> None:
        assert "gateway.credential" not in [one["name"] for one in chain(clusters()["local"])]

    def test_judges_all_but_an_ordinary_success_of_a_request_for_no_stream(self) -> None:
        judge = chain(clusters()["openai"])[0]["typed_config"]
        (matcher,) = judge["xds_matcher"]["matcher_list"]["matchers"]
        assert "envoy.extensions.filters.common.matcher.action.v3.SkipFilter" in str(matcher["on_match"])
        status, typed, content_type, length, asked = matcher["predicate"]["and_matcher"]["predicate"]
        assert {"exact": "2xx"} == status["single_predicate"]["value_match"]
        some = typed["single_predicate"]
        assert (".+", "content-type") == (
            some["value_match"]["safe_regex"]["regex"],
            some["input"]["typed_config"]["header_name"],
        )
        unusual = content_type["not_matcher"]["single_predicate"]
        assert "(?i)(text/event-stream|text/html).*" == unusual["value_match"]["safe_regex"]["regex"]
        assert "content-type" == unusual["input"]["typed_config"]["header_name"]
        empty = length["not_matcher"]["single_predicate"]
        assert ({"exact": "0"}, "content-length") == (
            empty["value_match"],
            empty["input"]["typed_config"]["header_name"],
        )
        stream = asked["not_matcher"]["single_predicate"]
        assert {"string_match": {"exact": "stream"}} == stream["custom_match"]["typed_config"]["value"]
        assert [{"key": "kind"}] == stream["input"]["typed_config"]["path"]

    def test_judges_answers_only_and_streams_them(self) -> None:
        """BUFFERED turns a large error into a local 500 that is not retried."""
        judge = chain(clusters()["openai"])[0]["typed_config"]["extension_config"]["typed_config"]
        assert {
            "request_header_mode": "SKIP",
            "request_trailer_mode": "SKIP",
            "response_header_mode": "SEND",
            "response_body_mode": "FULL_DUPLEX_STREAMED",
            "response_trailer_mode": "SEND",
        } == judge["processing_mode"]

    def test_prepares_all_but_first_attempts(self) -> None:
        attempt = chain(clusters()["openai"])[1]["typed_config"]
        (matcher,) = attempt["xds_matcher"]["matcher_list"]["matchers"]
        predicate = matcher["predicate"]["single_predicate"]
        header = predicate["input"]["typed_config"]["header_name"]
        assert (names.H_ATTEMPT_COUNT, {"exact": "1"}) == (header, predicate["value_match"])

    def test_of_the_end_prepares_every_attempt(self) -> None:
        """What gets there is over, whichever attempt it is."""
        end = chain(static(names.CLUSTER_END))
        assert ["gateway.attempt", "envoy.filters.http.upstream_codec"] == [one["name"] for one in end]
        assert end[0]["typed_config"]["@type"].endswith("ExternalProcessor")

    @pytest.mark.parametrize("provider", ["openai", "local"])
    @pytest.mark.parametrize(
        "header",
        [
            "authorization",
            "proxy-authorization",
            "x-api-key",
            "api-key",
            "x-goog-api-key",
            "ocp-apim-subscription-key",
            "openai-organization",
            "openai-project",
            "x-goog-user-project",
            "cookie",
            "forwarded",
            "x-real-ip",
            "via",
        ],
    )
    def test_drops_every_credential_of_the_caller(self, provider: str, header: str) -> None:
        mutations = find(chain(clusters()[provider]), name="gateway.headers")[0]["typed_config"]["mutations"]
        assert {"remove": header} in mutations["request_mutations"]
        assert {"remove": header} in mutations["request_trailers_mutations"]

    @pytest.mark.parametrize(
        ("direction", "prefixes"),
        [
            ("request_mutations", {"x-envoy-", "x-gateway-", "x-forwarded-"}),
            ("request_trailers_mutations", {"x-envoy-", "x-gateway-", "x-forwarded-"}),
            ("response_mutations", {"x-envoy-", "x-gateway-"}),
            ("response_trailers_mutations", {"x-envoy-", "x-gateway-"}),
        ],
    )
    def test_drops_internal_headers_in_both_directions(self, direction: str, prefixes: set[str]) -> None:
        """A provider must not be able to drive our retries."""
        mutations = find(chain(clusters()["local"]), name="gateway.headers")[0]["typed_config"]["mutations"]
        removed = [one["remove_on_match"]["key_matcher"] for one in mutations[direction] if "remove_on_match" in one]
        assert prefixes == {one["prefix"] for one in removed}

    def test_drops_a_key_s_header_even_if_all_protocols_share_it(self) -> None:
        """An older version may still name one; the key of one provider must not reach the next."""
        (made,) = compile_snapshot(load_config(json.dumps(SMALL)), 1).providers.values()
        told = replace(made, auth_header="user-agent", headers=(("accept", "x"), ("x-account", "1")))
        assert ["user-agent", "x-account"] == foreign_headers([told])

    def test_drops_first_and_sets_afterwards(self) -> None:
        mutations = find(chain(clusters()["openai"]), name="gateway.headers")[0]["typed_config"]["mutations"]
        for direction in mutations.values():
            kinds = ["append" in one for one in direction]
            assert sorted(kinds) == kinds

    def test_sends_static_headers_and_asks_for_no_compression(self) -> None:
        mutations = find(chain(clusters()["openai"]), name="gateway.headers")[0]["typed_config"]["mutations"]
        sets = [one["append"]["header"] for one in mutations["request_mutations"] if "append" in one]
        assert {"accept-encoding": "identity", "openai-organization": "org-1"} == {
            one["key"]: one["value"] for one in sets
        }

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("50% %REQ(x)%", "50%% %%REQ(x)%%"),
            (
                "%DYNAMIC_METADATA(gateway.private:first_body)%",
                "%%DYNAMIC_METADATA(gateway.private:first_body)%%",
            ),
        ],
    )
    def test_sends_static_headers_literally(self, value: str, expected: str) -> None:
        config = edited(ORDINARY, ("providers", "openai", "headers"), {"x-note": value})
        (header,) = find(clusters(config)["openai"], key="x-note")
        assert expected == header["value"]

    def test_injects_the_key_over_whatever_is_there_from_its_own_secret(self) -> None:
        credential = find(chain(clusters()["openai"]), name="gateway.credential")[0]["typed_config"]
        generic = credential["credential"]["typed_config"]
        (file,) = rendered().sds
        source = generic["credential"]["sds_config"]["path_config_source"]
        assert (True, "authorization") == (credential["overwrite"], generic["header"])
        assert (f"{PATHS.sds}/{file}", {"path": str(PATHS.sds)}) == (source["path"], source["watched_directory"])
        assert file == f"{generic['credential']['name']}.json"

    def test_injects_the_key_into_the_header_that_the_provider_names(self) -> None:
        """And drops what a caller sent in it, at every provider."""
        made = clusters(edited(ORDINARY, ("providers", "openai", "auth"), {"header": "api-token"}))
        credential = find(chain(made["openai"]), name="gateway.credential")[0]["typed_config"]
        assert "api-token" == credential["credential"]["typed_config"]["header"]
        mutations = find(chain(made["local"]), name="gateway.headers")[0]["typed_config"]["mutations"]
        assert {"remove": "api-token"} in mutations["request_mutations"]

    def test_lets_extproc_fail_closed_and_say_so(self) -> None:
        made = rendered()
        filters = find([made.cds, made.lds, made.bootstrap], failure_mode_allow=False)
        every = find([made.cds, made.lds, made.bootstrap], **{"@type": EXT_PROC})
        assert len(every) == len(filters)
        assert all({"code": 503} == one["status_on_error"] for one in filters)

    def test_exchanges_exactly_our_metadata(self) -> None:
        made = rendered()
        for one in find([made.cds, made.lds, made.bootstrap], **{"@type": EXT_PROC}):
            namespaces = one["metadata_options"]
            assert ["gateway", "gateway.private"] == namespaces["forwarding_namespaces"]["untyped"]
            expected = {"untyped": ["gateway", "gateway.private", "gateway.usage"], "typed": ["gateway.plan"]}
            assert expected == namespaces["receiving_namespaces"]


EXT_PROC = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"


class TestOurOwnClusters:
    def test_are_the_documented_ones(self) -> None:
        found = {cluster["name"] for cluster in rendered().bootstrap["static_resources"]["clusters"]}
        assert names.INTERNAL_CLUSTERS == found

    def test_the_dead_end_has_no_endpoint(self) -> None:
        assert {"cluster_name": names.CLUSTER_STOP} == static(names.CLUSTER_STOP)["load_assignment"]

    def test_extproc_is_a_socket_or_an_address(self) -> None:
        endpoint = static(names.CLUSTER_EXTPROC)["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        assert {"pipe": {"path": "/data/run/extproc.sock"}} == endpoint["address"]
