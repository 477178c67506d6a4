"""What every test may use: a wall, and property tests without a deadline of wall-clock time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.wall import Wall


def pytest_configure(config: pytest.Config) -> None:
    """Register what the test suite's own fixtures understand."""
    config.addinivalue_line("markers", "noisy_logs: the gateway's logs may hold critical lines or tracebacks")
    settings.register_profile("shared-machine", deadline=None)
    settings.load_profile("shared-machine")


@pytest.fixture
def wall() -> Iterator[Wall]:
    """Start a provider that answers well until it is told otherwise."""
    with Wall() as one:
        yield one
