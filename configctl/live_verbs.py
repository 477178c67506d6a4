"""The verbs that ask a running gateway, as `configctl` spells them: `health`, `requests`, `explain`.

`register(main)` mounts them on the command's group. What they do is `live_commands.py`'s, which is imported when one of
them runs: gRPC takes longer to import than most verbs to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

from configctl.author import login_name
from configctl.options import Place, Verbs, check_text, gateway_options, json_option, verb
from extproc.config.units import parse_duration

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Action = Literal["HEALTH_ACTION_DRAIN", "HEALTH_ACTION_DOWN", "HEALTH_ACTION_RESTORE"]
_MAX_LISTED = 1000


def register(main: click.Group) -> None:
    """Add the verbs to the command."""
    _register_health(main)
    _register_requests(main)
    _register_explain(main)


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
        from configctl.live_commands import list_health

        return list_health(place, as_json=as_json, follow=follow)

    @verb(health, "configctl health drain openai/gpt-4o --reason 'their incident 512' --for 1h")
    @_order_options(lasting=True)
    def drain(place: Place, **options: Any) -> int:
        """Send SUBJECT no more traffic, except when nothing else can serve."""
        return _ordered(place, "HEALTH_ACTION_DRAIN", **options)

    @verb(health, "configctl health down azure --reason 'contract ended'")
    @_order_options(lasting=True)
    def down(place: Place, **options: Any) -> int:
        """Send SUBJECT no traffic at all."""
        return _ordered(place, "HEALTH_ACTION_DOWN", **options)

    @verb(health, "configctl health restore openai/gpt-4o")
    @_order_options(lasting=False)
    def restore(place: Place, **options: Any) -> int:
        """Put SUBJECT back in full service; its order and its cooldown are forgotten."""
        return _ordered(place, "HEALTH_ACTION_RESTORE", lasting=None, **options)


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
    place: Place, action: _Action, *, subject: str, reason: str, owner: str | None, lasting: str | None, as_json: bool
) -> int:
    from configctl.live_commands import set_health
    from extproc.wire.pb import admin_pb2 as pb

    who = check_text(owner or login_name(), "owner")
    request = pb.SetHealthRequest(subject=subject, action=action, owner=who, reason=reason)
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
        from configctl.live_commands import list_requests
        from extproc.wire.pb import admin_pb2 as pb

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
        from configctl.live_commands import explain_request

        return explain_request(place, request_id, as_json=as_json)
