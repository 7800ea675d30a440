"""Keeps score of a predictor: which of its proposals the guest used, which it passed by.

Time is counted in *touches*: chunks that the guest touches for the first time. A proposal says after how many touches
the guest should have used it, so one that runs far ahead is not blamed for being early. What is not used by then
counts as wasted. Old results fade, so a predictor that was wrong for a while is believed again soon after it is right.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

FLOOR: Final = 0.04
"""Nobody's share falls below: what is never tried can never prove itself again."""
EQUAL_FROM: Final = 0.5
"""Of the best rival's accuracy: who has so much of it is not held back. Being near the guest makes up for the rest."""
SWEEP_ACCURACY: Final = 0.02
"""Of the cold sweep, roughly: the rival that everybody has."""
MEMORY: Final = 256.0
"""Results after which old ones weigh less than half."""
TRUST: Final = 24.0
"""Uses that everybody is credited with at the start."""


@dataclass(slots=True)
class Score:
    """One predictor's proposals and what became of them. For one thread; ``report`` from any."""

    proposed: int = 0
    used: int = 0
    wasted: int = 0
    _good: float = TRUST
    _all: float = TRUST
    _open: dict[int, int] = field(default_factory=dict)
    _due: list[tuple[int, int]] = field(default_factory=list)

    def propose(self, chunk: int, due: int) -> None:
        """The background will fetch ``chunk`` on this predictor's word; the guest should touch it by touch ``due``."""
        self.proposed += 1
        self._open[chunk] = due
        heapq.heappush(self._due, (due, chunk))

    def touched(self, chunk: int) -> None:
        """The guest touched a chunk for the first time."""
        if self._open.pop(chunk, None) is not None:
            self.used += 1
            self._settle(1.0)

    def expire(self, touches: int) -> None:
        """So many touches there have been: what was due is wasted."""
        while self._due and self._due[0][0] < touches:
            due, chunk = heapq.heappop(self._due)
            if self._open.get(chunk) == due:
                del self._open[chunk]
                self.wasted += 1
                self._settle(0.0)

    def _settle(self, result: float) -> None:
        fade = 1.0 - 1.0 / MEMORY
        self._good = self._good * fade + result
        self._all = self._all * fade + 1.0

    @property
    def accuracy(self) -> float:
        """Share of the settled proposals that were used, lately."""
        return self._good / self._all

    def share(self, rival: float) -> float:
        """Of the turns this predictor could take, how many it is given beside a rival of that accuracy."""
        return max(min(self.accuracy / (EQUAL_FROM * max(rival, SWEEP_ACCURACY)), 1.0), FLOOR)

    def report(self) -> dict[str, object]:
        """For the status."""
        return {
            "proposed": self.proposed,
            "used": self.used,
            "wasted": self.wasted,
            "accuracy": round(self.accuracy, 3),
        }
