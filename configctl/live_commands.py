"""The verbs that ask a running gateway: `health`, `requests`, `explain`, and the live part of `status`.

`register(main)` mounts them on the command's group. Leaves the connection to `admin_client.py` and looks to
`live_render.py`.
"""

from __future__ import annotations

import getpass
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click
import orjson
from rich.live import Live

from configctl import live_render, live_shapes
from configctl.admin_client import AdminClient, AdminError
from configctl.live_shapes import Json
from configctl.options import Place, Verbs, check_text, gateway_options, json_option, verb
from configctl.render import Screen
from extproc.config.units import parse_duration
from extproc.wire.pb import admin_pb2 as pb

_WATCH_S = 1.0
_Command = TypeVar("_Command", bound=Callable[..., Any])
_MAX_LISTED = 1000


def register(main: click.Group) -> None:
    """Add the verbs to the command."""
    _register_health(main)
    _register_requests(main)
    _register_explain(main)


def live_status(place: Place) -> Json | None:
    """Return what the gateway on a data directory says of itself, None when none runs there.

    A gateway that was named with --admin must answer.
    """
    try:
        with AdminClient.of(place) as client:
            return live_shapes.of_instance(client.status())
    except AdminError:
        if place.admin:
            raise
        return None


def list_health(place: Place, *, as_json: bool, follow: bool = False) -> int:
    """Print every provider account and target."""
    screen = Screen()
    with AdminClient.of(place) as client:
        rows = _health(client)
        if as_json:
            screen.json(rows)
        elif follow and screen.data.is_terminal:
            _watch_health(client, screen)
        else:
            live_render.print_health(screen.data, rows)
    return 0


def set_health(place: Place, request: pb.SetHealthRequest, *, as_json: bool) -> int:
    """Carry out an order and print the subject's new row."""
    screen = Screen()
    with AdminClient.of(place) as client:
        answer = client.set_health(request)
    row = live_shapes.of_health(answer)
    if not answer.in_audit:
        screen.say("The store cannot be reached: the order holds, and the audit has it as soon as it can be.", "yellow")
    if as_json:
        screen.json(row | {"in_audit": answer.in_audit})
    else:
        reason = f" ({row['reason']})" if row["reason"] else ""
        screen.say(f"{row['subject']} is {row['state']}{reason} on this gateway.")
    return 0


def list_requests(place: Place, request: pb.ListRequestsRequest, *, as_json: bool) -> int:
    """Print past requests, and new ones as they end when the request says follow."""
    screen = Screen()
    with AdminClient.of(place) as client:
        rows = (live_shapes.of_request(row) for row in client.requests(request))
        if not request.follow:
            listed = list(rows)
            if as_json:
                screen.json(listed)
            elif listed:
                live_render.print_requests(screen.data, listed)
            else:
                screen.say("The ledger has no such request.")
            return 0
        with suppress(KeyboardInterrupt, BrokenPipeError):
            if as_json:
                for row in rows:
                    sys.stdout.write(f"{orjson.dumps(row).decode()}\n")
                    sys.stdout.flush()
            else:
                live_render.follow_requests(screen, rows)
    return 0


def explain_request(place: Place, request_id: str, *, as_json: bool) -> int:
    """Print one request's story."""
    with AdminClient.of(place) as client:
        story = client.explain(request_id)
    screen = Screen()
    if as_json:
        screen.json(story)
    else:
        live_render.print_story(screen.data, story)
    return 0


def _health(client: AdminClient) -> list[Json]:
    return [live_shapes.of_health(row) for row in client.health()]


def _watch_health(client: AdminClient, screen: Screen) -> None:
    with suppress(KeyboardInterrupt), Live(console=screen.data, refresh_per_second=4) as live:
        while True:
            live.update(live_render.health_table(_health(client)))
            time.sleep(_WATCH_S)


def _register_health(main: click.Group) -> None:
    examples = "\b\nExamples:\n  configctl health --json\n  configctl health drain azure --reason 'their incident'"

    @main.group(cls=Verbs, name="health", invoke_without_command=True, epilog=examples)
    @gateway_options()
    @json_option
    @click.pass_context
    def health(context: click.Context, /, as_json: bool, **places: str | None) -> None:
        """Show the health of targets and provider accounts, or take one out of service."""
        context.obj = Place(**places).under(context.find_object(Place) or Place())
        if context.invoked_subcommand is None:
            context.invoke(list, as_json=as_json, follow=False, **dict.fromkeys(places))

    @verb(health, "configctl health list --follow")
    @click.option("--follow", is_flag=True, help="Keep the table up to date (on a terminal).")
    @gateway_options()
    @json_option
    def list(place: Place, follow: bool, as_json: bool) -> int:  # noqa: A001 - the verb's name
        """List every provider account and target of this gateway."""
        return list_health(place, as_json=as_json, follow=follow)

    @verb(health, "configctl health drain openai/gpt-4o --reason 'their incident 512' --for 1h")
    @_order_options(lasting=True)
    def drain(place: Place, **options: Any) -> int:
        """Send SUBJECT no more traffic, except when nothing else can serve."""
        return _ordered(place, pb.HEALTH_ACTION_DRAIN, **options)

    @verb(health, "configctl health down azure --reason 'contract ended'")
    @_order_options(lasting=True)
    def down(place: Place, **options: Any) -> int:
        """Send SUBJECT no traffic at all."""
        return _ordered(place, pb.HEALTH_ACTION_DOWN, **options)

    @verb(health, "configctl health restore openai/gpt-4o")
    @_order_options(lasting=False)
    def restore(place: Place, **options: Any) -> int:
        """Put SUBJECT back in full service; its order and its cooldown are forgotten."""
        return _ordered(place, pb.HEALTH_ACTION_RESTORE, lasting=None, **options)


def _order_options(*, lasting: bool) -> Callable[[_Command], _Command]:
    """Add what the orders have in common; one that lasts needs a reason, and may have an end."""
    options = [
        click.argument("subject", metavar="SUBJECT"),
        click.option("--reason", required=lasting, default="", metavar="WHY", help="Why; kept in the audit."),
        click.option(
            "--owner",
            "--author",
            "owner",
            envvar="GATEWAY_AUTHOR",
            metavar="NAME",
            help="Whose order it is [env: GATEWAY_AUTHOR; default: you]; with --admin, your certificate says it.",
        ),
        gateway_options(),
        json_option,
    ]
    if lasting:
        text = "How long, for example 30m [default: until restored]."
        options.append(click.option("--for", "lasting", metavar="TIME", help=text))

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _ordered(
    place: Place, action: int, *, subject: str, reason: str, owner: str | None, lasting: str | None, as_json: bool
) -> int:
    who = check_text(owner or _login(), "owner")
    request = pb.SetHealthRequest(subject=subject, action=action, owner=who, reason=reason)  # type: ignore[arg-type]  # an enum's number
    if lasting is not None:
        try:
            request.expires_in_s = parse_duration(lasting)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--for") from None
    return set_health(place, request, as_json=as_json)


def _register_requests(main: click.Group) -> None:
    @verb(main, "configctl requests --failed --follow", "configctl requests --class rate_limited --json")
    @click.option("--failed", is_flag=True, help="Only those whose caller did not get a whole good answer.")
    @click.option("--follow", is_flag=True, help="Go on with new ones as they end.")
    @click.option("-n", "--limit", type=click.IntRange(1, _MAX_LISTED), default=50, show_default=True, help="How many.")
    @click.option("--model", default="", metavar="NAME", help="Only for this public model.")
    @click.option("--client", default="", metavar="NAME", help="Only of this client.")
    @click.option("--served-by", default="", metavar="TARGET", help="Only those that provider/model served.")
    @click.option("--class", "error_class", default="", metavar="CLASS", help="Only with such a failed attempt.")
    @click.option("--since", metavar="TIME", help="Only the last so long, for example 15m.")
    @gateway_options()
    @json_option
    def requests(place: Place, since: str | None, as_json: bool, **filters: Any) -> int:
        """List past requests, newest first."""
        request = pb.ListRequestsRequest(**filters)
        if since is not None:
            try:
                request.since = time.time() - parse_duration(since)
            except ValueError as error:
                raise click.BadParameter(str(error), param_hint="--since") from None
        return list_requests(place, request, as_json=as_json)


def _register_explain(main: click.Group) -> None:
    @verb(main, "configctl explain 1f6c2a50-4c1e-9f6e-8f43-0d1f5a0b7f11")
    @click.argument("request_id")
    @gateway_options()
    @json_option
    def explain(place: Place, request_id: str, as_json: bool) -> int:
        """Tell the story of one request, and plan it again to check."""
        return explain_request(place, request_id, as_json=as_json)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
