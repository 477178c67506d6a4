"""The options that verbs share, and how a verb's faults become sentences and exit codes.

Owns the order of precedence (flag after the verb, flag before it, environment, default) and the mapping of StoreError,
ConfigErrors and Refusal. Durations are read as in the config file.
"""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from configctl.refusals import Refusal, StoreError
from configctl.screen import Screen, drop_output
from extproc.config.errors import ConfigErrors
from extproc.config.units import parse_duration
from extproc.data_dir import DataDir

if TYPE_CHECKING:
    from configctl.store import Store

DEFAULT_DATA_DIR = "./.gateway"
DEFAULT_TIMEOUT = "30s"
_MAX_TEXT_CHARS = 2000
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_Command = TypeVar("_Command", bound=Callable[..., Any])


class Verbs(click.Group):
    """A group whose verbs are listed in the order they were written; a full disk under stdout is a sentence."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the verbs in their order."""
        return list(self.commands)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line; output that cannot be written is a sentence and exit code 1."""
        try:
            return super().main(*args, **options)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            drop_output()
            Screen().say(f"The output cannot be written: {error.strerror}.")
            raise SystemExit(1) from None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the store is, and the gateway to ask, as far as flags say so."""

    data_dir: str | None = None
    store: str | None = None
    admin: str | None = None
    """`HOST:PORT` of a gateway's admin API; None: the Unix socket in the data directory."""
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None

    def under(self, outer: Place) -> Place:
        """Return this place with what it leaves open taken from the flags before the verb."""
        return Place(*(getattr(self, name) or getattr(outer, name) for name in PLACE_OPTIONS))

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Place:
        """Take a verb's own flags out of its options."""
        return cls(**{name: options.pop(name) for name in PLACE_OPTIONS if name in options})

    @property
    def url(self) -> str:
        """The store's URL."""
        if self.store:
            return self.store
        return f"sqlite:///{self._files.store_db}"

    @property
    def names_gateway(self) -> bool:
        """Whether a gateway was named, or left its socket in the data directory."""
        return bool(self.admin) or self._files.admin_socket.exists()

    @property
    def _files(self) -> DataDir:
        return DataDir(Path(self.data_dir or DEFAULT_DATA_DIR))


PLACE_OPTIONS = tuple(field.name for field in fields(Place))


def open_store(place: Place, *, create: bool = False, in_use: bool = False) -> Store:
    """Open the store; one that is not there is created for a change, a fault where it is in use, and else empty."""
    # Here and not above: the database library takes longer to import than most verbs to run.
    from configctl.engine import parse_store_url, sqlite_path
    from configctl.store import Store

    path = sqlite_path(parse_store_url(place.url))
    if path is not None and create and not path.exists():
        _refuse_to_begin_anew(path)
    if path is None or create or path.exists():
        return Store.open(place.url)
    if in_use:
        raise StoreError(f"The store {path} is not there: bring it back, or name the gateway's with --store.")
    Screen().say(f"There is no store at {path} yet.")
    return Store.open("sqlite://")


def _refuse_to_begin_anew(path: Path) -> None:
    """Raise StoreError for a store that went missing: a new one would count from 1 again and know no history."""
    data_dir = DataDir(path.parent)
    if _answers(data_dir.admin_socket):
        raise StoreError(f"The store {path} is not there, though a gateway runs here: bring it back in its place.")
    if data_dir.last_good.exists():
        raise StoreError(
            f"The store {path} is not there, though a gateway ran here before: bring it back, "
            f"or remove {data_dir.last_good} to begin anew."
        )


def _answers(path: Path) -> bool:
    """Tell whether somebody listens; the socket's file may be an earlier run's."""
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(str(path))
        return True
    return False


def verb(group: click.Group, *examples: str) -> Callable[[Callable[..., int]], click.Command]:
    """Make a function that returns an exit code a verb of `group`, with examples in its help."""

    def register(function: Callable[..., int]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> None:
            context = click.get_current_context()
            if "data_dir" in options:
                outer = context.find_object(Place) or Place()
                options["place"] = Place.taken_from(options).under(outer)
            code = _answered(function, args, options)
            # Flushes, here where a fault can still be told: at its own end Python would print a traceback.
            click.echo(nl=False)
            context.exit(code)

        lines = "\n".join(f"  {example}" for example in examples)
        title = "Examples" if len(examples) > 1 else "Example"
        return group.command(function.__name__, epilog=f"\b\n{title}:\n{lines}")(run)

    return register


def place_options(*, from_environment: bool = False) -> Callable[[_Command], _Command]:
    """Add --data-dir and --store; only those before the verb read the environment, so that flags come first."""
    store = "sqlite:///PATH or postgresql+psycopg://... [env: GATEWAY_STORE; default: DATA_DIR/store.db]"
    data_dir = f"The gateway's data directory [env: GATEWAY_DATA_DIR; default: {DEFAULT_DATA_DIR}]"

    def add(command: _Command) -> _Command:
        envvar = "GATEWAY_STORE" if from_environment else None
        command = click.option("--store", envvar=envvar, metavar="URL", help=store)(command)
        envvar = "GATEWAY_DATA_DIR" if from_environment else None
        return click.option("--data-dir", envvar=envvar, metavar="DIR", help=data_dir)(command)

    return add


def gateway_options(*, from_environment: bool = False) -> Callable[[_Command], _Command]:
    """Add where the store is and which gateway to ask; the same rule of precedence."""
    texts = {
        "tls_ca": "Who signed the gateway's certificate",
        "tls_key": "Your certificate's key",
        "tls_cert": "Your certificate: the name in it is who acts",
        "admin": "A gateway's admin API, over TLS with the three files below",
    }

    def add(command: _Command) -> _Command:
        for name, text in texts.items():
            variable = f"GATEWAY_{name.upper()}"
            default = "the socket in the data directory" if name == "admin" else "none"
            command = click.option(
                f"--{name.replace('_', '-')}",
                envvar=variable if from_environment else None,
                metavar="HOST:PORT" if name == "admin" else "FILE",
                help=f"{text} [env: {variable}; default: {default}]",
            )(command)
        return place_options(from_environment=from_environment)(command)

    return add


def json_option(command: _Command) -> _Command:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def author_option(command: _Command) -> _Command:
    """Add --author."""
    text = "Who acts [env: GATEWAY_AUTHOR; default: the login name]"
    return click.option("--author", envvar="GATEWAY_AUTHOR", metavar="NAME", help=text)(command)


def wait_options(command: _Command) -> _Command:
    """Add what publish and rollback have in common."""
    options = (
        click.option("-m", "--message", required=True, metavar="MSG", help="Why; kept with the version."),
        click.option("--expect", type=click.IntRange(min=0), metavar="N", help="Only if N is active (0: none is)."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option(
            "--timeout",
            type=_Duration(),
            default=DEFAULT_TIMEOUT,
            show_default=True,
            help="How long to wait for the gateways.",
        ),
        click.option("--no-wait", is_flag=True, help="Do not wait for the gateways."),
        click.option("--keep", is_flag=True, help="Do not go back when a gateway refuses the version."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def check_text(text: str, name: str) -> str:
    """Return an author or message that can be stored and printed; raises a usage error."""
    text = text.strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("is not valid UTF-8 text", param_hint=f"--{name}") from None
    if not text or len(text) > _MAX_TEXT_CHARS:
        raise click.BadParameter(f"must be 1 to {_MAX_TEXT_CHARS} characters", param_hint=f"--{name}")
    if any(not char.isprintable() and char not in "\n\t" for char in text):
        raise click.BadParameter("must not hold control characters", param_hint=f"--{name}")
    return text


class _Duration(click.ParamType[float]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _answered(function: Callable[..., int], args: tuple[Any, ...], options: dict[str, Any]) -> int:
    """Run a verb; what it cannot do becomes a sentence on stderr and exit code 1."""
    screen = Screen()
    try:
        return function(*args, **options)
    except ConfigErrors as errors:
        if options.get("as_json"):
            from configctl import shapes

            screen.json(shapes.of_invalid(errors))
        screen.say(str(errors))
    except (StoreError, Refusal) as error:
        screen.say(str(error))
    return 1
