"""Every verb of `configctl` against a gateway that runs: exit codes, JSON, and who wins.

The verbs run in this process; that the installed command ends and says the same is a test of its own, and who needs two
at once, or a terminal, starts it.
"""

from __future__ import annotations

import hashlib
import os
import pty
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import GatewayFactory, Shared
from tests.support.gateway import two_providers
from tests.support.operator import CONFIGCTL, Operator
from tests.support.wall import Wall

VERSION_KEYS = {
    "number",
    "parent",
    "digest",
    "author",
    "message",
    "created_at",
    "kind",
    "rollback_of",
    "outcome",
    "outcome_reason",
}
_counted = iter(range(1, 1000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture
def operator(shared: Shared, folder: Path) -> Operator:
    return Operator(folder, data_dir=shared.gateway.data_dir)


def fresh(shared: Shared) -> dict[str, Any]:
    """Build a config that was never published before."""
    return two_providers(shared.primary, shared.fallback, deadline=f"{100 + next(_counted)}s")


def active(operator: Operator) -> int:
    return int(operator.run("current", "--json").json["number"])


def live(shared: Shared) -> str | None:
    return shared.gateway.chat().header("x-gateway-config-version")


# -- the command


def test_the_installed_command_ends_and_says_as_its_verbs_do(operator: Operator, shared: Shared, folder: Path) -> None:
    """Every exit code, by every way of input, and both outputs to the letter."""
    installed = Operator(folder, data_dir=shared.gateway.data_dir, installed=True)
    good = operator.file(fresh(shared), "good.yaml")
    surplus = yaml.safe_dump(fresh(shared) | {"surplus": 1})
    told = [
        (operator.run(*argv, text=text), installed.run(*argv, text=text))
        for argv, text in (
            (("history", "--json"), ""),
            (("status", "--surplus"), ""),
            (("validate", "-"), surplus),
            (("diff", good, "--exit-code"), ""),
            (("publish", good, "-m", "too late", "--yes", "--json", "--expect", "999"), ""),
        )
    ]
    assert [0, 2, 1, 3, 4] == [here.code for here, _ in told]
    assert [here for here, _ in told] == [there for _, there in told]


# -- files


def test_validate_takes_a_good_file_and_lists_every_fault_of_a_bad_one(operator: Operator, shared: Shared) -> None:
    config = fresh(shared)
    good = operator.run("validate", operator.file(config), "--json")
    assert (0, True, []) == (good.code, good.json["valid"], good.json["errors"])
    assert {"valid", "digest", "models", "providers", "errors"} == good.json.keys()
    bad = operator.run("validate", "-", "--json", text=yaml.safe_dump(config | {"surplus": 1, "clients": []}))
    assert (1, False, ["clients", "surplus"]) == (
        bad.code,
        bad.json["valid"],
        sorted(fault["path"] for fault in bad.json["errors"]),
    )
    assert {"path", "where", "reason"} == bad.json["errors"][0].keys()


def test_diff_says_what_would_change_and_can_say_it_by_its_exit_code(operator: Operator, shared: Shared) -> None:
    path = operator.file(two_providers(shared.primary, shared.fallback, attempts=7))
    assert 0 == operator.run("diff", path).code
    assert 3 == operator.run("diff", path, "--exit-code").code
    changes = operator.run("diff", path, "--json").json
    assert {"path", "kind", "before", "after"} == changes[0].keys()
    assert 7 in [change["after"] for change in changes]
    same = operator.run("diff", "1", "1", "--json", "--exit-code")
    assert (0, []) == (same.code, same.json)


def test_preview_tells_effects_on_callers_and_strict_refuses_findings(operator: Operator, shared: Shared) -> None:
    config = fresh(shared)
    config["models"]["gained"] = {"targets": [{"provider": "primary", "model": "m"}], "fallback": ["demo-primary"]}
    path = operator.file(config)
    seen = operator.run("preview", path, "--json")
    assert (0, ["gained"], []) == (seen.code, seen.json["gained"], seen.json["lost"])
    assert {"gained", "lost", "candidates", "findings", "resources", "health_known"} == seen.json.keys()
    assert seen.json["findings"] != []
    assert 1 == operator.run("preview", path, "--strict").code
    assert active(operator) == int(live(shared) or 0)


# -- changes


def test_publish_and_rollback_name_the_gateway_that_applied_them(operator: Operator, shared: Shared) -> None:
    before = active(operator)
    done = operator.publish(fresh(shared))
    (answer,) = done.json["instances"]
    assert (0, "published", "applied", "applied") == (
        done.code,
        done.json["result"],
        done.json["outcome"],
        answer["answer"],
    )
    assert str(shared.gateway.data_dir) in answer["instance"]
    assert VERSION_KEYS == done.json["version"].keys()
    assert str(done.json["version"]["number"]) == live(shared)
    back = operator.rollback()
    assert (0, "applied", "rollback", before) == (
        back.code,
        back.json["outcome"],
        back.json["version"]["kind"],
        back.json["version"]["rollback_of"],
    )
    assert str(back.json["version"]["number"]) == live(shared)


def test_a_publish_without_json_says_who_applied_it_to_people(operator: Operator, shared: Shared) -> None:
    ran = operator.run("publish", operator.file(fresh(shared)), "-m", "for people", "--yes")
    assert 0 == ran.code
    assert "is live on 1 instance." in ran.stdout
    assert f"{shared.gateway.data_dir} (" in ran.stderr
    assert "applied after" in ran.stderr


def test_publishing_what_is_active_is_nothing_to_publish(operator: Operator, shared: Shared) -> None:
    config = fresh(shared)
    assert 0 == operator.publish(config).code
    again = operator.publish(config)
    assert (0, "nothing_to_publish") == (again.code, again.json["result"])


@pytest.mark.parametrize("verb", ["publish", "rollback"])
def test_a_change_without_a_terminal_and_without_yes_is_shown_and_refused(
    operator: Operator, shared: Shared, verb: str
) -> None:
    assert 0 == operator.publish(fresh(shared)).code
    before = active(operator)
    arguments = [operator.file(fresh(shared))] if verb == "publish" else []
    ran = operator.run(verb, *arguments, "-m", "nobody to ask")
    assert (1, "") == (ran.code, ran.stdout)
    assert "deadline" in ran.stderr
    assert f"add --yes to {verb} this change" in ran.stderr
    assert before == active(operator)


def test_at_a_terminal_the_answer_decides(operator: Operator, shared: Shared) -> None:
    before = active(operator)
    path = operator.file(fresh(shared))
    assert 1 == _at_terminal(operator, "n\n", "publish", path, "-m", "asked")
    assert before == active(operator)
    assert 0 == _at_terminal(operator, "y\n", "publish", path, "-m", "asked")
    assert str(active(operator)) == live(shared)


def _at_terminal(operator: Operator, answer: str, *arguments: str) -> int:
    """Run a verb whose stdin is a terminal where somebody types an answer."""
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            [CONFIGCTL, *arguments],
            stdin=slave,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=operator.environment,
        ) as process:
            os.write(master, answer.encode())
            return process.wait(60)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("argv", [["publish"], ["rollback", "x", "-m", "m"], ["status", "--surplus"], ["no-verb"]])
def test_a_wrong_command_line_exits_2(operator: Operator, argv: list[str]) -> None:
    ran = operator.run(*argv)
    assert (2, "") == (ran.code, ran.stdout)


def test_an_expectation_that_does_not_hold_exits_4_and_says_what_moved(operator: Operator, shared: Shared) -> None:
    moved = operator.publish(fresh(shared), message="the one that moved").json["version"]["number"]
    late = operator.publish(fresh(shared), "--expect", str(moved - 1))
    assert (4, "conflict", moved - 1, moved) == (
        late.code,
        late.json["result"],
        late.json["expected"],
        late.json["active"]["number"],
    )
    assert f"version {moved} is: publish by operator" in late.stderr
    assert "the one that moved" in late.stderr


def test_of_two_publishers_at_once_exactly_one_wins_and_the_other_is_told_who_did(
    operator: Operator, shared: Shared
) -> None:
    before = active(operator)
    argv = [
        ["publish", operator.file(fresh(shared), f"{name}.yaml"), "-m", f"from {name}", "--yes", "--author", name]
        for name in ("ann", "bob")
    ]
    running = [operator.start(*one, "--expect", str(before)) for one in argv]
    ended = [(process.communicate(timeout=120), process.returncode) for process in running]
    assert [0, 4] == sorted(code for _, code in ended)
    winner, loser = sorted(ended, key=lambda end: end[1])
    assert f"Version {before + 1} is live on 1 instance." in winner[0][0]
    name = ("ann", "bob")[ended.index(winner)]
    assert f"version {before} was expected to be active, but version {before + 1} is: publish by {name}" in loser[0][1]
    assert before + 1 == active(operator)


# -- looks


def test_history_show_current_and_status_agree(operator: Operator, shared: Shared) -> None:
    config = fresh(shared)
    number = operator.publish(config, message="to be looked at").json["version"]["number"]
    history = operator.run("history", "--json").json
    assert VERSION_KEYS | {"active"} == history[0].keys()
    assert [number] == [version["number"] for version in history if version["active"]]
    shown = operator.run("show", str(number), "--json").json
    assert VERSION_KEYS | {"content"} == shown.keys()
    text = operator.run("show", str(number)).stdout
    assert [] == operator.run("diff", str(number), operator.file(yaml.safe_load(text)), "--json").json
    assert "to be looked at" == operator.run("current", "--json").json["message"]
    status = operator.run("status", "--json").json
    (instance,) = status["instances"]
    assert (number, True, number, number, None) == (
        status["active"]["number"],
        *(instance[key] for key in ("live", "wanted", "applied", "error")),
    )
    assert 1 == operator.run("show", "999").code


def test_keys_are_made_and_hashed(operator: Operator) -> None:
    made = operator.run("key", "new", "--json").json
    assert hashlib.sha256(made["token"].encode()).hexdigest() == made["token_sha256"]
    hashed = operator.run("key", "hash", "--json", text=made["token"])
    assert ({"token_sha256": made["token_sha256"]}, "") == (hashed.json, hashed.stderr)


def test_people_get_every_verb_as_plain_text_in_a_pipe(operator: Operator) -> None:
    for argv in (["history"], ["current"], ["status"], ["audit"], ["audit", "verify"]):
        ran = operator.run(*argv)
        assert (0, "") == (ran.code, ran.stderr)
        assert "\x1b" not in ran.stdout


# -- the audit


def test_the_audit_holds_every_act_and_who_did_it_refused_ones_too(operator: Operator, shared: Shared) -> None:
    operator.publish(fresh(shared) | {"surplus": 1}, message="cannot be")
    newest, *_ = entries = operator.run("audit", "--json").json
    assert ("publish", "operator", True, None, "cannot be") == (
        *(newest[key] for key in ("act", "actor", "refused", "version")),
        newest["detail"]["message"],
    )
    assert {"seq", "at", "actor", "act", "version", "refused", "detail", "prev_hash", "hash"} == newest.keys()
    assert {"publish", "applied", "rollback"} <= {entry["act"] for entry in entries}
    verified = operator.run("audit", "verify", "--json")
    assert (0, True, []) == (verified.code, verified.json["whole"], verified.json["broken"])
    assert newest["hash"] == verified.json["head"]


@pytest.fixture(scope="module")
def kept(module_gateway_factory: GatewayFactory, folder: Path) -> Iterator[Path]:
    """Keep the store of a gateway that published and rolled back."""
    with Wall() as primary, Wall() as fallback:
        gateway = module_gateway_factory(two_providers(primary, fallback))
        operator = Operator(folder, data_dir=gateway.data_dir)
        assert 0 == operator.publish(two_providers(primary, fallback, deadline="80s")).code
        assert 0 == operator.rollback().code
        path = folder / "kept.db"
        with closing(sqlite3.connect(gateway.data_dir / "store.db")) as store, closing(sqlite3.connect(path)) as copy:
            store.backup(copy)
        yield path


TABLES = {
    "audit": ("seq", ("at", "actor", "act", "detail", "prev_hash", "hash")),
    "versions": ("number", ("digest", "content", "author", "message", "created_at", "kind", "outcome")),
}


@pytest.mark.parametrize(("table", "column"), [(table, name) for table, (_, names) in TABLES.items() for name in names])
def test_a_flipped_byte_anywhere_in_the_store_is_named_with_exit_code_1(
    kept: Path, folder: Path, table: str, column: str
) -> None:
    """One byte of each column of the second entry and version; test_tampering.py changes every byte of every row."""
    copy = folder / f"{table}-{column}.db"
    copy.write_bytes(kept.read_bytes())
    with closing(sqlite3.connect(copy)) as store:
        key = TABLES[table][0]
        (value,) = store.execute(f"SELECT {column} FROM {table} WHERE {key} = 2").fetchone()  # noqa: S608 - our own tables
        store.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = 2", (_flipped(value),))  # noqa: S608 - our own tables
        store.commit()
    ran = Operator(folder, store=f"sqlite:///{copy}").run("audit", "verify", "--json")
    assert (1, False) == (ran.code, ran.json["whole"])
    assert {"audit": "audit entry 2", "versions": "version 2"}[table] == ran.json["broken"][0]["what"]


def _flipped(value: str | float) -> str | float:
    if isinstance(value, float):
        return value + 0.001
    middle = len(value) // 2
    return value[:middle] + chr(ord(value[middle]) ^ 1) + value[middle + 1 :]
