"""How an operator's change goes: show, ask, commit, wait, tell.

Owns the conversation and its exit codes; what is proposed and committed is `changes.py`'s.
Invariant: nothing is committed that was not shown, but for `--yes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from configctl import changes, render, shapes
from configctl.author import login_name
from configctl.options import Place, check_text, open_store
from configctl.records import Conflict, NothingToPublish, Version
from configctl.screen import Screen, is_terminal
from configctl.waiting import Verdicts

if TYPE_CHECKING:
    from configctl.store import Store

CONFLICT = 4
_REFUSED = 1
_Proposed = changes.Proposal | NothingToPublish | Conflict


def change(
    place: Place,
    propose: Callable[[Store, changes.Act, float], _Proposed],
    *,
    message: str,
    expect: int | None,
    yes: bool,
    timeout: float,
    no_wait: bool,
    keep: bool,
    author: str | None,
    as_json: bool,
) -> int:
    """Propose, show, ask, commit, wait and tell."""
    screen = Screen()
    act = changes.Act(check_text(author or login_name(), "author"), check_text(message, "message"), expect)
    with open_store(place, create=True) as store:
        answer: Any = propose(store, act, time.time())
        if isinstance(answer, changes.Proposal):
            if not yes and not _confirmed(store, screen, answer, act):
                return _REFUSED
            answer = changes.commit(store, answer, act, time.time())
        if isinstance(answer, NothingToPublish | Conflict):
            return _tell_unchanged(screen, answer, as_json)
        timeout_s = None if no_wait else timeout
        report = _await(store, screen, answer.version, act, timeout_s, keep=keep)
    return _tell_report(screen, report, as_json)


def _confirmed(store: Store, screen: Screen, proposal: changes.Proposal, act: changes.Act) -> bool:
    render.print_changes(screen.talk, proposal.changes)
    if proposal.active is not None and proposal.active.digest == proposal.digest:
        screen.say(
            f"Version {proposal.active.number} is active and the same; it failed when it was published.", "yellow"
        )
    elif proposal.target is not None and proposal.target.outcome == "failed":
        screen.say(f"Version {proposal.target.number} failed when it was published.", "yellow")
    if not is_terminal():
        changes.refuse_unasked(store, proposal, act, time.time())
        screen.say(f"Refused: nobody can be asked without a terminal; add --yes to {proposal.verb} this change.")
        return False
    if click.confirm(f"{proposal.verb.capitalize()} this?", err=True):
        return True
    screen.say("Nothing was changed.")
    return False


def _await(
    store: Store, screen: Screen, version: Version, act: changes.Act, timeout_s: float | None, *, keep: bool
) -> changes.Report:
    show_progress = screen.talk.is_terminal and timeout_s is not None
    spinner = screen.talk.status(f"version {version.number} is published") if show_progress else None

    def progress(verdicts: Verdicts) -> None:
        if spinner is not None:
            spinner.update(render.waiting_line(verdicts))

    timing = changes.Timing(timeout_s, store.now, time.sleep, progress)
    try:
        with spinner or nullcontext():
            return changes.await_verdicts(store, version, act, timing, keep=keep)
    except KeyboardInterrupt:
        return changes.Report(version, "interrupted", Verdicts((), ()))


def _tell_report(screen: Screen, report: changes.Report, as_json: bool) -> int:
    render.print_verdicts(screen, report)
    if as_json:
        screen.json(shapes.of_report(report))
    else:
        screen.data.print(render.describe_report(report), markup=False)
    return 0 if report.outcome in ("applied", "no_gateway", "not_waited") else _REFUSED


def _tell_unchanged(screen: Screen, answer: NothingToPublish | Conflict, as_json: bool) -> int:
    if isinstance(answer, NothingToPublish):
        if as_json:
            screen.json(shapes.of_nothing(answer))
        else:
            screen.data.print(
                f"nothing to publish: version {answer.active.number} is active and the same", markup=False
            )
        return 0
    if as_json:
        screen.json(shapes.of_conflict(answer))
    screen.say(render.describe_conflict(answer))
    return CONFLICT
