"""The same claims on a real PostgreSQL, started here from the system's package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from configctl.engine import open_engine, parse_store_url
from configctl.store import Store, StoreError
from tests.support.postgres import fresh_database, postgres
from tests.unit.configctl.claims import StoreClaims, publish


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start a PostgreSQL for this module."""
    with postgres() as url:
        yield url


@pytest.fixture
def database(server: str) -> str:
    """Return the URL of a fresh database."""
    return fresh_database(server)


class TestPostgres(StoreClaims):
    @pytest.fixture
    def url(self, database: str) -> str:
        return database


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE audit SET detail = replace(detail, 'why', 'Why') WHERE seq = 2", ["audit entry 2"]),
        ("UPDATE versions SET content = 'x' WHERE number = 1", ["version 1"]),
        ("UPDATE versions SET message = 'x' WHERE number = 2", ["version 2"]),
        ("DELETE FROM audit WHERE seq = 3", ["audit entry 3"]),
        ("UPDATE wanted SET number = 1", ["active version"]),
    ],
)
def test_a_change_behind_the_stores_back_is_named(database: str, statement: str, named: list[str]) -> None:
    with Store.open(database) as store:
        for text in "abc":
            publish(store, text)
        with psycopg.connect(database.replace("+psycopg", "")) as connection:
            connection.execute(statement)

        assert named == [broken.what for broken in store.verify()]


def test_a_database_that_is_not_there_is_a_sentence(server: str) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(f"{server}/nowhere")


def test_a_store_survives_that_its_connections_were_cut(database: str) -> None:
    with Store.open(database) as store:
        publish(store, "a")
        with psycopg.connect(database.replace("+psycopg", "")) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

        assert 1 == store.active_number()


def test_a_network_that_swallows_everything_is_noticed(database: str) -> None:
    engine = open_engine(parse_store_url(database))
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        settings = raw.info.get_parameters()
    engine.dispose()
    assert {"tcp_user_timeout": "10000", "keepalives": "1", "keepalives_idle": "5"}.items() <= settings.items()
