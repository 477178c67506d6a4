"""Tables on a narrow terminal: what identifies a thing is folded, never cut."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

import pytest
from rich.console import Console

from configctl.live_render import HEALTH_HEADERS, REQUEST_HEADERS, health_table
from configctl.render import print_rows

TIME = "2027-01-15T08:00:00.000Z"
STATUS = (
    ("instance", "host", "state", "wanted", "applied", "since", "last error", "missing keys"),
    [
        (f"vm:/var/lib/gateways/{name}/.gateway", "vm", "live", "12", "11", TIME, "no such file: /etc/ssl/a.pem", "")
        for name in ("first", "second")
    ],
)
HISTORY = (
    ("", "version", "published", "kind", "outcome", "author", "message"),
    [("*", "12", TIME, "rollback to 3", "applied", "ann@example.com", "as it was before the incident")],
)
REQUESTS = (
    REQUEST_HEADERS,
    [(TIME, "3e2c9a9e-7f1b-4b56-9b0c-0e6f5c1d2a3b", "gpt-4o", "served", "200", "direct", "a/b", "1", "", "12", "7+3")],
)


def on_terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, soft_wrap=True)


def characters(text: str) -> Counter[str]:
    return Counter("".join(text.split()))


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("width", "table"), [(80, STATUS), (40, HISTORY), (80, REQUESTS)])
def test_a_narrow_terminal_shows_every_character(
    width: int, table: tuple[Sequence[str], Sequence[Sequence[str]]]
) -> None:
    console = on_terminal(width)
    headers, rows = table

    print_rows(console, headers, rows)

    assert characters("".join([*headers, *(cell for row in rows for cell in row)])) == characters(printed(console))
    assert max(map(len, printed(console).splitlines())) <= width


def test_a_live_table_shows_every_character_too() -> None:
    console = on_terminal(60)
    row = {"state": "cooling", "share": 1.0, "until": TIME, "reason": "rate_limited", "order": None}

    console.print(health_table([{"subject": "provider-with-a-long-name/model-with-a-long-name", **row}]))

    shown = "provider-with-a-long-name/model-with-a-long-name" + "cooling" + TIME + "rate_limited"
    assert characters("".join(HEALTH_HEADERS) + shown) == characters(printed(console))
