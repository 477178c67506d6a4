"""`configctl`: argv -> one verb -> exit code.

Owns the spelling of verbs and their arguments, and the exit codes: 0 done, 1 refused or failed, 2 usage, 3 differs
(`diff --exit-code`), 4 conflict. What a verb does is `commands.py`'s and `changes.py`'s, how a change is asked and told
`flow.py`'s, what is printed `render.py`'s, its JSON `shapes.py`'s. Each is imported by the verbs that need it when they
run: databases, gRPC and the config's model take longer to import than most verbs to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from configctl import key_verbs, live_verbs
from configctl.options import (
    Place,
    Verbs,
    author_option,
    gateway_options,
    json_option,
    open_store,
    place_options,
    verb,
    wait_options,
)
from configctl.refusals import StoreError
from configctl.screen import Screen
from extproc import __version__

if TYPE_CHECKING:
    from configctl.commands import Status
    from configctl.preview import Health
    from configctl.store import Store

DIFFERS = 3
_REFUSED = 1


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  configctl preview gateway.yaml && configctl publish gateway.yaml -m 'Move gpt-4o to azure'",
)
@click.version_option(__version__, prog_name="configctl")
@gateway_options(from_environment=True)
@click.pass_context
def main(context: click.Context, /, **places: str | None) -> None:
    """Preview, publish, audit and roll back what the gateway does.

    stdout is data, stderr is talk; --json after a verb makes the data JSON. Exit codes: 0 done, 1 refused or failed,
    2 usage, 3 differs (diff --exit-code), 4 conflict.
    """
    context.obj = Place(**places)


@verb(main, "configctl validate gateway.yaml")
@click.argument("file")
@json_option
def validate(file: str, as_json: bool) -> int:
    """Check FILE (- for stdin) with the gateway's own loader and compiler."""
    from configctl import commands, shapes

    checked = commands.validate(file)
    screen = Screen()
    if as_json:
        screen.json(shapes.of_valid(checked))
    else:
        snapshot = checked.snapshot
        models, providers = len(snapshot.models), len(snapshot.providers)
        screen.data.print(f"valid: {models} models, {providers} providers, digest {snapshot.digest}", markup=False)
    return 0


@verb(main, "configctl diff gateway.yaml", "configctl diff 3 4 --json")
@click.argument("first", required=False, metavar="[A]")
@click.argument("second", required=False, metavar="[B]")
@click.option("--exit-code", is_flag=True, help="Exit 3 when there is a difference.")
@place_options()
@json_option
def diff(place: Place, first: str | None, second: str | None, exit_code: bool, as_json: bool) -> int:
    """Show what differs by meaning between A and B, each a version number, a file or - for stdin.

    With A alone the active version is compared with it; with neither, the active version with its parent.
    """
    from configctl import commands, render, shapes

    with open_store(place) as store:
        found = commands.diff(store, first, second)
    screen = Screen()
    if as_json:
        screen.json(shapes.of_changes(found))
    else:
        render.print_changes(screen.data, found)
        if not found:
            screen.say("No difference.")
    return DIFFERS if found and exit_code else 0


@verb(main, "configctl preview gateway.yaml --strict")
@click.argument("file")
@click.option("--strict", is_flag=True, help="Exit 1 when there are findings.")
@gateway_options()
@json_option
def preview(place: Place, file: str, strict: bool, as_json: bool) -> int:
    """Show what publishing FILE would change for callers and for Envoy, and which policy is dead."""
    from configctl import commands, render, shapes

    with open_store(place) as store:
        effects = commands.preview(store, file, _current_health(place))
    screen = Screen()
    if as_json:
        screen.json(shapes.of_preview(effects))
    else:
        render.print_preview(screen.data, effects)
    return _REFUSED if strict and effects.findings else 0


@verb(main, "configctl publish gateway.yaml -m 'Move gpt-4o to azure'")
@click.argument("file")
@wait_options
@author_option
@place_options()
@json_option
def publish(place: Place, file: str, **options: Any) -> int:
    """Make FILE (- for stdin) the active version and wait until every gateway applied it."""
    from configctl import changes, flow

    return flow.change(place, lambda store, act, now: changes.propose_publish(store, file, act, now), **options)


@verb(main, "configctl rollback -m 'Errors since version 7'", "configctl rollback 5 -m 'Last good one' --yes")
@click.argument("number", type=click.IntRange(min=1), required=False, metavar="[N]")
@wait_options
@author_option
@place_options()
@json_option
def rollback(place: Place, number: int | None, **options: Any) -> int:
    """Publish version N again; without N, the version that was active before the active one."""
    from configctl import changes, flow

    return flow.change(place, lambda store, act, now: changes.propose_rollback(store, number, act, now), **options)


@verb(main, "configctl history --limit 5")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@place_options()
@json_option
def history(place: Place, limit: int, as_json: bool) -> int:
    """List the versions, newest first; the active one has a star."""
    from configctl import render, shapes

    with open_store(place) as store:
        versions, active = store.versions(limit), store.active_number()
    screen = Screen()
    if as_json:
        screen.json(shapes.of_history(versions, active))
    elif versions:
        render.print_history(screen.data, versions, active)
    else:
        screen.say("No version is published yet.")
    return 0


@verb(main, "configctl show 3 > gateway.yaml")
@click.argument("number", type=click.IntRange(min=1), metavar="N")
@place_options()
@json_option
def show(place: Place, number: int, as_json: bool) -> int:
    """Print version N as a config file, defaults filled in."""
    from configctl import commands, render, shapes

    with open_store(place) as store:
        version = commands.show(store, number)
    screen = Screen()
    if as_json:
        screen.json(shapes.of_shown(version))
    else:
        render.print_shown(screen.data, version)
    return 0


@verb(main, "configctl current")
@place_options()
@json_option
def current(place: Place, as_json: bool) -> int:
    """Show which version is active, whose it is and why it was published."""
    from configctl import commands, render, shapes

    with open_store(place) as store:
        version = commands.current(store)
    screen = Screen()
    if as_json:
        screen.json(shapes.of_version(version))
    else:
        render.print_version(screen.data, version)
    return 0


@verb(main, "configctl status --json")
@gateway_options()
@json_option
def status(place: Place, as_json: bool) -> int:
    """Show the wanted version, and of every gateway what it applied, since when, and its last error.

    Without the store, what the gateway itself says, and exit code 1.
    """
    from configctl import live_render, render, shapes

    screen = Screen()
    live = _live_status(place)
    # A gateway that answers has a store: an empty one in its place would say that nothing is wanted.
    found, fault = _status_of(place, in_use=live is not None)
    if as_json:
        told = shapes.of_status(*found) if found else {"active": None, "instances": []}
        screen.json({**told, "gateway": live, "store_error": fault})
    else:
        if found:
            render.print_status(screen.data, *found)
        if live is not None:
            live_render.print_instance(screen.data, live)
    if fault:
        screen.say(fault)
    return _REFUSED if fault else 0


@verb(main, "configctl audit", "configctl audit verify")
@click.argument("what", type=click.Choice(["verify"]), required=False, metavar="[verify]")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@place_options()
@json_option
def audit(place: Place, what: str | None, limit: int, as_json: bool) -> int:
    """List every act, refused ones included, newest first; `verify` recomputes the chain and all digests."""
    from configctl import commands, render, shapes

    screen = Screen()
    with open_store(place) as store:
        if what == "verify":
            return _verify_audit(store, screen, as_json)
        entries = commands.audit(store, limit)
    if as_json:
        screen.json([shapes.of_entry(entry) for entry in entries])
    elif entries:
        render.print_audit(screen.data, entries)
    else:
        screen.say("Nothing was done on this store yet.")
    return 0


key_verbs.register(main)
live_verbs.register(main)


def _verify_audit(store: Store, screen: Screen, as_json: bool) -> int:
    from configctl import commands, render, shapes

    verified = commands.verify_audit(store)
    if as_json:
        screen.json(shapes.of_verified(verified))
    else:
        render.print_verified(screen.data, verified)
    return _REFUSED if verified.broken else 0


def _status_of(place: Place, *, in_use: bool) -> tuple[tuple[Status, float] | None, str | None]:
    """Return what the store says and its time, or why it says nothing."""
    from configctl import commands

    try:
        with open_store(place, in_use=in_use) as store:
            now = store.now()
            return (commands.status(store, now), now), None
    except StoreError as error:
        return None, str(error)


def _live_status(place: Place) -> dict[str, Any] | None:
    """Return what a gateway says of itself, None where none runs."""
    if not place.names_gateway:
        return None
    from configctl import live_commands

    return live_commands.live_status(place)


def _current_health(place: Place) -> Health | None:
    """Return how a gateway sees its targets, None where none runs."""
    if not place.names_gateway:
        return None
    from configctl.live_health import current_health

    return current_health(place)
