"""The verbs about clients' tokens: `key new` and `key hash`; `register(main)` mounts them on the command's group."""

from __future__ import annotations

import sys

import click

from configctl.options import Verbs, json_option, verb
from configctl.refusals import Refusal
from configctl.screen import Screen, is_terminal


def register(main: click.Group) -> None:
    """Add the verbs to the command."""
    main.add_command(key)


@click.group(cls=Verbs, epilog="\b\nExample:\n  configctl key new --name team-a")
def key() -> None:
    """Make and hash the tokens that clients send."""


@verb(key, "configctl key new --name team-a")
@click.option("--name", default="team-a", show_default=True, help="The client's name in the printed config lines.")
@json_option
def new(name: str, as_json: bool) -> int:
    """Print a fresh token, this once, and the config lines that admit it."""
    from configctl import commands, render, shapes
    from extproc.config.fields import client_name

    try:
        client_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--name") from None
    fresh = commands.new_key()
    screen = Screen()
    if as_json:
        screen.json(shapes.of_key(fresh))
        return 0
    lines = {"clients": [{"name": name, "token_sha256": fresh.token_sha256}]}
    screen.data.print(f"{fresh.token}\n\n{render.as_yaml(lines)}", markup=False)
    screen.say("The token is not kept: give it to the client now; the config holds only its digest.")
    return 0


@verb(key, 'printf %s "$TOKEN" | configctl key hash')
@json_option
def hash(as_json: bool) -> int:  # noqa: A001 - the verb's name
    """Read a token from stdin, or ask for it, and print the digest for the config."""
    from configctl import commands, shapes

    token = _read_token()
    if not token.strip():
        raise Refusal("There is no token on stdin.")
    digest = commands.hash_key(token)
    screen = Screen()
    if as_json:
        screen.json(shapes.of_digest(digest))
    else:
        screen.data.print(digest, markup=False)
    return 0


def _read_token() -> str:
    try:
        if not is_terminal():
            return sys.stdin.buffer.read().decode()
        token: str = click.prompt("token", hide_input=True, err=True)
        token.encode()
    except UnicodeError:
        sentence = "The token is not UTF-8 text: use one of letters and digits, as `configctl key new` makes."
        raise Refusal(sentence) from None
    return token
