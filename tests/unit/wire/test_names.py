"""The words that cross a border are spelled once, and the two sides use the same ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

import extproc
from extproc.config.fields import SHARED_HEADERS
from extproc.core.attempt import ATTEMPT_COUNT
from extproc.core.route import TARGET_HEADER
from extproc.envoy_config.local_reply import local_reply_config
from extproc.envoy_config.render import Rendered
from extproc.wire import names
from tests.unit.envoy_config.build import rendered

PACKAGE = Path(extproc.__file__).parent
METADATA_KEYS = {value for name, value in vars(names).items() if name.startswith("M_")}


@pytest.fixture(scope="module")
def documents() -> str:
    """Render an ordinary config to text."""
    made: Rendered = rendered()
    return orjson.dumps([made.bootstrap, made.cds, made.rds, made.lds]).decode()


def constants(prefix: str) -> dict[str, Any]:
    """Return the constants of one family."""
    return {name: value for name, value in vars(names).items() if name.startswith(prefix)}


@pytest.mark.parametrize("prefix", ["M_", "P_", "H_", "G_", "ROLE_", "CLUSTER_", "LOG_"])
def test_no_word_has_two_meanings(prefix: str) -> None:
    family = constants(prefix)
    assert len(set(family.values())) == len(family)


def test_internal_headers_have_prefixes_that_never_leave() -> None:
    internal = (names.H_RETRY, names.H_MAX_RETRIES, names.H_ATTEMPT_COUNT, names.G_ROLE, names.G_CLUSTER, TARGET_HEADER)
    assert all(header.startswith(names.INTERNAL_PREFIXES) for header in internal)


def test_the_core_s_own_spellings_are_the_same() -> None:
    """The core imports nothing of the wire, so it repeats these."""
    assert names.H_ATTEMPT_COUNT == ATTEMPT_COUNT


def test_envoy_prints_only_metadata_that_is_written(documents: str) -> None:
    printed = set(re.findall(r"%DYNAMIC_METADATA\((.+?)\)%", documents))
    logged = set(re.findall(r"%TYPED_CEL\(metadata\.filter_metadata(.+?)\)%", documents))
    assert printed
    assert logged
    private = (names.P_BODY, *(f"{names.P_HEADERS}:{one}" for one in ("content-type", "retry-after", "retry-after-ms")))
    answered = {f"{names.METADATA_PRIVATE}:{key}" for key in private}
    assert {f"{names.METADATA}:{key}" for key in METADATA_KEYS} | answered >= printed
    assert {f"['{names.METADATA}']['{key}']" for key in METADATA_KEYS} | {f"['{names.METADATA_USAGE}']"} >= logged


def test_no_document_names_the_private_namespace_but_to_carry_it_and_to_answer(documents: str) -> None:
    """What may quote a prompt must not reach a log; the caller gets it in Envoy's own replies."""
    replies = orjson.dumps(local_reply_config()).decode()
    assert replies in documents
    documents = documents.replace(replies, "")
    assert f"DYNAMIC_METADATA({names.METADATA_PRIVATE}" not in documents
    carried = documents.count(f'"untyped":["{names.METADATA}","{names.METADATA_PRIVATE}"')
    assert documents.count(names.METADATA_PRIVATE) == carried


def test_every_role_that_envoy_names_is_one_that_is_served(documents: str) -> None:
    roles = set(re.findall(rf'"key":"{names.G_ROLE}","value":"(\w+)"', documents))
    assert set(constants("ROLE_").values()) == roles


def test_both_logs_that_envoy_sends_are_ones_that_are_read(documents: str) -> None:
    assert set(constants("LOG_").values()) == set(re.findall(r'"log_name":"([\w-]+)"', documents))


@pytest.mark.parametrize("word", [names.H_RETRY, names.METADATA_PLAN, names.METADATA_PRIVATE, names.DETAILS_OWN])
def test_no_other_module_spells_a_word_of_its_own(word: str) -> None:
    quoted = re.compile(rf"""["']{re.escape(word)}["']""")
    modules = [path for path in PACKAGE.rglob("*.py") if "pb" not in path.parts and path.name != "names.py"]
    assert [] == [path.name for path in modules if quoted.search(path.read_text())]


def test_no_header_that_reaches_every_provider_may_carry_a_key() -> None:
    assert frozenset() == names.SHARED_HEADERS - SHARED_HEADERS
