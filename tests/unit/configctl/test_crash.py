"""A process that dies between any two steps of an act leaves the whole act or nothing of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from configctl.store import Store
from tests.unit.configctl.claims import publish

_DYING = """
import os, shutil, sys
from sqlalchemy import event
from configctl.store import Store
from tests.unit.configctl.claims import publish

folder, act = sys.argv[1:]

def prepare(url):
    with Store.open(url) as store:
        publish(store, "a")
        publish(store, "b")

def die_at(fatal, url):
    store, step = Store.open(url), 0

    def count(*_):
        nonlocal step
        step += 1
        if step == fatal:
            os._exit(77)

    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(store._engine, name, count)
    if act == "publish":
        publish(store, "c", now=9.0)
    elif act == "rollback":
        store.rollback(1, author="bob", message="back", expect=None, now=9.0)
    elif act == "outcome":
        store.mark_outcome(2, "failed", "no", actor="gw", now=9.0)
    elif act == "order":
        store.record("health_down", "ann", {"subject": "openai"}, 9.0, refused=False, own_id="f00")
    else:
        store.return_to_parent(2, "no", actor="bob", now=9.0)
    os._exit(0)

prepare(f"sqlite:///{folder}/prepared.db")
for fatal in range(1, 60):
    url = f"sqlite:///{folder}/{fatal}.db"
    shutil.copy(f"{folder}/prepared.db", f"{folder}/{fatal}.db")
    child = os.fork()
    if child == 0:
        die_at(fatal, url)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code)
    if code != 77:
        break
"""
_PASSED, _DIED = 0, 77


@pytest.mark.parametrize(
    ("act", "active"), [("publish", 3), ("rollback", 3), ("outcome", 2), ("return", 1), ("order", 2)]
)
def test_an_act_is_done_whole_or_not_at_all(tmp_path: Path, act: str, active: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _DYING, str(tmp_path), act], check=True, timeout=60, stdout=subprocess.PIPE, text=True
    )
    codes = [int(line) for line in run.stdout.split()]

    assert [*[_DIED] * (len(codes) - 1), _PASSED] == codes
    assert len(codes) > 5
    for step, code in enumerate(codes, start=1):
        with Store.open(f"sqlite:///{tmp_path}/{step}.db") as store:
            assert () == store.verify()
            if code == _PASSED:
                assert (active, 3) == (store.active_number(), len(store.audit_entries()))
            else:
                assert (2, 2, 2) == (store.active_number(), len(store.versions()), len(store.audit_entries()))
                publish(store, "d")
                assert () == store.verify()
