"""The metrics page as an HTTP server gives it out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from extproc.core.health import Row, State, View
from extproc.metrics import Metrics
from extproc.settings import Address
from tests.support import http1
from tests.support.ports import free_port, release_port

MEETING_S = 0.2


class Meeting(Collector):
    """Notes whether two pages were ever being made at the same time."""

    def __init__(self) -> None:
        self.met = False
        self._barrier = threading.Barrier(2)

    def collect(self) -> Iterator[Metric]:
        try:
            self._barrier.wait(MEETING_S)
            self.met = True
        except threading.BrokenBarrierError:
            self._barrier.reset()
        yield from ()


def test_pages_are_made_one_at_a_time_so_that_scrapers_cannot_crowd_out_requests() -> None:
    metrics = Metrics(lambda: (), lambda: 0, lambda: True)
    meeting = Meeting()
    metrics.registry.register(meeting)
    port = free_port()
    stop = metrics.serve(Address("127.0.0.1", port))
    try:
        with ThreadPoolExecutor(3) as pool:
            pages = list(pool.map(lambda _: http1.request(f"http://127.0.0.1:{port}/metrics", timeout_s=10), range(3)))
    finally:
        stop()
        release_port(port)

    assert [200] * 3 == [page.status for page in pages]
    assert all(b"gateway_ready 1.0" in page.body for page in pages)
    assert not meeting.met


def test_each_metric_of_the_page_can_be_asked_for_by_name() -> None:
    row = Row("openai", View(State.HEALTHY, eligible=True), 0, None)
    metrics = Metrics(lambda: [row], lambda: 0, lambda: True)
    metrics.read("gateway_ledger_waiting", "Requests that wait to be written.", lambda: 3, counter=False)
    samples = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert {"gateway_ready", "gateway_target_state", "gateway_ledger_waiting"} <= samples

    for name in samples:
        found = [s.name for family in metrics.registry.restricted_registry([name]).collect() for s in family.samples]
        assert {name} == set(found), name
