"""Several predictors as one order of the background, each with the share that it has earned.

Predictors stand in an order of urgency: those that look at where the guest is now go ahead of the far history, the cold
sweep comes after all. At every turn the first one that has credit and something to propose is taken; a predictor whose
proposals are used has credit always, one whose proposals are not used gets a turn now and then (``feedback``). What no
predictor has credit for is left to the sweep, so the hydration never stands still.

``accessed`` only appends to a deque; all thinking is done by the thread of the background when it asks what is next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from whimbrel.stream.chunkmap import Run
from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.feedback import Score
from whimbrel.stream.prefetch.predictor import Predictor

INBOX: Final = 1 << 14
CREDIT_MOST: Final = 2.0
ACTIVE_TURNS: Final = 64
"""Who proposed nothing for so long is no rival."""
URGENT_FROM: Final = 0.5
"""Accuracy from which a predictor's word is worth a little delay of the next miss."""


class Local(Protocol):
    """What is asked of the chunk map."""

    @property
    def chunks(self) -> int:
        """Of the disk."""
        ...

    def is_local(self, first: int, last: int) -> bool:
        """Whether all of these are local."""
        ...


class _Entry:
    __slots__ = ("active", "credit", "predictor", "score", "share")

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.score = Score()
        self.credit = 1.0
        self.share = 1.0
        self.active = -ACTIVE_TURNS
        """The turn in which it last had something to propose."""


class Blend:
    """An Order (see ``hydration``) made of predictors, the most urgent first."""

    def __init__(self, chunkmap: Local, predictors: Sequence[Predictor]) -> None:
        self._map = chunkmap
        self._entries = [_Entry(each) for each in predictors]
        self._inbox: deque[tuple[int, int, Access]] = deque(maxlen=INBOX)
        self._touched = bytearray(chunkmap.chunks)
        self._proposed = bytearray(chunkmap.chunks)
        self._touches = 0
        self._turn = 0

    def accessed(self, first: int, last: int, access: Access) -> None:
        """See Order."""
        self._inbox.append((first, last, access))

    def next_run(self, longest: int) -> Run | None:
        """See Order."""
        return self._next(longest, 0.0)

    def next_urgent(self, longest: int) -> Run | None:
        """See Order: of predictors that are mostly right."""
        return self._next(longest, URGENT_FROM)

    def _next(self, longest: int, accuracy: float) -> Run | None:
        self._listen()
        self._turn += 1
        for entry in self._entries:
            if entry.score.accuracy < accuracy:
                continue
            entry.share = entry.score.share(self._best_beside(entry))
            entry.credit = min(entry.credit + entry.share, CREDIT_MOST)
            if entry.credit < 1.0:
                continue
            proposal = entry.predictor.propose(longest, self._wanted)
            if proposal is None:
                continue
            entry.credit -= 1.0
            entry.active = self._turn
            (first, last), within = proposal
            self._proposed[first:last] = b"\x01" * (last - first)
            for chunk in range(first, last):
                if not self._touched[chunk]:
                    entry.score.propose(chunk, self._touches + within)
            return first, last
        return None

    def report(self) -> dict[str, object]:
        """For the status: per predictor what it proposed and what became of it."""
        return {
            entry.predictor.name: {**entry.score.report(), "share": round(entry.share, 3)} for entry in self._entries
        }

    def _best_beside(self, entry: _Entry) -> float:
        """Accuracy of the best of the others that are not out of proposals."""
        since = self._turn - ACTIVE_TURNS
        return max(
            (each.score.accuracy for each in self._entries if each is not entry and each.active >= since), default=0
        )

    def _wanted(self, chunk: int) -> bool:
        return 0 <= chunk < self._map.chunks and not self._proposed[chunk] and not self._map.is_local(chunk, chunk + 1)

    def _listen(self) -> None:
        """Tell everybody what the guest did since the last time."""
        for _ in range(len(self._inbox)):
            first, last, access = self._inbox.popleft()
            for chunk in range(first, last):
                if not self._touched[chunk]:
                    self._touched[chunk] = 1
                    self._touches += 1
                    for entry in self._entries:
                        entry.score.touched(chunk)
            for entry in self._entries:
                entry.score.expire(self._touches)
                entry.predictor.accessed(first, last, access)
