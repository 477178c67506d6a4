"""The collector's cluster: whom it takes for the collector."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.config.compile import compile_snapshot
from extproc.envoy_config.tracing import collector_cluster, tracing
from tests.unit.config.build import edited, load
from tests.unit.envoy_config.build import CA_FILE, ORDINARY, PATHS


def collector(endpoint: str) -> dict[str, Any]:
    """Render the cluster of one endpoint."""
    config = edited(ORDINARY, ("telemetry",), {"otlp": {"endpoint": endpoint}})
    cluster = collector_cluster(compile_snapshot(load(config), version=1), PATHS)
    assert cluster is not None
    return cluster


@pytest.mark.parametrize(
    ("host", "written", "san_type"),
    [
        ("otel.example.com", "otel.example.com", "DNS"),
        ("192.0.2.7", "192.0.2.7", "IP_ADDRESS"),
        ("2001:db8::7", "[2001:db8::7]", "IP_ADDRESS"),
    ],
)
def test_a_collector_must_be_who_the_endpoint_says(host: str, written: str, san_type: str) -> None:
    """An address stands in a certificate as an address, and is no server name."""
    tls = collector(f"https://{written}:4317")["transport_socket"]["typed_config"]

    assert {
        "trusted_ca": {"filename": CA_FILE},
        "match_typed_subject_alt_names": [{"san_type": san_type, "matcher": {"exact": host}}],
    } == tls["common_tls_context"]["validation_context"]
    assert (host if san_type == "DNS" else None) == tls.get("sni")
    assert ["h2"] == tls["common_tls_context"]["alpn_protocols"]


def test_a_collector_over_http_has_no_tls() -> None:
    assert "transport_socket" not in collector("http://127.0.0.1:4317")


@pytest.mark.parametrize(("sample", "percent"), [(0, 0.0), (0.25, 25.0), (1, 100.0)])
def test_as_many_requests_are_traced_as_the_config_says(sample: float, percent: float) -> None:
    config = edited(ORDINARY, ("telemetry",), {"otlp": {"endpoint": "http://127.0.0.1:4317", "sample": sample}})
    found = tracing(compile_snapshot(load(config), version=1), PATHS)
    assert found is not None
    assert {"value": percent} == found["random_sampling"]
