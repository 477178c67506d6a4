"""The front listener, its logs, Envoy's own replies, and the bootstrap that holds it all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.core.errors import CODES
from extproc.envoy_config.local_reply import local_reply_config
from extproc.wire import names
from tests.unit.config.build import FULL, edited
from tests.unit.envoy_config.build import ORDINARY, TLS_FILES, find, rendered, walk


def manager(config: Any = None) -> dict[str, Any]:
    """Return the front listener's connection manager."""
    (found,) = find(rendered(config).lds, stat_prefix="gateway")
    return found


PAIR = {"cert_file": str(TLS_FILES / "server.crt"), "key_file": str(TLS_FILES / "server.key")}


class TestTheListener:
    def test_listens_where_it_was_told(self) -> None:
        (front,) = rendered().lds
        assert {"socket_address": {"address": "127.0.0.1", "port_value": 18080}} == front["address"]

    def test_treats_every_caller_as_external(self) -> None:
        """Or a caller could send `x-envoy-*` headers and choose its own request id."""
        found = manager()
        nobody = [{"address_prefix": "192.0.2.1", "prefix_len": 32}]
        assert (True, nobody) == (found["use_remote_address"], found["internal_address_config"]["cidr_ranges"])
        assert "preserve_external_request_id" not in found

    def test_tells_every_caller_its_request_id(self) -> None:
        assert manager()["always_set_request_id_in_response"] is True

    def test_refuses_ambiguous_paths_and_header_names(self) -> None:
        found = manager()
        assert (True, True, "KEEP_UNCHANGED") == (
            found["normalize_path"],
            found["merge_slashes"],
            found["path_with_escaped_slashes_action"],
        )
        assert "REJECT_REQUEST" == found["common_http_protocol_options"]["headers_with_underscores_action"]

    def test_gives_an_http2_caller_more_room_than_one_answer_may_take(self) -> None:
        assert 32 * 1024 * 1024 < manager()["http2_protocol_options"]["initial_stream_window_size"]

    def test_serves_tls_only_when_the_operator_has_a_certificate(self) -> None:
        assert "transport_socket" not in rendered().lds[0]["filter_chains"][0]
        made = rendered(edited(ORDINARY, ("server", "tls"), PAIR))
        context = made.lds[0]["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
        (certificate,) = context["tls_certificate_sds_secret_configs"]
        assert f"{certificate['name']}.json" in made.sds
        assert ["h2", "http/1.1"] == context["alpn_protocols"]

    def test_bounds_what_a_caller_may_hold_open(self) -> None:
        """Headers, their time, the body's time, idle connections: a slow caller costs little and not for ever."""
        found = manager()
        assert (64, "15s", "300s") == (
            found["max_request_headers_kb"],
            found["request_headers_timeout"],
            found["request_timeout"],
        )
        assert {"idle_timeout": "600s", "max_headers_count": 128}.items() <= found[
            "common_http_protocol_options"
        ].items()

    def test_lets_a_slow_reader_have_its_whole_answer_but_not_for_ever(self) -> None:
        """Envoy's own timer for a connection that closes would end both: a slow reader, and one who never reads."""
        (unread,) = rendered().lds[0]["socket_options"]
        assert "0s" == manager()["delayed_close_timeout"]
        assert (6, 18, 300_000) == (unread["level"], unread["name"], unread["int_value"])

    def test_decides_on_headers_and_whole_body_before_it_routes(self) -> None:
        """Headers must be SENT: otherwise the router picks a cluster before the body was seen."""
        route, *_, router = manager()["http_filters"]
        assert ("envoy.filters.http.ext_proc", "envoy.filters.http.router") == (route["name"], router["name"])
        mode = route["typed_config"]["processing_mode"]
        assert ("SEND", "BUFFERED", "SKIP") == (
            mode["request_header_mode"],
            mode["request_body_mode"],
            mode["response_header_mode"],
        )

    def test_keeps_envoy_s_own_headers_inside(self) -> None:
        assert manager()["http_filters"][-1]["typed_config"]["suppress_envoy_headers"] is True


class TestTheListenerOfChecks:
    def test_is_there_only_when_a_provider_is_checked(self) -> None:
        assert (1, 2) == (len(rendered().lds), len(rendered(FULL).lds))

    def test_is_a_private_socket(self) -> None:
        (address,) = [one["address"] for one in rendered(FULL).lds if one["name"] != "gateway"]
        assert 0o600 == address["pipe"]["mode"]


class TestLogs:
    def test_go_to_a_file_and_to_extproc(self) -> None:
        file, grpc = manager()["access_log"]
        assert "/data/logs/access.log" == file["typed_config"]["path"]
        assert names.LOG_REQUESTS == grpc["typed_config"]["common_config"]["log_name"]

    def test_tell_extproc_of_every_request_and_the_limits_that_its_answer_named(self) -> None:
        log = manager()["access_log"][1]
        told = set(log["typed_config"]["additional_response_headers_to_log"])
        assert "filter" not in log
        assert {"retry-after", "x-ratelimit-remaining-tokens", "anthropic-ratelimit-tokens-remaining"} <= told

    def test_tell_extproc_of_every_attempt_but_those_with_a_good_answer(self) -> None:
        (log,) = manager()["http_filters"][-1]["typed_config"]["upstream_log"]
        flagged, *statuses = sorted(log["filter"]["or_filter"]["filters"], key=lambda one: "status_code_filter" in one)
        compared = [one["status_code_filter"]["comparison"] for one in statuses]
        assert names.LOG_ATTEMPTS == log["typed_config"]["common_config"]["log_name"]
        assert {"response_flag_filter": {}} == flagged
        assert [("LE", 199), ("GE", 300)] == [(one["op"], one["value"]["default_value"]) for one in compared]

    def test_hold_no_header_of_a_caller_but_its_request_id(self) -> None:
        line = manager()["access_log"][0]["typed_config"]["log_format"]["json_format"]
        assert {"%REQ(X-REQUEST-ID)%", "%REQ(:METHOD)%"} == {v for v in line.values() if v.startswith("%REQ(")}

    def test_name_no_private_metadata(self) -> None:
        assert names.METADATA_PRIVATE not in json.dumps(manager()["access_log"])


def envelopes_of_ours() -> list[dict[str, Any]]:
    """Return the mappers that answer with a code of the gateway's own."""
    mappers = local_reply_config()["mappers"]
    return [mapper for mapper in mappers if "json_format" in mapper["body_format_override"]]


class TestEnvoysOwnReplies:
    def test_let_python_s_answers_through_first(self) -> None:
        first = local_reply_config()["mappers"][0]
        assert "response.code_details.startsWith('gateway_own')" in json.dumps(first["filter"])
        assert "%LOCAL_REPLY_BODY%" == first["body_format_override"]["text_format_source"]["inline_string"]

    def test_are_errors_of_ours_with_their_status_in_both_envelopes(self) -> None:
        envelopes = {"openai": 0, "anthropic": 0}
        for mapper in envelopes_of_ours():
            error = mapper["body_format_override"]["json_format"]["error"]
            kind = "openai" if "code" in error else "anthropic"
            envelopes[kind] += 1
            if kind == "openai":
                assert CODES[error["code"]][0] == mapper["status_code"]
        assert envelopes["openai"] == envelopes["anthropic"] > 0

    def test_ask_for_the_caller_s_protocol_before_the_general_case(self) -> None:
        conditions = [json.dumps(mapper["filter"]) for mapper in envelopes_of_ours()]
        anthropic = ["/messages" in condition for condition in conditions]
        assert sorted(anthropic, reverse=True) == anthropic

    @pytest.mark.parametrize(
        ("trait", "code"),
        [
            ("ext_proc_error", "gateway_unavailable"),
            ('"UO"', "no_healthy_target"),
            ("max_duration_timeout", "upstream_timeout"),
            ("response_payload_too_large", "upstream_bad_answer"),
            ("low_version", "bad_request"),
            ('"UT"', "upstream_timeout"),
            ('"SI"', "upstream_timeout"),
            ('"UF"', "upstream_connect_failed"),
            ('"UC"', "upstream_connect_failed"),
            ('"UPE"', "upstream_connect_failed"),
            ("eq_413", "request_too_large"),
            ("eq_408", "request_timeout"),
            ("eq_431", "headers_too_large"),
            ("eq_404", "unsupported_endpoint"),
            ("ge_500", "gateway_unavailable"),
            ("ge_400", "bad_request"),
        ],
    )
    def test_are_told_apart_by_what_envoy_knows(self, trait: str, code: str) -> None:
        found = [
            mapper["body_format_override"]["json_format"]["error"]["code"]
            for mapper in envelopes_of_ours()
            if trait in json.dumps(mapper["filter"]) and "/messages" not in json.dumps(mapper["filter"])
        ]
        assert [code] == found

    def test_say_that_nobody_served(self) -> None:
        for mapper in local_reply_config()["mappers"][1:]:
            headers = {one["header"]["key"]: one["header"]["value"] for one in mapper["headers_to_add"]}
            assert ("none", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%") == (
                headers["x-gateway-route-mode"],
                headers["x-gateway-attempts"],
            )

    def test_after_a_provider_s_error_are_that_error_when_time_runs_out(self) -> None:
        """Envoy knows it from the private namespace; a mapper's status is a fixed one, so each has its own."""
        mappers = {
            mapper["status_code"]: json.dumps(mapper)
            for mapper in local_reply_config()["mappers"][1:]
            if "text_format_source" in mapper["body_format_override"]
        }
        assert {400, 401, 402, 403, 404, 429, 500, 502, 503, 504, 529} <= mappers.keys()
        for status, told in mappers.items():
            assert "max_duration_timeout" in told
            assert f"['first_status'] == {status}.0" in told
            assert "%DYNAMIC_METADATA(gateway.private:first_body)%" in told
            assert "%DYNAMIC_METADATA(gateway.private:first_headers:retry-after)%" in told
            assert '"x-should-retry", "value": "false"' in told

    def test_never_quote_envoy_s_details(self) -> None:
        """They carry socket paths."""
        assert "RESPONSE_CODE_DETAILS" not in json.dumps(local_reply_config())


class TestTheBootstrap:
    def test_turns_off_the_flow_control_that_crashes_envoy_1_40_and_sends_spans_within_a_second(self) -> None:
        (layer,) = rendered().bootstrap["layered_runtime"]["layers"]
        expected = {
            "envoy.reloadable_features.grpc_side_stream_flow_control": False,
            "tracing.opentelemetry.flush_interval_ms": 1000,
        }
        assert expected == layer["static_layer"]

    def test_keeps_envoy_s_admin_on_a_private_socket(self) -> None:
        expected = {"pipe": {"path": "/data/run/envoy-admin.sock", "mode": 0o600}}
        assert expected == rendered().bootstrap["admin"]["address"]

    def test_names_the_node_that_secrets_need(self) -> None:
        assert {"id": "gateway", "cluster": "gateway"} == rendered().bootstrap["node"]

    def test_limits_envoy_s_heap_and_its_callers(self) -> None:
        manager_ = rendered().bootstrap["overload_manager"]
        heap, connections = manager_["resource_monitors"]
        assert heap["typed_config"]["max_heap_size_bytes"] > 0
        assert connections["typed_config"]["max_active_downstream_connections"] > 10_000
        actions = [action["name"] for action in manager_["actions"]]
        assert "envoy.overload_actions.stop_accepting_requests" in actions

    def test_reads_the_rest_from_watched_files(self) -> None:
        sources = [node for node in walk(rendered().bootstrap) if "watched_directory" in node]
        assert ["/data/envoy/cds.json", "/data/envoy/lds.json"] == sorted(node["path"] for node in sources)
        assert {"/data/envoy"} == {node["watched_directory"]["path"] for node in sources}

    def test_does_not_change_with_a_publish(self) -> None:
        """Envoy reads it once."""
        other = edited(ORDINARY, ("models", "more"), {"targets": [{"provider": "local", "model": "x"}]})
        assert rendered().bootstrap == rendered(other).bootstrap
