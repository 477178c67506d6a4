from __future__ import annotations

import hashlib
import json
import os
import pty
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from configctl import cli, flow
from configctl.store import Store
from tests.unit.config.build import FULL, SMALL, edited

Run = Callable[..., Result]
OTHER = edited(SMALL, ("models", "gpt-4o", "targets", 0, "weight"), 7)
INSTANCE = {
    "pid": 7,
    "software_version": "1.2.3",
    "started_at": "2026-01-31T12:00:00.000Z",
    "ready": True,
    "wanted_version": 4,
    "applied_version": 3,
    "applied_at": "2026-01-31T12:00:01.000Z",
    "digest": "d",
    "last_error": "the config store cannot be reached",
    "missing_keys": ["openai"],
    "requests_open": 5,
    "ledger": {"written": 1, "dropped": 0, "waiting": 2},
}
BAD = edited(SMALL, ("models", "gpt-4o", "polciy"), "x")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty directory with the configs of these tests and no settings in the environment."""
    for name in ("GATEWAY_DATA_DIR", "GATEWAY_STORE", "GATEWAY_AUTHOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name, config in (("small", SMALL), ("other", OTHER), ("full", FULL), ("bad", BAD)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def run(place: Path) -> Run:
    def call(*argv: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(cli.main, list(argv), input=stdin, env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    """Open the store that the commands use by default."""
    with Store.open(f"sqlite:///{place}/.gateway/store.db") as store:
        yield store


def publish(run: Run, name: str, *options: str) -> Result:
    return run("publish", f"{name}.yaml", "-m", f"publish {name}", "--yes", *options)


def report(store: Store, name: str, *, wanted: int, applied: int | None, error: str | None = None) -> None:
    store.report(
        name,
        hostname="host",
        pid=1,
        wanted=wanted,
        applied=applied,
        error=error,
        missing_keys=["openai"],
        now=time.time(),
    )


def test_validate_accepts_a_good_file(run: Run) -> None:
    result = run("validate", "full.yaml")

    assert (0, "") == (result.exit_code, result.stderr)
    assert result.stdout.startswith("valid: 3 models, 2 providers, digest ")


def test_validate_says_what_is_wrong_with_path_and_line(run: Run) -> None:
    result = run("validate", "bad.yaml")

    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("bad.yaml:")
    assert "models.gpt-4o.polciy: unknown key 'polciy'; did you mean 'policy'?" in result.stderr


def test_validate_gives_errors_as_json(run: Run) -> None:
    result = run("validate", "bad.yaml", "--json")

    (error,) = json.loads(result.stdout)["errors"]
    assert (1, "models.gpt-4o.polciy") == (result.exit_code, error["path"])


def test_validate_reads_stdin(run: Run) -> None:
    result = run("validate", "-", "--json", stdin=json.dumps(SMALL))

    assert (0, True, ["gpt-4o"]) == (
        result.exit_code,
        json.loads(result.stdout)["valid"],
        json.loads(result.stdout)["models"],
    )


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b""])
def test_stdin_that_is_no_config_is_a_sentence(run: Run, content: bytes) -> None:
    result = CliRunner().invoke(cli.main, ["validate", "-"], input=content)

    assert 1 == result.exit_code
    assert "stdin" in result.stderr


def test_a_file_that_is_not_there_is_a_sentence(run: Run) -> None:
    assert (1, "nowhere.yaml: does not exist; check the path\n") == (
        (result := run("validate", "nowhere.yaml")).exit_code,
        result.stderr,
    )


@pytest.mark.parametrize(
    ("verb", "empty"),
    [
        ("history", []),
        ("audit", []),
        ("status", {"active": None, "instances": [], "gateway": None, "store_error": None}),
    ],
)
def test_a_look_at_a_store_that_is_not_there_is_empty_and_makes_none(
    run: Run, place: Path, verb: str, empty: object
) -> None:
    result = run(verb, "--json")

    assert (0, empty) == (result.exit_code, json.loads(result.stdout))
    assert "There is no store at" in result.stderr
    assert not (place / ".gateway").exists()


def test_a_status_whose_store_is_broken_says_so_after_what_the_gateway_says(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_db = place / ".gateway" / "store.db"
    store_db.parent.mkdir()
    store_db.write_bytes(b"this is no database, only a text of more than a hundred bytes" * 3)
    (place / ".gateway" / "run").mkdir()
    (place / ".gateway" / "run" / "admin.sock").touch()
    monkeypatch.setattr("configctl.live_commands.live_status", lambda _: INSTANCE)

    result, as_json = run("status"), run("status", "--json")

    assert (1, 1) == (result.exit_code, as_json.exit_code)
    assert "applied 3, wanted 4" in result.stdout
    assert "cannot be used: file is not a database." in result.stderr
    told = json.loads(as_json.stdout)
    assert (None, [], INSTANCE, result.stderr.strip()) == (
        *(told[key] for key in ("active", "instances", "gateway", "store_error")),
    )


def test_a_status_whose_store_is_gone_while_the_gateway_answers_says_so(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / ".gateway" / "run").mkdir(parents=True)
    (place / ".gateway" / "run" / "admin.sock").touch()
    monkeypatch.setattr("configctl.live_commands.live_status", lambda _: INSTANCE)

    result, as_json = run("status"), run("status", "--json")

    assert (1, 1) == (result.exit_code, as_json.exit_code)
    assert ["this gateway", "version", "requests", "ledger", "missing keys", "last error"] == [
        line.partition(":")[0] for line in result.stdout.splitlines()
    ]
    sentence = f"The store {place}/.gateway/store.db is not there: bring it back, or name the gateway's with --store."
    assert sentence == " ".join(result.stderr.split())
    told = json.loads(as_json.stdout)
    assert (None, [], INSTANCE, sentence) == (
        *(told[key] for key in ("active", "instances", "gateway", "store_error")),
    )


@pytest.mark.parametrize("argv", [["current"], ["show", "1"], ["diff", "1", "2"], ["rollback", "-m", "x", "--yes"]])
def test_what_needs_a_version_says_so_where_there_is_none(run: Run, argv: list[str]) -> None:
    result = run(*argv)

    assert (1, "") == (result.exit_code, result.stdout)
    assert "version" in result.stderr


def test_a_publish_where_no_gateway_runs_says_so(run: Run) -> None:
    result = publish(run, "small")

    assert (0, "Version 1 is published; no gateway runs on this store now.\n") == (result.exit_code, result.stdout)


@pytest.mark.parametrize("argv", [["publish", "small.yaml"], ["rollback"]])
def test_a_store_that_is_gone_is_not_begun_anew_where_a_gateway_ran(run: Run, place: Path, argv: list[str]) -> None:
    """A new store would count from 1 again, and the gateway follow it away from all that was published before."""
    last_good = place / ".gateway" / "last-good.json"
    last_good.parent.mkdir()
    last_good.touch()

    result = run(*argv, "-m", "why", "--yes")

    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr == (
        f"The store {place / '.gateway' / 'store.db'} is not there, though a gateway ran here before: bring it back, "
        f"or remove {last_good} to begin anew.\n"
    )
    assert [last_good] == list(last_good.parent.iterdir())


def test_a_store_that_is_gone_is_not_begun_anew_where_a_gateway_runs(run: Run, place: Path) -> None:
    (place / ".gateway" / "run").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as admin:
        admin.bind(str(place / ".gateway" / "run" / "admin.sock"))
        admin.listen()

        result = publish(run, "small")

    assert (1, False) == (result.exit_code, (place / ".gateway" / "store.db").exists())
    assert "store.db is not there, though a gateway runs here: bring it back" in result.stderr


def test_a_publish_as_json_tells_everything(run: Run) -> None:
    result = publish(run, "small", "--json", "--author", "ann")

    told = json.loads(result.stdout)
    assert ("published", "no_gateway", [], None) == (
        told["result"],
        told["outcome"],
        told["instances"],
        told["returned_to"],
    )
    assert {
        "number": 1,
        "parent": None,
        "author": "ann",
        "message": "publish small",
        "kind": "publish",
    }.items() <= told["version"].items()


def test_publishing_the_active_content_is_nothing_to_publish(run: Run) -> None:
    publish(run, "small")

    result = publish(run, "small")

    assert (0, "nothing to publish: version 1 is active and the same\n") == (result.exit_code, result.stdout)
    assert "nothing_to_publish" == json.loads(publish(run, "small", "--json").stdout)["result"]


def test_a_publish_without_a_terminal_and_without_yes_is_refused_after_showing_the_change(run: Run) -> None:
    publish(run, "small")

    result = run("publish", "other.yaml", "-m", "why")

    assert (1, "") == (result.exit_code, result.stdout)
    assert "models.gpt-4o.targets[openai/gpt-4o].weight: 1 -> 7" in result.stderr
    assert "add --yes" in result.stderr
    assert 1 == len(json.loads(run("history", "--json").stdout))


@pytest.mark.parametrize(
    ("verb", "detail"),
    [
        (["publish", "full.yaml"], {"message": "why", "reason": "nobody could be asked"}),
        (["rollback", "1"], {"message": "why", "reason": "nobody could be asked", "to": 1}),
    ],
)
def test_a_change_that_is_refused_because_nobody_can_be_asked_is_audited(
    run: Run, store: Store, verb: list[str], detail: dict[str, object]
) -> None:
    for name in ("small", "other"):
        publish(run, name)

    run(*verb, "-m", "why", "--author", "ann")

    entry = store.audit_entries(1)[0]
    assert (3, verb[0], "ann", 1, None) == (entry.seq, entry.act, entry.actor, entry.refused, entry.version)
    assert detail == entry.details


def test_a_question_that_is_answered_with_no_is_no_act(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(run, "small")
    monkeypatch.setattr(flow, "is_terminal", lambda: True)

    result = run("publish", "other.yaml", "-m", "why", stdin="n\n")

    assert "Nothing was changed." in result.stderr
    assert 1 == len(store.audit_entries())


@pytest.mark.parametrize(("answer", "code", "count"), [("y", 0, 2), ("n", 1, 1), ("\n", 1, 1)])
def test_a_publish_at_a_terminal_asks(
    run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, count: int
) -> None:
    publish(run, "small")
    monkeypatch.setattr(flow, "is_terminal", lambda: True)

    result = run("publish", "other.yaml", "-m", "why", stdin=f"{answer}\n")

    assert (code, count) == (result.exit_code, len(json.loads(run("history", "--json").stdout)))
    assert "Publish this? [y/N]" in result.stderr


def test_a_file_the_compiler_refuses_is_audited_and_makes_no_version(run: Run) -> None:
    result = publish(run, "bad")

    assert (1, []) == (result.exit_code, json.loads(run("history", "--json").stdout))
    (entry,) = json.loads(run("audit", "--json").stdout)
    assert ("publish", True, None) == (entry["act"], entry["refused"], entry["version"])
    assert "polciy" in entry["detail"]["errors"][0]


def test_a_publish_that_expects_another_version_exits_4_and_says_what_moved(run: Run) -> None:
    publish(run, "small", "--author", "ann")

    result = publish(run, "other", "--expect", "0")

    assert (4, "") == (result.exit_code, result.stdout)
    assert "version 1 is: publish by ann" in result.stderr
    told = json.loads(publish(run, "other", "--expect", "9", "--json").stdout)
    assert ("conflict", 9, 1) == (told["result"], told["expected"], told["active"]["number"])


def test_what_moved_while_the_operator_was_asked_is_a_conflict(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(run, "small")
    monkeypatch.setattr(flow, "is_terminal", lambda: True)

    def confirm(*_: Any, **__: Any) -> bool:
        assert 0 == publish(run, "full").exit_code
        return True

    monkeypatch.setattr("click.confirm", confirm)

    result = run("publish", "other.yaml", "-m", "late")

    assert 4 == result.exit_code
    assert "version 1 was expected to be active, but version 2 is" in result.stderr


def test_an_expectation_that_holds_is_no_obstacle(run: Run) -> None:
    publish(run, "small", "--expect", "0")

    assert 0 == publish(run, "other", "--expect", "1").exit_code


def test_a_publish_waits_for_every_live_gateway(run: Run, store: Store) -> None:
    for name in ("gw-1", "gw-2"):
        report(store, name, wanted=1, applied=1)

    result = publish(run, "small")

    assert (0, "Version 1 is live on 2 instances.\n") == (result.exit_code, result.stdout)
    assert "gw-1 (host): applied after" in result.stderr


def test_a_refusal_names_everybody_and_goes_back(run: Run, store: Store) -> None:
    publish(run, "small")
    report(store, "gw-1", wanted=2, applied=2)
    report(store, "gw-2", wanted=2, applied=1, error="Envoy:\nno such thing")

    result = publish(run, "other")

    assert (1, "Version 2 was refused by 1 of 2.\n") == (result.exit_code, result.stdout)
    assert "gw-1 (host): applied after" in result.stderr
    assert "gw-2 (host): refused: Envoy: no such thing" in result.stderr
    assert "The wanted version is 1 again." in result.stderr
    assert 1 == store.active_number()
    assert "return" == store.audit_entries(1)[0].act


def test_a_refusal_is_kept_when_asked(run: Run, store: Store) -> None:
    publish(run, "small")
    report(store, "gw-1", wanted=2, applied=1, error="no")

    result = publish(run, "other", "--keep", "--json")

    told = json.loads(result.stdout)
    assert (1, "failed", None) == (result.exit_code, told["outcome"], told["returned_to"])
    assert 2 == store.active_number()


@pytest.mark.parametrize("verb", [["publish", "other.yaml"], ["rollback", "2"]])
def test_an_active_version_that_failed_may_be_published_again(run: Run, store: Store, verb: list[str]) -> None:
    for name in ("small", "other"):
        publish(run, name)
    store.mark_outcome(2, "failed", "no such file", actor="gw-1", now=time.time())

    shown = run(*verb, "-m", "the file is there now")
    result = run(*verb, "-m", "the file is there now", "--yes")

    assert "Version 2 is active and the same; it failed when it was published." in shown.stderr
    assert (0, "Version 3 is published; no gateway runs on this store now.\n") == (result.exit_code, result.stdout)


def test_a_gateway_that_does_not_answer_is_named(run: Run, store: Store) -> None:
    report(store, "gw-1", wanted=1, applied=1)
    report(store, "gw-2", wanted=0, applied=None)

    result = publish(run, "small", "--timeout", "200ms")

    assert 1 == result.exit_code
    assert "gw-2 (host): did not answer within 0." in result.stderr
    assert 1 == store.active_number()


def interrupt(_: float) -> None:
    """Press Ctrl-C where there is a wait."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("verb", [["publish", "other.yaml"], ["rollback", "1"]])
def test_an_operator_who_stops_waiting_is_told_that_the_version_is_published(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    for name in ("small", "full"):
        publish(run, name)
    report(store, "gw-1", wanted=2, applied=2)
    monkeypatch.setattr("time.sleep", interrupt)

    result = run(*verb, "-m", "x", "--yes")

    told = "Version 3 is published; nobody is waited for any more, see `configctl status`.\n"
    assert (1, told, 3) == (result.exit_code, result.stdout, store.active_number())
    as_json = run("publish", "small.yaml" if "other.yaml" in verb else "full.yaml", "-m", "x", "--yes", "--json")
    assert (1, "interrupted") == (as_json.exit_code, json.loads(as_json.stdout)["outcome"])


def test_nobody_is_waited_for_when_that_is_said(run: Run, store: Store) -> None:
    report(store, "gw-1", wanted=0, applied=None)

    result = publish(run, "small", "--no-wait", "--json")

    assert (0, "not_waited") == (result.exit_code, json.loads(result.stdout)["outcome"])


def test_a_rollback_goes_back_and_forth(run: Run) -> None:
    for name in ("small", "other"):
        publish(run, name)

    assert 0 == run("rollback", "-m", "back", "--yes").exit_code
    assert 0 == run("rollback", "2", "-m", "forth", "--yes").exit_code

    kinds = [(one["number"], one["kind"], one["rollback_of"]) for one in json.loads(run("history", "--json").stdout)]
    assert [(4, "rollback", 2), (3, "rollback", 1), (2, "publish", None), (1, "publish", None)] == kinds


def test_a_rollback_shows_the_change_before_it_asks(run: Run) -> None:
    for name in ("small", "other"):
        publish(run, name)

    result = run("rollback", "1", "-m", "back")

    assert 1 == result.exit_code
    assert "weight: 7 -> 1" in result.stderr


def test_a_rollback_to_nowhere_is_refused_and_audited(run: Run) -> None:
    publish(run, "small")

    assert "There is no earlier version" in run("rollback", "-m", "x", "--yes").stderr
    assert "There is no version 9" in run("rollback", "9", "-m", "x", "--yes").stderr
    assert [True, True, False] == [entry["refused"] for entry in json.loads(run("audit", "--json").stdout)]


CHANGE_1 = "UPDATE versions SET content = replace(content, 'https:', 'http:') WHERE number = 1"


def test_a_rollback_to_a_version_that_was_changed_in_the_store_is_refused_and_audited(run: Run, store: Store) -> None:
    for name in ("small", "other"):
        publish(run, name)
    with store._write_transaction() as connection:
        connection.exec_driver_sql(CHANGE_1)

    result = run("rollback", "1", "-m", "x", "--yes")

    assert (1, "", 2) == (result.exit_code, result.stdout, store.active_number())
    assert "Version 1 was changed since it was published" in result.stderr
    assert "`configctl audit verify`" in result.stderr
    entry = store.audit_entries(1)[0]
    assert ("rollback", 1, None) == (entry.act, entry.refused, entry.version)
    assert {"message": "x", "reason": "changed since it was published", "to": 1} == entry.details


def test_a_version_that_is_changed_while_the_operator_is_asked_is_refused_too(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("small", "other"):
        publish(run, name)
    monkeypatch.setattr(flow, "is_terminal", lambda: True)

    def confirm(*_: Any, **__: Any) -> bool:
        with store._write_transaction() as connection:
            connection.exec_driver_sql(CHANGE_1)
        return True

    monkeypatch.setattr("click.confirm", confirm)

    result = run("rollback", "1", "-m", "x")

    assert (1, "", 2) == (result.exit_code, result.stdout, store.active_number())
    assert "Version 1 was changed since it was published" in result.stderr
    assert 1 == store.audit_entries(1)[0].refused


def test_a_rollback_may_expect_a_version_too(run: Run) -> None:
    for name in ("small", "other"):
        publish(run, name)

    assert 4 == run("rollback", "-m", "x", "--yes", "--expect", "1").exit_code


def test_history_marks_the_active_version(run: Run, store: Store) -> None:
    for name in ("small", "other"):
        publish(run, name)
    store.return_to_parent(2, "x", actor="a", now=time.time())

    assert [(2, False), (1, True)] == [
        (one["number"], one["active"]) for one in json.loads(run("history", "--json").stdout)
    ]
    lines = run("history").stdout.splitlines()
    assert (3, True, True) == (len(lines), lines[1].startswith("   2"), lines[2].startswith("*  1"))
    assert 1 == len(json.loads(run("history", "--limit", "1", "--json").stdout))


def test_show_prints_a_config_file_that_means_the_same(run: Run, place: Path) -> None:
    publish(run, "full")

    (place / "shown.yaml").write_text(run("show", "1").stdout)

    assert "nothing to publish" in publish(run, "shown").stdout
    told = json.loads(run("show", "1", "--json").stdout)
    assert (1, 1) == (told["number"], told["content"]["schema"])


def test_current_is_the_active_version(run: Run) -> None:
    publish(run, "small", "--author", "ann")

    assert "ann" == json.loads(run("current", "--json").stdout)["author"]
    assert "version:   1\n" in run("current").stdout


def test_diff_compares_files_versions_and_the_active_version(run: Run) -> None:
    for name in ("small", "other"):
        publish(run, name)
    change = {"path": "models.gpt-4o.targets[openai/gpt-4o].weight", "kind": "changed", "before": 1, "after": 7}
    back = {**change, "before": 7, "after": 1}

    for argv, expected in (
        (["1", "2"], [change]),
        (["2", "1"], [back]),
        (["small.yaml"], [back]),
        (["1", "other.yaml"], [change]),
        (["small.yaml", "other.yaml"], [change]),
        (["2", "other.yaml"], []),
        ([], [change]),
    ):
        result = run("diff", *argv, "--json")
        assert (0, expected) == (result.exit_code, json.loads(result.stdout))


def test_diff_can_tell_by_its_exit_code(run: Run) -> None:
    assert 3 == run("diff", "small.yaml", "other.yaml", "--exit-code").exit_code
    same = run("diff", "small.yaml", "small.yaml", "--exit-code")
    assert (0, "", "No difference.\n") == (same.exit_code, same.stdout, same.stderr[-15:])


def test_preview_tells_effects_and_strict_refuses_findings(run: Run) -> None:
    publish(run, "small")

    result = run("preview", "full.yaml")
    strict = run("preview", "full.yaml", "--strict", "--json")

    assert 0 == result.exit_code
    assert "+ model gained: big" in result.stdout
    assert "- model lost: gpt-4o" in result.stdout
    assert 1 == strict.exit_code
    assert {"gained", "lost", "candidates", "findings", "resources", "health_known"} == set(json.loads(strict.stdout))


def test_status_shows_every_instance(run: Run, store: Store) -> None:
    publish(run, "small")
    report(store, "gw-1", wanted=1, applied=None, error="Envoy said no")

    told = json.loads(run("status", "--json").stdout)
    plain = run("status").stdout

    (instance,) = told["instances"]
    assert ("gw-1", True, 1, None, "Envoy said no", ["openai"]) == tuple(
        instance[name] for name in ("id", "live", "wanted", "applied", "error", "missing_keys")
    )
    assert "wanted version: 1 (pending)" in plain
    assert "Envoy said no" in plain


def test_audit_verify_names_the_broken_entry(run: Run, store: Store) -> None:
    publish(run, "small")
    assert 0 == run("audit", "verify").exit_code
    with store._write_transaction() as connection:
        connection.exec_driver_sql("UPDATE audit SET actor = 'nobody'")

    result = run("audit", "verify")

    assert (1, True) == (result.exit_code, result.stdout.startswith("audit entry 1 was changed"))
    told = json.loads(run("audit", "verify", "--json").stdout)
    assert (False, "audit entry 1") == (told["whole"], told["broken"][0]["what"])


def test_a_new_key_comes_with_its_digest_and_config_lines(run: Run) -> None:
    told = json.loads(run("key", "new", "--json").stdout)
    token, _, *lines = run("key", "new", "--name", "team-z").stdout.splitlines()

    assert hashlib.sha256(told["token"].encode()).hexdigest() == told["token_sha256"]
    assert token.startswith("gw-")
    (client,) = yaml.safe_load("\n".join(lines))["clients"]
    assert {"name": "team-z", "token_sha256": hashlib.sha256(token.encode()).hexdigest()} == client


def test_key_hash_reads_a_token_and_never_prints_it(run: Run) -> None:
    result = run("key", "hash", stdin="gw-secret\n")

    assert hashlib.sha256(b"gw-secret").hexdigest() + "\n" == result.stdout
    assert "gw-secret" not in result.output
    assert 1 == run("key", "hash", stdin="\n").exit_code


@pytest.mark.parametrize("name", ["A b", "", "x" * 65, "a: b"])
def test_a_new_key_is_not_made_for_a_name_that_validate_refuses(run: Run, name: str) -> None:
    result = run("key", "new", "--name", name)

    assert (2, "") == (result.exit_code, result.stdout)
    assert "must be a name of letters, digits and . _ @ -, up to 64 characters" in result.stderr


def test_a_token_that_no_client_can_send_is_not_hashed(place: Path) -> None:
    """The real command: how Python reads a pipe goes by the locale."""
    argv = [sys.executable, "-c", "from configctl.cli import main; main()", "key", "hash"]
    ran = subprocess.run(argv, input=b"gw-\xff", capture_output=True, cwd=place, timeout=60, check=False)

    told = b"The token is not UTF-8 text: use one of letters and digits, as `configctl key new` makes.\n"
    assert (1, b"", told) == (ran.returncode, ran.stdout, ran.stderr)


def test_the_author_is_flag_then_environment_then_login(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "login")
    publish(run, "small")
    run("publish", "other.yaml", "-m", "x", "--yes", env={"GATEWAY_AUTHOR": "env"})
    run("publish", "full.yaml", "-m", "x", "--yes", "--author", "flag", env={"GATEWAY_AUTHOR": "env"})

    assert ["flag", "env", "login"] == [one["author"] for one in json.loads(run("history", "--json").stdout)]


def test_the_store_is_named_by_flag_then_environment_then_data_dir(run: Run, place: Path) -> None:
    def made(name: str, *argv: str, env: dict[str, str] | None = None) -> bool:
        assert 0 == run(*argv, "publish", "small.yaml", "-m", "x", "--yes", env=env).exit_code
        return (place / name).exists()

    assert made("a.db", "--store", f"sqlite:///{place}/a.db", env={"GATEWAY_STORE": f"sqlite:///{place}/b.db"})
    assert not (place / "b.db").exists()
    assert made("b.db", env={"GATEWAY_STORE": f"sqlite:///{place}/b.db"})
    assert made("c/store.db", env={"GATEWAY_DATA_DIR": "c"})
    assert made("d/store.db", "--data-dir", "d", env={"GATEWAY_DATA_DIR": "c"})
    assert 1 == len(json.loads(run("history", "--data-dir", "d", "--json").stdout))


@pytest.mark.parametrize(
    "argv",
    [
        ["publish", "small.yaml"],
        ["publish", "small.yaml", "-m", " "],
        ["publish", "small.yaml", "-m", "bell\a"],
        ["publish", "small.yaml", "-m", "x", "--expect", "-1"],
        ["publish", "small.yaml", "-m", "x", "--timeout", "soon"],
        ["publish"],
        ["rollback", "zero", "-m", "x"],
        ["rollback"],
        ["show"],
        ["history", "--limit", "0"],
        ["audit", "everything"],
        ["nonsense"],
        ["validate", "small.yaml", "--nonsense"],
    ],
)
def test_a_wrong_command_line_exits_2(run: Run, place: Path, argv: list[str]) -> None:
    assert 2 == run(*argv).exit_code
    assert not (place / ".gateway").exists()


def test_a_store_that_cannot_be_used_is_a_sentence(run: Run) -> None:
    result = run("history", "--store", "mysql://root:hunter2@h/x")

    assert (1, "") == (result.exit_code, result.stdout)
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize("verb", [*cli.main.commands])
def test_every_verb_has_help_with_an_example(run: Run, verb: str) -> None:
    names = [verb] if verb != "key" else ["key new", "key hash"]
    for name in names:
        text = run(*name.split(), "--help").output
        assert f"configctl {name.split()[0]}" in text
        assert "Example" in text
        assert "--json" in text


@pytest.mark.parametrize(
    "verb",
    [
        "validate small.yaml",
        "diff",
        "preview small.yaml",
        "history",
        "show 1",
        "current",
        "status",
        "audit",
        "audit verify",
        "key new",
        "rollback 1 -m x --yes",
        "publish small.yaml -m x --yes",
    ],
)
def test_json_after_any_verb_is_one_document_on_stdout(run: Run, verb: str) -> None:
    publish(run, "small")

    result = run(*verb.split(), "--json")

    assert 0 == result.exit_code
    json.loads(result.stdout)


@pytest.mark.parametrize("verb", ["history --json", "validate small.yaml", "--help"])
def test_output_that_cannot_be_written_is_a_sentence(place: Path, verb: str) -> None:
    argv = [sys.executable, "-c", "from configctl.cli import main; main()", *verb.split()]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, cwd=place, timeout=60, check=False)

    told = ran.stderr.splitlines()[-1]
    assert (1, "The output cannot be written: No space left on device.") == (ran.returncode, told)
    assert "Traceback" not in ran.stderr


def test_a_terminal_gets_a_question_and_a_pipe_plain_text(place: Path) -> None:
    """The real command on a real pseudo-terminal."""
    argv = [sys.executable, "-c", "from configctl.cli import main; main()", "publish", "small.yaml", "-m", "why"]
    environ = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": ""}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        argv, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True, cwd=place, env=environ
    )
    os.close(theirs)
    os.write(ours, b"y\n")
    out, _ = process.communicate(timeout=60)
    shown = os.read(ours, 65536).decode()
    os.close(ours)

    assert (0, "Version 1 is published; no gateway runs on this store now.\n") == (process.returncode, out)
    assert "Publish this? [y/N]" in shown
    assert "\x1b[" in shown


def test_of_two_publishing_processes_exactly_one_wins(run: Run, place: Path) -> None:
    publish(run, "small")
    argv = [sys.executable, "-c", "from configctl.cli import main; main()", "publish"]
    processes = [
        subprocess.Popen(
            [*argv, f"{name}.yaml", "-m", name, "--yes", "--expect", "1", "--json"],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("other", "full")
    ]
    answers = [process.communicate(timeout=60) for process in processes]

    assert [0, 4] == sorted(process.returncode for process in processes)
    loser = next(answer for answer, process in zip(answers, processes, strict=True) if process.returncode == 4)
    assert (1, 2) == (json.loads(loser[0])["expected"], json.loads(loser[0])["active"]["number"])
    assert "Conflict: version 1 was expected to be active, but version 2 is" in loser[1]
    assert 0 == run("audit", "verify").exit_code
