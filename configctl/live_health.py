"""How a running gateway sees its targets, for `preview`: the admin API's rows -> the health engine's views."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from configctl.admin_client import AdminClient, AdminError
from configctl.options import Place
from extproc.config.snapshot import TargetKey
from extproc.core.health import View
from extproc.core.health_state import State
from extproc.wire.pb import admin_pb2 as pb


def current_health(place: Place) -> Callable[[TargetKey], View] | None:
    """Return how a running gateway sees each target, for `preview`; None when none runs in the data directory.

    A gateway that was named with --admin must answer.
    """
    try:
        with AdminClient.of(place) as client:
            rows = client.health()
    except AdminError:
        if place.admin:
            raise
        return None
    views = {row.subject: _view(row) for row in rows}

    def view(key: TargetKey) -> View:
        return _of(views, str(key)).within(_of(views, key.provider))

    return view


def _of(views: Mapping[str, View], subject: str) -> View:
    return views.get(subject, View.healthy())


def _view(row: pb.HealthRow) -> View:
    return View(
        State(row.state),
        row.eligible,
        row.share,
        probe=row.state == State.PROBING and row.eligible,
        until=row.until if row.HasField("until") else None,
        reason=row.reason or None,
    )
