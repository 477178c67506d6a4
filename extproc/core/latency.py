"""Whether a target has become slow compared with itself.

Owns one target's baseline of times to first token and the share of traffic that its slowness leaves it. Only
streams have such a time: how long a whole answer takes depends on its length (feedback.py leaves those out).
Requests of different size are compared only with their own kind: one baseline per size class (a factor of
four each). The recent time is a moving mean of the *ratio* to the baseline, so all classes feed one verdict.

Invariants: the share lies in [FLOOR, 1]; it falls only on fresh evidence (RECENT_MIN measurements since it
last fell) and rises by itself, doubling every RISE_S, so that a target without traffic is never slow for
ever. While slow, the baseline hardly learns: an outage does not become the new normal within minutes.
"""

from __future__ import annotations

import math
from typing import Final

BASELINE_MIN: Final = 20
RECENT_MIN: Final = 5
SLOW_FACTOR: Final = 3.0
SLOW_EXCESS_S: Final = 0.25
FALL: Final = 0.5
FLOOR: Final = 0.1
FALL_EVERY_S: Final = 5.0
RISE_S: Final = 30.0

_LEARN: Final = 0.02
_LEARN_SLOW: Final = 0.001
_RECENT: Final = 0.2
_SIZE_CLASSES: Final = 16
_LEAST_S: Final = 1e-4
_LOG_SLOW: Final = math.log(SLOW_FACTOR)


class Latency:
    """Times to first token of one target."""

    __slots__ = ("_baselines", "_fell_at", "_fresh", "_recent", "_share", "_why")

    def __init__(self) -> None:
        self._baselines: dict[int, tuple[int, float]] = {}
        """Size class -> (measurements, mean logarithm of seconds)."""
        self._recent = 0.0
        self._fresh = 0
        self._share = 1.0
        self._fell_at = 0.0
        self._why = (0.0, 0.0)
        """The measured seconds that made the share fall last, and the usual ones."""

    def observe(self, first_token_s: float, size_bytes: int, now: float) -> bool:
        """Take in one time to first token; return whether the target's share fell."""
        if not first_token_s > 0.0 or first_token_s == math.inf:
            return False
        size_class = min(max(size_bytes, 0).bit_length() // 2, _SIZE_CLASSES)
        count, baseline = self._baselines.get(size_class, (0, 0.0))
        seen = math.log(max(first_token_s, _LEAST_S))
        if count < BASELINE_MIN:
            self._baselines[size_class] = (count + 1, baseline + (seen - baseline) / (count + 1))
            return False
        ratio = seen - baseline
        # A ratio is clipped so that one absurd measurement does not outweigh the next twenty.
        self._recent += _RECENT * (min(ratio, 2 * _LOG_SLOW) - self._recent)
        slow = self._recent > _LOG_SLOW
        learn = _LEARN_SLOW if slow else _LEARN
        self._baselines[size_class] = (count, baseline + learn * min(ratio, _LOG_SLOW))
        self._fresh += 1
        excess_s = first_token_s - math.exp(baseline)
        if not (slow and ratio > 0 and excess_s > SLOW_EXCESS_S and self._fall(now)):
            return False
        self._why = (first_token_s, math.exp(baseline))
        return True

    def share(self, now: float) -> float:
        """Return the share of its weight that the target keeps."""
        if self._share >= 1.0:
            return 1.0
        return min(1.0, self._share * math.exp2(min(max(0.0, now - self._fell_at) / RISE_S, 10.0)))

    def evidence(self, now: float) -> tuple[str, ...]:
        """Return what a share below 1 rests on, as `name=value`; nothing while it is whole."""
        if self.share(now) >= 1.0:
            return ()
        measured_s, usual_s = self._why
        return (f"first_token_s={measured_s:.3g}", f"usual_s={usual_s:.3g}", f"slow_factor={SLOW_FACTOR:g}")

    def forget(self) -> None:
        """Give the full share back; the baselines stay."""
        self._share, self._recent, self._fresh = 1.0, 0.0, 0

    def settle(self, now: float) -> float:
        """Return the share like `share`, and note it when it is whole again."""
        share = self.share(now)
        if share >= 1.0:
            self._share = 1.0
        return share

    def _fall(self, now: float) -> bool:
        if self._fresh < RECENT_MIN or (self._share < 1.0 and now - self._fell_at < FALL_EVERY_S):
            return False
        self._share = max(FLOOR, self.share(now) * FALL)
        self._fell_at, self._fresh = now, 0
        return True
