"""The health engine: which targets may serve now, learnt from the attempts that went out.

Owns which subjects an outcome concerns (a target, its provider account, or both), promotion of a fault from
targets to their account, operator orders, and the table of subjects. The machine of one subject is
health_cell.py's, what survives a restart health_saved.py's. Pure: no clock, no randomness of its own, one
thread.

Promotion: two targets of one account that trip within the window make the account cool too, unless a request
that began after the first trip has succeeded there since. `model_unavailable` never promotes: it says that
the account answers. A promoted fault ends as soon as any request that began after it succeeds at the account.

Invariants: an outcome charged to nobody changes nothing but frees its probe slot; at most one probe per
subject is under way; every set of targets has a defined answer when none is eligible (`least_bad`); every
change of state is told once, those that time makes with the next event or `elapse`. State is kept per target
in use, at most CELLS_KEPT of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import inf, isfinite
from typing import Any, Final

from extproc.config.snapshot import Cooldown, TargetKey
from extproc.core.health_cell import PROBE_LEASE_S, Cell, Moment
from extproc.core.health_saved import dump_cells, load_cells
from extproc.core.health_state import (
    HEALTHY,
    Operator,
    Permit,
    Row,
    State,
    Subject,
    Success,
    Transition,
    View,
)
from extproc.core.outcome import Charge, ErrorClass, Failure

__all__ = [
    "CELLS_KEPT",
    "HEALTHY",
    "PROBE_LEASE_S",
    "HealthEngine",
    "Operator",
    "Permit",
    "Row",
    "State",
    "Subject",
    "Success",
    "Transition",
    "View",
]

CELLS_KEPT: Final = 10_000
_PROMOTION_TARGETS: Final = 2


class HealthEngine:
    """Health of every target and provider account; `rng` draws from [0, 1) for jitter."""

    def __init__(self, rng: Callable[[], float]) -> None:
        self._rng = rng
        self._targets: dict[TargetKey, Cell] = {}
        self._providers: dict[str, Cell] = {}
        self._known: frozenset[TargetKey] | None = None
        self._last_id = 0

    def view(self, key: TargetKey, now: float) -> View:
        """Return how a target looks right now, its provider account included; changes nothing."""
        target = self._targets.get(key)
        provider = self._providers.get(key[0])
        if target is None or target.calm:
            return HEALTHY if provider is None or provider.calm else provider.view(now)
        if provider is None or provider.calm:
            return target.view(now)
        return target.view(now).within(provider.view(now))

    def evidence(self, key: TargetKey, now: float) -> tuple[str, ...]:
        """Return what `view` rests on, as `name=value`: values and the thresholds they are measured against."""
        target, provider = self._targets.get(key), self._providers.get(key[0])
        own = () if target is None or target.calm else target.evidence(now)
        account = () if provider is None or provider.calm else provider.evidence(now)
        return (*own, *(f"account.{fact}" for fact in account))

    def recovery_time(self, keys: Iterable[TargetKey], now: float) -> float | None:
        """Return the earliest epoch second at which any of the targets could serve, None for never."""
        earliest = min((self._ready_at(key, now) for key in keys), default=inf)
        return earliest if isfinite(earliest) else None

    def least_bad(self, keys: Iterable[TargetKey], now: float) -> TargetKey | None:
        """Return the target to try when none is eligible: the soonest to recover, drained ones last.

        Equals keep the order of `keys`. None when an operator took every one of them down.
        """
        best: tuple[bool, float] | None = None
        choice: TargetKey | None = None
        for key in keys:
            kinds = {cell.operator.kind for cell in self._cells(key) if cell.operator and cell.operator.holds(now)}
            rank = ("drain" in kinds, self._ready_at(key, now))
            if "down" not in kinds and (best is None or rank < best):
                best, choice = rank, key
        return choice

    def states(self, now: float) -> Iterator[Row]:
        """Yield every provider account, then every target, each by itself, healthy ones included."""
        known = self._known or frozenset()
        for name in sorted({key.provider for key in known} | self._providers.keys()):
            yield _row(self._providers.get(name) or Cell(name), now)
        for key in sorted({key for key in known if key.model != "*"} | self._targets.keys()):
            yield _row(self._targets.get(key) or Cell(key), now)

    def begin(self, key: TargetKey, now: float) -> Permit:
        """Note that an attempt starts, as the probe of whatever is half-open. `end` it exactly once."""
        self._last_id += 1
        target, provider = self._targets.get(key), self._providers.get(key[0])
        if (target is None or target.calm) and (provider is None or provider.calm):
            return Permit(self._last_id, key, now, probe=False)
        taken = [cell.take_slot(self._last_id, now) for cell in (target, provider) if cell is not None]
        return Permit(self._last_id, key, now, probe=any(taken))

    def end(
        self, permit: Permit, verdict: Failure | Success | None, now: float, cooldown: Cooldown
    ) -> tuple[Transition, ...]:
        """Take in how an attempt ended; None is no verdict (the caller left, or we refused it ourselves).

        Returns the changes of state that this made, preceded by those that time had made unnoticed.
        """
        key = permit.key
        target = self._targets.get(key) or self._add(key)
        provider = self._providers.get(key[0]) or self._add_provider(key[0])
        told: tuple[Transition, ...] = ()
        if not (target.calm and provider.calm):
            told = _tell((target, provider), now)
        if permit.probe:
            target.give_slot_back(permit.id)
            provider.give_slot_back(permit.id)
        if isinstance(verdict, Success):
            self._succeeded(permit, verdict, now, cooldown, target, provider)
        elif verdict is not None:
            self._failed(permit, verdict, Moment(now, self._last_id, cooldown, self._rng), target, provider)
        if target.calm and provider.calm:
            return told
        return told + _tell((target, provider), now)

    def pace(self, key: TargetKey, until: float, now: float) -> tuple[Transition, ...]:
        """Rest a target whose limit a success reported as spent; at `until` it is simply back."""
        if until <= now:
            return ()
        target = self._targets.get(key) or self._add(key)
        told = _tell((target,), now)
        target.paced_until, target.calm = max(target.paced_until, until), False
        return told + _tell((target,), now)

    def checked(self, provider: str, now: float, cooldown: Cooldown, *, passed: bool) -> tuple[Transition, ...]:
        """Take in an active check of an account: a failure counts as a failed connection.

        A pass counts for the connection only: it never ends a cooldown for quota, keys or limits.
        """
        cell = self._providers.get(provider) or self._add_provider(provider)
        told = () if cell.calm else _tell((cell,), now)
        self._last_id += 1
        permit = Permit(self._last_id, TargetKey(provider, ""), now, probe=False)
        moment = Moment(now, self._last_id, cooldown, self._rng)
        if not passed:
            cell.fail(ErrorClass.CONNECTION, None, permit, moment)
        else:
            self._reached(permit, moment, cell)
        return told if cell.calm else told + _tell((cell,), now)

    def elapse(self, now: float) -> tuple[Transition, ...]:
        """Tell the changes that time alone has made; for a slow tick where there is no traffic."""
        cells = chain(self._providers.values(), self._targets.values())
        return _tell([cell for cell in cells if not cell.calm], now)

    def operator_down(
        self, subject: Subject, owner: str, reason: str, expires_at: float | None, now: float
    ) -> tuple[Transition, ...]:
        """Take a target or account out of service, even as a last resort, until `expires_at` or `restore`."""
        return self._order(subject, Operator("down", owner, reason, expires_at), now)

    def drain(
        self, subject: Subject, owner: str, reason: str, expires_at: float | None, now: float
    ) -> tuple[Transition, ...]:
        """Send no more traffic to a target or account, except when nothing else can serve."""
        return self._order(subject, Operator("drain", owner, reason, expires_at), now)

    def restore(self, subject: Subject, now: float) -> tuple[Transition, ...]:
        """Put a target or account back in full service; its order, cooldown and pause are forgotten."""
        cell = self._cell(subject)
        told = _tell((cell,), now)
        cell.close(self._last_id)
        cell.operator, cell.paced_until, cell.streak, cell.probe_id = None, 0.0, 0, 0
        cell.latency.forget()
        return told + _tell((cell,), now)

    def retain(self, keys: Iterable[TargetKey]) -> None:
        """Keep only what is configured; a key of model `*` keeps every target of its provider."""
        self._known = known = frozenset(keys)
        names = {key.provider for key in known}
        self._targets = {key: cell for key, cell in self._targets.items() if self._is_known(key)}
        self._providers = {name: cell for name, cell in self._providers.items() if name in names}
        for cell in self._providers.values():
            cell.suspects = {key: trip for key, trip in cell.suspects.items() if self._is_known(key)}

    def dump(self) -> dict[str, Any]:
        """Return as JSON values what must survive a restart: cooldowns, pauses and orders."""
        return dump_cells(chain(self._providers.values(), self._targets.values()))

    def load(self, saved: object, now: float) -> None:
        """Take over what `dump` wrote; what is malformed, over or not configured (`retain`) is ignored."""
        load_cells(saved, now, self._is_known, self._cell)

    def _succeeded(
        self, permit: Permit, success: Success, now: float, cooldown: Cooldown, target: Cell, provider: Cell
    ) -> None:
        if provider.suspects:
            suspects = provider.suspects.items()
            provider.suspects = {key: trip for key, trip in suspects if trip[1] >= permit.id}
        target.succeed(permit, now, cooldown, self._last_id)
        provider.succeed(permit, now, cooldown, self._last_id)
        first_token_s = success.first_token_s
        if first_token_s is not None and target.latency.observe(first_token_s, success.size_bytes, now):
            target.calm = False

    def _failed(self, permit: Permit, failure: Failure, moment: Moment, target: Cell, provider: Cell) -> None:
        kind = failure.error_class
        charge = failure.charge
        if charge is Charge.PROVIDER:
            provider.fail(kind, failure.retry_at, permit, moment)
        elif charge is Charge.TARGET:
            began = target.fail(kind, failure.retry_at, permit, moment)
            if failure.status is not None:
                self._reached(permit, moment, provider)
            if kind is not ErrorClass.MODEL_UNAVAILABLE:
                self._suspect(permit, kind, moment, provider, began=began)

    def _reached(self, permit: Permit, moment: Moment, provider: Cell) -> None:
        """Note that an account gave an answer: as bad as it was, the connection works."""
        if provider.tripped and provider.reason == ErrorClass.CONNECTION:
            provider.succeed(permit, moment.now, moment.cooldown, moment.seq)
        else:
            provider.answer(permit, moment.now, moment.cooldown)

    def _suspect(self, permit: Permit, kind: ErrorClass, moment: Moment, provider: Cell, *, began: bool) -> None:
        if provider.tripped:
            if provider.promoted and permit.started_at >= provider.until:
                provider.trip(kind, None, moment, ("probe=failed",), promoted=True)
            return
        if not began:
            return
        oldest = moment.now - moment.cooldown.window_s
        provider.suspects = {key: trip for key, trip in provider.suspects.items() if trip[0] >= oldest}
        provider.suspects[permit.key] = (moment.now, moment.seq)
        if len(provider.suspects) >= _PROMOTION_TARGETS:
            why = (f"targets_out={len(provider.suspects)}", f"window_s={moment.cooldown.window_s:g}")
            provider.trip(kind, None, moment, why, promoted=True)

    def _order(self, subject: Subject, operator: Operator, now: float) -> tuple[Transition, ...]:
        cell = self._cell(subject)
        told = _tell((cell,), now)
        cell.operator, cell.calm = operator, False
        return told + _tell((cell,), now)

    def _ready_at(self, key: TargetKey, now: float) -> float:
        return max((cell.ready_at(now) for cell in self._cells(key)), default=now)

    def _cells(self, key: TargetKey) -> list[Cell]:
        found = (self._targets.get(key), self._providers.get(key.provider))
        return [cell for cell in found if cell is not None]

    def _cell(self, subject: Subject) -> Cell:
        if isinstance(subject, TargetKey):
            return self._targets.get(subject) or self._add(subject)
        return self._providers.get(subject) or self._add_provider(subject)

    def _add(self, key: TargetKey) -> Cell:
        """Make room for a target: names behind a `*` come from callers and must not fill the memory."""
        if len(self._targets) >= CELLS_KEPT:
            first = next(iter(self._targets))
            del self._targets[next((k for k, cell in self._targets.items() if cell.calm), first)]
        return self._targets.setdefault(key, Cell(key))

    def _add_provider(self, name: str) -> Cell:
        return self._providers.setdefault(name, Cell(name))

    def _is_known(self, subject: Subject) -> bool:
        known = self._known
        if known is None:
            return True
        if isinstance(subject, TargetKey):
            return subject in known or TargetKey(subject.provider, "*") in known
        return any(key.provider == subject for key in known)


def _tell(cells: Iterable[Cell], now: float) -> tuple[Transition, ...]:
    """Bring cells up to date and return a transition for each whose state is not the last one told."""
    told = []
    for cell in cells:
        cell.settle(now)
        view = cell.view(now)
        if view.state is not cell.reported:
            told.append(Transition(cell.subject, cell.reported, view.state, view.reason, view.until))
            cell.reported = view.state
    return tuple(told)


def _row(cell: Cell, now: float) -> Row:
    return Row(cell.subject, cell.view(now), cell.streak, cell.operator)
